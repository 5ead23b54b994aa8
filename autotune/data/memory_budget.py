"""How much memory a worker may fill with what it could compute again."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from autotune.runtime import CONTROL_GROUPS, control_groups

#: Of the memory of the machine, the share that all workers together may fill where the study file
#: does not say: the networks need theirs, and the system keeps files in the rest.
SHARE = 0.25


def worker_memory_budget(workers: int) -> int:
    """Return the bytes that one of several workers may fill."""
    return int(SHARE * machine_bytes() / max(1, workers))


def machine_bytes() -> int:
    """Return the memory that this process could have: of the machine, or of its container."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    limited = [] if addresses == resource.RLIM_INFINITY else [addresses]
    with suppress(OSError):  # not Linux
        limited += _of_groups(Path("/proc/self/cgroup").read_text(), CONTROL_GROUPS)
    return min(physical, *limited) if limited else physical


def _of_groups(membership: str, root: Path) -> Iterator[int]:
    """Read the limits of the control groups of a process, of either version.

    Args:
        membership: What ``/proc/self/cgroup`` says: hierarchy, controllers and path in each line.
        root: Where the groups are mounted.
    """
    names = {1: "memory.limit_in_bytes", 2: "memory.max"}
    for folder, version in control_groups(membership, root, "memory"):
        with suppress(OSError, ValueError):  # none here, or "max"
            yield int((folder / names[version]).read_text())
