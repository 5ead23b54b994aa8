"""Retrying while a storage is unavailable: restarted, locked, out of reach.

What may be done twice without harm is retried, at growing intervals, for :data:`RETRY_FOR_S`. That
is every read and most writes of the storage itself (:class:`RetryingStorage`). What creates or
takes a trial is not: it happens under the study's lock, and the lock is lost with the connection
that holds it. There the whole operation is retried, lock and all (:func:`call_with_retry`).
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

#: Seconds for which a storage that is unavailable is retried.
RETRY_FOR_S = 600.0
#: Longest pause between two attempts.
MAX_PAUSE_S = 15.0

#: Messages of SQLite when another connection is in the way.
_BUSY = ("database is locked", "database table is locked", "database schema is locked")
#: Messages of a server about what does not pass by waiting.
_PERMANENT = (
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
_no_retry = threading.local()
#: When this process last met an unavailable storage, in seconds of :func:`time.monotonic`.
_last_unavailable = -math.inf


class LockLostError(Exception):
    """The lock of a study was lost with its connection; another process may have held it."""


def is_transient(error: BaseException) -> bool:
    """Tell whether an error of the storage may pass in a moment."""
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
        return any(message in text for message in _BUSY)
    return not any(message in text for message in _PERMANENT)


def call_with_retry(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call something that may be done twice, again while the storage is unavailable.

    Raises:
        Exception: Whatever the call raises that is not transient, or still is after
            :data:`RETRY_FOR_S`.
    """
    if getattr(_no_retry, "depth", 0):
        return call(*args, **kwargs)
    attempts = Retrying(
        retry=retry_if_exception(is_transient),
        wait=wait_random_exponential(multiplier=0.2, max=MAX_PAUSE_S),
        stop=stop_after_delay(RETRY_FOR_S),
        before_sleep=_on_retry,
        reraise=True,
    )
    return attempts(call, *args, **kwargs)


def retrying(method: F) -> F:
    """Make a method retry while the storage is unavailable."""

    @wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return call_with_retry(method, *args, **kwargs)

    return cast(F, wrapped)


@contextmanager
def no_retry() -> Iterator[None]:
    """Retry nothing in this thread: a part of something larger, or somebody waits for it."""
    _no_retry.depth = getattr(_no_retry, "depth", 0) + 1
    try:
        yield
    finally:
        _no_retry.depth -= 1


def was_unavailable(within_s: float) -> bool:
    """Tell whether this process has met an unavailable storage in the last seconds."""
    return time.monotonic() - _last_unavailable < within_s


def _on_retry(state: RetryCallState) -> None:
    global _last_unavailable
    _last_unavailable = time.monotonic()
    assert state.outcome is not None and state.next_action is not None
    error = state.outcome.exception()
    reason = " ".join(hide_passwords(str(error)).split())[:300]
    logger.warning("storage unavailable (%s); retrying in %.1f s", reason, state.next_action.sleep)


#: Methods that only read; Optuna's cache reads by the last one.
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
#: Methods that may be called twice without harm. A report whose confirmation got lost is
#: overwritten with the same value; a trial that another worker has been given stays with it, and
#: the error says so (``UpdateFinishedTrialError``).
_REPEATABLE = (
    *_READS,
    "set_study_user_attr",
    "set_study_system_attr",
    "set_trial_param",
    "set_trial_intermediate_value",
    "report_epoch",
    "set_trial_user_attrs",
    "set_trial_system_attr",
)


class RetryingStorage(FastRDBStorage):
    """Optuna's database storage, which retries while the database is unavailable."""


for _name in _READS:
    setattr(RetryingStorage, _name, read_only(getattr(RetryingStorage, _name)))
for _name in _REPEATABLE:
    setattr(RetryingStorage, _name, retrying(getattr(RetryingStorage, _name)))
