"""The lock of a study: one worker at a time claims trials, or reclaims those of dead workers.

Its holder sees a study that does not change: how many trials are finished, live and waiting. The
lock is the database's own, so that it ends with its holder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy
from filelock import FileLock, Timeout

from autotune.errors import LockedError
from autotune.storage.rdb.retry import LockLostError, RetryingStorage, no_retry
from autotune.storage.url import database_path, is_sqlite

#: Seconds between two attempts to take the lock beside an SQLite database.
POLL_S = 0.01


@contextmanager
def study_lock(
    storage: RetryingStorage, url: str, study: str, timeout_s: float | None = None
) -> Iterator[None]:
    """Hold the lock of one study, across all processes and machines that share its storage.

    Args:
        storage: The open storage.
        url: Its URL.
        study: Name of the study.
        timeout_s: Seconds to wait for the lock; ``None`` for ever.

    Raises:
        LockLostError: At the end, when a server has lost the lock in between: what was done under
            it may have met what another holder did.
        LockedError: When another one holds it for longer than ``timeout_s``.
        DatabaseLostError: When the file of the database was deleted, moved or replaced.
    """
    if is_sqlite(url):
        storage.check_file()  # before the lock too, which would make its folder again
        lock = FileLock(f"{database_path(url)}.lock")
        try:
            lock.acquire(timeout=-1 if timeout_s is None else timeout_s, poll_interval=POLL_S)
        except Timeout as error:
            raise LockedError.for_study(study, timeout_s) from error
        try:
            storage.check_file()
            with no_retry():
                yield
        finally:
            lock.release()
        return
    key = int.from_bytes(hashlib.blake2b(study.encode(), digest_size=8).digest(), signed=True)
    # A session lock on its own connection: it goes when the connection does.
    with storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        _lock(connection, key, study, timeout_s)
        try:
            with no_retry():
                yield
        except BaseException:
            _unlock(connection, key)  # connections are used again, and would bring it along
            raise
        if not _unlock(connection, key):
            raise LockLostError(f"the lock of {study!r} was lost with its connection")


def _unlock(connection: sqlalchemy.Connection, key: int) -> bool:
    """Release a lock; tell whether it was still held."""
    try:
        statement = sqlalchemy.text("SELECT pg_advisory_unlock(:key)")
        return bool(connection.scalar(statement, {"key": key}))
    except sqlalchemy.exc.DBAPIError:
        connection.invalidate()
        return False


def _lock(
    connection: sqlalchemy.Connection, key: int, study: str, timeout_s: float | None
) -> None:
    lock = sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key}
    if timeout_s is None:
        connection.execute(*lock)
        return
    connection.execute(sqlalchemy.text(f"SET lock_timeout = {max(1, round(1000 * timeout_s))}"))
    try:
        connection.execute(*lock)
    except sqlalchemy.exc.OperationalError as error:
        if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise
        raise LockedError.for_study(study, timeout_s) from error
    finally:
        if not connection.invalidated:  # connections are used again
            connection.execute(sqlalchemy.text("RESET lock_timeout"))
