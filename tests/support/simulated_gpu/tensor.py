"""Tensors of the simulated device, and the rules of CUDA for what is computed with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from tests.support.simulated_gpu.simulation import SimulatedGpu

DEVICE = torch.device("cuda:0")
CPU = torch.device("cpu")
aten = torch.ops.aten

#: Operations whose outcome has to be known to the host before it goes on.
_WAITING = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
_CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
#: Those that take tensors of both devices: copies, and indices on the host.
_MIXED = {*_INDEXING, "copy_", "_foreach_copy_", "_to_copy"}
#: Those that take no scalar of the other device, where others do.
_WITHOUT_SCALARS = {"cat", "stack", "index_select", "gather", "embedding"}
_FACTORIES_FROM_HOST = {"tensor", "as_tensor", "asarray"}


class Current:
    """The simulation that is installed, if one is."""

    gpu: SimulatedGpu | None = None


class GpuTensor(torch.Tensor):
    """A tensor on the simulated device: C++ sees one of the CPU with the same memory."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def get_device(self) -> int:
        return DEVICE.index

    def record_stream(self, stream: Any) -> None:
        """Do nothing: memory of the CPU is not given to others before the work is done."""

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.cpu()!r} on {DEVICE}"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else object.__format__(self, spec)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a CUDA tensor that is loaded with ``map_location="cpu"``."""
        return self.detach().cpu().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return dispatch(func, args, kwargs or {})


def on_device(tensor: Tensor) -> GpuTensor:
    """Let the device have the memory of a CPU tensor."""
    if isinstance(tensor, GpuTensor):
        return tensor
    with torch._C._DisableTorchDispatch():
        placed: GpuTensor = torch.Tensor._make_subclass(GpuTensor, tensor)
    gpu = Current.gpu
    if gpu is not None:
        gpu.check_process()
        gpu.memory.add(placed)
    return placed


def off_device(tensor: Tensor) -> Tensor:
    """Return the CPU tensor that C++ sees."""
    if not isinstance(tensor, GpuTensor):
        return tensor
    with torch._C._DisableTorchDispatch():
        plain: Tensor = torch.Tensor._make_subclass(torch.Tensor, tensor)
    return plain


def wrapped(value: Any) -> Any:
    return tree_map(lambda one: on_device(one) if isinstance(one, Tensor) else one, value)


def unwrapped(value: Any) -> Any:
    return tree_map(lambda one: off_device(one) if isinstance(one, Tensor) else one, value)


def is_cuda(device: Any) -> bool:
    """Tell whether a device, as any function of torch takes it, is the simulated one."""
    if device is None:
        return False
    named = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if named.type != "cuda":
        return False
    if named.index not in (None, DEVICE.index):
        raise torch.AcceleratorError("CUDA error: invalid device ordinal")
    return True


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation by CUDA's rules."""
    if func is torch.ops.prim.device.default:
        return DEVICE
    leaves = list(_tensors(args))
    if kwargs:
        leaves += _tensors(kwargs.values())
    mine = [leaf for leaf in leaves if isinstance(leaf, GpuTensor)]
    wanted = kwargs.get("device")
    if not mine and not is_cuda(wanted):
        return func(*args, **kwargs)
    name = func._schema.name.split("::")[1]
    gpu = Current.gpu
    if gpu is not None:
        gpu.check_process()
        _check_devices(gpu, func, name, args, leaves, mine)
        if name in ("convolution", "_convolution"):
            gpu.memory.check(args[0].shape[0])
        gpu.traffic.operations += 1
        _count(gpu, name, args, kwargs, leaves)
    if wanted is not None:
        # C++ asks for "the device of this tensor", which it takes for the CPU; what Python asks
        # for comes through DeviceFunctions.
        kwargs = {**kwargs, "device": CPU}
    recording = gpu.recording if gpu is not None else None
    if recording is not None:
        recording.before(func, args, kwargs)
    with torch._C._DisableTorchDispatch():
        out = compute(func, args, kwargs)
    if name == "copy_" and not isinstance(args[0], GpuTensor):
        return args[0]
    if name in ("set_", "resize_") and gpu is not None:
        gpu.memory.add(args[0])
    out = on_device(out) if isinstance(out, Tensor) else wrapped(out)
    if recording is not None:
        recording.append(func, args, kwargs, out)
    if mine and _aliases(func):
        return return_and_correct_aliasing(func, args, kwargs, out)
    return out


