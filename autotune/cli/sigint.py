"""Ctrl-C while modules are imported."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

#: Limits how long a Ctrl-C waits before the next check whether the import has ended, in seconds.
RETRY_S = 0.05
_IMPORTING = "importlib._bootstrap"


def interrupt_between_imports() -> None:
    """Have Ctrl-C wait for the end of an import before it raises ``KeyboardInterrupt``.

    Raised within an import it gets lost: C++ code that runs Python code (``import torch``)
    aborts the process, the body of a class wraps it in another error, and a destructor drops it.
    """
    signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_globals.get("__name__") == _IMPORTING:
            timer = threading.Timer(RETRY_S, os.kill, (os.getpid(), number))
            timer.daemon = True  # a process that ends before then needs no signal
            timer.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt
