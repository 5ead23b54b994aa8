"""Memory of the simulated device: what is allocated, what there is, and who else holds some."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from tests.support.simulated_gpu.traffic import product_callers

GIB = 2**30
#: The allocator of torch hands out multiples of this.
BLOCK_BYTES = 512


@dataclass
class OutOfMemory:
    """Out of memory that is provoked.

    Args:
        images: A convolution of more images than these finds no memory.
        inside: Part of the name of a function or file of the product that must be on the stack;
            by default it fails everywhere.
        times: So often at most; by default always.
        count: How often it has happened.
    """

    images: int
    inside: str = ""
    times: int | None = None
    count: int = 0

    def applies(self, images: int) -> bool:
        if images <= self.images or (self.times is not None and self.count >= self.times):
            return False
        if self.inside and not any(self.inside in caller for caller in product_callers()):
            return False
        self.count += 1
        return True


@dataclass
class DeviceMemory:
    """The memory of the device as this process sees it.

    Args:
        total_bytes: What the device has.
        fraction: Share of it that this process may have.
        neighbor_bytes: What another process holds.
        neighbor_calls: After this many questions for the free memory the neighbor leaves; ``None``
            if it stays.
        provoked: Where memory gives out.
    """

    total_bytes: int = 139 * GIB
    fraction: float = 1.0
    neighbor_bytes: int = 0
    neighbor_calls: int | None = None
    provoked: list[OutOfMemory] = field(default_factory=list)
    peak: int = 0
    reserved: int = 0
    _now: int = 0
    _live: dict[int, tuple[StorageWeakRef, int]] = field(default_factory=dict)

    def crowd(self, nbytes: int, calls: int | None = None) -> None:
        """Let another process hold memory, until it was asked for this many times."""
        self.neighbor_bytes, self.neighbor_calls = nbytes, calls

    def provoke(self, images: int, inside: str = "", times: int | None = None) -> OutOfMemory:
        rule = OutOfMemory(images, inside, times)
        self.provoked.append(rule)
        return rule

    @property
    def allocated(self) -> int:
        """Bytes of the tensors that are on the device."""
        for key in [key for key, (weak, _) in self._live.items() if weak.expired()]:
            self._now -= self._live.pop(key)[1]
        return self._now

    def free(self) -> tuple[int, int]:
        if self.neighbor_calls is not None:
            if self.neighbor_calls <= 0:
                self.neighbor_bytes, self.neighbor_calls = 0, None
            else:
                self.neighbor_calls -= 1
        held = max(self.reserved, self.allocated) + self.neighbor_bytes
        return max(0, self.total_bytes - held), self.total_bytes

    def empty_cache(self) -> None:
        """Give back what is reserved and not allocated."""
        self.reserved = self.allocated

    def reset_peak(self) -> None:
        self.peak = self.allocated

    def add(self, tensor: Tensor) -> None:
        """Account for a tensor on the device."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._live:
            return
        nbytes = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES
        limit = min(int(self.fraction * self.total_bytes), self.total_bytes - self.neighbor_bytes)
        if self._now + nbytes > min(limit, self.peak) and self.allocated + nbytes > limit:
            self.empty_cache()  # as torch's allocator does before it gives up
            raise self.error(nbytes)
        self._live[storage._cdata] = (StorageWeakRef(storage), nbytes)
        self._now += nbytes
        self.peak = max(self.peak, self._now)
        room = self.total_bytes - self.neighbor_bytes
        self.reserved = max(self._now, min(self.reserved, room))

    def check(self, images: int) -> None:
        """Fail where out of memory is provoked."""
        if any(rule.applies(images) for rule in self.provoked):
            raise self.error(2 * GIB)

    def error(self, wanted: int) -> torch.OutOfMemoryError:
        """Say that there is no memory, in torch's words."""
        held = max(self.reserved, self.allocated)
        free = max(0, self.total_bytes - held - self.neighbor_bytes)
        other = (
            f"Process {os.getppid()} has {_size(self.neighbor_bytes)} memory in use. "
            if self.neighbor_bytes
            else ""
        )
        return torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {_size(wanted)}. GPU 0 has a total capacity "
            f"of {_size(self.total_bytes)} of which {_size(free)} is free. {other}Including "
            f"non-PyTorch memory, this process has {_size(held)} memory in use. Of the allocated "
            f"memory {_size(self.allocated)} is allocated by PyTorch, and "
            f"{_size(held - self.allocated)} is reserved by PyTorch but unallocated."
        )

    def stats(self) -> dict[str, Any]:
        """Return what ``torch.cuda.memory_stats`` is made of."""
        sizes = {
            "allocated_bytes": (self.allocated, self.peak),
            "reserved_bytes": (self.reserved, self.reserved),
        }
        return {
            name: {"all": {"current": now, "peak": peak, "allocated": 0, "freed": 0}}
            for name, (now, peak) in sizes.items()
        }


def _size(nbytes: int) -> str:
    """Write a size as torch does."""
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} bytes"
