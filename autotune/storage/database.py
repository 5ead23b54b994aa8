"""Opening the database of a study: URL in, Optuna storage out.

SQLite runs in WAL mode with ``BEGIN IMMEDIATE`` transactions: Optuna reads a waiting trial and
then claims it, and with SQLite's deferred transactions two workers can claim the same one
(optuna issues 4621 and 4002). Postgres connections are checked before use, because servers drop
idle ones (optuna issue 5600).
"""

from __future__ import annotations

import logging
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url

from autotune.errors import DiskFullError, StorageError, UserError, disk_full_as_user_error

#: A live worker writes its heartbeat this often; silent for longer than the grace, it is dead.
HEARTBEAT_INTERVAL_S = 15
GRACE_PERIOD_S = 90
#: How long a connection waits for another one's transaction (SQLite) or for the server.
BUSY_TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 10

StaleTrialCallback = Callable[[Study, FrozenTrial], None]


@contextmanager
def experimental() -> Iterator[None]:
    """Use a part of Optuna that it calls experimental without its warning.

    The constraints file pins the version whose behaviour was tested.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def parse_url(url: str) -> URL:
    """Parse a storage URL and settle its driver.

    Raises:
        StorageError: When it is no URL, or one of a database that studies cannot use.
    """
    try:
        parsed = make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise StorageError(
            f"storage: {url!r} is no storage URL; allowed are sqlite:///path/to/file.db and "
            "postgresql://user:password@host/database"
        ) from None
    backend = parsed.drivername.partition("+")[0]
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise StorageError(
            f"storage: studies live in sqlite or postgresql, but got {parsed.drivername!r} in "
            f"{redact(url)}"
        )
    if parsed.database in (None, "", ":memory:"):
        raise StorageError(
            "storage: workers are processes of their own and need a database file, but got "
            f"{redact(url)}; give sqlite:///path/to/file.db"
        )
    return parsed


def is_sqlite(url: str) -> bool:
    """Tell whether a URL is that of an SQLite file."""
    return parse_url(url).drivername.startswith("sqlite")


def redact(url: str) -> str:
    """Return a storage URL that may be shown: without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


def database_path(url: str) -> Path:
    """Return the absolute path of an SQLite database."""
    database = parse_url(url).database
    assert database is not None
    return Path(database).absolute()


def absolute_url(url: str) -> str:
    """Return a URL that means the same from every working directory."""
    parsed = parse_url(url)
    if is_sqlite(url):
        parsed = parsed.set(database=str(database_path(url)))
    return parsed.render_as_string(hide_password=False)


def open_storage(
    url: str, *, create: bool = False, on_stale_trial: StaleTrialCallback | None = None
) -> RDBStorage:
    """Open the storage of studies.

    Args:
        url: Storage URL.
        create: Make the database file and the tables where there are none.
        on_stale_trial: Called with every trial whose worker has gone silent.

    Raises:
        StorageError: When it cannot be reached, read or written, or is of another Optuna.
    """
    parsed = parse_url(url)
    sqlite = is_sqlite(url)
    if sqlite:
        path = database_path(url)
        if not create and not path.exists():
            raise StorageError(
                f"storage: there is no database {path}; 'autotune run' makes one, or name yours "
                "with --storage"
            )
        if create:
            with storage_errors(url), disk_full_as_user_error(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{path}.lock", timeout=BUSY_TIMEOUT_S):
                    return _open(parsed, sqlite, on_stale_trial)
    with storage_errors(url):
        return _open(parsed, sqlite, on_stale_trial)


def _open(url: URL, sqlite: bool, on_stale_trial: StaleTrialCallback | None) -> RDBStorage:
    options: dict[str, Any]
    if sqlite:
        options = {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
    else:
        options = {
            "pool_pre_ping": True,
            "pool_recycle": 600,
            "pool_size": 2,
            "max_overflow": 4,
            "connect_args": {"connect_timeout": CONNECT_TIMEOUT_S},
        }
    # Optuna says at every start that it would create tables.
    logging.getLogger("optuna.storages").setLevel(logging.WARNING)
    with experimental():
        storage = RDBStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs=options,
            heartbeat_interval=HEARTBEAT_INTERVAL_S,
            grace_period=GRACE_PERIOD_S,
            heartbeat_stale_trial_callback=on_stale_trial,
        )
    if sqlite:
        event.listen(storage.engine, "connect", _configure_sqlite)
        event.listen(storage.engine, "begin", _begin_immediate)
        storage.engine.dispose()  # connections made so far have none of these settings
        with storage.engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")
    return storage


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, see below
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _begin_immediate(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what a database says into one message that names the storage, not its password.

    Raises:
        StorageError: With the reason and the way out.
    """
    shown = redact(url)
    try:
        yield
    except (UserError, optuna.exceptions.DuplicatedStudyError):
        raise
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = _reason(error)
        if "disk is full" in reason or "No space left" in reason:
            raise DiskFullError(f"no space left on the disk of the storage {shown}") from error
        raise StorageError(
            f"storage: {shown} cannot be used: {reason}{_way_out(reason)}"
        ) from error
    except OSError as error:
        raise StorageError(f"storage: {shown} cannot be used: {error}") from error
    except RuntimeError as error:
        if "schema" not in str(error) and "version" not in str(error):
            raise
        raise StorageError(f"storage: {shown} was made by another Optuna: {error}") from error


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None and not isinstance(error, sqlalchemy.exc.DBAPIError):
        error = error.__cause__
    original = getattr(error, "orig", None) or error
    return " ".join(str(original).split())


def _way_out(reason: str) -> str:
    ways = {
        "unable to open database file": "its folder must exist and be writable",
        "readonly database": "the file must be writable",
        "not a database": "the file is something else; name another with --storage",
        "password authentication failed": "check the user and the password of the URL",
        "onnection refused": "is the server running, and are host and port right?",
        "does not exist": "create the database first, or check its name",
        "could not translate host name": "check the host of the URL",
        "failed to resolve host": "check the host of the URL",
        "timeout": "is the server running, and are host and port right?",
    }
    return next((f"; {way}" for sign, way in ways.items() if sign in reason), "")