@cache
def _aliases(func: Any) -> bool:
    """Return whether an operation writes to its operands or returns a view of one."""
    schema = func._schema
    return any(one.alias_info is not None for one in (*schema.arguments, *schema.returns))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among operands and in their lists: operations of torch nest no deeper.

    torch's walk through any nesting would take as long as the operations.
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            for part in value:
                if isinstance(part, Tensor):
                    yield part


def compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the CPU.

    Convolutions in half precision add up in float32, as those of CUDA do: torch 2.15 returns
    memory that was never written to as weight gradients of some in bfloat16 on the CPU.
    """
    if func not in _CONVOLUTIONS or args[0].dtype not in (torch.bfloat16, torch.float16):
        return func(*args, **kwargs)
    half = args[0].dtype
    args = tree_map(lambda one: one.float() if isinstance(one, Tensor) else one, args)
    return tree_map(
        lambda one: one.to(half) if isinstance(one, Tensor) else one, func(*args, **kwargs)
    )


def _check_devices(
    gpu: SimulatedGpu,
    func: Any,
    name: str,
    args: tuple[Any, ...],
    leaves: Sequence[Tensor],
    mine: Sequence[GpuTensor],
) -> None:
    """Refuse operands of two devices."""
    others = [leaf for leaf in leaves if not isinstance(leaf, GpuTensor)]
    if not mine or not others:
        return
    if name in _INDEXING:
        if not isinstance(args[0], GpuTensor):
            raise gpu.fault(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        others = [other for other in others if not any(other is index for index in args[1])]
    elif name in _MIXED:
        return
    first = func._schema.arguments[0].alias_info if func._schema.arguments else None
    writes_to_host = first is not None and first.is_write and not isinstance(args[0], GpuTensor)
    if name.startswith("_foreach"):
        writes_to_host = False
    bad = [one for one in others if one.ndim > 0 or name in _WITHOUT_SCALARS or writes_to_host]
    if bad:
        shapes = ", ".join(str(tuple(one.shape)) for one in bad)
        raise gpu.fault(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! (when checking arguments of {func}: on the CPU are those of shape "
            f"{shapes})"
        )


def _count(
    gpu: SimulatedGpu,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    leaves: Sequence[Tensor],
) -> None:
    """Count the waits and copies of an operation."""
    if name in _WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        gpu.wait(name)
    elif name in _INDEXING:
        indices = [one for one in args[1] if isinstance(one, Tensor)]
        for index in indices:
            if not isinstance(index, GpuTensor):
                gpu.copy_in(index, f"{name} by an index on the host", non_blocking=False)
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            gpu.wait(f"{name} by a mask")
    elif name == "copy_":
        _count_copy(gpu, args[0], args[1], (*args[2:], kwargs.get("non_blocking", False))[0])
    elif name == "_foreach_copy_":
        for target, source in zip(args[0], args[1], strict=True):
            _count_copy(gpu, target, source, (*args[2:], kwargs.get("non_blocking", False))[0])


def _count_copy(gpu: SimulatedGpu, target: Tensor, source: Tensor, non_blocking: bool) -> None:
    to_device, from_device = isinstance(target, GpuTensor), isinstance(source, GpuTensor)
    if to_device and not from_device:
        gpu.copy_in(source, "copy_", non_blocking)
    elif from_device and not to_device:
        gpu.copy_out(source, "copy_", non_blocking, gpu.is_pinned(target))


class DeviceOperations(TorchDispatchMode):
    """Operations that make a tensor on the device from nothing, or write to one of the host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return dispatch(func, args, kwargs or {})


