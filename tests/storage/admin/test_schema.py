from __future__ import annotations

import pytest
import sqlalchemy

from autotune.errors import StorageError
from autotune.storage.admin.schema import pending_upgrade, upgrade_tables
from autotune.storage.rdb.connection import open_storage
from tests.storage.conftest import NewUrl
from tests.support.study.databases import OLDER, downgrade
from tests.support.study.rows import everything, rich_study

BOTH = pytest.mark.parametrize("kind", ["sqlite", "postgres"])


@BOTH
def test_tables_of_an_older_optuna(kind: str, new_url: NewUrl) -> None:
    url = new_url(kind)
    storage = rich_study(url)
    newest = storage.get_head_version()
    assert pending_upgrade(url) is None
    before = everything(url)
    downgrade(url)
    with pytest.raises(StorageError) as caught:
        open_storage(url)
    said = str(caught.value)
    assert said.endswith("; 'autotune storage upgrade' brings it up to date")
    assert "optuna storage upgrade --storage" not in said
    assert pending_upgrade(url) == (OLDER, newest)
    upgrade_tables(url)
    assert pending_upgrade(url) is None
    assert everything(url) == before
    again = open_storage(url)
    indexes = sqlalchemy.inspect(again.engine).get_indexes("trials")
    assert [one["column_names"] for one in indexes] == [["study_id"]]


@BOTH
def test_tables_of_a_newer_optuna(kind: str, new_url: NewUrl) -> None:
    url = new_url(kind)
    storage = open_storage(url, create=True)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    with pytest.raises(
        StorageError, match=r"v99.0.0.a, and those of the installed Optuna v.*; update Optuna"
    ):
        pending_upgrade(url)


@BOTH
def test_a_storage_without_tables(kind: str, new_url: NewUrl) -> None:
    with pytest.raises(StorageError, match=r"there is no database|holds no studies"):
        pending_upgrade(new_url(kind))
