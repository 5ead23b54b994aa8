"""How many threads work: one where more of them only slow it down, or one for each core."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Where Linux mounts control groups.
CONTROL_GROUPS = Path("/sys/fs/cgroup")


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread for as long as the context lasts."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def keep_to_cores() -> None:
    """Have torch use no more threads than this process may use cores.

    OpenMP, which gives torch its number, heeds affinity and ``OMP_NUM_THREADS`` but no quota.
    """
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), cores()))


def cores() -> int:
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
