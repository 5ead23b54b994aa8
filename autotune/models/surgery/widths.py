"""Change the number of channels inside a layer, or add 1x1 bridges where the outside must stay."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autotune.models.surgery.channel_groups import ChannelGroup, Member
from autotune.models.surgery.inheritance import (
    activation_scores,
    magnitude_scores,
    reinitialize,
    select_channels,
    split_copies,
)
from autotune.models.surgery.kernels import without_standardization


@dataclass(frozen=True)
class WidthChange:
    """A group of channels and its wanted number of them, a multiple of ``group.unit``."""

    group: ChannelGroup
    count: int


def change_widths(
    model: nn.Module,
    widths: Sequence[WidthChange],
    inherit: str,
    generator: torch.Generator,
    norms: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Change the number of channels of groups, with every tensor that holds them, in place.

    All at once, because one tensor can hold the channels of several groups.

    Args:
        model: The network.
        widths: The groups and the new numbers.
        inherit: ``weights`` and ``data`` keep weights, ``none`` draws new ones for everything
            that changes its shape.
        generator: Source of the choice of doubled channels, and of weights.
        norms: Activity of the channels for ``data``, see
            :func:`~autotune.models.surgery.inheritance.activation_scores`.

    Returns:
        The old channel of each new one that a module writes, or that a depthwise convolution, a
        parameter or a buffer holds, by its name.
    """
    channels: dict[str, Tensor] = {}
    touched: dict[tuple[str, str, int], list[tuple[Member, list[int], int]]] = defaultdict(list)
    for width in widths:
        group = width.group
        if inherit == "none":
            scores = -torch.arange(group.size, dtype=torch.float32)  # the first ones
        elif norms is None:
            scores = magnitude_scores(model, group)
        else:
            scores = activation_scores(model, group, norms)
        selection = select_channels(scores, width.count, group.unit, generator)
        for member in group.members if width.count != group.size else ():
            touched[member.name, member.side, member.dim].append((member, selection, group.size))
    for (name, side, dim), parts in touched.items():
        positions = _positions(parts)
        if side != "in":
            channels[name] = torch.tensor(positions)
        if side == "vector":
            module = _change_vector(model, name, dim, positions)
        else:
            module = _plain(model, name)
            if side == "out":
                _change_output(module, positions)
            else:
                _change_input(module, positions, generator)
        if inherit == "none":
            reinitialize(module, generator)
    return channels


def _positions(parts: Sequence[tuple[Member, list[int], int]]) -> list[int]:
    """Return the old position of every new one in a dimension that holds several groups."""
    stretches = sorted(
        (segment, selection, size)
        for member, selection, size in parts
        for segment in member.segments
    )
    positions: list[int] = []
    end = 0
    for (start, blocks, run), selection, size in stretches:
        positions.extend(range(end, start))
        for block in range(blocks):
            first = start + block * size * run
            for channel in selection:
                positions.extend(range(first + channel * run, first + (channel + 1) * run))
        end = start + blocks * size * run
    positions.extend(range(end, parts[0][0].length))
    return positions


def _plain(model: nn.Module, name: str) -> nn.Module:
    """Return a module; a weight-standardized convolution is first replaced by a plain one."""
    module = model.get_submodule(name)
    if isinstance(module, nn.Conv2d):
        plain = without_standardization(module)
        if plain is not module:
            model.set_submodule(name, plain)
        return plain
    return module


def _take(module: nn.Module, name: str, dim: int, positions: Sequence[int]) -> None:
    """Rearrange a parameter or buffer along one dimension."""
    old = getattr(module, name)
    if old is None:
        return
    new = old.detach().index_select(dim, torch.tensor(positions, device=old.device))
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)


def _set_count(module: nn.Module, side: str, count: int) -> None:
    setattr(module, f"{side}_{'channels' if isinstance(module, nn.Conv2d) else 'features'}", count)


def _change_output(module: nn.Module, positions: Sequence[int]) -> None:
    _take(module, "weight", 0, positions)
    _take(module, "bias", 0, positions)
    _set_count(module, "out", len(positions))


