"""Find the channels of a network that can change their number, and all tensors that hold them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from autotune.models.layers import Layer
from autotune.models.surgery.channel_tracing import FIXED, ChannelTrace, trace_channels

Side = Literal["out", "in", "vector"]

#: Minimum number of channels of a group; fewer are maps that a block computes on the way
#: (attention, gates).
MIN_CHANNELS = 8


@dataclass(frozen=True)
class Member:
    """One tensor dimension that holds the channels of a group.

    Args:
        name: Dotted name of the convolution, linear layer, parameter or buffer.
        side: ``out`` and ``in`` of a convolution or linear layer; ``vector`` for a depthwise
            convolution, a parameter or a buffer, which hold one entry a channel.
        dim: Dimension of a parameter or buffer; 0 otherwise.
        length: Length of the dimension.
        segments: Where the channels lie in it: ``(start, blocks, run)`` is a stretch of
            ``blocks`` times all channels in order, each of them ``run`` times in a row.
    """

    name: str
    side: Side
    dim: int
    length: int
    segments: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed or added together with all their members' entries.

    Args:
        layer: The layer that writes them, counted from the output.
        size: Number of channels.
        unit: A new number of channels must be a multiple of it, with as many from each of
            ``unit`` equal blocks (grouped convolutions, group norm).
        inner: Whether they begin and end within the layer.
        exact: Whether duplicated channels can leave the function unchanged; not so under a norm
            over the channels, whose statistics change.
        members: The tensor dimensions that hold them; producers first.
    """

    layer: int
    size: int
    unit: int
    inner: bool
    exact: bool
    members: tuple[Member, ...]

    @property
    def producers(self) -> tuple[str, ...]:
        """Names of the convolutions and linear layers that write the channels."""
        return tuple(member.name for member in self.members if member.side == "out")

    @property
    def readers(self) -> tuple[str, ...]:
        """Names of the convolutions and linear layers that read the channels."""
        return tuple(member.name for member in self.members if member.side == "in")


@dataclass(frozen=True)
class ChannelGroups:
    """What can change its width in a network, and why the rest cannot.

    Args:
        groups: Groups by layer, counted from the output, in the order of the network.
        reasons: Why a layer without a group has none.
        residual_writers: Names of the convolutions and linear layers by which a layer writes to
            channels that other layers write to as well, such as the residual stream.
    """

    groups: Mapping[int, tuple[ChannelGroup, ...]]
    reasons: Mapping[int, str]
    residual_writers: Mapping[int, tuple[str, ...]]


#: A tensor dimension that holds channels: name, side, dimension, channel numbers.
_Vector = tuple[str, Side, int, np.ndarray]


def find_channel_groups(model: nn.Module, layers: Sequence[Layer], image: Tensor) -> ChannelGroups:
    """Find the groups of channels that can change in the last layers of a backbone.

    A layer's groups are those that begin and end within it. Where it has none, they are the
    channels that only it writes, for the layers behind it to read. The image is ``(1, C, H, W)``;
    the meta device suffices.
    """
    place = {name: layer.index for layer in layers for name in (*layer.modules, *layer.names)}
    wanted = [
        name
        for name, module in model.named_modules()
        if name in place and isinstance(module, nn.Conv2d | nn.Linear)
    ]
    trace = trace_channels(model, image, wanted)
    vectors = list(_vectors(trace))
    holders: dict[int, list[int]] = defaultdict(list)
    for position, (_, _, _, numbers) in enumerate(vectors):
        for channel in np.unique(trace.classes[numbers[numbers > FIXED]]).tolist():
            holders[channel].append(position)
    gates = _gates(trace, place)
    candidates: dict[int, list[ChannelGroup]] = defaultdict(list)
    reasons: dict[int, str] = {}
    seen: set[frozenset[int]] = set()
    for name, side, _, numbers in vectors:
        if side != "out" or name in gates:
            continue
        classes = trace.classes[numbers]
        key = frozenset(classes.tolist())
        if key in seen:
            continue
        seen.add(key)
        holding = sorted({position for channel in key for position in holders[channel]})
        held_in = [vectors[position] for position in holding]
        outcome = _group(key, classes, place[name], held_in, trace, place, model)
        if isinstance(outcome, str):
            reasons.setdefault(place[name], outcome)
        else:
            candidates[place[name]].append(outcome)
    groups, writers = {}, {}
    for index, candidate in candidates.items():
        inner = [group for group in candidate if group.inner]
        groups[index] = tuple(inner or candidate)
        readers = {name for group in inner for name in group.readers}
        producers = {name for group in inner for name in group.producers}
        writers[index] = tuple(
            name
            for name, layer in trace.layers.items()
            if name in readers - producers - gates and not layer.is_depthwise
        )
    return ChannelGroups(groups, reasons, writers)


