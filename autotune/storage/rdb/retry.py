"""Waiting out a storage that is away for a while: restarted, locked, out of reach.

What may be done twice without harm is tried again, ever more rarely, until :data:`RETRY_FOR_S` are
over. That is every read and most writes of the storage itself (:class:`RetryingStorage`). What
creates or takes a trial is not: it happens under the study's lock, and the lock goes with the
connection that holds it. There the whole operation is tried again, lock and all
(:func:`patiently`).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import sqlalchemy
from optuna.exceptions import StorageInternalError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from autotune.errors import StorageError, hide_passwords
from autotune.storage.rdb.fast_rdb import FastRDBStorage
from autotune.storage.rdb.sqlite_locking import read_only

logger = logging.getLogger(__name__)

#: For how long a storage that is away is waited for.
RETRY_FOR_S = 600.0
#: Longest pause between two attempts.
MAX_PAUSE_S = 15.0

#: What SQLite says when another connection is in the way.
_BUSY = ("database is locked", "database table is locked", "database schema is locked")
#: What a server says when it will not do, now or later.
_FOR_GOOD = (
    "authentication failed",
    "does not exist",
    "permission denied",
    "No space left",
    "disk full",
    "could not extend file",
)

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_impatient = threading.local()
#: When this process last met a storage that was away, in seconds of :func:`time.monotonic`.
_last_met = -math.inf


class LockLostError(Exception):
    """The lock of a study went with its connection: nobody knows who was there meanwhile."""


def is_transient(error: BaseException) -> bool:
    """Tell whether an error of the storage may be over in a moment."""
    if isinstance(error, LockLostError):
        return True
    while isinstance(error, StorageError | StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, sqlalchemy.exc.TimeoutError):  # no free connection in the pool
        return True
    if not isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
        return isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated
    text = str(error.orig)
    if type(error.orig).__module__ == "sqlite3":
        return any(words in text for words in _BUSY)
    return not any(words in text for words in _FOR_GOOD)


def call_with_retry(call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Call something that may be done twice, again and again while the storage is away.

    Raises:
        Exception: Whatever the call raises that is not transient, or still is after
            :data:`RETRY_FOR_S`.
    """
    if getattr(_impatient, "depth", 0):
        return call(*args, **named)
    attempts = Retrying(
        retry=retry_if_exception(is_transient),
        wait=wait_random_exponential(multiplier=0.2, max=MAX_PAUSE_S),
        stop=stop_after_delay(RETRY_FOR_S),
        before_sleep=_tell,
        reraise=True,
    )
    return attempts(call, *args, **named)


def retrying(method: F) -> F:
    """Make a method wait out a storage that is away."""

    @wraps(method)
    def waiting(*args: Any, **named: Any) -> Any:
        return call_with_retry(method, *args, **named)

    return cast(F, waiting)


@contextmanager
def no_retry() -> Iterator[None]:
    """Try nothing again in this thread: what is done is a part of something larger.

    Such as what happens under the lock of a study, and a look that somebody waits for.
    """
    _impatient.depth = getattr(_impatient, "depth", 0) + 1
    try:
        yield
    finally:
        _impatient.depth -= 1


def was_unavailable(within_s: float) -> bool:
    """Tell whether this process has met a storage that was away in the last seconds."""
    return time.monotonic() - _last_met < within_s


def _tell(state: RetryCallState) -> None:
    global _last_met
    _last_met = time.monotonic()
    assert state.outcome is not None and state.next_action is not None
    error = state.outcome.exception()
    reason = " ".join(hide_passwords(str(error)).split())[:300]
    logger.warning(
        "the storage is away (%s); trying again in %.1f s", reason, state.next_action.sleep
    )


#: What only reads; the last is what Optuna's cache reads by.
_READS = (
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "get_trial",
    "fetch_trials",
)
#: What may be done twice without harm. A report that was written although the answer got lost is
#: written over with the same value; a trial that another worker has been given stays his, and says
#: so (``UpdateFinishedTrialError``).
_HARMLESS = (
    *_READS,
    "set_study_user_attr",
    "set_study_system_attr",
    "set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attrs",
    "set_trial_system_attr",
)


def _waits(storage: type[T]) -> type[T]:
    """Make a class of storages wait where nothing can go wrong by doing it twice."""
    for name in _READS:
        setattr(storage, name, read_only(getattr(storage, name)))
    for name in _HARMLESS:
        setattr(storage, name, retrying(getattr(storage, name)))
    return storage


@_waits
class RetryingStorage(FastRDBStorage):
    """Optuna's database storage, which waits while the database is away."""
