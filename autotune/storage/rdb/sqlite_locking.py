"""Which transactions of SQLite take the write lock: all but those that are known to read.

Optuna reads a waiting trial and then claims it in one transaction, and with SQLite's deferred
ones two workers can claim the same trial (optuna issues 4621 and 4002); so transactions begin
with ``BEGIN IMMEDIATE``. One that only reads need not wait for those who write: in WAL mode it
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
_reading = threading.local()


def read_only(call: Callable[P, T]) -> Callable[P, T]:
    """Mark a call whose transactions only read."""

    @wraps(call)
    def reading(*args: P.args, **named: P.kwargs) -> T:
        before = getattr(_reading, "now", False)
        _reading.now = True
        try:
            return call(*args, **named)
        finally:
            _reading.now = before

    return reading


def begin_transaction(connection: sqlalchemy.Connection) -> None:
    """Begin a transaction of SQLite; a listener of SQLAlchemy's event of that name."""
    reading = getattr(_reading, "now", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
