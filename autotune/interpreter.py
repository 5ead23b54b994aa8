"""How a process begins, keeps its memory and ends, with torch and all that comes with it."""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import os
import sys
from collections.abc import MutableMapping
from typing import NoReturn

#: New objects after which Python looks for cycles; its own 700 suit programs that make less.
_OBJECTS = 50_000
#: glibc's ``mallopt``: its parameters, and what turns each off from outside.
_KEEPING = {-3: "MALLOC_MMAP_THRESHOLD_", -1: "MALLOC_TRIM_THRESHOLD_"}
_KEPT_BYTES = 2**31 - 1  # it takes an int
#: torch reads its allocator's settings from the first of these that is set; the last is the newest
#: name, the first one every version that autotune runs on knows.
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def collect_rarely() -> None:
    """Look for cycles of objects less often.

    Importing torch and timm makes a million objects that stay for good, and Python would go
    through them a thousand times: a quarter of the time that it takes.
    """
    gc.set_threshold(_OBJECTS, 20, 20)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory of up to 2 GiB, in a process that trains.

    It would hand every activation map back to the system and fetch it again, zeroed, in the next
    layer: half of the time of a training on the CPU (``benchmarks/allocator.py``). What the
    environment says of these settings holds; where there is no glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for parameter, variable in _KEEPING.items():
        if mallopt is not None and variable not in os.environ:
            mallopt(parameter, _KEPT_BYTES)


def prefer_gpu_settings(environment: MutableMapping[str, str]) -> None:
    """Set what CUDA and torch read before they use a GPU, where the user has not set it.

    GPUs are numbered as ``nvidia-smi`` numbers them; CUDA itself would begin with the fastest.
    Segments that grow lose less memory to gaps: every trial asks for tensors of other shapes
    (https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf).

    Args:
        environment: The environment of a process that has not used a GPU yet.
    """
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if not any(name in environment for name in _ALLOCATOR):
        environment[_ALLOCATOR[0]] = "expandable_segments:True"


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
