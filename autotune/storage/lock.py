"""One worker at a time: the lock under which trials are claimed and swept.

Whoever holds it sees a still picture of the study: how many trials are finished, live and
waiting. The database's own means are used, so that the lock ends with its holder.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy
from filelock import FileLock
from optuna.storages import RDBStorage

from autotune.storage.database import database_path, is_sqlite

logger = logging.getLogger(__name__)


@contextmanager
def study_lock(storage: RDBStorage, url: str, study: str) -> Iterator[None]:
    """Hold the lock of one study, across all processes and machines that share its storage.

    Args:
        storage: The open storage.
        url: Its URL.
        study: Name of the study.
    """
    if is_sqlite(url):
        with FileLock(f"{database_path(url)}.lock"):
            yield
        return
    key = int.from_bytes(hashlib.blake2b(study.encode(), digest_size=8).digest(), signed=True)
    # A session lock on a connection of its own: it goes when the connection does.
    with storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
        try:
            yield
        finally:
            try:
                connection.execute(
                    sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": key}
                )
            except sqlalchemy.exc.DBAPIError:
                logger.warning("the lock of %r went with its connection", study, exc_info=True)
                connection.invalidate()
