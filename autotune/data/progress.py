"""Progress of a download, and of opening a data set."""

from __future__ import annotations

from collections.abc import Callable

INDEXING = "indexing the images"
READING = "reading the images"
COMPARING = "comparing the images"
CHECKING = "checking that the test images can be read"
#: The steps that count files; all others count bytes.
COUNTED_STEPS = (INDEXING, READING, COMPARING, CHECKING)

#: Called with a step, what is done of it, and the total; ``None`` while that is unknown.
ProgressCallback = Callable[[str, int, int | None], None]


def no_progress(step: str, done: int, total: int | None) -> None:
    """Do nothing."""
