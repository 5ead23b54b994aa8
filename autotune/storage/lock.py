"""One worker at a time: the lock under which trials are claimed and swept.

Whoever holds it sees a still picture of the study: how many trials are finished, live and
waiting. The database's own means are used, so that the lock ends with its holder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy
from filelock import FileLock
from optuna.storages import RDBStorage

from autotune.storage.database import database_path, is_sqlite
from autotune.storage.patience import LockLostError, under_lock


@contextmanager
def study_lock(storage: RDBStorage, url: str, study: str) -> Iterator[None]:
    """Hold the lock of one study, across all processes and machines that share its storage.

    Args:
        storage: The open storage.
        url: Its URL.
        study: Name of the study.

    Raises:
        LockLostError: At the end, when a server has lost the lock in between: what was done under
            it may have met what another holder did.
    """
    if is_sqlite(url):
        with FileLock(f"{database_path(url)}.lock"), under_lock():
            yield
        return
    key = int.from_bytes(hashlib.blake2b(study.encode(), digest_size=8).digest(), signed=True)
    # A session lock on a connection of its own: it goes when the connection does.
    with storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
        try:
            with under_lock():
                yield
        except BaseException:
            _unlock(connection, key)  # connections are used again, and would bring it along
            raise
        if not _unlock(connection, key):
            raise LockLostError(f"the lock of {study!r} went with its connection")


def _unlock(connection: sqlalchemy.Connection, key: int) -> bool:
    """Give a lock back; tell whether it was still held."""
    try:
        statement = sqlalchemy.text("SELECT pg_advisory_unlock(:key)")
        return bool(connection.scalar(statement, {"key": key}))
    except sqlalchemy.exc.DBAPIError:
        connection.invalidate()
        return False
