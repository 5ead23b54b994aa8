"""Streams, events and graphs of the simulated device, with the interface of ``torch.cuda``.

Work is done at once, whatever stream it is queued on. What is kept is which copies from pinned
memory nobody has waited for: memory that is written to before that is a fault of the product.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.support.simulated_gpu.tensor import (
    DEVICE,
    Current,
    GpuTensor,
    compute,
    off_device,
)

_numbers = itertools.count(1)
_CAPTURING = "CUDA error: operation not permitted when stream is capturing"
_NOT_SUPPORTED = "CUDA error: operation not supported"


@dataclass(eq=False)
class PendingCopy:
    """A copy from pinned memory that the host has not waited for.

    Args:
        source: The pinned memory.
        content: What was in it when the copy was asked for.
    """

    source: Tensor
    content: Tensor

    def check(self) -> None:
        """Note a fault where the memory was written to."""
        if Current.gpu is not None and not torch.equal(self.source, self.content):
            Current.gpu.fault(
                "pinned memory was written to before the copy from it was waited for"
            )


class Stream:
    device_type = 1
    device_index = DEVICE.index

    def __init__(self, device: Any = None, priority: int = 0, **known: Any) -> None:
        torch.cuda._lazy_init()
        with torch.cuda.device(device):
            self.device = DEVICE
        self.priority = priority
        self.stream_id = known.get("stream_id", next(_numbers))
        self.cuda_stream = self.stream_id
        self.pending: list[PendingCopy] = []

    def wait_event(self, event: Event) -> None:
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def synchronize(self) -> None:
        if Current.gpu is not None:
            Current.gpu.wait("Stream.synchronize", self)

    def is_capturing(self) -> bool:
        return Current.gpu is not None and Current.gpu.recording is not None

    def __enter__(self) -> Stream:
        self._context = torch.cuda.stream(self)  # type: ignore[arg-type]
        self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


class Event:
    def __init__(self, **options: bool) -> None:
        self.device = DEVICE
        self.cuda_event = 0
        self.pending: list[PendingCopy] = []
        self._is_recorded = False

    def record(self, stream: Stream | None = None) -> None:
        torch.cuda._lazy_init()
        stream = current_stream() if stream is None else stream
        self.pending = list(stream.pending)
        self.cuda_event = next(_numbers)
        self._is_recorded = True

    def wait(self, stream: Stream | None = None) -> None:
        stream = current_stream() if stream is None else stream
        stream.pending = list(dict.fromkeys([*stream.pending, *self.pending]))

    def synchronize(self) -> None:
        if Current.gpu is not None and self._is_recorded:
            Current.gpu.wait("Event.synchronize", self)


def settle(copies: list[PendingCopy]) -> None:
    """Check copies that were waited for, and forget them everywhere."""
    gpu = Current.gpu
    done = set(copies)
    for copy in done:
        copy.check()
    for stream in gpu.streams if gpu is not None else ():
        stream.pending = [copy for copy in stream.pending if copy not in done]
    copies.clear()


def current_stream(device: Any = None) -> Stream:
    torch.cuda._lazy_init()
    torch.cuda._utils._get_device_index(device, optional=True)
    assert Current.gpu is not None
    return Current.gpu.current_stream()


def default_stream(device: Any = None) -> Stream:
    torch.cuda._lazy_init()
    torch.cuda._utils._get_device_index(device, optional=True)
    assert Current.gpu is not None
    return Current.gpu.default_stream


class CUDAGraph:
    """A captured graph: its operations are recorded, and done again with the same tensors.

    As on a GPU, what is captured is not done before it is replayed, and what the host computed
    in between (a learning rate that is a float, say) is a constant of the graph.
    """

    def __init__(self, keep_graph: bool = False) -> None:
        gpu = Current.gpu
        if gpu is None or not gpu.graphs:
            raise torch.AcceleratorError(_NOT_SUPPORTED)
        self._gpu = gpu
        self._operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def capture_begin(self, pool: Any = None, **options: Any) -> None:
        if self._gpu.recording is not None:
            raise torch.AcceleratorError(_CAPTURING)
        self._gpu.recording = Recording()

    def capture_end(self) -> None:
        """End the recording, and take back what it has written."""
        recording = self._gpu.recording
        assert recording is not None
        self._gpu.recording = None
        recording.undo()
        self._operations = recording.operations

    def replay(self) -> None:
        with torch.no_grad(), torch._C._DisableTorchDispatch():
            for func, args, kwargs, recorded in self._operations:
                again = compute(func, args, kwargs)
                _write_back(recorded, again)
        self._gpu.traffic.operations += 1

    def reset(self) -> None:
        self._operations = []


class Recording:
    """Operations of a graph that is being captured."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: set[int] = set()

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what an operation is about to write over."""
        names = func._schema.arguments
        given = [*zip(names, args, strict=False)]
        given += [(name, kwargs[name.name]) for name in names if name.name in kwargs]
        for name, value in given:
            if name.alias_info is None or not name.alias_info.is_write:
                continue
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, GpuTensor):
                    self._keep(off_device(tensor))

    def _keep(self, tensor: Tensor) -> None:
        key = tensor.untyped_storage()._cdata
        if key not in self._before and key not in self._made:
            whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            self._before[key] = (whole, whole.clone())

    def append(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        self.operations.append((func, args, kwargs, out))
        for tensor in _tensors(out):
            key = tensor.untyped_storage()._cdata
            if key not in self._before:
                self._made.add(key)

    def undo(self) -> None:
        """Bring back what was there before the capture."""
        for whole, content in self._before.values():
            whole.copy_(content)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _write_back(recorded: Any, again: Any) -> None:
    """Write what a replayed operation returns to where the graph keeps it."""
    for target, source in zip(_tensors(recorded), _tensors(again), strict=True):
        if target.untyped_storage()._cdata != source.untyped_storage()._cdata:
            target.copy_(source)


def refuse_while_capturing() -> None:
    """Refuse what may not be in a graph."""
    if Current.gpu is not None and Current.gpu.recording is not None:
        raise torch.AcceleratorError(_CAPTURING)
