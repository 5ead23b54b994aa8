"""Following channels through one forward pass: which of them meet, and where.

To change a width, every tensor that touches the channel must change with it: the convolution that
writes it, norms, gates, and all that read it. The network runs once on the meta device while each
channel of the layers of interest carries a number. Data movement moves the numbers, elementwise
operations join the numbers that they bring together, convolutions and linear layers read the
numbers of their input and write new ones. What joins or mixes channels in a way that ties them
to a fixed size (attention, products of matrices) marks them as *bound*.

torch-pruning answers the same question by walking autograd graphs index by index; on timm's
models it takes minutes or fails where attention or rearranged tensors are in the way, and it
knows no widening.
"""

from __future__ import annotations

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

from autotune.models.surgery.aten_ops import (
    ALONG,
    BATCH_NORMS,
    COPYING,
    ELEMENTWISE,
    LAYER_NORMS,
    MOVING,
    NORMS,
    POOLING,
    RESHAPING,
    STATISTICS,
    SUMS,
    aten,
)
from autotune.runtime import single_threaded

#: The number of what is tied to a fixed size.
FIXED = 0
#: The number of what fits to everything: padding.
PADDING = -1

#: A dimension of at most this size holds branches of a block, stacked to be summed or weighed.
MAX_BRANCHES = 8


@dataclass
class TracedLayer:
    """A convolution or linear layer as it was met.

    Args:
        name: Its dotted name.
        module: Itself.
        reads: Numbers of its input channels, ``None`` where none is followed.
        writes: Numbers of its output channels, new ones.
        passes: Whether it is depthwise: it hands on the numbers that it reads.
        extent: At how many places it writes: pixels or tokens.
    """

    name: str
    module: nn.Module
    reads: Tensor | None = None
    writes: Tensor | None = None
    passes: bool = False
    extent: int = 1


@dataclass(frozen=True)
class ChannelTrace:
    """What one forward pass told of the channels.

    Args:
        atoms: Convolutions and linear layers by name, in the order of execution.
        tensors: Parameters and buffers that met channels, as the numbers of their entries.
        classes: Class of every number: what has one class can only change together.
        bound: Why a class is tied to its size.
        inexact: Classes whose number enters a statistic, of a layer norm for one.
        output: Classes that the network gives out.
    """

    atoms: Mapping[str, TracedLayer]
    tensors: Mapping[str, Tensor]
    classes: np.ndarray
    bound: Mapping[int, str]
    inexact: frozenset[int]
    output: frozenset[int]


@dataclass
class _ChannelUnions:
    """Numbers of channels, and what was learned of them."""

    next: int = 1
    pairs: list[np.ndarray] = field(default_factory=list)
    bound: list[tuple[Tensor, str]] = field(default_factory=list)
    inexact: list[Tensor] = field(default_factory=list)

    def fresh(self, count: int) -> Tensor:
        ids = torch.arange(self.next, self.next + count)
        self.next += count
        return ids

    def join(self, first: Tensor, second: Tensor) -> None:
        pair = np.stack(np.broadcast_arrays(first.numpy(), second.numpy())).reshape(2, -1)
        pair = pair[:, (pair > FIXED).all(axis=0) & (pair[0] != pair[1])]
        if pair.size:
            self.pairs.append(np.unique(pair, axis=1))

    def bind(self, ids: Tensor, reason: str) -> None:
        self.bound.append((ids[ids > FIXED], reason))


def _compress(ids: Tensor) -> Tensor:
    """Give size 1 to every dimension along which nothing changes."""
    for dim in range(ids.ndim):
        if ids.shape[dim] > 1:
            largest = ids.amax(dim, keepdim=True)  # the neutral number is the least
            if bool(((ids == largest) | (ids == PADDING)).all()):
                ids = largest
    return ids


def _varying(ids: Tensor) -> list[int]:
    """List the dimensions along which numbers change, counted from the end (-1, -2, ...)."""
    return [dim - ids.ndim for dim in range(ids.ndim) if ids.shape[dim] > 1]


