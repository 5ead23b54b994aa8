"""Install the simulated device in this process, and take it away again."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import _pop_mode_temporarily
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import _disable_current_modes

from tests.support.simulated_gpu import streams, tensor
from tests.support.simulated_gpu.memory import GIB, DeviceMemory
from tests.support.simulated_gpu.streams import CUDAGraph, Event, PendingCopy, Recording, Stream
from tests.support.simulated_gpu.tensor import (
    DEVICE,
    Current,
    DeviceFunctions,
    DeviceOperations,
    GpuTensor,
)
from tests.support.simulated_gpu.traffic import Kind, Traffic, product_callers

UUID = "01234567-89ab-cdef-0123-456789abcdef"


@dataclass(frozen=True)
class Properties:
    """What CUDA says of the device."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int = 132
    uuid: str = UUID
    is_integrated: bool = False


@dataclass(eq=False)
class SimulatedGpu:
    """The device that is simulated.

    Args:
        memory: Its memory.
        capability: Compute capability; bfloat16 begins with 8.
        name: What the card is called.
        unusable: Why CUDA cannot use the card that the driver lists; by default it can.
        graphs: Whether steps can be captured in CUDA graphs.
        traffic: What was counted.
        faults: Mixed devices, and pinned memory that was written to too early.
    """

    memory: DeviceMemory = field(default_factory=DeviceMemory)
    capability: tuple[int, int] = (9, 0)
    name: str = "Simulated GPU"
    unusable: str = ""
    graphs: bool = False
    cards: int = 1
    traffic: Traffic = field(default_factory=Traffic)
    faults: list[str] = field(default_factory=list)
    recording: Recording | None = None
    streams: list[Stream] = field(default_factory=list)
    _pinned: dict[int, StorageWeakRef] = field(default_factory=dict)
    _pid: int = field(default_factory=os.getpid)
    _thread: threading.local = field(default_factory=threading.local)

    def fault(self, text: str) -> RuntimeError:
        """Note a fault of the product, and return the error that CUDA raises for it."""
        callers = " < ".join(list(product_callers())[:3])
        self.faults.append(f"{text} [{callers}]")
        return RuntimeError(text)

    def check_process(self) -> None:
        """Refuse the device to a process that was forked after CUDA had begun."""
        if os.getpid() != self._pid:
            raise RuntimeError(
                "Cannot re-initialize CUDA in forked subprocess. To use CUDA with "
                "multiprocessing, you must use the 'spawn' start method"
            )

    def wait(self, operation: str, waited_for: Stream | Event | None = None) -> None:
        """Let the host wait for a stream, an event, or all work of the current stream."""
        streams.refuse_while_capturing()
        self.traffic.add(Kind.WAIT, operation)
        done = self.current_stream() if waited_for is None else waited_for
        streams.settle(done.pending)

    def synchronize(self) -> None:
        streams.refuse_while_capturing()
        self.traffic.add(Kind.WAIT, "synchronize")
        for stream in self.streams:
            streams.settle(stream.pending)

    def copy_in(self, source: Tensor, operation: str, non_blocking: bool) -> None:
        """Count a copy to the device; from pageable memory it may begin late, but not end so."""
        pinned = self.is_pinned(source)
        kind = Kind.PINNED_TO_DEVICE if pinned else Kind.PAGEABLE_TO_DEVICE
        self.traffic.add(kind, operation, source.nbytes)
        if not non_blocking:
            self.wait(operation)
        elif pinned:
            plain = source.detach()
            self.current_stream().pending.append(PendingCopy(plain, plain.clone()))
        else:
            streams.refuse_while_capturing()

    def copy_out(
        self, source: Tensor, operation: str, non_blocking: bool, to_pinned: bool
    ) -> None:
        kind = Kind.TO_PINNED_HOST if to_pinned else Kind.TO_HOST
        self.traffic.add(kind, operation, source.nbytes)
        if not (non_blocking and to_pinned):
            self.wait(operation)

    def pin(self, host: Tensor) -> None:
        storage = host.untyped_storage()
        self._pinned[storage._cdata] = StorageWeakRef(storage)

    def is_pinned(self, host: Tensor) -> bool:
        return host.untyped_storage()._cdata in self._pinned

    @property
    def default_stream(self) -> Stream:
        return self.streams[0]

    def current_stream(self) -> Stream:
        number = getattr(self._thread, "stream", 0)
        return next(one for one in self.streams if one.stream_id == number)

    def set_stream(self, stream_id: int, device_index: int, device_type: int) -> None:
        self._thread.stream = stream_id

    def listed(self) -> int:
        """Return how many cards the driver lists and ``CUDA_VISIBLE_DEVICES`` leaves."""
        return max(0, torch.cuda._device_count_nvml())

    def usable(self) -> int:
        """Return how many cards CUDA can use."""
        return 0 if self.unusable else self.listed()

    def begin(self) -> None:
        if self.unusable:
            raise RuntimeError(self.unusable)
        if not self.listed():
            raise RuntimeError("No CUDA GPUs are available")

    @property
    def properties(self) -> Properties:
        return Properties(self.name, *self.capability, self.memory.total_bytes)


