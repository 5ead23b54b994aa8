"""Opening the database of a study: from a URL to Optuna's storage.

SQLite runs in WAL mode, see :mod:`autotune.storage.rdb.sqlite_locking`. Idle Postgres connections
are checked before use, because servers drop them (optuna issue 5600).
"""

from __future__ import annotations

import logging
import math
import re
import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from autotune.atomic import check_folder
from autotune.errors import (
    DiskFullError,
    SchemaError,
    StorageError,
    UserError,
    disk_full_as_user_error,
    hide_passwords,
    join_sentences,
)
from autotune.storage.filesystem import check_not_network
from autotune.storage.rdb.retry import RetryingStorage
from autotune.storage.rdb.sqlite_file import SQLiteFile
from autotune.storage.rdb.sqlite_locking import begin_transaction
from autotune.storage.url import database_path, is_sqlite, parse_url, redact, template_of

#: Seconds between two heartbeats of a live worker.
HEARTBEAT_INTERVAL_S = 15
#: Seconds without a heartbeat after which a worker counts as dead.
GRACE_PERIOD_S = 90
#: Seconds for which a connection waits for another one's transaction (SQLite).
BUSY_TIMEOUT_S = 60
#: Seconds for which a connection waits for the server.
CONNECT_TIMEOUT_S = 10
#: Seconds of rest after which a connection is checked before it is used.
CHECK_AFTER_REST_S = 5.0
#: Connections that one process keeps to a server, and how many more it may open for a moment.
POOL_SIZE = 2
POOL_OVERFLOW = 4
#: What Optuna adds to its message that tables are old; it names its own command.
_OLD_SCHEMA = re.compile(r" *Please execute `[^`]*` for upgrading the storage\.")
#: What to do, by a part of a database's message.
_WAYS_OUT = {
    "unable to open database file": "its folder must exist and be writable",
    "readonly database": "the file must be writable",
    "not a database": "the file is something else; name another with --storage",
    "password authentication failed": "check the user and the password of the URL",
    "onnection refused": "is the server running, and are host and port right?",
    "does not exist": "create the database first, or check its name",
    "could not translate host name": "check the host of the URL",
    "failed to resolve host": "check the host of the URL",
    "too many": "the server has no free connection; raise its max_connections",
    "timeout": "is the server running, and are host and port right?",
}


