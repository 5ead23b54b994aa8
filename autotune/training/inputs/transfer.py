"""Copies from the memory of the host to a GPU, without a wait in between.

A copy from pageable memory makes the host wait. So everything goes through pinned memory, which
torch keeps for the next copy: it hands a buffer out again only after the copy from it has ended
(``CachingHostAllocator``). Two or three buffers take turns that way.

Data used in every epoch stays on the device if it fits (:func:`allocate_resident`). Otherwise a
thread gathers it and it is copied on a separate stream, ahead of the steps (:func:`prefetch`).
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from math import prod

import numpy as np
import torch
from torch import Tensor

from autotune.models.device_errors import is_out_of_memory

logger = logging.getLogger(__name__)

#: Share of a GPU's memory that images and features of one worker may take together: of what is
#: free, and of what they take already. What others hold is not free, so a second worker on the
#: same GPU gets a quarter of what the first one leaves. Networks need the rest.
DEVICE_SHARE = 0.25
#: Bytes copied to the device at a time. One more buffer of this size is all that an entry of
#: features takes in the memory of the host.
CHUNK_BYTES = 64 << 20
#: Batches that are gathered while others are used, see :func:`prefetch`.
PREFETCHED_BATCHES = 2

#: Shape of a row and its type.
Layout = tuple[tuple[int, ...], torch.dtype]
#: Writes rows into tensors, one for each layout.
Gather = Callable[[Tensor, Sequence[Tensor]], None]

#: Tensors that stay on devices while they are used.
_resident: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without making the host wait; return it if it is there."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return empty_pinned(tensor.shape, tensor.dtype).copy_(tensor).to(device, non_blocking=True)


def empty_pinned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Make an empty tensor in memory of the host that a GPU can read by itself.

    If the machine has none left, it is ordinary memory: copies from it make the host wait, and are
    as correct. The GPU does not lack memory then, though CUDA reports the same error.
    """
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        _log_pageable()
        return torch.empty(shape, dtype=dtype)


@cache
def _log_pageable() -> None:
    logger.warning("the machine has no memory left to pin: copies to the GPU are slow")


def resident_bytes(device: torch.device) -> int:
    """Count the bytes that stay on a device because of :func:`allocate_resident`."""
    return sum(tensor.nbytes for tensor in _resident.values() if tensor.device == device)


def has_room(size: int, device: torch.device) -> bool:
    """Tell whether that many more bytes may stay on a GPU, see ``DEVICE_SHARE``."""
    free, _ = torch.cuda.mem_get_info(device)
    # What torch keeps for its next tensors is free for them.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    held = resident_bytes(device)
    return held + size <= DEVICE_SHARE * (free + held)


def allocate_resident(
    layouts: Sequence[Layout], rows: int, device: torch.device
) -> list[Tensor] | None:
    """Make tensors that stay on a GPU, if there is room for all of them.

    Args:
        layouts: Shape and type of a row of each.
        rows: Number of rows of each.
        device: The GPU.

    Returns:
        Uninitialized tensors ``(rows, *shape)``, or ``None`` if there is no room.
    """
    size = rows * sum(prod(shape) * dtype.itemsize for shape, dtype in layouts)
    if not has_room(size, device):
        return None
    try:
        made = [
            torch.empty((rows, *shape), dtype=dtype, device=device) for shape, dtype in layouts
        ]
    except RuntimeError as error:  # taken meanwhile, or fragmented
        if not is_out_of_memory(error):
            raise
        return None
    _resident.update({id(tensor): tensor for tensor in made})
    return made


def copy_in_chunks(array: np.ndarray, target: Tensor) -> None:
    """Copy an array to a tensor of its shape and type on a GPU, a chunk at a time.

    Of an array that is mapped from disk, no more than a chunk is in memory.
    """
    row = max(1, array.nbytes // max(1, len(array)))
    step = max(1, CHUNK_BYTES // row)
    for start in range(0, len(array), step):
        rows = array[start : start + step]
        chunk = empty_pinned(rows.shape, target.dtype)
        np.copyto(chunk.numpy(), rows)
        target[start : start + step].copy_(chunk, non_blocking=True)


def prefetch(
    wanted: Sequence[Tensor], layouts: Sequence[Layout], gather: Gather, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Bring batches of rows to a GPU, each while the batches before it are used.

    A thread gathers ``PREFETCHED_BATCHES`` batches into pinned memory. Only the caller's thread
    talks to the GPU: it copies a batch on a separate stream before it yields the one before.
    """
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: deque[tuple[list[Tensor], Future[None]]] = deque()
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, "gather", torch.set_num_threads, (threads,))

    def begin(rows: Tensor) -> None:
        batch = [empty_pinned((len(rows), *shape), dtype) for shape, dtype in layouts]
        waiting.append((batch, pool.submit(gather, rows, batch)))

    def send() -> tuple[tuple[Tensor, ...], torch.cuda.Event]:
        batch, gathered = waiting.popleft()
        gathered.result()
        with torch.cuda.stream(side):
            return tuple(t.to(device, non_blocking=True) for t in batch), side.record_event()

    def send_all() -> Iterator[tuple[tuple[Tensor, ...], torch.cuda.Event]]:
        for rows in wanted:
            begin(rows)
            if len(waiting) > PREFETCHED_BATCHES:
                yield send()
        while waiting:
            yield send()

    def receive(sent: tuple[Tensor, ...], copied: torch.cuda.Event) -> tuple[Tensor, ...]:
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for tensor in sent:
            # Its memory belongs to the other stream, which may reuse it once this one is done.
            tensor.record_stream(current)
        return sent

    try:
        in_flight = None
        for batch in send_all():
            if in_flight is not None:
                yield receive(*in_flight)
            in_flight = batch
        if in_flight is not None:
            yield receive(*in_flight)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
