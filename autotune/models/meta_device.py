"""Run a network on the meta device without computing what its shapes do not need.

There, torch takes a norm or an activation apart into many operations in Python: one to two
milliseconds each, most of the time of a pass. But their output is always like their input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_ACTIVATIONS = {
    aten.relu, aten.hardtanh, aten.hardswish, aten.hardsigmoid, aten.gelu, aten.elu, aten.celu,
    aten.leaky_relu, aten.mish, aten.softplus,
}  # fmt: skip
_IN_PLACE = {
    aten.hardtanh_, aten.hardswish_, aten.hardsigmoid_, aten.elu_, aten.celu_, aten.leaky_relu_,
    aten.mish_,
    # What initializes weights.
    aten.uniform_, aten.normal_, aten.erfinv_, aten.clamp_, aten.zero_,
}  # fmt: skip
#: The same, where they are given numbers.
_IN_PLACE_WITH_NUMBER = {aten.add_, aten.mul_, aten.fill_}
#: Add or multiply two operands.
_BINARY = {aten.add, aten.mul}


class MetaShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs what is on the meta device by :func:`run_operation` while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_operation(func, args, kwargs or {})


def run_operation(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation of torch; on the meta device, without computing where that is possible.

    What fails in torch fails here with the same message.
    """
    tensor = args[0] if args else None
    if not isinstance(tensor, Tensor) or not tensor.is_meta:
        return func(*args, **kwargs)
    packet = func.overloadpacket
    if packet in _IN_PLACE:
        return tensor
    if packet in _IN_PLACE_WITH_NUMBER and not isinstance(args[1], Tensor):
        return tensor
    if packet in _ACTIVATIONS or (packet in _BINARY and _is_like(args[1], tensor)):
        return torch.empty_like(tensor)
    if packet is aten.native_batch_norm and not args[5]:  # torch has checked the sizes before
        return torch.empty_like(tensor), tensor.new_empty(0), tensor.new_empty(0)
    if packet is aten.native_layer_norm and _fits(tensor, *args[1:4]):
        statistics = tensor.new_empty(0)
        output = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        return output, statistics, statistics
    if packet is aten._safe_softmax and len(args) == 2 and not kwargs:
        return torch.empty_like(tensor)
    if packet is aten.addmm and not kwargs and _is_linear(*args):
        return tensor.new_empty(args[1].shape[0], args[2].shape[1])
    return func(*args, **kwargs)


def _is_like(other: Any, tensor: Tensor) -> bool:
    """Return whether an operand has the type and the layout of another one."""
    return (
        isinstance(other, Tensor)
        and other.is_meta
        and other.dtype == tensor.dtype
        and other.shape == tensor.shape
        and other.stride() == tensor.stride()
    )


def _fits(tensor: Tensor, shape: list[int], *parameters: Tensor | None) -> bool:
    """Return whether a layer norm over the last dimensions can run."""
    given = [parameter for parameter in parameters if parameter is not None]
    return (
        0 < len(shape) <= tensor.ndim
        and list(tensor.shape[-len(shape) :]) == list(shape)
        and all(list(parameter.shape) == list(shape) for parameter in given)
    )


def _is_linear(bias: Tensor, rows: Tensor, weight: Tensor) -> bool:
    """Return whether a linear layer can run on these."""
    return (
        bias.dtype == rows.dtype == weight.dtype
        and rows.ndim == weight.ndim == 2
        and rows.shape[1] == weight.shape[0]
        and bias.shape == weight.shape[1:]
    )
