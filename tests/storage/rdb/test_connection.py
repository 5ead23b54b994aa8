from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from sqlalchemy.pool import Pool

from autotune.errors import DiskFullError, StorageError
from autotune.storage.rdb.connection import open_storage, storage_errors
from autotune.storage.url import absolute_url, database_path, is_sqlite, parse_url, redact
from tests.support.study.databases import Server

pytestmark = pytest.mark.usefixtures("closed_connections")


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def refusal(url: str, *, create: bool = True) -> str:
    with pytest.raises(StorageError) as caught:
        open_storage(url, create=create)
    return str(caught.value)


# URLs


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "storage/autotune.db",
            "storage: 'storage/autotune.db' is no storage URL; allowed are "
            "sqlite:///path/to/file.db and postgresql://user:password@host/database",
        ),
        (
            "mysql://u:secret@h/db",
            "storage: studies live in sqlite or postgresql, but got 'mysql' in mysql://u:***@h/db"
            "; give sqlite:///path/to/file.db or postgresql://user:password@host/database",
        ),
        (
            "sqlite:///:memory:",
            "storage: workers are processes of their own and need a database file, but got "
            "sqlite:///:memory:; give sqlite:///path/to/file.db",
        ),
        (
            "sqlite://storage/a.db",
            "storage: sqlite://storage/a.db must name a file; a path has three slashes "
            "(sqlite:///path/to/file.db), an absolute one four (sqlite:////path/to/file.db)",
        ),
        (
            "postgresql://u:s@cret@h/db",
            "storage: an @ in the user or the password must be written as %40, in "
            "postgresql://***@h/db",
        ),
        (
            "postgresql://u:secret@h:port/db",
            "storage: 'postgresql://***@h:port/db' is no storage URL; allowed are "
            "sqlite:///path/to/file.db and postgresql://user:password@host/database; the "
            "characters @ : / ? # % of a password are written %40 %3A %2F %3F %23 %25",
        ),
    ],
)
def test_what_is_no_url_of_a_storage(url: str, message: str, here: Path) -> None:
    assert refusal(url) == message
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite://",
        "sqlite:///file:a.db?uri=true",
        "sqlite:///a.db?timeout=3",
        "sqlite:///folder/",
        "sqlite:///.",
        "sqlite+aiosqlite:///a.db",
        "sqlite:///~nobody-here/a.db",
        "oracle+thin://u:secret@h/db",
    ],
)
def test_other_urls_that_are_refused_before_anything_is_written(url: str, here: Path) -> None:
    assert refusal(url).startswith("storage: ")
    assert not list(here.iterdir())


def test_drivers() -> None:
    for url in ("postgres://h/db", "postgresql://h/db", "postgresql+psycopg2://h/db"):
        assert parse_url(url).drivername == "postgresql+psycopg" and not is_sqlite(url)
    assert is_sqlite("sqlite+pysqlite:///a.db")


