"""How much memory a worker may fill with what it could compute again."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

#: Of the memory of the machine, the share that all workers together may fill where the study file
#: does not say: the networks need theirs, and the system keeps files in the rest.
SHARE = 0.25
_CGROUPS = Path("/sys/fs/cgroup")


def share_of_memory(workers: int) -> int:
    """Return the bytes that one of several workers may fill."""
    return int(SHARE * machine_bytes() / max(1, workers))


def machine_bytes() -> int:
    """Return the memory that this process could have: of the machine, or of its container."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    limited = [] if addresses == resource.RLIM_INFINITY else [addresses]
    with suppress(OSError):  # not Linux
        limited += _of_groups(Path("/proc/self/cgroup").read_text(), _CGROUPS)
    return min(physical, *limited) if limited else physical


def _of_groups(membership: str, root: Path) -> Iterator[int]:
    """Read the limits of the control groups of a process, of either version.

    Args:
        membership: What ``/proc/self/cgroup`` says: hierarchy, controllers and path in each line.
        root: Where the groups are mounted.
    """
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        top, name = root, "memory.max"
        if controllers:
            top, name = root / "memory", "memory.limit_in_bytes"
            if "memory" not in controllers.split(","):
                continue
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # none here, or "max"
                yield int((folder / name).read_text())
            if folder == top:
                break