def _change_input(module: nn.Module, positions: Sequence[int], generator: torch.Generator) -> None:
    weight: nn.Parameter = module.weight  # type: ignore[assignment]
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    size, wanted = weight.shape[1], len(positions) // groups
    parts = []
    for index, part in enumerate(weight.detach().chunk(groups)):
        own = [
            position - index * size
            for position in positions[index * wanted : (index + 1) * wanted]
        ]
        taken = part.index_select(1, torch.tensor(own, device=part.device))
        parts.append(split_copies(taken, own, generator))
    module.weight = nn.Parameter(torch.cat(parts), requires_grad=weight.requires_grad)
    _set_count(module, "in", len(positions))


def _change_vector(model: nn.Module, name: str, dim: int, positions: Sequence[int]) -> nn.Module:
    """Change a depthwise convolution, or a parameter or buffer of any module."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(getattr(owner, leaf), nn.Module):
        module = _plain(model, name)
        assert isinstance(module, nn.Conv2d)
        multiplier = module.out_channels // module.in_channels
        _change_output(module, positions)
        module.in_channels = module.groups = len(positions) // multiplier
        return module
    old = getattr(owner, leaf).shape[dim]
    _take(owner, leaf, dim, positions)
    for attribute in ("num_features", "num_channels", "num_parameters"):
        if getattr(owner, attribute, None) == old:
            setattr(owner, attribute, len(positions))
    if getattr(owner, "normalized_shape", None) == (old,):
        owner.normalized_shape = (len(positions),)  # type: ignore[assignment]
    return owner


def add_bridge(
    model: nn.Module, name: str, count: int, inherit: str, generator: torch.Generator
) -> None:
    """Make a module write ``count`` channels, brought back to the old number by a 1x1 one.

    The operator with which AutoTune (Basha et al. 2020) keeps the rest of a network unchanged.
    With fewer channels and inheritance, the two are the best approximation of the old one
    (truncated singular value decomposition: Eckart and Young 1936); with more, they compute the
    same.

    Args:
        model: The network; changed in place.
        name: The convolution (not grouped) or linear layer.
        count: Channels in between.
        inherit: ``none`` draws new weights for both.
        generator: Source of the weights.
    """
    first = copy.deepcopy(_plain(model, name))
    old = first.get_parameter("weight").detach()
    bias: Tensor | None = first.bias  # type: ignore[assignment]
    matrix = old.flatten(1)
    outputs = matrix.shape[0]
    if old.is_meta:
        reduced, back = old.new_empty(count, matrix.shape[1]), old.new_empty(outputs, count)
    elif count < outputs:
        u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        rank = min(count, len(s))
        root = s[:rank].sqrt()
        reduced, back = old.new_zeros(count, matrix.shape[1]), old.new_zeros(outputs, count)
        reduced[:rank] = (root[:, None] * v[:rank]).to(old)
        back[:, :rank] = (u[:, :rank] * root).to(old)
    else:
        selection = select_channels(torch.ones(outputs), count, 1, generator)
        reduced = matrix[torch.tensor(selection)]
        back = split_copies(torch.eye(outputs).to(old)[:, selection], selection, generator)
    first.weight = nn.Parameter(reduced.view(count, *old.shape[1:]))
    first.bias = None  # type: ignore[assignment]
    _set_count(first, "out", count)
    has_bias = bias is not None
    second: nn.Conv2d | nn.Linear
    if isinstance(first, nn.Conv2d):
        second = nn.Conv2d(count, outputs, 1, bias=has_bias, device="meta")
        second.weight = nn.Parameter(back[:, :, None, None])
    else:
        second = nn.Linear(count, outputs, bias=has_bias, device="meta")
        second.weight = nn.Parameter(back)
    if bias is not None:
        second.bias = nn.Parameter(bias.detach().clone())
    if inherit == "none":
        reinitialize(first, generator)
        reinitialize(second, generator)
    model.set_submodule(name, nn.Sequential(first, second).train(first.training))
