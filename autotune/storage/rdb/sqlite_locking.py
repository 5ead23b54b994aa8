"""Which transactions of SQLite take the write lock: all except those that only read.

Optuna reads a waiting trial and then claims it in one transaction, and with SQLite's deferred
ones two workers can claim the same trial (optuna issues 4621 and 4002); so transactions begin
with ``BEGIN IMMEDIATE``. One that only reads need not wait for those that write: in WAL mode it
sees the database as it was when it began.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import sqlalchemy

P = ParamSpec("P")
T = TypeVar("T")
_local = threading.local()


def read_only(call: Callable[P, T]) -> Callable[P, T]:
    """Mark a call whose transactions only read."""

    @wraps(call)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        before = getattr(_local, "is_read_only", False)
        _local.is_read_only = True
        try:
            return call(*args, **kwargs)
        finally:
            _local.is_read_only = before

    return wrapped


def begin_transaction(connection: sqlalchemy.Connection) -> None:
    """Begin a transaction of SQLite, at SQLAlchemy's event ``begin``."""
    is_read_only = getattr(_local, "is_read_only", False)
    connection.exec_driver_sql("BEGIN" if is_read_only else "BEGIN IMMEDIATE")
