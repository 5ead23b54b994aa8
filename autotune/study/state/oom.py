"""Work that does not fit into memory: what it wanted, who holds the rest, which parts fit.

Others on the same device are asked for first: a plan is not to train in small parts, nor to be
told infeasible, because of a neighbor that is gone in a moment.
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
#: Fewer images than these do not train at a time: batch norm needs two.
MIN_MICRO_BATCH = 2
#: How long work waits for others to give memory back, before it is tried again in parts of the
#: same size: the first time, and the second time. Then the parts are halved.
SHARED_WAITS_S = (3.0, 10.0)
#: How often a wait looks whether there is room now, or a stop is asked for.
_LOOK_AGAIN_S = 0.25
#: A device of which others leave less than this share is crowded.
SHARED_BELOW = 0.85
#: A plan that wants more than this share of a device would hardly fit alone: the CUDA context
#: takes some, and more may be wanted than is known of.
FITS_ALONE = 0.95
#: What does not fit is beyond the memory by at least this share: the allocator rounds, and loses a
#: part to gaps.
MIN_EXCESS = 0.01
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": MIB, "GiB": 2**30, "TiB": 2**40}
_SIZE = r"([\d.,]+) (bytes|[KMGT]iB)"
#: torch's allocators on CUDA and on the CPU, and numpy.
_ASKED = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate|Requested size:) " + _SIZE)
_HELD = re.compile(_SIZE + r" is allocated by PyTorch")
_FREE = re.compile(_SIZE + r" is free")


@dataclass(frozen=True)
class MemoryShortage:
    """What did not fit.

    Args:
        wanted_bytes: What the plan wanted at least.
        left_bytes: What its process could have had at that moment.
        device_bytes: What it could have had with nobody else on the device; 0 where that could
            not be found out.
    """

    wanted_bytes: int
    left_bytes: int
    device_bytes: int

    @property
    def is_shared_device(self) -> bool:
        """Whether the plan met others on its device, and would fit without them."""
        return (
            self.left_bytes < SHARED_BELOW * self.device_bytes
            and self.wanted_bytes < FITS_ALONE * self.device_bytes
        )

    @property
    def excess(self) -> float:
        """What it wanted beyond what there is, as a share of that; always above zero."""
        if not self.device_bytes:
            return MIN_EXCESS
        return max(MIN_EXCESS, self.wanted_bytes / self.device_bytes - 1.0)

    def describe(self) -> str:
        """Write both sizes."""
        wanted, there = (f"{one / MIB:,.0f} MiB" for one in (self.wanted_bytes, self.device_bytes))
        if not self.device_bytes:
            return f"it wanted at least {wanted} and did not get it"
        # Less than there is: others have the rest, or it lies in pieces, or it was not told how
        # much the last request was for.
        denied = " and did not get it" if self.wanted_bytes <= self.device_bytes else ""
        return f"it wanted at least {wanted}{denied}, the device has {there}"


def measure_shortage(error: BaseException, device: torch.device) -> MemoryShortage:
    """Work out from an error what a plan wanted; called while what it held is still held.

    It never raises: where something cannot be measured, what the error says has to do.

    Args:
        error: What was raised for want of memory.
        device: Where the network trained.
    """
    text = str(error)
    asked, held = _size(_ASKED, text) or 0, _size(_HELD, text)
    if device.type != "cuda":
        used, left, there = _measured(_of_process, (0, 0, 0))
        return MemoryShortage(used + asked, left, there)
    there = device_bytes(device)
    allocated, reserved, peak, free = _measured(lambda: _of_gpu(device), (0, 0, 0, 0))
    wanted = max((allocated if held is None else held) + asked, peak)
    # What the error says was so when it was raised; others may have left since.
    said = _size(_FREE, text)
    left = (free if said is None else said) + reserved
    return MemoryShortage(wanted, min(there, left) if there else left, there)


def device_bytes(device: torch.device) -> int:
    """Return how much memory of a GPU this process may have at most, 0 where it does not say.

    That is less than the card has for a part of it (MIG), under MPS with a limit of memory, and
    after ``torch.cuda.set_per_process_memory_fraction``.

    Args:
        device: The GPU, with or without an index.
    """
    return _measured(lambda: _device_bytes(device), 0)


def _device_bytes(device: torch.device) -> int:
    index = torch.cuda.current_device() if device.index is None else device.index
    total = min(
        torch.cuda.get_device_properties(index).total_memory, torch.cuda.mem_get_info(index)[1]
    )
    # torch 2.7 has no such function; with CUDA's own allocator it raises.
    share_of = getattr(torch.cuda, "get_per_process_memory_fraction", lambda index: 1.0)
    return int(_measured(lambda: share_of(index), 1.0) * total)


def _of_gpu(device: torch.device) -> tuple[int, int, int, int]:
    """Return what torch has given out, keeps, had given out at most, and what nobody has."""
    return (
        torch.cuda.memory_allocated(device),
        torch.cuda.memory_reserved(device),
        torch.cuda.max_memory_allocated(device),
        torch.cuda.mem_get_info(device)[0],
    )


def _measured(measure: Callable[[], T], otherwise: T) -> T:
    """Measure something; what goes wrong must not take the place of the error at hand."""
    try:
        return measure()
    except (RuntimeError, ValueError, AssertionError, OSError, KeyError) as error:
        logger.warning("memory cannot be measured: %s", failures.first_line(error))
        return otherwise


def _size(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    if found is None:
        return None
    return int(float(found.group(1).replace(",", "")) * _UNITS[found.group(2)])


def _of_process() -> tuple[int, int, int]:
    """Return what this process holds, could have now, and could have at most.

    Linux counts addresses where they are limited (``ulimit -v``), else pages in use.
    """
    page = resource.getpagesize()
    addresses, pages = (
        int(one) * page for one in Path("/proc/self/statm").read_text().split()[:2]
    )
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    known = {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines if line[-1] == "kB"}
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit not in (resource.RLIM_INFINITY, -1) and limit < known["MemTotal"]:
        return addresses, limit, limit
    return pages, min(known["MemTotal"], pages + known["MemAvailable"]), known["MemTotal"]


class DoesNotFitError(Exception):
    """Work does not fit into memory, in the smallest parts.

    Args:
        need: What it wanted, and what there was.
    """

    def __init__(self, need: MemoryShortage) -> None:
        super().__init__(need.describe())
        self.shortage = need


def with_oom_backoff(
    work: Callable[[int], T],
    micro_batch_size: int,
    device: torch.device,
    *,
    least: int = MIN_MICRO_BATCH,
    stopped: Callable[[], bool] = lambda: False,
    on_halved: Callable[[int, MemoryShortage], None] = lambda part, need: None,
) -> T:
    """Do something with so many images at a time, with half as many where they do not fit.

    Where others hold the memory of the device, it is tried again in parts of the same size after
    a while, twice for each size, before the parts are halved.

    Args:
        work: What to do, told how many images go through the network at a time. It may be called
            several times, and goes on from a checkpoint if it keeps one.
        micro_batch_size: How many at first.
        device: Where the network is.
        least: The smallest part.
        stopped: Asked while it waits; true interrupts.
        on_halved: Told of a new size, and what did not fit before.

    Raises:
        DoesNotFitError: When the smallest part does not fit.
        TrialInterruptedError: When a stop was asked for while it waited.
    """
    waits = iter(SHARED_WAITS_S)
    while True:
        try:
            return work(micro_batch_size)
        except Exception as error:
            if failures.classify(error, device) != failures.FailureKind.MEMORY:
                raise
            need, said = measure_shortage(error, device), failures.first_line(error)
        # Outside of the except block, which would keep the frames and their tensors alive.
        release_memory(device, collect=True)
        wait_s = next(waits, None) if need.is_shared_device else None
        if wait_s is not None:
            logger.warning("others hold the memory of the device; waiting: %s", said)
            _wait_for_room(need, device, wait_s, stopped)
            continue
        if micro_batch_size <= least:
            raise DoesNotFitError(need)
        micro_batch_size = max(least, micro_batch_size // 2)
        waits = iter(SHARED_WAITS_S)
        logger.warning("%d images at a time from now on: %s", micro_batch_size, said)
        on_halved(micro_batch_size, need)


def release_memory(device: torch.device, collect: bool = False) -> None:
    """Give back to a GPU what torch's allocator keeps for networks that are gone.

    Other processes on it cannot use what is kept, and trials of other shapes need other blocks.

    Args:
        device: The device; nothing happens on the CPU unless ``collect`` is true.
        collect: Whether to look for cycles of objects first. After an error they may hold
            tensors; it takes about half a second.
    """
    if collect:
        gc.collect()
    if device.type == "cuda":
        # A process that lost its GPU cannot give anything back, and says so elsewhere.
        _measured(torch.cuda.empty_cache, None)


def _wait_for_room(
    need: MemoryShortage, device: torch.device, wait_s: float, stopped: Callable[[], bool]
) -> None:
    """Wait until there is room for what did not fit, or the time is over."""
    until = time.monotonic() + wait_s
    # It wanted more than is known of: the request that failed was not its last.
    enough = min(1.25 * need.wanted_bytes, SHARED_BELOW * need.device_bytes)
    while time.monotonic() < until:
        if stopped():
            raise TrialInterruptedError("stopped while others held the memory of the device")
        if _measured(lambda: _room(device), 0) >= enough:
            return
        time.sleep(min(_LOOK_AGAIN_S, wait_s))


def _room(device: torch.device) -> int:
    if device.type != "cuda":
        return _of_process()[1]
    _, reserved, _, free = _of_gpu(device)
    return free + reserved