class _ChannelTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows channel numbers through every operation that runs while it is active."""

    def __init__(self, model: nn.Module, wanted: frozenset[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.wanted = wanted
        self.ledger = _ChannelUnions()
        self.suspended = 0
        self.atoms: dict[str, TracedLayer] = {}
        self.tensors: dict[str, Tensor] = {}
        self._named = {
            id(tensor): name
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        }
        # Tensors are kept, so that no identity is used twice; on the meta device this is free.
        self._known: dict[int, tuple[Tensor, Tensor | None, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.suspended:
            self._follow(func, args, kwargs, result)
        return result

    def ids(self, tensor: Tensor) -> Tensor | None:
        """Return the numbers of a tensor, compressed; ``None`` where no channel is followed."""
        known = self._known.get(id(tensor))
        return None if known is None else known[1]

    def mark(self, tensor: Tensor, ids: Tensor | None, origin: str = "") -> None:
        """Give a tensor its numbers."""
        if ids is not None and ids.ndim < tensor.ndim:
            ids = ids.view((1,) * (tensor.ndim - ids.ndim) + tuple(ids.shape))
        self._known[id(tensor)] = (tensor, ids, origin)

    def _own(self, tensor: Tensor) -> Tensor | None:
        """Return the numbers of a tensor, giving new ones to a parameter or buffer."""
        name = self._named.get(id(tensor))
        if name is None or self.ids(tensor) is not None or tensor.numel() > 500_000:
            return self.ids(tensor)
        self.tensors[name] = self.ledger.fresh(tensor.numel()).view(tensor.shape)
        self.mark(tensor, self.tensors[name])
        return self.tensors[name]

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        operands = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        packet = func.overloadpacket
        moving = packet in MOVING
        if not any(
            self.ids(one) is not None or (moving and id(one) in self._named) for one in operands
        ):
            return
        outputs = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        if moving:
            self._move(func, args, kwargs, result)
        elif packet in NORMS:
            self._norm(packet, args, outputs[0])
        elif packet in POOLING:
            self._reduce(args[0], outputs[0], (-1, -2), keep=True)
        elif packet in STATISTICS:
            dims = (
                args[1]
                if len(args) > 1 and packet is not aten.linalg_vector_norm
                else (args[2] if len(args) > 2 else None)
            )
            self._statistic(packet, args[0], outputs, dims)
        elif packet in ALONG:
            ids = self._own(args[0])
            if ids is not None and args[0].shape[args[1]] <= MAX_BRANCHES:
                self._join_branches(args[0], ids, args[1], outputs)
            elif ids is not None and self._touches(args[0], ids, [args[1]]):
                self._bind(operands, outputs, f"{packet.__name__} runs along them")
            else:
                self.mark(outputs[0], ids)
        elif torch.Tag.pointwise in func.tags or packet in ELEMENTWISE:
            self._join(operands, outputs)
        elif packet is aten.convolution and self._depthwise(args, outputs[0]):
            pass
        else:
            self._bind(operands, outputs, f"{packet.__name__} mixes them")

    def _touches(self, tensor: Tensor, ids: Tensor, dims: Iterable[int]) -> bool:
        return any(ids.shape[dim % tensor.ndim] > 1 for dim in dims)

    def _bind(self, operands: Iterable[Tensor], outputs: Iterable[Tensor], reason: str) -> None:
        for one in operands:
            ids = self.ids(one)
            if ids is not None:
                self.ledger.bind(ids, reason)
        for one in outputs:
            self.mark(one, None, reason)

    def _move(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Run an operation that only moves data on the numbers themselves."""

        def numbers(tensor: Tensor) -> Tensor:
            ids = self._own(tensor)
            if ids is None:
                return torch.full((), FIXED).expand(tensor.shape)
            return ids.expand(tensor.shape)

        packet = func.overloadpacket
        outputs = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        if packet in RESHAPING:
            quick = self._reshape(args[0], outputs[0])
            if quick is not None:
                self.mark(outputs[0], quick)
                return
        elif packet in COPYING:
            self.mark(outputs[0], self._own(args[0]))
            return
        try:
            options = {
                key: value
                for key, value in kwargs.items()
                if key not in ("dtype", "layout", "device", "memory_format", "pin_memory")
            }
            given = tree_map_only(Tensor, numbers, list(args))
            if packet is aten.constant_pad_nd:
                given = [given[0], args[1], PADDING]
            moved = func(
                *(one.contiguous() if isinstance(one, Tensor) else one for one in given), **options
            )
        except (RuntimeError, TypeError):
            # torch cannot run it on whole numbers, or not with these arguments. Where the
            # channels went is not known then, and what is not known must not change.
            self._bind(
                [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)],
                outputs,
                f"{packet.__name__} rearranges them",
            )
            return
        for one, ids in zip(
            outputs, [one for one in tree_leaves(moved) if isinstance(one, Tensor)], strict=True
        ):
            compressed = _compress(ids)
            self.mark(one, compressed if bool((compressed > FIXED).any()) else None)

    def _reshape(self, tensor: Tensor, result: Tensor) -> Tensor | None:
        """Follow a reshape that leaves the one dimension that matters alone."""
        ids = self._own(tensor)
        if ids is None:
            return None
        varying = _varying(ids)
        if len(varying) != 1:
            return None
        dim = varying[0] % tensor.ndim
        before, size = int(np.prod(tensor.shape[:dim], initial=1)), tensor.shape[dim]
        for place in range(result.ndim):
            if (
                result.shape[place] == size
                and int(np.prod(result.shape[:place], initial=1)) == before
            ):
                shape = [1] * result.ndim
                shape[place] = size
                return ids.reshape(shape)
        return None

    def _norm(self, packet: Any, args: Any, output: Tensor) -> None:
        tensor = args[0]
        ids = self.ids(tensor)
        if ids is None:
            self.mark(output, None)
            return
        layer_norm = packet in LAYER_NORMS
        for one in tree_leaves(args[1:]):
            if isinstance(one, Tensor):
                own = self._own(one)
                if own is None:
                    self.ledger.bind(ids, "a norm without parameters of its own")
                else:
                    self.ledger.join(
                        ids, own if layer_norm else own.view(-1, *(1,) * (tensor.ndim - 2))
                    )
        if packet not in BATCH_NORMS:
            self.ledger.inexact.append(ids[ids > FIXED])
        self.mark(output, ids)

    def _reduce(self, tensor: Tensor, output: Tensor, dims: Iterable[int], keep: bool) -> None:
        ids = self._own(tensor)
        if ids is None:
            return
        if self._touches(tensor, ids, dims):
            self._bind([tensor], [output], "pooling runs along them")
            return
        if not keep:
            chosen = sorted(dim % tensor.ndim for dim in dims)
            for dim in reversed(chosen):
                ids = ids.squeeze(dim)
        self.mark(output, ids)

    def _statistic(self, packet: Any, tensor: Tensor, outputs: list[Tensor], dims: Any) -> None:
        ids = self._own(tensor)
        if ids is None:
            return
        if isinstance(dims, int):
            dims = [dims]
        chosen = list(dims) if dims else list(range(tensor.ndim))
        if len(chosen) == 1 and tensor.shape[chosen[0]] <= MAX_BRANCHES:
            self._join_branches(tensor, ids, chosen[0], outputs)
            return
        if self._touches(tensor, ids, chosen):
            if packet in SUMS:
                self._bind([tensor], outputs, "they are summed")
                return
            self.ledger.inexact.append(ids[ids > FIXED])
            for one in outputs:
                self.mark(one, None)
            return
        for one in outputs:
            self._reduce(tensor, one, chosen, one.ndim == tensor.ndim)

    def _join_branches(
        self, tensor: Tensor, ids: Tensor, dim: int, outputs: Iterable[Tensor]
    ) -> None:
        """Follow what brings the branches of a block together that are stacked along ``dim``."""
        first = ids.narrow(dim, 0, 1)
        self.ledger.join(first, ids)
        for one in outputs:
            self.mark(one, first if one.ndim == tensor.ndim else first.squeeze(dim))

    def _join(self, operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        followed = [(one, ids) for one in operands if (ids := self.ids(one)) is not None]
        widest = max((ids for _, ids in followed), key=Tensor.numel)
        varying = _varying(widest)
        for one in operands:
            sizes = [one.shape[dim] if -dim <= one.ndim else 1 for dim in varying]
            ids = self._own(one) if all(size > 1 for size in sizes) else self.ids(one)
            if all(size == 1 for size in sizes) and (ids is None or not _varying(ids)):
                continue  # the same for all of them: a scalar, a mask, a gate of one channel
            if ids is None:
                origin = self._known.get(id(one), (None, None, ""))[2]
                self.ledger.bind(
                    widest,
                    f"they meet what {origin.split()[0]} gives"
                    if origin
                    else "they meet channels of layers further in front",
                )
            elif any(size == 1 for size in sizes):
                self.ledger.bind(widest, "they are multiplied with each other")
                self.ledger.bind(ids, "they are multiplied with each other")
            elif ids is not widest:
                self.ledger.join(widest, ids)
        for one in outputs:
            self.mark(one, widest)

    def _depthwise(self, args: Any, output: Tensor) -> bool:
        """Follow a depthwise convolution with a fixed filter (blurred pooling)."""
        tensor, weight, groups = args[0], args[1], args[-1]
        ids, own = self.ids(tensor), self._own(weight)
        if ids is None or own is None or not groups == tensor.shape[1] == weight.shape[0]:
            return False
        if any(dim != 1 - tensor.ndim for dim in _varying(ids)):
            return False
        self.ledger.join(ids.reshape(-1), own.reshape(own.shape[0], -1)[:, 0])
        self.mark(output, ids)
        return True

    # Convolutions and linear layers are met as modules: their weights may be standardised or
    # padded on the way, which is of no interest here.

    def enter(self, *_: Any) -> None:
        """Stop following where a convolution or linear layer begins."""
        self.suspended += 1

    def leave(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """Make the hook that follows on where it ends."""

        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            self.suspended -= 1
            self._meet(name, module, args[0], output)

        return hook

    def pass_by(self, module: nn.Module, args: Any, output: Any) -> None:
        """Follow on behind a module whose inside is of no interest."""
        self.suspended -= 1
        self._bind(
            [one for one in tree_leaves(args) if isinstance(one, Tensor)],
            [one for one in tree_leaves(output) if isinstance(one, Tensor)],
            f"{type(module).__name__} mixes them",
        )

    def _meet(self, name: str, module: nn.Module, tensor: Tensor, output: Tensor) -> None:
        ids = self.ids(tensor)
        if name not in self.wanted:
            if ids is not None:
                self.ledger.bind(ids, f"{name} of a layer further in front reads them")
            self.mark(output, None)
            return
        dim = tensor.ndim - (1 if isinstance(module, nn.Linear) else 3)
        places = [] if ids is None else [one % tensor.ndim for one in _varying(ids)]
        if places and dim not in places and isinstance(module, nn.Linear):
            self.mark(output, ids)  # a linear layer over tokens: every channel for itself
            return
        atom = self.atoms.setdefault(name, TracedLayer(name, module))
        atom.extent = max(atom.extent, output.numel() // output.shape[dim])
        if ids is not None and any(place != dim for place in places):
            self.ledger.bind(ids, f"{name} reads them rearranged")
            ids = None
        vector = None if ids is None else ids.reshape(-1).expand(tensor.shape[dim])
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            atom.passes = True
            if vector is not None:
                vector = vector.repeat_interleave(module.out_channels // module.in_channels)
        if vector is not None:
            if atom.reads is not None:  # one module used twice
                self.ledger.join(atom.reads, vector)
            atom.reads = vector
        if not atom.passes and atom.writes is None:
            atom.writes = self.ledger.fresh(output.shape[dim])
        given = atom.reads if atom.passes else atom.writes
        shape = [1] * output.ndim
        shape[dim] = output.shape[dim]
        self.mark(output, None if given is None else given.reshape(shape))


def trace_channels(model: nn.Module, image: Tensor, wanted: Iterable[str]) -> ChannelTrace:
    """Run a network once and follow the channels of some of its modules.

    Args:
        model: The network, in evaluation mode; the meta device will do.
        image: ``(1, C, H, W)`` on the same device.
        wanted: Names of the convolutions and linear layers whose channels are followed.
    """
    follower = _ChannelTracer(model, frozenset(wanted))
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.RNNBase | nn.MultiheadAttention):
                atom = isinstance(module, nn.Conv2d | nn.Linear)
                leave = follower.leave(name) if atom else follower.pass_by
                stack.callback(module.register_forward_pre_hook(follower.enter).remove)
                stack.callback(module.register_forward_hook(leave).remove)
        # The numbers are small tensors, on which threads only wait for each other.
        stack.enter_context(single_threaded())
        stack.enter_context(torch.no_grad())
        stack.enter_context(follower)
        outputs = tree_leaves(model(image))
    given = [ids for one in outputs if (ids := follower.ids(one)) is not None]
    return _settle(follower, given)


def _settle(follower: _ChannelTracer, given: Sequence[Tensor]) -> ChannelTrace:
    """Turn the pairs of numbers that have met into classes."""
    ledger = follower.ledger
    pairs = np.concatenate([*ledger.pairs, np.empty((2, 0), dtype=np.int64)], axis=1)
    graph = coo_array((np.ones(pairs.shape[1], dtype=np.int8), pairs), shape=(ledger.next,) * 2)
    _, classes = connected_components(graph, directed=False)

    def of(tensors: Iterable[Tensor]) -> frozenset[int]:
        return frozenset(
            int(one) for ids in tensors for one in np.unique(classes[ids[ids > FIXED].numpy()])
        )

    bound: dict[int, str] = {int(classes[FIXED]): "they meet channels of layers further in front"}
    for ids, reason in ledger.bound:
        for one in of([ids]):
            bound.setdefault(one, reason)
    return ChannelTrace(
        follower.atoms, follower.tensors, classes, bound, of(ledger.inexact), of(given)
    )
