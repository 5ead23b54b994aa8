"""Which channels of a network can change their number, and what has to change with them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from autotune.models.layers import Layer
from autotune.models.surgery.channel_tracing import ChannelTrace, trace_channels

Side = Literal["out", "in", "vector"]

#: Fewer channels than this are maps that a block computes on the way (attention, gates).
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
        unit: A new number of channels must be a multiple of it, as many from each of ``unit``
            equal blocks (grouped convolutions, group norm).
        inner: Whether they begin and end within the layer.
        exact: Whether duplicated channels can leave the function unchanged; a norm over the
            channels, for one, sees other statistics.
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
            channels that other layers write to as well, the residual stream for one.
    """

    groups: Mapping[int, tuple[ChannelGroup, ...]]
    reasons: Mapping[int, str]
    residual_writers: Mapping[int, tuple[str, ...]]


def find_channel_groups(model: nn.Module, layers: Sequence[Layer], image: Tensor) -> ChannelGroups:
    """Find the groups of channels that can change in the given layers.

    A layer's groups are those that begin and end within it. Where it has none, they are the
    channels that it alone writes, to be read by the layers behind it.

    Args:
        model: The backbone in evaluation mode; the meta device will do.
        layers: Its last layers, the last one first.
        image: ``(1, C, H, W)`` on the same device.
    """
    place = {name: layer.index for layer in layers for name in (*layer.modules, *layer.names)}
    wanted = [
        name
        for name, module in model.named_modules()
        if name in place and isinstance(module, nn.Conv2d | nn.Linear)
    ]
    followed = trace_channels(model, image, wanted)
    vectors = list(_vectors(followed))
    squeezed = _squeezed(followed, place)
    found: dict[int, list[ChannelGroup]] = defaultdict(list)
    reasons: dict[int, str] = {}
    residual_writers: dict[int, list[str]] = defaultdict(list)
    seen: set[frozenset[int]] = set()
    for name, side, _, numbers in vectors:
        if side != "out" or name in squeezed:
            continue
        classes = followed.classes[numbers]
        key = frozenset(int(one) for one in classes)
        index = place[name]
        if key in seen:
            continue
        seen.add(key)
        outcome = _group(key, classes, index, vectors, followed, place, model)
        if isinstance(outcome, str):
            reasons.setdefault(index, outcome)
        else:
            found[index].append(outcome)
    groups = {}
    for index, some in found.items():
        inner = [group for group in some if group.inner]
        groups[index] = tuple(inner or some)
        readers = {name for group in inner for name in group.readers}
        inside = {name for group in inner for name in group.producers}
        residual_writers[index] = [
            name
            for name in followed.atoms
            if name in readers - inside - squeezed and not followed.atoms[name].passes
        ]
    return ChannelGroups(
        groups, reasons, {index: tuple(names) for index, names in residual_writers.items()}
    )


def _vectors(followed: ChannelTrace) -> Iterable[tuple[str, Side, int, np.ndarray]]:
    """List every tensor dimension that holds channels: name, side, dimension, numbers."""
    for name, atom in followed.atoms.items():
        if atom.passes:
            if atom.reads is not None:
                yield name, "vector", 0, atom.reads.numpy()
            continue
        assert atom.writes is not None
        yield name, "out", 0, atom.writes.numpy()
        if atom.reads is not None:
            yield name, "in", 1, atom.reads.numpy()
    for name, numbers in followed.tensors.items():
        classes = torch.from_numpy(followed.classes)[numbers]
        for dim in range(numbers.ndim):
            first = classes
            for other in range(numbers.ndim):
                if other != dim:
                    first = first.narrow(other, 0, 1)
            if bool((classes == first).all()):
                # One class for every place along the other dimensions.
                picked = numbers
                for other in range(numbers.ndim):
                    if other != dim:
                        picked = picked.narrow(other, 0, 1)
                yield name, "vector", dim, picked.reshape(-1).numpy()
                break
        else:
            yield name, "vector", -1, numbers.reshape(-1).numpy()


def _squeezed(followed: ChannelTrace, place: Mapping[str, int]) -> frozenset[str]:
    """Name what works on pooled channels beside the main path: the gates of squeeze-excitation."""
    widest: dict[int, int] = defaultdict(int)
    for name, atom in followed.atoms.items():
        widest[place[name]] = max(widest[place[name]], atom.extent)
    return frozenset(
        name
        for name, atom in followed.atoms.items()
        if atom.extent == 1 and widest[place[name]] > 1
    )


def _group(
    key: frozenset[int],
    classes: np.ndarray,
    index: int,
    vectors: Sequence[tuple[str, Side, int, np.ndarray]],
    followed: ChannelTrace,
    place: Mapping[str, int],
    model: nn.Module,
) -> ChannelGroup | str:
    """Put a group together, or say why its channels are as many as they are."""
    reason = next((followed.bound[one] for one in key if one in followed.bound), None)
    if reason is not None:
        return reason
    roots = classes[np.sort(np.unique(classes, return_index=True)[1])]
    wanted = np.fromiter(key, dtype=np.int64)
    members = []
    unit = 1
    for name, side, dim, numbers in vectors:
        there = followed.classes[numbers]
        hits = np.isin(there, wanted) & (numbers > 0)
        if not hits.any():
            continue
        layer = place.get(name)
        if layer is None or layer > index:
            return f"{name} of a layer further in front holds them"
        if side == "out" and layer != index:
            return f"{name} of a later layer writes to them as well"
        if dim < 0:
            return f"{name} holds them in more than one dimension"
        segments = _segments(np.where(hits, there, -1), roots)
        if segments is None:
            return f"{name} has them in another order"
        blocks = _blocks(model, name, side)
        if blocks > 1:
            if segments != ((0, 1, 1),) or len(there) != len(roots) or len(roots) % blocks:
                return f"{name} is grouped across them"
            unit = math.lcm(unit, blocks)
        members.append(Member(name, side, dim, len(there), segments))
    if len(roots) < MIN_CHANNELS:
        return f"they are only {len(roots)}"
    if len(roots) % unit:
        return f"{len(roots)} channels cannot be cut into {unit} equal blocks"
    inner = all(place[member.name] == index for member in members) and not key & followed.output
    order: dict[Side, int] = {"out": 0, "vector": 1, "in": 2}
    return ChannelGroup(
        layer=index,
        size=len(roots),
        unit=unit,
        inner=inner,
        exact=not key & followed.inexact,
        members=tuple(sorted(members, key=lambda member: order[member.side])),
    )


def _blocks(model: nn.Module, name: str, side: Side) -> int:
    """Return into how many equal blocks a module cuts its channels."""
    owner = model.get_submodule(name if side != "vector" else name.rpartition(".")[0])
    if isinstance(owner, nn.GroupNorm):
        return owner.num_groups
    if isinstance(owner, nn.Conv2d) and side != "vector":
        return owner.groups
    return 1


def _segments(there: np.ndarray, roots: np.ndarray) -> tuple[tuple[int, int, int], ...] | None:
    """Find the stretches in which all channels stand in order, ``None`` if there are others."""
    size = len(roots)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (there >= 0).astype(np.int8), [0]])))
    found = []
    for start, end in edges.reshape(-1, 2):
        stretch = there[start:end]
        run = int(np.argmax(stretch != stretch[0])) if (stretch != stretch[0]).any() else 0
        run = run or (len(stretch) if size == 1 else 1)
        if len(stretch) % (size * run):
            return None
        blocks = len(stretch) // (size * run)
        if not (stretch.reshape(blocks, size, run) == roots[None, :, None]).all():
            return None
        found.append((int(start), blocks, run))
    return tuple(found)
