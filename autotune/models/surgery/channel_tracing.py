"""Trace channels through one forward pass: which of them must change together.

To change a width, every tensor that holds the channel must change with it: the convolution that
writes it, norms, gates, and everything that reads it. The network runs once on the meta device
while each channel of the layers of interest carries a number. Data movement moves the numbers,
elementwise operations unite the numbers of their operands, convolutions and linear layers read
the numbers of their input and write new ones. Operations that tie channels to a fixed size
(attention, products of matrices) mark them as *fixed*.

torch-pruning answers the same question by walking autograd graphs index by index; on timm's
models it takes minutes or fails on attention or rearranged tensors, and it cannot widen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from autotune.models.meta_device import run_operation
from autotune.models.surgery import aten_ops as ops
from autotune.runtime import single_threaded

#: The number of entries that are tied to a fixed size.
FIXED = 0
#: The number of padding, which fits all channels.
PADDING = -1

#: Largest dimension of stacked branches of a block, to be summed or weighted.
MAX_BRANCHES = 8
#: Largest parameter or buffer, in entries, whose entries are numbered.
_MAX_ENTRIES = 500_000
_EARLIER = "they meet channels of earlier layers"


@dataclass
class TracedLayer:
    """A convolution or linear layer as the pass met it.

    Args:
        name: Its dotted name.
        reads: Numbers of its input channels, ``None`` where none is traced.
        writes: Numbers of its output channels, new ones.
        is_depthwise: Whether it passes on the numbers that it reads.
        extent: Number of pixels or tokens that it writes.
    """

    name: str
    reads: Tensor | None = None
    writes: Tensor | None = None
    is_depthwise: bool = False
    extent: int = 1


@dataclass(frozen=True)
class ChannelTrace:
    """The channels of a network after one forward pass.

    Args:
        layers: Convolutions and linear layers by name, in the order of execution.
        tensors: Parameters and buffers that met channels, as the numbers of their entries.
        classes: Class of every number; the numbers of a class can only change together.
        fixed: Why a class is tied to its size.
        inexact: Classes whose number enters a statistic, such as that of a layer norm.
        output: Classes in the network's output.
    """

    layers: Mapping[str, TracedLayer]
    tensors: Mapping[str, Tensor]
    classes: np.ndarray
    fixed: Mapping[int, str]
    inexact: frozenset[int]
    output: frozenset[int]


@dataclass
class _ChannelUnions:
    """Numbers of channels, their unions, and why some are fixed."""

    next: int = 1
    pairs: list[np.ndarray] = field(default_factory=list)
    fixed: list[tuple[Tensor, str]] = field(default_factory=list)
    inexact: list[Tensor] = field(default_factory=list)

    def new(self, count: int) -> Tensor:
        ids = torch.arange(self.next, self.next + count)
        self.next += count
        return ids

    def unite(self, first: Tensor, second: Tensor) -> None:
        pair = np.stack(np.broadcast_arrays(first.numpy(), second.numpy())).reshape(2, -1)
        pair = pair[:, (pair > FIXED).all(axis=0) & (pair[0] != pair[1])]
        if pair.size:
            self.pairs.append(np.unique(pair, axis=1))

    def fix(self, ids: Tensor, reason: str) -> None:
        self.fixed.append((ids[ids > FIXED], reason))

    def mark_inexact(self, ids: Tensor) -> None:
        self.inexact.append(ids[ids > FIXED])


def _compress(ids: Tensor) -> Tensor:
    """Give size 1 to every dimension along which the numbers are the same."""
    for dim in range(ids.ndim):
        if ids.shape[dim] > 1:
            largest = ids.amax(dim, keepdim=True)  # padding is the smallest
            if bool(((ids == largest) | (ids == PADDING)).all()):
                ids = largest
    return ids


def _varying(ids: Tensor) -> list[int]:
    """List the dimensions along which numbers change, counted from the end (-1, -2, ...)."""
    return [dim - ids.ndim for dim in range(ids.ndim) if ids.shape[dim] > 1]


def _tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class _ChannelTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Traces channel numbers through every operation that runs while it is active."""

    def __init__(self, model: nn.Module, wanted: frozenset[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.wanted = wanted
        self.unions = _ChannelUnions()
        self.suspended = 0
        self.layers: dict[str, TracedLayer] = {}
        self.tensors: dict[str, Tensor] = {}
        self._names = {
            id(tensor): name
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        }
        # Tensors are kept, so that no id is used twice; on the meta device this is free.
        self._known: dict[int, tuple[Tensor, Tensor | None, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = run_operation(func, args, kwargs)
        if not self.suspended:
            self._trace(func, args, kwargs, result)
        return result

    def ids(self, tensor: Tensor) -> Tensor | None:
        """Return the numbers of a tensor, compressed; ``None`` where no channel is traced."""
        entry = self._known.get(id(tensor))
        return None if entry is None else entry[1]

    def mark(self, tensor: Tensor, ids: Tensor | None, origin: str = "") -> None:
        """Give a tensor its numbers."""
        if ids is not None and ids.ndim < tensor.ndim:
            ids = ids.view((1,) * (tensor.ndim - ids.ndim) + tuple(ids.shape))
        self._known[id(tensor)] = (tensor, ids, origin)

    def _ids_or_new(self, tensor: Tensor) -> Tensor | None:
        """Return the numbers of a tensor, giving new ones to a parameter or buffer."""
        name = self._names.get(id(tensor))
        if name is None or self.ids(tensor) is not None or tensor.numel() > _MAX_ENTRIES:
            return self.ids(tensor)
        self.tensors[name] = self.unions.new(tensor.numel()).view(tensor.shape)
        self.mark(tensor, self.tensors[name])
        return self.tensors[name]

    def _trace(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        operands, outputs = _tensors(args, kwargs), _tensors(result)
        packet = func.overloadpacket
        moving = packet in ops.MOVING
        if not any(
            self.ids(operand) is not None or (moving and id(operand) in self._names)
            for operand in operands
        ):
            return
        if moving:
            self._move(func, args, kwargs, outputs)
        elif packet in ops.NORMS:
            self._norm(packet, args, outputs[0])
        elif packet in ops.POOLING:
            self._reduce(args[0], outputs[0], (-1, -2), keep=True)
        elif packet in ops.STATISTICS:
            position = 2 if packet is ops.aten.linalg_vector_norm else 1
            dims = args[position] if len(args) > position else None
            self._statistic(packet, args[0], outputs, dims)
        elif packet in ops.ALONG:
            ids = self._ids_or_new(args[0])
            if ids is not None and args[0].shape[args[1]] <= MAX_BRANCHES:
                self._unite_branches(args[0], ids, args[1], outputs)
            elif ids is not None and self._varies_along(args[0], ids, [args[1]]):
                self._fix(operands, outputs, f"{packet.__name__} runs along them")
            else:
                self.mark(outputs[0], ids)
        elif torch.Tag.pointwise in func.tags or packet in ops.ELEMENTWISE:
            self._unite(operands, outputs)
        elif packet is not ops.aten.convolution or not self._fixed_filter(args, outputs[0]):
            self._fix(operands, outputs, f"{packet.__name__} mixes them")

    def _varies_along(self, tensor: Tensor, ids: Tensor, dims: Iterable[int]) -> bool:
        return any(ids.shape[dim % tensor.ndim] > 1 for dim in dims)

    def _fix(self, operands: Iterable[Tensor], outputs: Iterable[Tensor], reason: str) -> None:
        for operand in operands:
            if (ids := self.ids(operand)) is not None:
                self.unions.fix(ids, reason)
        for output in outputs:
            self.mark(output, None, reason)

    def _move(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        """Run an operation that only moves data on the numbers themselves."""
        packet = func.overloadpacket
        if packet in ops.COPYING:
            self.mark(outputs[0], self._ids_or_new(args[0]))
            return
        if packet in ops.RESHAPING:
            reshaped = self._reshape(args[0], outputs[0])
            if reshaped is not None:
                self.mark(outputs[0], reshaped)
                return

        def numbers(tensor: Tensor) -> Tensor:
            ids = self._ids_or_new(tensor)
            ids = torch.full((), FIXED) if ids is None else ids
            return ids.expand(tensor.shape).contiguous()

        ignored = ("dtype", "layout", "device", "memory_format", "pin_memory")
        options = {key: value for key, value in kwargs.items() if key not in ignored}
        given = tree_map_only(Tensor, numbers, list(args))
        if packet is ops.aten.constant_pad_nd:
            given = [given[0], args[1], PADDING]
        try:
            moved = _tensors(func(*given, **options))
        except (RuntimeError, TypeError):
            # torch cannot run it on integers, or not with these arguments. Where the channels
            # went is then unknown, so they must not change.
            self._fix(_tensors(args, kwargs), outputs, f"{packet.__name__} rearranges them")
            return
        for output, ids in zip(outputs, moved, strict=True):
            compressed = _compress(ids)
            self.mark(output, compressed if bool((compressed > FIXED).any()) else None)

    def _reshape(self, tensor: Tensor, result: Tensor) -> Tensor | None:
        """Return the numbers after a reshape that leaves the one varying dimension as it is."""
        ids = self._ids_or_new(tensor)
        if ids is None or len(varying := _varying(ids)) != 1:
            return None
        dim = varying[0] % tensor.ndim
        before, size = math.prod(tensor.shape[:dim]), tensor.shape[dim]
        for place in range(result.ndim):
            if result.shape[place] == size and math.prod(result.shape[:place]) == before:
                return ids.reshape([size if axis == place else 1 for axis in range(result.ndim)])
        return None

    def _norm(self, packet: Any, args: Any, output: Tensor) -> None:
        tensor = args[0]
        ids = self.ids(tensor)
        if ids is None:
            self.mark(output, None)
            return
        for parameter in _tensors(args[1:]):
            own = self._ids_or_new(parameter)
            if own is None:
                self.unions.fix(ids, "a norm without its own parameters")
            else:
                shape = own.shape if packet in ops.LAYER_NORMS else (-1, *(1,) * (tensor.ndim - 2))
                self.unions.unite(ids, own.view(shape))
        if packet not in ops.BATCH_NORMS:
            self.unions.mark_inexact(ids)
        self.mark(output, ids)

    def _reduce(self, tensor: Tensor, output: Tensor, dims: Iterable[int], keep: bool) -> None:
        ids = self._ids_or_new(tensor)
        if ids is None:
            return
        if self._varies_along(tensor, ids, dims):
            self._fix([tensor], [output], "pooling runs along them")
            return
        if not keep:
            for dim in sorted((dim % tensor.ndim for dim in dims), reverse=True):
                ids = ids.squeeze(dim)
        self.mark(output, ids)

    def _statistic(self, packet: Any, tensor: Tensor, outputs: list[Tensor], dims: Any) -> None:
        ids = self._ids_or_new(tensor)
        if ids is None:
            return
        chosen = [dims] if isinstance(dims, int) else list(dims or range(tensor.ndim))
        if len(chosen) == 1 and tensor.shape[chosen[0]] <= MAX_BRANCHES:
            self._unite_branches(tensor, ids, chosen[0], outputs)
        elif not self._varies_along(tensor, ids, chosen):
            for output in outputs:
                self._reduce(tensor, output, chosen, output.ndim == tensor.ndim)
        elif packet in ops.SUMS:
            self._fix([tensor], outputs, "they are summed")
        else:
            self.unions.mark_inexact(ids)
            for output in outputs:
                self.mark(output, None)

    def _unite_branches(
        self, tensor: Tensor, ids: Tensor, dim: int, outputs: Iterable[Tensor]
    ) -> None:
        """Unite the channels of the branches of a block that are stacked along ``dim``."""
        first = ids.narrow(dim, 0, 1)
        self.unions.unite(first, ids)
        for output in outputs:
            self.mark(output, first if output.ndim == tensor.ndim else first.squeeze(dim))

    def _unite(self, operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Unite the channels of the operands of an elementwise operation."""
        traced = [ids for operand in operands if (ids := self.ids(operand)) is not None]
        widest = max(traced, key=Tensor.numel)
        varying = _varying(widest)
        for operand in operands:
            sizes = [operand.shape[dim] if -dim <= operand.ndim else 1 for dim in varying]
            ids = (
                self._ids_or_new(operand) if all(size > 1 for size in sizes) else self.ids(operand)
            )
            if all(size == 1 for size in sizes) and (ids is None or not _varying(ids)):
                continue  # the same for all of them: a scalar, a mask, a gate of one channel
            if ids is None:
                origin = self._known.get(id(operand), (None, None, ""))[2]
                met = f"they meet what {origin.split()[0]} gives" if origin else _EARLIER
                self.unions.fix(widest, met)
            elif any(size == 1 for size in sizes):
                self.unions.fix(widest, "they are multiplied with each other")
                self.unions.fix(ids, "they are multiplied with each other")
            elif ids is not widest:
                self.unions.unite(widest, ids)
        for output in outputs:
            self.mark(output, widest)

    def _fixed_filter(self, args: Any, output: Tensor) -> bool:
        """Trace a depthwise convolution with a fixed filter (blurred pooling), if it is one."""
        tensor, weight, groups = args[0], args[1], args[-1]
        ids, own = self.ids(tensor), self._ids_or_new(weight)
        if ids is None or own is None or not groups == tensor.shape[1] == weight.shape[0]:
            return False
        if any(dim != 1 - tensor.ndim for dim in _varying(ids)):
            return False
        self.unions.unite(ids.reshape(-1), own.reshape(own.shape[0], -1)[:, 0])
        self.mark(output, ids)
        return True

    # Convolutions and linear layers are traced as modules: their weights may be standardized or
    # padded on the way, which does not matter here.

    def enter(self, *_: Any) -> None:
        """Suspend tracing inside a module."""
        self.suspended += 1

    def leave(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """Return the hook that resumes tracing behind a convolution or linear layer."""

        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            self.suspended -= 1
            self._trace_layer(name, module, args[0], output)

        return hook

    def skip_module(self, module: nn.Module, args: Any, output: Any) -> None:
        """Resume tracing behind a module that mixes channels."""
        self.suspended -= 1
        self._fix(_tensors(args), _tensors(output), f"{type(module).__name__} mixes them")

    def _trace_layer(self, name: str, module: nn.Module, tensor: Tensor, output: Tensor) -> None:
        ids = self.ids(tensor)
        if name not in self.wanted:
            if ids is not None:
                self.unions.fix(ids, f"{name} of an earlier layer reads them")
            self.mark(output, None)
            return
        dim = tensor.ndim - (1 if isinstance(module, nn.Linear) else 3)
        places = [] if ids is None else [varying % tensor.ndim for varying in _varying(ids)]
        if places and dim not in places and isinstance(module, nn.Linear):
            self.mark(output, ids)  # a linear layer over tokens: every channel for itself
            return
        layer = self.layers.setdefault(name, TracedLayer(name))
        layer.extent = max(layer.extent, output.numel() // output.shape[dim])
        if ids is not None and any(place != dim for place in places):
            self.unions.fix(ids, f"{name} reads them rearranged")
            ids = None
        vector = None if ids is None else ids.reshape(-1).expand(tensor.shape[dim])
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            layer.is_depthwise = True
            if vector is not None:
                vector = vector.repeat_interleave(module.out_channels // module.in_channels)
        if vector is not None:
            if layer.reads is not None:  # one module used twice
                self.unions.unite(layer.reads, vector)
            layer.reads = vector
        if not layer.is_depthwise and layer.writes is None:
            layer.writes = self.unions.new(output.shape[dim])
        given = layer.reads if layer.is_depthwise else layer.writes
        shape = [output.shape[dim] if axis == dim else 1 for axis in range(output.ndim)]
        self.mark(output, None if given is None else given.reshape(shape))


def trace_channels(model: nn.Module, image: Tensor, wanted: Iterable[str]) -> ChannelTrace:
    """Run a network once and trace the channels of the wanted convolutions and linear layers.

    The network is in evaluation mode; the meta device suffices. The image is ``(1, C, H, W)``.
    """
    tracer = _ChannelTracer(model, frozenset(wanted))
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.RNNBase | nn.MultiheadAttention):
                is_layer = isinstance(module, nn.Conv2d | nn.Linear)
                leave = tracer.leave(name) if is_layer else tracer.skip_module
                stack.callback(module.register_forward_pre_hook(tracer.enter).remove)
                stack.callback(module.register_forward_hook(leave).remove)
        # The numbers are small tensors, on which threads only wait for each other.
        stack.enter_context(single_threaded())
        stack.enter_context(torch.no_grad())
        stack.enter_context(tracer)
        outputs = tree_leaves(model(image))
    unions = tracer.unions
    pairs = np.concatenate([*unions.pairs, np.empty((2, 0), dtype=np.int64)], axis=1)
    graph = coo_array((np.ones(pairs.shape[1], dtype=np.int8), pairs), shape=(unions.next,) * 2)
    _, classes = connected_components(graph, directed=False)

    def classes_in(numbers: Iterable[Tensor]) -> frozenset[int]:
        return frozenset(
            number for ids in numbers for number in classes[ids[ids > FIXED].numpy()].tolist()
        )

    fixed: dict[int, str] = {int(classes[FIXED]): _EARLIER}
    for ids, reason in unions.fixed:
        for number in classes_in([ids]):
            fixed.setdefault(number, reason)
    inexact = classes_in(unions.inexact)
    output = classes_in(
        numbers for tensor in outputs if (numbers := tracer.ids(tensor)) is not None
    )
    return ChannelTrace(tracer.layers, tracer.tensors, classes, fixed, inexact, output)
