"""Closing what Optuna's storages have opened: they have no ``close``."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy
from sqlalchemy.pool import Pool


@contextmanager
def connections_closed() -> Iterator[None]:
    """Close what pools open in the block at its end, as the end of a process does."""
    opened: list[Any] = []

    def note(connection: Any, _record: object) -> None:
        opened.append(connection)

    sqlalchemy.event.listen(Pool, "connect", note)
    try:
        yield
    finally:
        sqlalchemy.event.remove(Pool, "connect", note)
        for connection in opened:
            with suppress(sqlite3.ProgrammingError):  # opened in another thread
                connection.close()
