"""Memory that a worker may fill with what it could compute again."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from autotune.runtime import CONTROL_GROUPS, control_groups

#: Limits what all workers together may fill, as a share of the machine's memory, where the study
#: file sets no limit: the networks need memory, and the system caches files in the rest.
SHARE = 0.25


def worker_memory_budget(workers: int) -> int:
    """Return the bytes that one of several workers may fill."""
    return int(SHARE * machine_bytes() / max(1, workers))


def machine_bytes() -> int:
    """Return the memory that this process could have: of the machine, or of its container."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space)
    with suppress(OSError):  # not Linux
        limits += _group_limits(Path("/proc/self/cgroup").read_text(), CONTROL_GROUPS)
    return min(limits)


def _group_limits(membership: str, root: Path) -> Iterator[int]:
    """Yield the limits of the control groups in a ``/proc/self/cgroup``, of either version."""
    names = {1: "memory.limit_in_bytes", 2: "memory.max"}
    for folder, version in control_groups(membership, root, "memory"):
        with suppress(OSError, ValueError):  # no limit, or "max"
            yield int((folder / names[version]).read_text())
