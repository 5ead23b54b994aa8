"""How much memory a plan wanted that did not fit, and how much there was for it."""

from __future__ import annotations

import re
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

MIB = 2**20
#: A device of which others leave less than this share is crowded.
CROWDED_BELOW = 0.85
#: What does not fit is beyond the memory by at least this share: the allocator rounds, and loses a
#: part to gaps.
LEAST_EXCESS = 0.01
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": MIB, "GiB": 2**30, "TiB": 2**40}
_SIZE = r"([\d.,]+) (bytes|[KMGT]iB)"
#: torch's allocators on CUDA and on the CPU, and numpy.
_ASKED = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate) " + _SIZE)
_HELD = re.compile(_SIZE + r" is allocated by PyTorch")


@dataclass(frozen=True)
class Need:
    """What did not fit.

    Args:
        wanted_bytes: What the plan wanted at least.
        left_bytes: What its process could have had at that moment.
        device_bytes: What it could have had with nobody else on the device.
    """

    wanted_bytes: int
    left_bytes: int
    device_bytes: int

    @property
    def is_crowded(self) -> bool:
        """Whether the plan met others on its device, and would fit without them."""
        room = CROWDED_BELOW * self.device_bytes
        return self.left_bytes < room and self.wanted_bytes < room

    @property
    def excess(self) -> float:
        """What it wanted beyond what there is, as a share of that; always above zero."""
        return max(LEAST_EXCESS, self.wanted_bytes / self.device_bytes - 1.0)

    def in_words(self) -> str:
        """Write both sizes."""
        wanted, there = (f"{one / MIB:,.0f} MiB" for one in (self.wanted_bytes, self.device_bytes))
        # Less than there is: others have the rest, or it lies in pieces, or it was not told how
        # much the last request was for.
        denied = " and did not get it" if self.wanted_bytes <= self.device_bytes else ""
        return f"it wanted at least {wanted}{denied}, the device has {there}"


def need_of(error: BaseException, device: torch.device) -> Need:
    """Work out from an error what a plan wanted; called while what it held is still held.

    Args:
        error: What was raised for want of memory.
        device: Where the network trained.
    """
    asked = _size(_ASKED, str(error))
    if device.type != "cuda":
        held, left, there = _of_process()
        return Need(held + asked, left, there)
    free, _ = torch.cuda.mem_get_info(device)
    there = device_bytes(device)
    held = _size(_HELD, str(error)) or torch.cuda.memory_allocated(device)
    wanted = max(held + asked, torch.cuda.max_memory_allocated(device))
    return Need(wanted, min(there, free + torch.cuda.memory_reserved(device)), there)


def device_bytes(device: torch.device) -> int:
    """Return how much memory of a GPU this process may have at most."""
    share = torch.cuda.get_per_process_memory_fraction(device)
    return int(share * torch.cuda.get_device_properties(device).total_memory)


def _size(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.search(text)
    if found is None:
        return 0
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