def _vectors(trace: ChannelTrace) -> Iterator[_Vector]:
    """Yield every tensor dimension that holds channels; -1 for more than one dimension."""
    for name, layer in trace.layers.items():
        if not layer.is_depthwise:
            assert layer.writes is not None
            yield name, "out", 0, layer.writes.numpy()
        if layer.reads is not None:
            side: Side = "vector" if layer.is_depthwise else "in"
            yield name, side, int(side == "in"), layer.reads.numpy()
    for name, numbers in trace.tensors.items():
        classes = torch.from_numpy(trace.classes)[numbers]
        for dim in range(numbers.ndim):
            first = tuple(
                slice(None) if other == dim else slice(1) for other in range(numbers.ndim)
            )
            if bool((classes == classes[first]).all()):  # one class along the other dimensions
                yield name, "vector", dim, numbers[first].reshape(-1).numpy()
                break
        else:
            yield name, "vector", -1, numbers.reshape(-1).numpy()


def _gates(trace: ChannelTrace, place: Mapping[str, int]) -> frozenset[str]:
    """Name the layers on pooled channels beside the main path (squeeze-excitation)."""
    widest: dict[int, int] = defaultdict(int)
    for name, layer in trace.layers.items():
        widest[place[name]] = max(widest[place[name]], layer.extent)
    return frozenset(
        name for name, layer in trace.layers.items() if layer.extent == 1 < widest[place[name]]
    )


def _group(
    key: frozenset[int],
    classes: np.ndarray,
    index: int,
    vectors: Sequence[_Vector],
    trace: ChannelTrace,
    place: Mapping[str, int],
    model: nn.Module,
) -> ChannelGroup | str:
    """Make the group of some classes, or return why the number of its channels is fixed.

    The vectors are those that hold some of them.
    """
    reason = next((trace.fixed[channel] for channel in key if channel in trace.fixed), None)
    if reason is not None:
        return reason
    channels = classes[np.sort(np.unique(classes, return_index=True)[1])]
    wanted = np.fromiter(key, dtype=np.int64)
    members = []
    unit = 1
    for name, side, dim, numbers in vectors:
        held = trace.classes[numbers]
        hits = np.isin(held, wanted) & (numbers > FIXED)
        layer = place.get(name)
        if layer is None or layer > index:
            return f"{name} of an earlier layer holds them"
        if side == "out" and layer != index:
            return f"{name} of a later layer writes to them as well"
        if dim < 0:
            return f"{name} holds them in more than one dimension"
        segments = _segments(np.where(hits, held, -1), channels)
        if segments is None:
            return f"{name} has them in another order"
        blocks = _blocks(model, name, side)
        if blocks > 1:
            if segments != ((0, 1, 1),) or len(held) != len(channels) or len(channels) % blocks:
                return f"{name} is grouped across them"
            unit = math.lcm(unit, blocks)
        members.append(Member(name, side, dim, len(held), segments))
    if len(channels) < MIN_CHANNELS:
        return f"they are only {len(channels)}"
    if len(channels) % unit:
        return f"{len(channels)} channels cannot be cut into {unit} equal blocks"
    order: dict[Side, int] = {"out": 0, "vector": 1, "in": 2}
    return ChannelGroup(
        layer=index,
        size=len(channels),
        unit=unit,
        inner=all(place[member.name] == index for member in members) and not key & trace.output,
        exact=not key & trace.inexact,
        members=tuple(sorted(members, key=lambda member: order[member.side])),
    )


def _blocks(model: nn.Module, name: str, side: Side) -> int:
    """Return the number of equal blocks into which a module cuts its channels."""
    owner = model.get_submodule(name if side != "vector" else name.rpartition(".")[0])
    if isinstance(owner, nn.GroupNorm):
        return owner.num_groups
    if isinstance(owner, nn.Conv2d) and side != "vector":
        return owner.groups
    return 1


def _segments(held: np.ndarray, channels: np.ndarray) -> tuple[tuple[int, int, int], ...] | None:
    """Return the stretches that hold all channels in order, ``None`` if there are others."""
    size = len(channels)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (held >= 0).astype(np.int8), [0]])))
    segments = []
    for start, end in edges.reshape(-1, 2):
        stretch = held[start:end]
        run = int(np.argmax(stretch != stretch[0])) or (len(stretch) if size == 1 else 1)
        blocks, rest = divmod(len(stretch), size * run)
        if rest or not (stretch.reshape(blocks, size, run) == channels[None, :, None]).all():
            return None
        segments.append((int(start), blocks, run))
    return tuple(segments)
