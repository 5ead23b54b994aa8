"""Optuna's tables brought up to the version of the installed Optuna."""

from __future__ import annotations

import logging

from optuna.storages import RDBStorage

from autotune.errors import StorageError
from autotune.storage.admin.read_only import known_schemas, reading, schema_version
from autotune.storage.rdb.connection import BUSY_TIMEOUT_S, CONNECT_TIMEOUT_S, storage_errors
from autotune.storage.url import is_sqlite, parse_url, redact, template_of


def pending_upgrade(url: str) -> tuple[str, str] | None:
    """Tell whether the tables of a storage are old.

    Args:
        url: Storage URL.

    Returns:
        The versions from and to which they would go; None when there is nothing to do.

    Raises:
        StorageError: When the storage cannot be read, or its tables are newer than Optuna.
    """
    with reading(url) as connection:
        found = schema_version(connection)
    known = known_schemas()
    if found not in known:
        raise StorageError(
            f"storage: the tables of {redact(url)} are of version {found}, which the installed "
            f"Optuna (up to {known[0]}) does not know; update Optuna"
        )
    return None if found == known[0] else (found, known[0])


def upgrade_tables(url: str) -> None:
    """Bring the tables up to date, as ``optuna storage upgrade`` does; no worker may be at work.

    Raises:
        StorageError: When it cannot be done.
    """
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
