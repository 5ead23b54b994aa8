"""From the memory of the host to that of a GPU, without a wait in between.

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
#: Bytes that are copied to the device at a time. One more buffer of this size is all that an
#: entry of features takes in the memory of the host.
CHUNK_BYTES = 64 << 20
#: Batches that are gathered at the same time as others are used, see :func:`prefetch`.
PREFETCHED_BATCHES = 2

#: Shape of a row and its type.
Layout = tuple[tuple[int, ...], torch.dtype]
#: Writes rows into tensors, one for each layout.
Gather = Callable[[Tensor, Sequence[Tensor]], None]

#: What stays on devices, for as long as somebody uses it.
_staying: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without making the host wait for it.

    Args:
        tensor: The tensor; on the device it is returned as it is.
        device: The device.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return empty_pinned(tensor.shape, tensor.dtype).copy_(tensor).to(device, non_blocking=True)


def empty_pinned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Make a tensor in memory of the host that a GPU can read by itself.

    Where the machine has none left for that, it is ordinary memory: copies from it make the host
    wait, and are as right. That is no lack of memory of the GPU, though CUDA says the same.

    Args:
        shape: Its shape.
        dtype: Its type.
    """
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        _tell_of_pageable()
        return torch.empty(shape, dtype=dtype)


@cache
def _tell_of_pageable() -> None:
    logger.warning("the machine has no memory left to pin: copies to the GPU are slow")


def resident_bytes(device: torch.device) -> int:
    """Count the bytes that stay on a device because of :func:`allocate_resident`."""
    return sum(one.nbytes for one in _staying.values() if one.device == device)


def has_room(size: int, device: torch.device) -> bool:
    """Tell whether so many bytes more may stay on a GPU, see ``DEVICE_SHARE``."""
    free, _ = torch.cuda.mem_get_info(device)
    # What torch keeps for its next tensors is free for them.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    held = resident_bytes(device)
    return held + size <= DEVICE_SHARE * (free + held)


def allocate_resident(
    layouts: Sequence[Layout], rows: int, device: torch.device
) -> list[Tensor] | None:
    """Make tensors on a GPU that stay there, where there is room for all of them.

    Args:
        layouts: Shape and type of a row of each.
        rows: How many rows each has.
        device: The GPU.

    Returns:
        Tensors ``(rows, *shape)``, of any content, or ``None`` where there is no room.
    """
    size = rows * sum(prod(shape) * dtype.itemsize for shape, dtype in layouts)
    if not has_room(size, device):
        return None
    try:
        made = [
            torch.empty((rows, *shape), dtype=dtype, device=device) for shape, dtype in layouts
        ]
    except RuntimeError as error:  # taken meanwhile, or in pieces
        if not is_out_of_memory(error):
            raise
        return None
    _staying.update({id(one): one for one in made})
    return made


def copy_in_chunks(array: np.ndarray, target: Tensor) -> None:
    """Copy an array to a tensor on a GPU, a chunk at a time.

    Args:
        array: The array; of one that is mapped from disk no more than a chunk is in memory.
        target: The tensor, of its shape and type.
    """
    row = max(1, array.nbytes // max(1, len(array)))
    step = max(1, CHUNK_BYTES // row)
    for start in range(0, len(array), step):
        some = array[start : start + step]
        chunk = empty_pinned(some.shape, target.dtype)
        np.copyto(chunk.numpy(), some)
        target[start : start + step].copy_(chunk, non_blocking=True)


def prefetch(
    wanted: Sequence[Tensor], layouts: Sequence[Layout], gather: Gather, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Bring batches of rows to a GPU, each while the ones before it are used.

    A thread gathers ``PREFETCHED_BATCHES`` batches into pinned memory. Only the caller's thread
    talks to the GPU: it copies a batch on a stream of its own before it gives out the one before.

    Args:
        wanted: int64, ``(B,)`` each: the rows of each batch.
        layouts: Shape and type of a row.
        gather: Writes rows into pinned memory; called in a thread.
        device: The GPU.

    Yields:
        Tensors ``(B, *shape)`` on the device, one for each layout.
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
            sent = tuple(one.to(device, non_blocking=True) for one in batch)
            return sent, side.record_event()

    def receive(sent: tuple[Tensor, ...], copied: torch.cuda.Event) -> tuple[Tensor, ...]:
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for one in sent:
            # Its memory is of the other stream, which may reuse it once this one is done with it.
            one.record_stream(current)
        return sent

    try:
        on_the_way = None
        for index, rows in enumerate(wanted):
            begin(rows)
            if index < PREFETCHED_BATCHES:
                continue
            before, on_the_way = on_the_way, send()
            if before is not None:
                yield receive(*before)
        while waiting:
            before, on_the_way = on_the_way, send()
            if before is not None:
                yield receive(*before)
        if on_the_way is not None:
            yield receive(*on_the_way)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