@contextmanager
def simulated_gpu(
    total_bytes: int = 139 * GIB,
    capability: tuple[int, int] = (9, 0),
    graphs: bool = False,
    unusable: str = "",
    name: str = "Simulated GPU",
    cards: int = 1,
) -> Iterator[SimulatedGpu]:
    """Give this process a simulated CUDA device.

    Args:
        total_bytes: Memory of the device.
        capability: Compute capability; below 8 it has no bfloat16.
        graphs: Whether steps can be captured in CUDA graphs.
        unusable: Why CUDA cannot use the card that the driver lists; by default it can.
        name: What the card is called.
        cards: How many the driver lists; a process computes on the first one that it may use.

    Yields:
        The device.

    Raises:
        AssertionError: When the product has mixed devices, or written to pinned memory too early.
    """
    gpu = SimulatedGpu(DeviceMemory(total_bytes), capability, name, unusable, graphs, cards)
    with ExitStack() as undo:
        install(gpu, undo)
        yield gpu
        if gpu.usable():
            gpu.synchronize()
    assert not gpu.faults, "\n".join(gpu.faults)


def install(gpu: SimulatedGpu, undo: ExitStack) -> None:
    """Install the device instead of the driver, until ``undo`` is closed."""
    assert Current.gpu is None, "one device is simulated at a time"
    for target, name, value in _replacements(gpu):
        undo.enter_context(patch.object(target, name, value, create=not hasattr(target, name)))
    undo.callback(torch.cuda._check_bf16_tensor_supported.cache_clear)
    undo.callback(
        torch.__future__.set_overwrite_module_params_on_conversion,
        torch.__future__.get_overwrite_module_params_on_conversion(),
    )
    # A parameter that moves is another Python object.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
        undo.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
    undo.enter_context(DeviceOperations())
    undo.enter_context(DeviceFunctions())
    default = Stream.__new__(Stream)
    default.device, default.priority, default.stream_id, default.cuda_stream = DEVICE, 0, 0, 0
    default.pending = []
    gpu.streams.append(default)


