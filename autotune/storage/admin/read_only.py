"""Reading a storage as it is at one moment, while workers go on writing it.

Nothing is made or changed: an SQLite file is opened for reading alone and keeps its journal mode,
and no tables are made on a server. So this also reads what studies must not run on, such as an
SQLite file on a network file system or tables of an older Optuna.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.pool import NullPool

from autotune.errors import StorageError, StudyError, did_you_mean, join_sentences
from autotune.storage.rdb.connection import (
    BUSY_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    check_database_exists,
    storage_errors,
)
from autotune.storage.url import database_path, is_sqlite, parse_url, redact


def reading_engine(url: str) -> sqlalchemy.Engine:
    """Return an engine that can read a storage and nothing else; a transaction sees one moment.

    Raises:
        StorageError: When there is no database file.
    """
    if not is_sqlite(url):
        return sqlalchemy.create_engine(
            parse_url(url),
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
            poolclass=NullPool,
            isolation_level="REPEATABLE READ",
            execution_options={"postgresql_readonly": True},
        )
    path = database_path(url)
    check_database_exists(path)

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", BUSY_TIMEOUT_S, uri=True)
        connection.isolation_level = None  # transactions begin where SQLAlchemy says
        return connection

    engine = sqlalchemy.create_engine("sqlite://", creator=connect, poolclass=NullPool)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


@contextmanager
def reading(url: str) -> Iterator[sqlalchemy.Connection]:
    """Read a storage as it is now, for as long as the context lasts.

    Args:
        url: Storage URL.

    Raises:
        StorageError: When it cannot be reached, or holds no tables of studies.
    """
    with storage_errors(url), reading_engine(url).connect() as connection:
        if not has_tables(connection):
            raise StorageError(f"storage: {redact(url)} holds no studies")
        yield connection


def has_tables(connection: sqlalchemy.Connection) -> bool:
    """Tell whether a database has the tables of studies."""
    inspector = sqlalchemy.inspect(connection)
    return inspector.has_table("studies") and inspector.has_table("alembic_version")


def list_studies(connection: sqlalchemy.Connection) -> list[str]:
    """List the studies of a storage by name, first one first."""
    query = sqlalchemy.text("SELECT study_name FROM studies ORDER BY study_id")
    return list(connection.scalars(query))


def select_studies(
    connection: sqlalchemy.Connection, url: str, names: Sequence[str] | None
) -> list[str]:
    """Return the studies that are meant: those named, or all.

    Raises:
        StudyError: With every name that the storage does not have, or when it has no study.
    """
    known = list_studies(connection)
    if not known:
        raise StudyError(f"the storage {redact(url)} has no study")
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise StudyError(
            join_sentences(
                f"the storage {redact(url)} has no study "
                f"{', '.join(repr(name) for name in unknown)}; it has {', '.join(known)}",
                *(did_you_mean(name, known) for name in unknown),
            )
        )
    return [name for name in known if not names or name in names]


def schema_version(connection: sqlalchemy.Connection) -> str:
    """Return the version of Optuna's tables in a storage, such as ``v3.2.0.a``."""
    return str(connection.scalar(sqlalchemy.text("SELECT version_num FROM alembic_version")))


def known_schemas() -> list[str]:
    """List the versions that Optuna's tables have had, newest first."""
    in_memory = RDBStorage("sqlite://")  # only an instance can tell
    try:
        return in_memory.get_all_versions()
    finally:
        in_memory.engine.dispose()


def check_schema(connection: sqlalchemy.Connection, url: str) -> None:
    """Refuse tables that are not those of the installed Optuna.

    Raises:
        StorageError: With both versions and the way out.
    """
    found, known = schema_version(connection), known_schemas()
    if found == known[0]:
        return
    old = found in known
    way_out = "'autotune storage upgrade' brings it up to date" if old else "update Optuna"
    raise StorageError(
        f"storage: the tables of {redact(url)} are of version {found}, and those of the installed "
        f"Optuna of {known[0]}; {way_out}"
    )
