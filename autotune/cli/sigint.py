"""Ctrl-C while modules are imported."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

#: How long a Ctrl-C waits before it looks again whether an import goes on, in seconds.
LOOK_AGAIN_S = 0.05
_IMPORTING = "importlib._bootstrap"


def interrupt_between_imports() -> None:
    """Have Ctrl-C wait for the end of an import, and raise ``KeyboardInterrupt`` then.

    Raised inside of an import it does not arrive: C++ code that runs Python code (``import
    torch``) aborts the process, the body of a class wraps it in another error, and a destructor
    swallows it.
    """
    signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _imports(frame):
        raise KeyboardInterrupt
    again = threading.Timer(LOOK_AGAIN_S, os.kill, (os.getpid(), number))
    again.daemon = True  # a process that ends by itself in between needs no signal
    again.start()


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == _IMPORTING:
            return True
        frame = frame.f_back
    return False
