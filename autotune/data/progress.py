"""How far the fetching and opening of a source are, told to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

INDEXING = "indexing the images"
READING = "reading the images"
COMPARING = "comparing the images"
#: The steps that count files; all others count bytes.
COUNTED_STEPS = (INDEXING, READING, COMPARING)

#: Called with what is done, in words, how much of it, and the total; None while that is not known.
Progress = Callable[[str, int, int | None], None]


def no_progress(step: str, done: int, total: int | None) -> None:
    """Show nothing."""
