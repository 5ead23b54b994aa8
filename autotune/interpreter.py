"""How a process begins and ends: a second or two each, with torch and all that comes with it."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from typing import NoReturn

#: New objects after which Python looks for cycles; its own 700 suit programs that make less.
_OBJECTS = 50_000


def collect_rarely() -> None:
    """Look for cycles of objects less often.

    Importing torch and timm makes a million objects that stay for good, and Python would go
    through them a thousand times: a quarter of the time that it takes.
    """
    gc.set_threshold(_OBJECTS, 20, 20)


def leave(code: int) -> NoReturn:
    """End the process at once, once all that is registered for its end is done.

    The system takes back what a process had faster than the interpreter takes it apart.
    """
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads any more
            code = code or 1
    os._exit(code)
