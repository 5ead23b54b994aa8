"""Is this storage fit for studies? Looked at from outside, and tried without leaving a trace."""

from __future__ import annotations

import shutil
import sqlite3
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import sqlalchemy
from sqlalchemy.pool import NullPool

from autotune.errors import UserError
from autotune.storage.admin.backup import integrity
from autotune.storage.admin.read_only import has_tables, known_schemas, schema_version
from autotune.storage.filesystem import file_system_of, is_network
from autotune.storage.rdb.connection import (
    BUSY_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    POOL_OVERFLOW,
    POOL_SIZE,
    check_database_exists,
    storage_errors,
)
from autotune.storage.url import database_path, is_sqlite, parse_url

#: The oldest server that is tested and still gets fixes (https://www.postgresql.org/support/).
MIN_POSTGRES = 14
#: A study that grows beyond this is not lost at once, but soon.
MIN_FREE_BYTES = 256 << 20
ROUND_TRIPS = 15


@dataclass(frozen=True)
class CheckResult:
    """One thing that was looked at.

    Args:
        what: What it was.
        said: What was found; of a problem, with the way out.
        problem: Whether studies would suffer from it.
    """

    what: str
    said: str
    problem: bool = False


def check(url: str) -> Iterator[CheckResult]:
    """Look at everything about a storage that studies depend on.

    Args:
        url: Storage URL.

    Yields:
        What was found, problem or not. What cannot be reached ends it.

    Raises:
        StorageError: When it is no URL of a storage.
    """
    sqlite = is_sqlite(url)
    if sqlite:
        yield from _place(database_path(url))
    engine = _engine(url)
    reached = False
    try:
        with storage_errors(url):
            if sqlite:
                check_database_exists(database_path(url))
            with engine.connect() as connection:
                reached = True
                yield CheckResult("reachable", "yes")
                yield from _sqlite(url, connection) if sqlite else _postgres(connection)
                yield _schema(connection)
    except UserError as error:
        yield CheckResult("reading" if reached else "reachable", _bare(error), problem=True)
    else:
        yield from _writing(url, engine)


def _engine(url: str) -> sqlalchemy.Engine:
    """Return an engine with the settings of the server, not those of autotune."""
    if is_sqlite(url):
        uri = f"{database_path(url).as_uri()}?mode=rw"

        def connect() -> sqlite3.Connection:
            return sqlite3.connect(uri, BUSY_TIMEOUT_S, uri=True, isolation_level=None)

        return sqlalchemy.create_engine("sqlite://", creator=connect, poolclass=NullPool)
    return sqlalchemy.create_engine(
        parse_url(url),
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
        poolclass=NullPool,
    )


# SQLite


def _place(path: Path) -> Iterator[CheckResult]:
    found = file_system_of(path)
    if found is None:
        yield CheckResult("file system", "this system does not tell")
    elif is_network(found[0]):
        why = f"{found[0]} at {found[1]} is a network file system: use a local disk or Postgres"
        yield CheckResult("file system", why, problem=True)
    else:
        yield CheckResult("file system", found[0])
    there = next(one for one in (path, *path.parents) if one.exists())
    free = shutil.disk_usage(there).free
    short = "" if free >= MIN_FREE_BYTES else f", and a study wants {_size(MIN_FREE_BYTES)}"
    yield CheckResult("free disk space", f"{_size(free)}{short}", bool(short))


def _size(size_bytes: int) -> str:
    if size_bytes >= 10 << 30:
        return f"{size_bytes / 2**30:.0f} GiB"
    return f"{size_bytes / 2**20:.0f} MiB"


def _sqlite(url: str, connection: sqlalchemy.Connection) -> Iterator[CheckResult]:
    yield CheckResult("driver", f"sqlite3 with SQLite {sqlite3.sqlite_version}")
    mode = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())
    later = "" if mode == "wal" else "; it becomes wal when a study is opened"
    yield CheckResult("journal mode", f"{mode}{later}")
    damage = integrity(database_path(url))
    yield CheckResult("integrity", "; ".join(damage) or "no damage", bool(damage))


