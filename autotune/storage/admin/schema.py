"""Versions of Optuna's tables: which one a storage has, and the upgrade to the newest."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path

import sqlalchemy
from optuna.storages import RDBStorage

from autotune.errors import StorageError, disk_full_as_user_error
from autotune.storage.admin.read_only import connect_read_only
from autotune.storage.rdb.connection import BUSY_TIMEOUT_S, CONNECT_TIMEOUT_S, storage_errors
from autotune.storage.url import is_sqlite, parse_url, redact, template_of


def schema_version(connection: sqlalchemy.Connection) -> str:
    """Return the version of Optuna's tables in a storage, such as ``v3.2.0.a``."""
    return str(connection.scalar(sqlalchemy.text("SELECT version_num FROM alembic_version")))


@cache
def known_schemas() -> tuple[str, ...]:
    """Return the versions that the installed Optuna knows, the newest, which is its own, first."""
    in_memory = RDBStorage("sqlite://")  # only an instance can tell
    try:
        return tuple(in_memory.get_all_versions())
    finally:
        in_memory.engine.dispose()


def schema_problem(version: str) -> str:
    """Describe what is wrong with a version of the tables, with the way out; empty if nothing."""
    newest = known_schemas()[0]
    if version == newest:
        return ""
    old = version in known_schemas()
    way_out = "'autotune storage upgrade' brings them up to date" if old else "update Optuna"
    return f"{version}, and those of the installed Optuna {newest}; {way_out}"


def check_schema(connection: sqlalchemy.Connection, url: str) -> None:
    """Refuse tables that are not those of the installed Optuna, with the way out."""
    if problem := schema_problem(schema_version(connection)):
        raise StorageError(f"storage: the tables of {redact(url)} have the version {problem}")


def pending_upgrade(url: str) -> tuple[str, str] | None:
    """Return the versions from and to which the tables would go; ``None`` if they are new.

    Raises:
        StorageError: When the storage cannot be read, or its tables are newer than Optuna.
    """
    with connect_read_only(url) as connection:
        version = schema_version(connection)
        if version not in known_schemas():
            check_schema(connection, url)
    newest = known_schemas()[0]
    return None if version == newest else (version, newest)


def back_up_sqlite(path: Path, target: Path) -> None:
    """Copy an SQLite database as it is, with tables of any version, even while it is in use."""
    if target.exists():
        raise StorageError(f"the file {target} exists and is not overwritten; move it away")
    with (
        disk_full_as_user_error(target.parent),
        closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", BUSY_TIMEOUT_S, uri=True)) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it


def upgrade_tables(url: str) -> None:
    """Bring the tables up to date, as ``optuna storage upgrade`` does; no worker may run."""
    timeout = {"timeout": BUSY_TIMEOUT_S}
    if not is_sqlite(url):
        timeout = {"connect_timeout": CONNECT_TIMEOUT_S}
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with storage_errors(url):
        storage = RDBStorage(
            template_of(parse_url(url)),
            engine_kwargs={"connect_args": timeout},
            skip_compatibility_check=True,
            skip_table_creation=True,
        )
        try:
            storage.upgrade()
        finally:
            storage.engine.dispose()
