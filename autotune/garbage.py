"""Python's garbage collector, and when it is in the way.

The collector looks through all objects each time that their number has grown by a quarter. While
the trials of a large study are read, nearly all objects are new and none is garbage: a quarter of
the time of a report of 5,000 trials went into looking.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_pauses = 0
_was_enabled = False


@contextmanager
def collector_paused() -> Iterator[None]:
    """Let the garbage collector rest for as long as the context lasts.

    Objects without cycles go at once as always. Contexts may be nested, and held by several
    threads: the collector goes on when the last one ends.
    """
    global _pauses, _was_enabled
    with _lock:
        if not _pauses:
            _was_enabled = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if not _pauses and _was_enabled:
                gc.enable()
