"""Work that does not fit into memory: what it wanted, who holds the rest, smaller micro-batches.

Other processes on the device are considered first: a plan must not train in small micro-batches,
nor be called infeasible, because of a neighbor that is gone in a moment.
"""

from __future__ import annotations

import gc
import logging
import re
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from autotune.errors import TrialInterruptedError
from autotune.study.state import failures

logger = logging.getLogger(__name__)

T = TypeVar("T")

MIB = 2**20
#: Smallest micro-batch that trains: batch norm needs two images.
MIN_MICRO_BATCH = 2
#: Longest waits for others to free memory before work is retried with a micro-batch of the same
#: size: the first time, and the second time. Then the size is halved.
SHARED_WAITS_S = (3.0, 10.0)
#: Seconds between two looks for free memory, or for a stop, during a wait.
_POLL_S = 0.25
#: Share of a device below which others leave too little of it.
SHARED_BELOW = 0.85
#: Largest share of a device that a plan may want and still fit alone: the CUDA context takes
#: some, and more may be wanted than is known.
FITS_ALONE = 0.95
#: Smallest share by which a plan exceeds the memory: the allocator rounds, and loses a part to
#: gaps.
MIN_EXCESS = 0.01
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": MIB, "GiB": 2**30, "TiB": 2**40}
_SIZE = r"([\d.,]+) (bytes|[KMGT]iB)"
#: Messages of torch's allocators on CUDA and on the CPU, and of numpy.
_ASKED = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate|Requested size:) " + _SIZE)
_HELD = re.compile(_SIZE + r" is allocated by PyTorch")
_FREE = re.compile(_SIZE + r" is free")


@dataclass(frozen=True)
class MemoryShortage:
    """What did not fit into memory.

    Args:
        wanted_bytes: The least that the plan wanted.
        left_bytes: What its process could have had at that moment.
        device_bytes: What it could have had with nobody else on the device; 0 if unknown.
    """

    wanted_bytes: int
    left_bytes: int
    device_bytes: int

    @property
    def is_shared_device(self) -> bool:
        """Whether others use the device, and the plan would fit without them."""
        return (
            self.left_bytes < SHARED_BELOW * self.device_bytes
            and self.wanted_bytes < FITS_ALONE * self.device_bytes
        )

    @property
    def excess(self) -> float:
        """What it wanted beyond the device's memory, as a share of that; always above zero."""
        if not self.device_bytes:
            return MIN_EXCESS
        return max(MIN_EXCESS, self.wanted_bytes / self.device_bytes - 1.0)

    def describe(self) -> str:
        """Describe both sizes."""
        wanted, total = (f"{n / MIB:,.0f} MiB" for n in (self.wanted_bytes, self.device_bytes))
        if not self.device_bytes:
            return f"it wanted at least {wanted} and did not get it"
        # Less than the device has: others have the rest, or it is in pieces, or the size of the
        # last request is unknown.
        denied = " and did not get it" if self.wanted_bytes <= self.device_bytes else ""
        return f"it wanted at least {wanted}{denied}, the device has {total}"


def measure_shortage(error: BaseException, device: torch.device) -> MemoryShortage:
    """Work out from an error what a plan wanted, while what it held is still held.

    It never raises: where something cannot be measured, the text of the error has to do.
    """
    text = str(error)
    asked, held = _size(_ASKED, text) or 0, _size(_HELD, text)
    if device.type != "cuda":
        used, left, total = _measured(_process_memory, (0, 0, 0))
        return MemoryShortage(used + asked, left, total)
    total = device_bytes(device)
    allocated, reserved, peak, free = _measured(lambda: _gpu_memory(device), (0, 0, 0, 0))
    wanted = max((allocated if held is None else held) + asked, peak)
    # The error has what was free when it was raised; others may have left since.
    free_then = _size(_FREE, text)
    left = (free if free_then is None else free_then) + reserved
    return MemoryShortage(wanted, min(total, left) if total else left, total)


def device_bytes(device: torch.device) -> int:
    """Return how much memory of a GPU this process may have at most, 0 if unknown.

    That is less than the card has for a part of it (MIG), under MPS with a limit of memory, and
    after ``torch.cuda.set_per_process_memory_fraction``.
    """

    def measure() -> int:
        index = torch.cuda.current_device() if device.index is None else device.index
        properties = torch.cuda.get_device_properties(index)
        total = min(properties.total_memory, torch.cuda.mem_get_info(index)[1])
        # torch 2.7 has no such function; with CUDA's own allocator it raises.
        share_of = getattr(torch.cuda, "get_per_process_memory_fraction", lambda index: 1.0)
        return int(_measured(lambda: share_of(index), 1.0) * total)

    return _measured(measure, 0)