# Postgres


def _postgres(connection: sqlalchemy.Connection) -> Iterator[CheckResult]:
    yield CheckResult("driver", f"psycopg {psycopg.__version__}")
    number = int(_show(connection, "server_version_num")) // 10000
    version = _show(connection, "server_version")
    old = number < MIN_POSTGRES
    need = f", but studies need {MIN_POSTGRES} or newer" if old else ""
    yield CheckResult("server", f"Postgres {version}{need}", old)
    encoding = _show(connection, "server_encoding")
    other = encoding != "UTF8"
    way_out = "; make the database anew with ENCODING 'UTF8'" if other else ""
    yield CheckResult("encoding", f"{encoding}{way_out}", other)
    yield _isolation(connection)
    yield _connections(connection)


def _show(connection: sqlalchemy.Connection, setting: str) -> str:
    return str(connection.exec_driver_sql(f"SHOW {setting}").scalar())


def _isolation(connection: sqlalchemy.Connection) -> CheckResult:
    """Under stricter levels a transaction that meets another one fails where it should wait."""
    level = _show(connection, "default_transaction_isolation")
    other = level != "read committed"
    way_out = (
        "; ALTER DATABASE ... SET default_transaction_isolation TO 'read committed'"
        if other
        else ""
    )
    return CheckResult("transaction isolation", f"{level}{way_out}", other)


def _connections(connection: sqlalchemy.Connection) -> CheckResult:
    """Count them by pg_stat_database, which any user may read."""
    most = int(_show(connection, "max_connections"))
    reserved = int(_show(connection, "superuser_reserved_connections"))
    query = "SELECT sum(numbackends) FROM pg_stat_database"
    used = int(connection.exec_driver_sql(query).scalar() or 0)
    each = POOL_SIZE + POOL_OVERFLOW
    full = most - reserved - used < each
    way_out = f"; a worker takes up to {each}: raise max_connections" if full else ""
    return CheckResult("connections", f"{used} of {most} in use{way_out}", full)


# Both


def _schema(connection: sqlalchemy.Connection) -> CheckResult:
    if not has_tables(connection):
        return CheckResult("schema", "no tables yet; 'autotune run' makes them")
    found, known = schema_version(connection), known_schemas()
    if found == known[0]:
        return CheckResult("schema", f"{found}, that of the installed Optuna")
    way_out = "run 'autotune storage upgrade'" if found in known else "update Optuna"
    said = f"{found}, and that of the installed Optuna is {known[0]}; {way_out}"
    return CheckResult("schema", said, problem=True)


def _writing(url: str, engine: sqlalchemy.Engine) -> Iterator[CheckResult]:
    """Write, take it back, and measure how long that takes: what workers do all the time."""
    times_ms = []
    try:
        with storage_errors(url), engine.connect() as connection:
            statements = _statements(has_tables(connection))
            connection.rollback()
            for _ in range(ROUND_TRIPS):
                start = time.perf_counter()
                _write_and_take_back(connection, statements, is_sqlite(url))
                times_ms.append((time.perf_counter() - start) * 1000)
    except UserError as error:
        yield CheckResult("write permission", _bare(error), problem=True)
    else:
        yield CheckResult("write permission", "yes")
        median = statistics.median(times_ms)
        yield CheckResult("round trip", f"{median:.2f} ms for a transaction that writes one row")


def _statements(tables: bool) -> tuple[str, ...]:
    if not tables:
        return ("CREATE TABLE autotune_storage_check (number INTEGER)",)
    name = "'autotune storage check'"
    return (f"INSERT INTO studies (study_name) VALUES ({name})",)


def _write_and_take_back(
    connection: sqlalchemy.Connection, statements: tuple[str, ...], sqlite: bool
) -> None:
    begin, end = ("BEGIN IMMEDIATE", "ROLLBACK") if sqlite else ("", "")
    for statement in (begin, *statements, end):
        if statement:
            connection.exec_driver_sql(statement)
    connection.rollback()


def _bare(error: UserError) -> str:
    return str(error).removeprefix("storage: ")