def test_absolute_urls(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute_url("sqlite:///a/b.db") == f"sqlite:///{here}/a/b.db"
    assert absolute_url("sqlite:////a/b.db") == "sqlite:////a/b.db"
    assert absolute_url("sqlite:///~/b.db") == "sqlite:////home/me/b.db"
    assert database_path("sqlite:///a b/c.db") == here / "a b/c.db"
    secret = absolute_url("postgresql://u:p%40ss@h:5432/db?sslmode=require")
    assert secret == "postgresql+psycopg://u:p%40ss@h:5432/db?sslmode=require"
    for url in ("sqlite:///a/b.db", "sqlite:///~/b.db", secret):
        assert absolute_url(absolute_url(url)) == absolute_url(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("postgresql://h/db", "postgresql://h/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://u:secret@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:sec%40ret@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:sec@ret@h/db", "postgresql://***@h/db"),
        ("postgresql://u:sec/ret@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:sec ret@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:secret@h:x/db", "postgresql://***@h:x/db"),
        ("postgresql:/u:secret@h/db", "postgresql:/***@h/db"),
        ("u:secret@h/db", "***@h/db"),
        ("postgresql://h/db?password=secret&user=u", "postgresql://h/db?password=***&user=u"),
        ("no url", "no url"),
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert redact(url) == shown


# SQLite


def test_the_tables_are_made_without_waiting_for_the_disk(here: Path) -> None:
    settings = []

    def note(connection: sqlite3.Connection, _record: object) -> None:
        pragmas = ("journal_mode", "synchronous")
        settings.append([connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas])

    sqlalchemy.event.listen(Pool, "connect", note)
    try:
        open_storage("sqlite:///a.db", create=True)
    finally:
        sqlalchemy.event.remove(Pool, "connect", note)
    assert settings
    assert all(values == ["wal", 1] for values in settings)
    assert (here / "a.db").stat().st_size > 10_000  # and yet in the file, not in its log alone


def test_sqlite_runs_in_wal_mode_with_immediate_transactions(here: Path) -> None:
    storage = open_storage("sqlite:///new/a.db", create=True)
    assert (here / "new/a.db").is_file()
    with storage.engine.begin() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1
        # The transaction has the write lock although it has only read.
        with closing(sqlite3.connect(here / "new/a.db", timeout=0)) as other:
            with pytest.raises(sqlite3.OperationalError, match="database is locked"):
                other.execute("BEGIN IMMEDIATE")
            assert other.execute("SELECT count(*) FROM studies").fetchone() == (0,)


def test_a_write_waits_for_another_one(here: Path) -> None:
    storage = open_storage("sqlite:///a.db", create=True)
    with closing(sqlite3.connect(here / "a.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        made = threading.Thread(
            target=lambda: optuna.create_study(study_name="s", storage=storage), daemon=True
        )
        made.start()
        made.join(0.5)
        assert made.is_alive()
        other.execute("COMMIT")
        made.join(20)
        assert optuna.get_all_study_names(storage) == ["s"]


def test_a_database_made_by_optuna_itself_is_taken_over(here: Path) -> None:
    optuna.create_study(study_name="s", storage="sqlite:///a.db")
    storage = open_storage("sqlite:///a.db")
    assert optuna.get_all_study_names(storage) == ["s"]
    with storage.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_an_empty_file_becomes_a_database(here: Path) -> None:
    (here / "a.db").touch()
    assert optuna.get_all_study_names(open_storage("sqlite:///a.db", create=True)) == []


def test_reading_makes_nothing(here: Path) -> None:
    assert refusal("sqlite:///no/a.db", create=False) == (
        f"storage: there is no database {here}/no/a.db; 'autotune run' makes one, or name yours "
        "with --storage"
    )
    assert not list(here.iterdir())
    with closing(sqlite3.connect(here / "other.db")) as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    before = (here / "other.db").read_bytes()
    for name in ("empty.db", "other.db"):
        (here / name).touch()
        assert f"the database {here / name} holds no studies" in refusal(
            f"sqlite:///{name}", create=False
        )
    assert (here / "other.db").read_bytes() == before
    assert (here / "empty.db").read_bytes() == b""


@pytest.mark.parametrize("create", [False, True])
def test_a_file_that_is_no_database(here: Path, create: bool) -> None:
    (here / "a.db").write_text("This is a text, and a long one. " * 100)
    assert refusal("sqlite:///a.db", create=create) == (
        "storage: sqlite:///a.db cannot be used: file is not a database; the file is something "
        "else; name another with --storage"
    )
    assert (here / "a.db").read_text().startswith("This is a text")


def test_a_folder_that_cannot_be_made(here: Path) -> None:
    (here / "file").touch()
    expected = f"{here}/file must be a folder that can be written, to write {here}/file/a.db"
    assert expected in refusal("sqlite:///file/a.db")
    expected = "/proc must be a folder that can be written, to write /proc/nowhere/a.db"
    assert expected in refusal("sqlite:////proc/nowhere/a.db")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to root and stops being it")
def test_a_database_that_may_only_be_read(here: Path) -> None:
    open_storage("sqlite:///a.db", create=True)  # loads all modules while it may
    for name in ("a.db-wal", "a.db-shm"):
        (here / name).unlink(missing_ok=True)
    (here / "a.db").chmod(0o444)
    parents = [one for one in here.parents if one.stat().st_uid == 0 and one != Path("/")]
    modes = {one: one.stat().st_mode for one in (here, *parents)}
    try:
        for one in modes:
            one.chmod(modes[one] | 0o055)
        os.seteuid(65534)
        with pytest.raises(StorageError, match="cannot be used") as caught:
            open_storage("sqlite:///a.db")
    finally:
        os.seteuid(0)
        for one, mode in modes.items():
            one.chmod(mode)
    assert "writable" in str(caught.value)


def test_a_full_disk() -> None:
    message = "no space left on the disk of the storage sqlite"
    with pytest.raises(DiskFullError, match=message), storage_errors("sqlite:///a.db"):
        raise sqlite3.OperationalError("database or disk is full")


def test_an_error_that_only_mentions_a_version_is_not_one_of_the_storage() -> None:
    """As those of torch while a sampler fits its model."""
    message = "is at version 2; expected version 1 instead"
    with pytest.raises(RuntimeError, match=message), storage_errors("sqlite:///a.db"):
        raise RuntimeError(message)


# Postgres


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "postgresql://u:secret@127.0.0.1:1/db",
            "storage: postgresql://u:***@127.0.0.1:1/db cannot be used: connection failed: "
            'connection to server at "127.0.0.1", port 1 failed: Connection refused; is the '
            "server running, and are host and port right?",
        ),
        (
            "postgresql://u:secret@127.0.0.1:99999/db",
            "storage: postgresql://u:***@127.0.0.1:99999/db cannot be used: connection is bad: "
            'invalid port number: "99999"',
        ),
        (
            "postgresql://u:secret@a..b/db",
            "storage: postgresql://u:***@a..b/db cannot be used: ",
        ),
        (
            "postgresql://127.0.0.1:1/db?user=u&password=secret",
            "storage: postgresql://127.0.0.1:1/db?password=***&user=u cannot be used: ",
        ),
        (
            "postgresql://u:sec{re}t@127.0.0.1:1/db",
            "storage: postgresql://u:***@127.0.0.1:1/db cannot be used: ",
        ),
    ],
)
@pytest.mark.parametrize("create", [False, True])
def test_a_server_that_is_not_there(url: str, message: str, create: bool) -> None:
    shown = refusal(url, create=create)
    assert shown.startswith(message)
    assert "secret" not in shown


def test_a_wrong_password(postgres: Server) -> None:
    url = postgres.require_password("anna", "sec{re}t")
    open_storage(url, create=True)
    shown = refusal(url.replace("sec%7Bre%7Dt", "wrong-one").replace("sec{re}t", "wrong-one"))
    assert 'password authentication failed for user "anna"' in shown
    assert shown.endswith("; check the user and the password of the URL")
    assert "wrong-one" not in shown


def test_an_unknown_database(postgres_url: str) -> None:
    shown = refusal(postgres_url.replace("/test_", "/nothing_"))
    assert '" does not exist; create the database first, or check its name' in shown


def test_a_server_without_free_connections_is_told(postgres_url: str) -> None:
    way_out = "raise its max_connections"
    with pytest.raises(StorageError, match=way_out), storage_errors(postgres_url):
        raise sqlite3.OperationalError("FATAL: sorry, too many clients already")