def _gpu_memory(device: torch.device) -> tuple[int, int, int, int]:
    """Return what torch has allocated, reserved, allocated at most, and what is free."""
    return (
        torch.cuda.memory_allocated(device),
        torch.cuda.memory_reserved(device),
        torch.cuda.max_memory_allocated(device),
        torch.cuda.mem_get_info(device)[0],
    )


def _measured(measure: Callable[[], T], otherwise: T) -> T:
    """Measure something; a failure must not replace the error at hand."""
    try:
        return measure()
    except (RuntimeError, ValueError, AssertionError, OSError, KeyError) as error:
        logger.warning("memory cannot be measured: %s", failures.first_line(error))
        return otherwise


def _size(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    if match is None:
        return None
    return int(float(match.group(1).replace(",", "")) * _UNITS[match.group(2)])


def _process_memory() -> tuple[int, int, int]:
    """Return what this process holds, could have now, and could have at most.

    Linux counts addresses where they are limited (``ulimit -v``), else pages in use.
    """
    page = resource.getpagesize()
    addresses, pages = (int(n) * page for n in Path("/proc/self/statm").read_text().split()[:2])
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    system = {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines if line[-1] == "kB"}
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit not in (resource.RLIM_INFINITY, -1) and limit < system["MemTotal"]:
        return addresses, limit, limit
    return pages, min(system["MemTotal"], pages + system["MemAvailable"]), system["MemTotal"]


class DoesNotFitError(Exception):
    """Work does not fit into memory, even in the smallest micro-batch."""

    def __init__(self, shortage: MemoryShortage) -> None:
        super().__init__(shortage.describe())
        self.shortage = shortage


def with_oom_backoff(
    work: Callable[[int], T],
    micro_batch_size: int,
    device: torch.device,
    *,
    least: int = MIN_MICRO_BATCH,
    stopped: Callable[[], bool] = lambda: False,
    on_halved: Callable[[int, MemoryShortage], None] = lambda micro_batch_size, shortage: None,
) -> T:
    """Do some work, with half the micro-batch size each time that it does not fit into memory.

    Where others hold the memory of the device, the same size is retried after a while, twice for
    each size, before it is halved.

    Args:
        work: The work, given the micro-batch size. It may be called several times, and continues
            from a checkpoint if it keeps one.
        micro_batch_size: The first size.
        device: Where the network is.
        least: The smallest size.
        stopped: Asked during a wait; true interrupts it.
        on_halved: Called with a new size, and what did not fit before.

    Raises:
        DoesNotFitError: When the smallest size does not fit.
        TrialInterruptedError: When a stop was requested during a wait.
    """
    waits = iter(SHARED_WAITS_S)
    while True:
        try:
            return work(micro_batch_size)
        except Exception as error:
            if failures.classify(error, device) != failures.FailureKind.MEMORY:
                raise
            shortage, message = measure_shortage(error, device), failures.first_line(error)
        # Outside of the except block, which would keep the frames and their tensors alive.
        release_memory(device, collect=True)
        wait_s = next(waits, None) if shortage.is_shared_device else None
        if wait_s is not None:
            logger.warning("other processes use the memory of the device; waiting: %s", message)
            _wait_for_room(shortage, device, wait_s, stopped)
            continue
        if micro_batch_size <= least:
            raise DoesNotFitError(shortage)
        micro_batch_size = max(least, micro_batch_size // 2)
        waits = iter(SHARED_WAITS_S)
        logger.warning("%d images at a time from now on: %s", micro_batch_size, message)
        on_halved(micro_batch_size, shortage)


def release_memory(device: torch.device, collect: bool = False) -> None:
    """Release the GPU memory that torch's allocator keeps for networks that are gone.

    Other processes on the GPU cannot use it, and trials of other shapes need other blocks. With
    ``collect``, cycles of objects are collected first, on the CPU too: after an error they may
    hold tensors; it takes about half a second.
    """
    if collect:
        gc.collect()
    if device.type == "cuda":
        # A process that lost its GPU cannot release anything, and says so elsewhere.
        _measured(torch.cuda.empty_cache, None)


def _wait_for_room(
    shortage: MemoryShortage, device: torch.device, wait_s: float, stopped: Callable[[], bool]
) -> None:
    """Wait until what did not fit has room, or the time is over."""
    until = time.monotonic() + wait_s
    # It wanted more than is known: the request that failed was not its last.
    enough = min(1.25 * shortage.wanted_bytes, SHARED_BELOW * shortage.device_bytes)
    while time.monotonic() < until:
        if stopped():
            raise TrialInterruptedError("stopped while others used the memory of the device")
        if _measured(lambda: _room(device), 0) >= enough:
            return
        time.sleep(min(_POLL_S, wait_s))


def _room(device: torch.device) -> int:
    if device.type != "cuda":
        return _process_memory()[1]
    _, reserved, _, free = _gpu_memory(device)
    return free + reserved
