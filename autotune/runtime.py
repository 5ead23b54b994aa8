"""Settings of a process: threads, cores, garbage collection, memory allocators, and its end."""

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
    """Run torch on one thread in the context."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def limit_torch_threads() -> None:
    """Limit the threads of torch to the cores of this process.

    OpenMP, which sets torch's default, respects affinity and ``OMP_NUM_THREADS`` but no quota.
    """
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))


def available_cpus() -> int:
    """Count the cores that this process may use.

    The limits are its affinity (``taskset``, SLURM's ``--cpus-per-task``, a container's
    ``cpuset``) and the quotas of its control groups (``docker --cpus``, the CPU limit of a
    Kubernetes container). A part of a core counts as one.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    limits: list[float] = [len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1]
    with suppress(OSError):  # not Linux
        limits += cpu_quotas(Path("/proc/self/cgroup").read_text(), CONTROL_GROUPS)
    return max(1, math.ceil(min(limits)))


def cpu_quotas(membership: str, root: Path) -> Iterator[float]:
    """Read the CPU quotas of the control groups of a process, in cores.

    Version 2 writes quota and period into ``cpu.max``, version 1 into two files
    (https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/scheduler/sched-bwc.html).
    """
    for folder, version in control_groups(membership, root, "cpu"):
        with suppress(OSError, ValueError):  # no limit, or "max"
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
    """Find the control groups that limit a process: its own, and all above it.

    Args:
        membership: Content of ``/proc/self/cgroup``: hierarchy, controllers and path in each line.
        root: Where the groups are mounted.
        controller: The limited resource, e.g. ``cpu``; version 1 has a hierarchy for each.

    Yields:
        The folder of a group, and the version of its hierarchy.
    """
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        # In a container the path may be that of the host, where only the top exists.
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            yield folder, 1 if controllers else 2
            if folder == top:
                break


#: Number of new objects before Python searches for cycles; its default is 700.
_GC_THRESHOLD = 50_000
#: Parameters of glibc's ``mallopt``, and the environment variables that set them.
_MALLOC_PARAMETERS = {-3: "MALLOC_MMAP_THRESHOLD_", -1: "MALLOC_TRIM_THRESHOLD_"}
_MALLOC_BYTES = 2**31 - 1  # the largest int, which mallopt takes
#: Variables with the settings of torch's allocator, which reads the first that is set. All
#: supported versions read the first of these names; the last is the newest.
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def raise_gc_threshold() -> None:
    """Search for cycles of objects less often.

    Importing torch and timm makes a million permanent objects, which Python would search a
    thousand times: a quarter of the time of the import.
    """
    gc.set_threshold(_GC_THRESHOLD, 20, 20)


def tune_malloc() -> None:
    """Let glibc keep up to 2 GiB of freed memory, in a process that trains.

    Otherwise it returns every activation map to the system and requests it again, zeroed, in the
    next layer: half of the time of a training on the CPU (``benchmarks/allocator.py``). Settings
    of the environment have priority; without glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for parameter, variable in _MALLOC_PARAMETERS.items():
        if mallopt is not None and variable not in os.environ:
            mallopt(parameter, _MALLOC_BYTES)


def set_gpu_defaults(environment: MutableMapping[str, str]) -> None:
    """Set the variables of CUDA and torch that the user has not set.

    GPUs get the numbers of ``nvidia-smi``; by default CUDA begins with the fastest. Expandable
    segments lose less memory to gaps: every trial allocates tensors of other shapes
    (https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf).

    Args:
        environment: The environment of a process that has not used a GPU yet.
    """
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if not any(name in environment for name in _ALLOCATOR):
        environment[_ALLOCATOR[0]] = "expandable_segments:True"


def fast_exit(code: int) -> NoReturn:
    """Run the exit functions and end the process, without the interpreter's slow clean-up."""
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # the reader has closed it
            code = code or 1
    os._exit(code)


_lock = threading.Lock()
_pauses = 0
_was_enabled = False


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector in the context.

    Objects without cycles are freed as always. Contexts may be nested and used by several threads:
    the collector resumes when the last one ends.
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
