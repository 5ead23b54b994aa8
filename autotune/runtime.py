"""How many threads work: one where more of them only slow it down, or one for each core."""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import math
import os
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

#: Where Linux mounts control groups.
CONTROL_GROUPS = Path("/sys/fs/cgroup")


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run torch on one thread for as long as the context lasts."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def limit_torch_threads() -> None:
    """Have torch use no more threads than this process may use cores.

    OpenMP, which gives torch its number, heeds affinity and ``OMP_NUM_THREADS`` but no quota.
    """
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))


def available_cpus() -> int:
    """Count the cores that this process may use.

    That is what its affinity allows (``taskset``, SLURM's ``--cpus-per-task``, a container's
    ``cpuset``), and no more than the quotas of its control groups amount to (``docker --cpus``,
    the CPU limit of a Kubernetes container). A part of a core counts as one.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quotas: list[float] = []
    with suppress(OSError):  # not Linux
        quotas += cpu_quotas(Path("/proc/self/cgroup").read_text(), CONTROL_GROUPS)
    return max(1, min(allowed, *(math.ceil(quota) for quota in quotas)) if quotas else allowed)


def cpu_quotas(membership: str, root: Path) -> Iterator[float]:
    """Read the CPU quotas of the control groups of a process, in cores.

    Version 2 writes quota and period into ``cpu.max``, version 1 into two files
    (https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/scheduler/sched-bwc.html).

    Args:
        membership: What ``/proc/self/cgroup`` says.
        root: Where the groups are mounted.
    """
    for folder, version in control_groups(membership, root, "cpu"):
        with suppress(OSError, ValueError):  # none here, or "max"
            if version == 2:
                quota, period = (int(part) for part in (folder / "cpu.max").read_text().split())
            else:
                quota, period = (
                    int((folder / f"cpu.cfs_{name}_us").read_text())
                    for name in ("quota", "period")
                )
            if quota > 0 and period > 0:  # -1 is no quota
                yield quota / period


def control_groups(membership: str, root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Find the control groups whose limits hold for a process: its own, and all above it.

    Args:
        membership: What ``/proc/self/cgroup`` says: hierarchy, controllers and path in each line.
        root: Where the groups are mounted.
        controller: What is limited, e.g. ``cpu``; version 1 has a hierarchy for each.

    Yields:
        The folder of a group, and the version of its hierarchy.
    """
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        # In a container the path may be that of the host, and only the top is there.
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            yield folder, 1 if controllers else 2
            if folder == top:
                break


#: New objects after which Python looks for cycles; its own 700 suit programs that make less.
_OBJECTS = 50_000
#: glibc's ``mallopt``: its parameters, and what turns each off from outside.
_KEEPING = {-3: "MALLOC_MMAP_THRESHOLD_", -1: "MALLOC_TRIM_THRESHOLD_"}
_KEPT_BYTES = 2**31 - 1  # it takes an int
#: torch reads its allocator's settings from the first of these that is set; the last is the newest
#: name, the first one every version that autotune runs on knows.
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def raise_gc_threshold() -> None:
    """Look for cycles of objects less often.

    Importing torch and timm makes a million objects that stay for good, and Python would go
    through them a thousand times: a quarter of the time that it takes.
    """
    gc.set_threshold(_OBJECTS, 20, 20)


def tune_malloc() -> None:
    """Have glibc keep freed memory of up to 2 GiB, in a process that trains.

    It would hand every activation map back to the system and fetch it again, zeroed, in the next
    layer: half of the time of a training on the CPU (``benchmarks/allocator.py``). What the
    environment says of these settings holds; where there is no glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for parameter, variable in _KEEPING.items():
        if mallopt is not None and variable not in os.environ:
            mallopt(parameter, _KEPT_BYTES)


def set_gpu_defaults(environment: MutableMapping[str, str]) -> None:
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


def fast_exit(code: int) -> NoReturn:
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


_lock = threading.Lock()
_pauses = 0
_was_enabled = False


@contextmanager
def gc_paused() -> Iterator[None]:
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