def _replacements(gpu: SimulatedGpu) -> list[tuple[Any, str, Any]]:
    """List what is replaced: what lies below the Python of ``torch.cuda``, and some of C++."""
    memory = gpu.memory
    below: dict[str, Any] = {
        "_cuda_init": gpu.begin,
        "_cuda_isInBadFork": lambda: os.getpid() != gpu._pid,
        "_cuda_getDeviceCount": gpu.usable,
        "_cuda_getDevice": lambda: DEVICE.index,
        "_cuda_setDevice": lambda index: None,
        "_cuda_hasPrimaryContext": lambda index: True,
        "_cuda_synchronize": gpu.synchronize,
        "_cuda_setStream": gpu.set_stream,
        "_cuda_isCurrentStreamCapturing": lambda: gpu.recording is not None,
        "_cuda_emptyCache": memory.empty_cache,
        "_cuda_getMemoryFraction": lambda index: memory.fraction,
        "_cuda_setMemoryFraction": lambda share, index: setattr(memory, "fraction", share),
        "_cuda_memoryStats": lambda index: memory.stats(),
        "_cuda_resetPeakMemoryStats": lambda index: memory.reset_peak(),
        "_cuda_ipc_collect": lambda: None,
        "_group_tensors_by_device_and_dtype": _grouped(),
    }
    runtime = SimpleNamespace(
        cudaMemGetInfo=lambda index: memory.free(),
        cudaGetErrorString=str,
        cudaError=SimpleNamespace(success=0),
    )
    beside: list[tuple[Any, str, Any]] = [
        (tensor.Current, "gpu", gpu),
        (torch.cuda, "_cudart", runtime),
        (torch.cuda, "_initialized", False),
        (torch.cuda, "_cached_device_count", None),
        (torch.cuda, "_is_in_bad_fork", below["_cuda_isInBadFork"]),
        (torch.cuda, "_raw_device_count_nvml", lambda: gpu.cards),
        (torch.cuda, "_raw_device_uuid_nvml", lambda: [f"GPU-{UUID}"] * gpu.cards),
        (torch.cuda, "_exchange_device", _exchanged),
        (torch.cuda, "_maybe_exchange_device", _exchanged),
        (torch.cuda, "_get_device_properties", lambda index: gpu.properties),
        (torch.cuda, "default_generators", (torch.Generator(),)),
        (torch.cuda, "current_stream", streams.current_stream),
        (torch.cuda, "default_stream", streams.default_stream),
        (torch.cuda.graphs.graph, "default_capture_stream", None),
        (
            torch.cuda.graphs,
            "_cuda_isCurrentStreamCapturing",
            below["_cuda_isCurrentStreamCapturing"],
        ),
        (torch.accelerator, "current_accelerator", lambda check_available=False: DEVICE),
        (torch.accelerator, "current_stream", streams.current_stream),
        (torch, "Generator", _generator()),
        (torch.autocast, "__init__", _autocast(torch.autocast.__init__)),
        (threading.Thread, "start", _thread_start(threading.Thread.start)),
        (torch.export, "export", _of_host(torch.export.export)),
        (torch.onnx, "export", _of_host(torch.onnx.export)),
        (
            _foreach_utils,
            "_foreach_supported_types",
            [*_foreach_utils._foreach_supported_types, GpuTensor],
        ),
    ]
    for module in (torch.cuda, torch.cuda.streams, torch.cuda.graphs):
        classes = {"Stream": _stream_class(gpu), "Event": Event, "CUDAGraph": CUDAGraph}
        beside += [(module, name, made) for name, made in classes.items() if hasattr(module, name)]
    return [*((torch._C, name, value) for name, value in below.items()), *beside]


def _exchanged(index: int) -> int:
    """Select a device, and return the one before."""
    if index > DEVICE.index:
        raise torch.AcceleratorError("CUDA error: invalid device ordinal")
    return DEVICE.index if index >= 0 else -1


def _grouped() -> Callable[..., Any]:
    """Group by the device that Python sees."""
    group = torch._C._group_tensors_by_device_and_dtype

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        found = {}
        for (device, dtype), (tensors, indices) in group(lists, with_indices).items():
            first = next((one for some in tensors for one in some if one is not None), None)
            seen = device if first is None else first.device
            found[seen, dtype] = (tensors, indices)
        return found

    return grouped


def _stream_class(gpu: SimulatedGpu) -> type[Stream]:
    class Registered(Stream):
        def __init__(self, device: Any = None, priority: int = 0, **known: Any) -> None:
            super().__init__(device, priority, **known)
            gpu.streams.append(self)

    Registered.__name__ = Registered.__qualname__ = "Stream"
    return Registered


def _generator() -> type:
    """Make a class of generators that takes the device, and makes those of the CPU."""
    of_cpu = torch.Generator

    class Kind(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, of_cpu)

    class Generator(metaclass=Kind):
        def __new__(cls, device: Any = "cpu") -> Any:
            return of_cpu()

    return Generator


def _autocast(of_torch: Callable[..., None]) -> Callable[..., None]:
    """Check the arguments as for CUDA, then take autocast of the CPU: that is what C++ sees."""

    def init(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        of_torch(self, device_type, *args, **kwargs)
        if device_type == "cuda":
            dtype = self.fast_dtype
            of_torch(self, "cpu", *args, **{**kwargs, "dtype": dtype})

    return init


def _of_host(trace: Callable[..., Any]) -> Callable[..., Any]:
    """Let tracers, which have modes of their own, do without the device."""

    @wraps(trace)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes(), _pop_mode_temporarily():
            return trace(*args, **kwargs)

    return traced


def _thread_start(of_python: Callable[[threading.Thread], None]) -> Callable[..., None]:
    """Let new threads see the device: modes belong to a thread."""

    def start(self: threading.Thread) -> None:
        run = self.run

        def run_with_device() -> None:
            with DeviceOperations(), DeviceFunctions():
                run()

        self.run = run_with_device  # type: ignore[method-assign]
        of_python(self)

    return start