class DeviceFunctions(TorchFunctionMode):
    """Functions of Python that name a device: C++ never sees that of CUDA."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        special = _SPECIAL.get(func)
        if special is not None:
            return special(func, args, kwargs)
        if getattr(func, "__name__", "") == "one_hot" and isinstance(args[0], GpuTensor):
            # Its C++ makes a range on "the device of this tensor".
            return on_device(func(off_device(args[0]), *args[1:], **kwargs))
        if kwargs.get("pin_memory") and not is_cuda(kwargs.get("device")):
            return _pinned(func(*args, **{**kwargs, "pin_memory": False}))
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        return _with_device(func, args, kwargs)


def _with_device(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    there = is_cuda(kwargs["device"])
    if not there:
        mine = any(isinstance(leaf, GpuTensor) for leaf in tree_leaves((args, kwargs)))
        return unwrapped(func(*args, **kwargs)) if mine else func(*args, **kwargs)
    torch.cuda._lazy_init()
    needs_grad = kwargs.pop("requires_grad", False)
    name = getattr(func, "__name__", "")
    if name in _FACTORIES_FROM_HOST and isinstance(args[0], GpuTensor):
        return func(*args, **{**kwargs, "device": CPU})
    made = func(*args, **{**kwargs, "device": CPU})
    if name in _FACTORIES_FROM_HOST and Current.gpu is not None:
        Current.gpu.copy_in(made, name, non_blocking=False)
        made = made.clone()
    made = wrapped(made)
    return made.requires_grad_() if needs_grad else made


def _move(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call ``Tensor.to``, ``Tensor.cuda`` or ``Tensor.cpu``."""
    tensor, target, options = _parsed(func, args, kwargs)
    target = tensor.device if target is None else target
    here, there = isinstance(tensor, GpuTensor), is_cuda(target)
    if not here and not there:  # between the CPU and "meta", say
        return func(*args, **kwargs)
    if here and there:
        return torch.Tensor.to(tensor, **options) if options else tensor
    if here and target.type != "cpu":
        return func(off_device(tensor), *args[1:], **kwargs)
    if there:
        torch.cuda._lazy_init()
    return _Move.apply(tensor, there, options)


def _parsed(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, torch.device | None, dict[str, Any]]:
    """Return the tensor, the device that is wanted and all other options of a move."""
    tensor, given, options = args[0], list(args[1:]), dict(kwargs)
    if func is torch.Tensor.cpu:
        return tensor, CPU, options
    target: Any = options.pop("device", None)
    if func is torch.Tensor.cuda:
        target = given.pop(0) if given else target
        target = DEVICE if target is None else target
        target = torch.device("cuda", target) if isinstance(target, int) else target
    flags = []
    for one in given:
        if isinstance(one, str | torch.device):
            target = one
        elif isinstance(one, Tensor):
            target, options["dtype"] = one.device, one.dtype
        elif isinstance(one, torch.dtype):
            options["dtype"] = one
        elif one is not None:
            flags.append(one)
    if "other" in options:
        other = options.pop("other")
        target, options["dtype"] = other.device, other.dtype
    options.update(zip(("non_blocking", "copy"), flags, strict=False))
    return tensor, None if target is None else torch.device(target), options


class _Move(torch.autograd.Function):
    """A copy between host and device, with its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, there: bool, options: dict[str, Any]) -> Tensor:
        ctx.there, ctx.dtype = there, tensor.dtype
        return _copied(tensor, there, **options)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _copied(gradient, not ctx.there).to(ctx.dtype), None, None


def _copied(
    tensor: Tensor,
    there: bool,
    dtype: torch.dtype | None = None,
    non_blocking: bool = False,
    copy: bool = True,
    memory_format: torch.memory_format = torch.preserve_format,
) -> Tensor:
    gpu = Current.gpu
    if gpu is not None and there:
        gpu.copy_in(tensor, "to", non_blocking)
    elif gpu is not None:
        gpu.copy_out(tensor, "to", non_blocking, to_pinned=False)
    with torch._C._DisableTorchDispatch():
        plain = off_device(tensor.detach()).clone(memory_format=memory_format)
        plain = plain if dtype is None else plain.to(dtype)
    return on_device(plain) if there else plain


def _to_numpy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(args[0], GpuTensor):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
            "tensor to host memory first."
        )
    return func(*args, **kwargs)


def _to_list(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(args[0], GpuTensor) and Current.gpu is not None:
        Current.gpu.copy_out(args[0], "tolist", non_blocking=False, to_pinned=False)
    return func(off_device(args[0].detach()), **kwargs)


def _pin(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(args[0], GpuTensor):
        raise RuntimeError(
            "cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned"
        )
    if Current.gpu is not None and Current.gpu.is_pinned(args[0]):
        return args[0]
    return _pinned(args[0].clone(memory_format=torch.preserve_format))


def _pinned(tensor: Tensor) -> Tensor:
    torch.cuda._lazy_init()
    if Current.gpu is not None:
        Current.gpu.pin(tensor)
    return tensor


def _is_pinned(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return Current.gpu is not None and Current.gpu.is_pinned(args[0])


_SPECIAL: dict[Any, Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    torch.Tensor.to: _move,
    torch.Tensor.cuda: _move,
    torch.Tensor.cpu: _move,
    torch.Tensor.numpy: _to_numpy,
    torch.Tensor.__array__: _to_numpy,
    torch.Tensor.tolist: _to_list,
    torch.Tensor.pin_memory: _pin,
    torch.Tensor.is_pinned: _is_pinned,
}
