"""How far the opening of a source is, told to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

#: Called with what is done (``indexing``, ``reading``, ``unpacking``, ``downloading``), how much
#: of it, in files or bytes, and the total; None while that is not known.
Progress = Callable[[str, int, int | None], None]


def silent(step: str, done: int, total: int | None) -> None:
    """Show nothing."""
