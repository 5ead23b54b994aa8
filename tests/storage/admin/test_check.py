from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from autotune.storage import filesystem
from autotune.storage.admin import check as checks
from autotune.storage.admin import read_only
from autotune.storage.admin.check import check
from autotune.storage.rdb.connection import open_storage
from autotune.storage.url import parse_url
from tests.storage.conftest import NewUrl
from tests.support.commands.inside import contents
from tests.support.study.databases import Server, downgrade
from tests.support.study.rows import everything, rich_study

BOTH = pytest.mark.parametrize("kind", ["sqlite", "postgres"])
SQLITE = ["file system", "free disk space", "reachable", "driver", "journal mode", "integrity"]
POSTGRES = ["reachable", "driver", "server", "encoding", "transaction isolation", "connections"]
LAST = ["schema", "write permission", "round trip"]


def found(url: str) -> dict[str, str]:
    findings = list(check(url))
    assert len({one.what for one in findings}) == len(findings)
    return {one.what: ("problem: " if one.is_problem else "") + one.text for one in findings}


def problems(url: str) -> dict[str, str]:
    return {what: said for what, said in found(url).items() if said.startswith("problem: ")}


@BOTH
def test_a_storage_that_is_fit(kind: str, new_url: NewUrl) -> None:
    url = new_url(kind)
    rich_study(url)
    before = everything(url)
    told = found(url)
    assert list(told) == [*(SQLITE if kind == "sqlite" else POSTGRES), *LAST]
    assert problems(url) == {}
    assert told["schema"].endswith(", that of the installed Optuna")
    assert told["round trip"].endswith(" ms for a transaction that writes one row")
    if kind == "sqlite":
        assert (told["journal mode"], told["integrity"]) == ("wal", "no damage")
    else:
        assert told["server"].startswith("Postgres ") and told["encoding"] == "UTF8"
        assert told["connections"].endswith(" of 100 in use")
    assert everything(url) == before


def test_it_makes_nothing(new_url: NewUrl, tmp_path: Path) -> None:
    url = new_url("sqlite")
    assert list(problems(url)) == ["reachable"]
    assert "there is no database " in problems(url)["reachable"]
    assert list(tmp_path.iterdir()) == []
    url = new_url("postgres")
    assert found(url)["schema"] == "no tables yet; 'autotune run' makes them"
    assert problems(url) == {}
    engine = sqlalchemy.create_engine(parse_url(url))
    assert sqlalchemy.inspect(engine).get_table_names() == []
    engine.dispose()


def test_the_journal_mode_stays_as_it_is(new_url: NewUrl, tmp_path: Path) -> None:
    url = new_url("sqlite")
    rich_study(url).engine.dispose()
    path = Path(url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    before = contents(tmp_path)
    assert found(url)["journal mode"] == "delete; it becomes wal when a study is opened"
    assert contents(tmp_path) == before


def test_a_damaged_file(new_url: NewUrl) -> None:
    url = new_url("sqlite")
    rich_study(url).engine.dispose()
    path = Path(url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    for at in range(4096 * 8, len(content), 4096 * 3):
        content[at : at + 64] = b"\xff" * 64
    path.write_bytes(content)
    (said,) = problems(url).values()
    assert "malformed" in said or "database page" in said


def test_a_network_file_system(
    new_url: NewUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mounts").write_text(f"1 0 0:1 / {tmp_path} rw - nfs4 server:/team rw\n")
    monkeypatch.setattr(filesystem, "MOUNTINFO", tmp_path / "mounts")
    found = problems(new_url("sqlite"))["file system"]
    assert found.startswith(f"problem: nfs4 at {tmp_path} is a network file system: use a local d")


def test_little_space(new_url: NewUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MIN_FREE_BYTES", 1 << 60)
    url = new_url("sqlite")
    rich_study(url)
    assert list(problems(url)) == ["free disk space"]


@BOTH
def test_old_tables(kind: str, new_url: NewUrl) -> None:
    url = new_url(kind)
    rich_study(url)
    downgrade(url)
    assert problems(url) == {
        "schema": "problem: v3.0.0.d, and those of the installed Optuna v3.2.0.a; 'autotune "
        "storage upgrade' brings them up to date"
    }


def test_settings_of_a_server_that_do_not_fit(
    new_url: NewUrl, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_url("postgres")
    name = parse_url(url).database
    postgres.run(f"ALTER DATABASE {name} SET default_transaction_isolation TO 'serializable'")
    monkeypatch.setattr(checks, "MIN_POSTGRES", 99)
    monkeypatch.setattr(checks, "POOL_OVERFLOW", 99)
    said = problems(url)
    assert list(said) == ["server", "transaction isolation", "connections"]
    assert said["server"].endswith(", but studies need 99 or newer")
    assert "serializable; ALTER DATABASE ... SET default_tr" in said["transaction isolation"]
    assert said["connections"].endswith("; a worker takes up to 101: raise max_connections")


def test_another_encoding(postgres: Server, closed_connections: None) -> None:
    postgres.run(
        "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
    )
    url = parse_url(postgres.url).set(database="latin").render_as_string(hide_password=False)
    assert list(problems(url)) == ["encoding"]


def test_a_user_who_may_only_read(postgres: Server, closed_connections: None) -> None:
    url = postgres.require_password("emil", "secret")
    rich_study(url)
    postgres.run("ALTER USER emil NOSUPERUSER")
    owner = parse_url(postgres.url).set(database=parse_url(url).database)
    engine = sqlalchemy.create_engine(owner, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("REASSIGN OWNED BY emil TO postgres")
        connection.exec_driver_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO emil")
    engine.dispose()
    said = problems(url)
    assert list(said) == ["write permission"]
    assert "permission denied for table studies" in said["write permission"]
    assert "secret" not in repr(found(url))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u:secret@127.0.0.1:1/db", "Connection refused; is the server running"),
        ("sqlite:////proc/nowhere/a.db", "there is no database /proc/nowhere/a.db"),
    ],
)
def test_what_cannot_be_reached(url: str, said: str) -> None:
    assert said in problems(url)["reachable"]
    assert "secret" not in repr(found(url))


def test_a_check_beside_a_worker(new_url: NewUrl) -> None:
    url = new_url("sqlite")
    storage = open_storage(url, create=True)
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")  # takes the write lock
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(read_only, "BUSY_TIMEOUT_S", 0.1)
            assert "database is locked" in problems(url)["write permission"]
    assert problems(url) == {}
