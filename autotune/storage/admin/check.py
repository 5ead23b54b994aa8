"""Checks whether a storage is fit for studies, from outside and without leaving a trace."""

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

from autotune.errors import UserError
from autotune.storage.admin.read_only import has_tables, plain_engine, sqlite_damage
from autotune.storage.admin.schema import schema_problem, schema_version
from autotune.storage.filesystem import file_system_of, is_network
from autotune.storage.rdb.connection import (
    POOL_OVERFLOW,
    POOL_SIZE,
    check_database_exists,
    storage_errors,
)
from autotune.storage.url import database_path, is_sqlite

#: The oldest server that is tested and still gets fixes (https://www.postgresql.org/support/).
MIN_POSTGRES = 14
#: Free disk space below which a growing study soon fails.
MIN_FREE_BYTES = 256 << 20
#: Number of transactions that are timed.
ROUND_TRIPS = 15


@dataclass(frozen=True)
class CheckResult:
    """The result of one check; the text of a problem has the way out."""

    what: str
    text: str
    is_problem: bool = False


def check(url: str) -> Iterator[CheckResult]:
    """Yield a result for everything about a storage that studies depend on.

    A storage that cannot be reached ends the checks.
    """
    sqlite = is_sqlite(url)
    if sqlite:
        yield from _check_disk(database_path(url))
    engine = plain_engine(url, "rw")
    is_reached = False
    try:
        with storage_errors(url):
            if sqlite:
                check_database_exists(database_path(url))
            with engine.connect() as connection:
                is_reached = True
                yield CheckResult("reachable", "yes")
                yield from _check_sqlite(url, connection) if sqlite else _check_server(connection)
                yield _check_tables(connection)
    except UserError as error:
        yield CheckResult("reading" if is_reached else "reachable", _bare(error), True)
    else:
        yield from _check_writing(url, engine)


def _check_disk(path: Path) -> Iterator[CheckResult]:
    system = file_system_of(path)
    if system is None:
        yield CheckResult("file system", "this system does not tell")
    elif is_network(system[0]):
        why = f"{system[0]} at {system[1]} is a network file system: use a local disk or Postgres"
        yield CheckResult("file system", why, True)
    else:
        yield CheckResult("file system", system[0])
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    short = "" if free >= MIN_FREE_BYTES else f", and a study wants {_size(MIN_FREE_BYTES)}"
    yield CheckResult("free disk space", f"{_size(free)}{short}", bool(short))


def _size(size_bytes: int) -> str:
    if size_bytes >= 10 << 30:
        return f"{size_bytes / 2**30:.0f} GiB"
    return f"{size_bytes / 2**20:.0f} MiB"


def _check_sqlite(url: str, connection: sqlalchemy.Connection) -> Iterator[CheckResult]:
    yield CheckResult("driver", f"sqlite3 with SQLite {sqlite3.sqlite_version}")
    mode = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())
    later = "" if mode == "wal" else "; it becomes wal when a study is opened"
    yield CheckResult("journal mode", f"{mode}{later}")
    damage = sqlite_damage(database_path(url))
    yield CheckResult("integrity", "; ".join(damage) or "no damage", bool(damage))


def _check_server(connection: sqlalchemy.Connection) -> Iterator[CheckResult]:
    yield CheckResult("driver", f"psycopg {psycopg.__version__}")
    version = _setting(connection, "server_version")
    old = int(_setting(connection, "server_version_num")) // 10000 < MIN_POSTGRES
    need = f", but studies need {MIN_POSTGRES} or newer" if old else ""
    yield CheckResult("server", f"Postgres {version}{need}", old)
    encoding = _setting(connection, "server_encoding")
    other = encoding != "UTF8"
    way_out = "; make the database anew with ENCODING 'UTF8'" if other else ""
    yield CheckResult("encoding", f"{encoding}{way_out}", other)
    # Under stricter levels a transaction that meets another one fails where it should wait.
    level = _setting(connection, "default_transaction_isolation")
    other = level != "read committed"
    statement = "ALTER DATABASE ... SET default_transaction_isolation TO 'read committed'"
    yield CheckResult("transaction isolation", f"{level}{f'; {statement}' * other}", other)
    yield _check_connections(connection)


def _setting(connection: sqlalchemy.Connection, name: str) -> str:
    return str(connection.exec_driver_sql(f"SHOW {name}").scalar())


def _check_connections(connection: sqlalchemy.Connection) -> CheckResult:
    limit = int(_setting(connection, "max_connections"))
    reserved = int(_setting(connection, "superuser_reserved_connections"))
    query = "SELECT sum(numbackends) FROM pg_stat_database"  # which any user may read
    used = int(connection.exec_driver_sql(query).scalar() or 0)
    each = POOL_SIZE + POOL_OVERFLOW
    is_full = limit - reserved - used < each
    way_out = f"; a worker takes up to {each}: raise max_connections" if is_full else ""
    return CheckResult("connections", f"{used} of {limit} in use{way_out}", is_full)


def _check_tables(connection: sqlalchemy.Connection) -> CheckResult:
    if not has_tables(connection):
        return CheckResult("schema", "no tables yet; 'autotune run' makes them")
    version = schema_version(connection)
    problem = schema_problem(version)
    return CheckResult(
        "schema", problem or f"{version}, that of the installed Optuna", bool(problem)
    )


def _check_writing(url: str, engine: sqlalchemy.Engine) -> Iterator[CheckResult]:
    """Write and roll back, as workers do all the time, and measure how long that takes."""
    times_ms = []
    begin, end = ("BEGIN IMMEDIATE", "ROLLBACK") if is_sqlite(url) else ("", "")
    try:
        with storage_errors(url), engine.connect() as connection:
            write = "CREATE TABLE autotune_storage_check (number INTEGER)"
            if has_tables(connection):
                write = "INSERT INTO studies (study_name) VALUES ('autotune storage check')"
            connection.rollback()
            for _ in range(ROUND_TRIPS):
                start = time.perf_counter()
                for statement in filter(None, (begin, write, end)):
                    connection.exec_driver_sql(statement)
                connection.rollback()
                times_ms.append((time.perf_counter() - start) * 1000)
    except UserError as error:
        yield CheckResult("write permission", _bare(error), True)
    else:
        yield CheckResult("write permission", "yes")
        median = statistics.median(times_ms)
        yield CheckResult("round trip", f"{median:.2f} ms for a transaction that writes one row")


def _bare(error: UserError) -> str:
    return str(error).removeprefix("storage: ")