@contextmanager
def allow_experimental() -> Iterator[None]:
    """Use an experimental part of Optuna without its warning.

    The constraints file pins the version whose behavior was tested.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def open_storage(url: str, *, create: bool = False) -> RetryingStorage:
    """Open the storage of studies; with ``create``, make its file and tables if there are none.

    Raises:
        StorageError: When it cannot be reached, read or written, is of another Optuna, or is an
            SQLite file on a network file system.
    """
    parsed = parse_url(url)
    with storage_errors(url):
        if not is_sqlite(url):
            return _open_postgres(parsed)
        path = database_path(url)
        check_not_network(path)
        if not create:
            check_database_exists(path)
            return _open(parsed)
        try:
            check_folder(path.parent)
        except UserError as error:  # a lock there would be waited for
            reason = str(error).rpartition(", to write ")[0]
            raise StorageError(f"storage: {reason}, to write {path}") from None
        with disk_full_as_user_error(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Tables are made once: Optuna fails where two processes make them (issue 820).
            with FileLock(f"{path}.lock", timeout=BUSY_TIMEOUT_S):
                return _open(parsed)


def has_content(path: Path) -> bool:
    """Tell whether a file exists and is not empty, as a full disk leaves a new database."""
    return path.exists() and path.stat().st_size > 0


def check_database_exists(path: Path) -> None:
    """Refuse a file that is not an SQLite database of studies, with what is wrong."""
    if not path.exists():
        raise StorageError(
            f"storage: there is no database {path}; 'autotune run' makes one, or name yours "
            "with --storage"
        )
    with closing(
        sqlite3.connect(f"{path.as_uri()}?mode=ro", BUSY_TIMEOUT_S, uri=True)
    ) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if "studies" not in tables:
        raise StorageError(
            f"storage: the database {path} holds no studies; 'autotune run' makes them, or name "
            "yours with --storage"
        )


def _open_postgres(url: URL) -> RetryingStorage:
    """Open under a lock, because any opening makes the tables if there are none (issue 820)."""
    options = {"connect_timeout": CONNECT_TIMEOUT_S}
    engine = sqlalchemy.create_engine(url, connect_args=options, poolclass=NullPool)
    with engine.connect() as connection:
        # It ends with this connection's transaction.
        connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(8232020)"))
        return _open(url)


def _open(url: URL) -> RetryingStorage:
    options: dict[str, Any]
    sqlite = url.drivername.startswith("sqlite")
    if sqlite:
        options = {"connect_args": {"timeout": BUSY_TIMEOUT_S, "factory": _SQLiteConnection}}
    else:
        options = {
            "pool_recycle": 600,
            "pool_size": POOL_SIZE,
            "max_overflow": POOL_OVERFLOW,
            "connect_args": {"connect_timeout": CONNECT_TIMEOUT_S},
        }
    # Optuna says at every start that it would create tables.
    logging.getLogger("optuna.storages").setLevel(logging.WARNING)
    with allow_experimental():
        storage = RetryingStorage(
            template_of(url),
            engine_kwargs=options,
            heartbeat_interval=HEARTBEAT_INTERVAL_S,
            grace_period=GRACE_PERIOD_S,
        )
    if sqlite:
        event.listen(storage.engine, "begin", begin_transaction)
        storage.engine.dispose()  # new tables go from the log of SQLite into its file
        with storage.engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")
        assert url.database is not None
        file = SQLiteFile.at(Path(url.database).absolute())
        storage.sqlite_file = file
        # A new connection would make an empty file, or write into another one.
        event.listen(storage.engine, "do_connect", lambda *_: file.check())
    else:
        event.listen(storage.engine, "checkin", _note_rest)
        event.listen(storage.engine, "checkout", partial(_check_rested, storage.engine))
    return storage


def _note_rest(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["rests_since"] = time.monotonic()


def _check_rested(
    engine: Engine, connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object
) -> None:
    """Ping the server if a connection has rested: servers drop idle ones.

    ``pool_pre_ping`` pings every time, a round trip more for every statement. A server that was
    restarted a moment ago is met within a statement as well, and waited for there.
    """
    if time.monotonic() - record.info.get("rests_since", math.inf) < CHECK_AFTER_REST_S:
        return
    try:
        engine.dialect.do_ping(connection)
    except engine.dialect.loaded_dbapi.Error as error:
        raise sqlalchemy.exc.DisconnectionError("the server has dropped it") from error


class _SQLiteConnection(sqlite3.Connection):
    """A connection with the settings of studies.

    Those by which Optuna makes its tables have them as well. Without them, each of its thirty
    statements would wait for the disk.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.isolation_level = None  # transactions begin where SQLAlchemy says
        try:
            self.execute("PRAGMA journal_mode=WAL").close()
            self.execute("PRAGMA synchronous=NORMAL").close()
        except BaseException:
            self.close()
            raise


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn errors of a database into a StorageError with the way out, and without the password."""
    address = redact(url)
    try:
        yield
    except (UserError, optuna.exceptions.DuplicatedStudyError):
        raise
    except (
        sqlalchemy.exc.SQLAlchemyError,
        sqlite3.Error,
        optuna.exceptions.StorageInternalError,
    ) as error:
        reason = _reason(error)
        if "disk is full" in reason or "No space left" in reason:
            raise DiskFullError(f"no space left on the disk of the storage {address}") from error
        way_out = next((f"; {way}" for part, way in _WAYS_OUT.items() if part in reason), "")
        raise StorageError(f"storage: {address} cannot be used: {reason}{way_out}") from error
    except (OSError, UnicodeError) as error:  # the latter for a host that cannot be one
        raise StorageError(f"storage: {address} cannot be used: {error}") from error
    except RuntimeError as error:
        if "table schema" not in str(error):
            raise
        message, old = _OLD_SCHEMA.subn("", str(error))
        way_out = "'autotune storage upgrade' brings it up to date" if old else ""
        raise SchemaError(
            join_sentences(f"storage: {address} was made by another Optuna: {message}", way_out)
        ) from error


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None and not isinstance(error, sqlalchemy.exc.DBAPIError):
        error = error.__cause__
    original = getattr(error, "orig", None) or error
    text = hide_passwords(" ".join(str(original).split()))
    # psycopg repeats its message for every address of the host, and again for every attempt.
    for hint in (" Multiple connection attempts failed", " Is the server running"):
        text = text.partition(hint)[0]
    return text
