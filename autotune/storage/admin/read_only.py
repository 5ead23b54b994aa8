"""Reading a storage as it is at one moment, while workers write to it.

Nothing is made or changed: an SQLite file is opened for reading alone and keeps its journal mode,
and a server gets no tables. So this also reads what studies must not run on, such as an SQLite
file on a network file system or tables of an older Optuna.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
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


def plain_engine(url: str, mode: str = "ro", **options: Any) -> sqlalchemy.Engine:
    """Return an engine with the settings of the database, not those of autotune.

    Its transactions begin where SQLAlchemy says. An SQLite file must be there, and is opened in
    the mode ``ro`` or ``rw``; the options are for a server.
    """
    if not is_sqlite(url):
        return sqlalchemy.create_engine(
            parse_url(url),
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
            poolclass=NullPool,
            **options,
        )
    uri = f"{database_path(url).as_uri()}?mode={mode}"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(uri, BUSY_TIMEOUT_S, uri=True, isolation_level=None)

    return sqlalchemy.create_engine("sqlite://", creator=connect, poolclass=NullPool)


def reading_engine(url: str) -> sqlalchemy.Engine:
    """Return an engine that can only read; each transaction sees the storage at one moment."""
    if is_sqlite(url):
        check_database_exists(database_path(url))
    engine = plain_engine(
        url,
        isolation_level="REPEATABLE READ",
        execution_options={"postgresql_readonly": True},
    )
    if is_sqlite(url):
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


@contextmanager
def connect_read_only(url: str) -> Iterator[sqlalchemy.Connection]:
    """Yield a connection that sees the storage as it is now.

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
    """Return the names of the studies of a storage, the oldest first."""
    query = sqlalchemy.text("SELECT study_name FROM studies ORDER BY study_id")
    return list(connection.scalars(query))


def select_studies(
    connection: sqlalchemy.Connection, url: str, names: Sequence[str] | None
) -> list[str]:
    """Return the studies with these names, or all; refuse names that are unknown."""
    stored = list_studies(connection)
    if not stored:
        raise StudyError(f"the storage {redact(url)} has no study")
    unknown = [name for name in names or () if name not in stored]
    if unknown:
        raise StudyError(
            join_sentences(
                f"the storage {redact(url)} has no study "
                f"{', '.join(map(repr, unknown))}; it has {', '.join(stored)}",
                *(did_you_mean(name, stored) for name in unknown),
            )
        )
    return [name for name in stored if not names or name in names]


def sqlite_damage(path: Path) -> list[str]:
    """Return what SQLite finds wrong with a database file, at most ten things."""
    with closing(
        sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", BUSY_TIMEOUT_S, uri=True)
    ) as connection:
        damage = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(10)")]
        loose = connection.execute("PRAGMA foreign_key_check").fetchmany(10)
    return [
        *(text for text in damage if text != "ok"),
        *(f"a row of {row[0]} belongs to no row of {row[2]}" for row in loose),
    ]
