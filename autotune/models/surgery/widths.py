"""Other numbers of channels inside a layer, and 1x1 bridges where the outside must stay."""

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
    """A group of channels and the number of them that is wanted, a multiple of ``group.unit``."""

    group: ChannelGroup
    count: int


def change_widths(
    model: nn.Module,
    widths: Sequence[WidthChange],
    inherit: str,
    generator: torch.Generator,
    norms: Mapping[str, Tensor] | None = None,
) -> None:
    """Change the number of channels of groups, with everything that holds them.

    All at once, because one tensor can hold the channels of several groups.

    Args:
        model: The network; changed in place.
        widths: The groups and the new numbers.
        inherit: ``weights`` and ``data`` keep weights, ``none`` draws new ones for all that
            changes its shape.
        generator: Chooses what is doubled, and draws weights.
        norms: How active the channels are, for ``data``; see
            :func:`~autotune.models.surgery.inheritance.activation_scores`.
    """
    selections = [_selection(model, width, inherit, generator, norms) for width in widths]
    touched: dict[tuple[str, str, int], list[tuple[Member, list[int], int]]] = defaultdict(list)
    for width, selection in zip(widths, selections, strict=True):
        if width.count != width.group.size:
            for member in width.group.members:
                key = (member.name, member.side, member.dim)
                touched[key].append((member, selection, width.group.size))
    for (name, side, dim), parts in touched.items():
        positions = _positions(parts)
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


def _selection(
    model: nn.Module,
    width: WidthChange,
    inherit: str,
    generator: torch.Generator,
    norms: Mapping[str, Tensor] | None,
) -> list[int]:
    if inherit == "none":
        scores = -torch.arange(width.group.size, dtype=torch.float32)  # the first ones
    elif norms is None:
        scores = magnitude_scores(model, width.group)
    else:
        scores = activation_scores(model, width.group, norms)
    return select_channels(scores, width.count, width.group.unit, generator)


def _positions(parts: Sequence[tuple[Member, list[int], int]]) -> list[int]:
    """Merge what several groups want of one dimension into the old position of every new one."""
    stretches = sorted(
        (segment, selection, size)
        for member, selection, size in parts
        for segment in member.segments
    )
    found: list[int] = []
    end = 0
    for (start, blocks, run), selection, size in stretches:
        found.extend(range(end, start))
        for block in range(blocks):
            first = start + block * size * run
            for channel in selection:
                found.extend(range(first + channel * run, first + (channel + 1) * run))
        end = start + blocks * size * run
    found.extend(range(end, parts[0][0].length))
    return found


def _plain(model: nn.Module, name: str) -> nn.Module:
    """Return a module, a weight-standardised convolution as the plain one that it amounts to."""
    module = model.get_submodule(name)
    if isinstance(module, nn.Conv2d):
        unstandardised = without_standardization(module)
        if unstandardised is not module:
            model.set_submodule(name, unstandardised)
        return unstandardised
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


def _change_output(module: nn.Module, positions: Sequence[int]) -> None:
    _take(module, "weight", 0, positions)
    _take(module, "bias", 0, positions)
    if isinstance(module, nn.Conv2d):
        module.out_channels = len(positions)
    else:
        module.out_features = len(positions)  # type: ignore[assignment]


def _change_input(module: nn.Module, positions: Sequence[int], generator: torch.Generator) -> None:
    weight: nn.Parameter = module.weight  # type: ignore[assignment]
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    size, wanted = weight.shape[1], len(positions) // groups
    parts = []
    for index, part in enumerate(weight.detach().chunk(groups)):
        own = [one - index * size for one in positions[index * wanted : (index + 1) * wanted]]
        taken = part.index_select(1, torch.tensor(own, device=part.device))
        parts.append(split_copies(taken, own, generator))
    module.weight = nn.Parameter(torch.cat(parts), requires_grad=weight.requires_grad)
    if isinstance(module, nn.Conv2d):
        module.in_channels = len(positions)
    else:
        module.in_features = len(positions)  # type: ignore[assignment]


def _change_vector(model: nn.Module, name: str, dim: int, positions: Sequence[int]) -> nn.Module:
    """Change a depthwise convolution, or a parameter or buffer of any module."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(getattr(owner, leaf), nn.Module):
        module = _plain(model, name)
        assert isinstance(module, nn.Conv2d)
        multiplier = module.out_channels // module.in_channels
        _take(module, "weight", 0, positions)
        _take(module, "bias", 0, positions)
        module.out_channels = len(positions)
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
    """Have a convolution or linear layer write other channels, brought back by a 1x1 one.

    The operator with which AutoTune (Basha et al. 2020) keeps the rest of a network unchanged.
    With fewer channels and inheritance, the two are the best approximation of the old one
    (truncated singular value decomposition: Eckart and Young 1936); with more, they compute the
    same.

    Args:
        model: The network; changed in place.
        name: The convolution (not grouped) or linear layer.
        count: Channels in between.
        inherit: ``none`` draws new weights for both.
        generator: Draws weights.
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
    second: nn.Module
    options = {"bias": bias is not None, "device": "meta"}
    if isinstance(first, nn.Conv2d):
        first.out_channels = count
        second = nn.Conv2d(count, outputs, 1, **options)  # type: ignore[arg-type]
        second.weight = nn.Parameter(back[:, :, None, None])
    else:
        first.out_features = count  # type: ignore[assignment]
        second = nn.Linear(count, outputs, **options)  # type: ignore[arg-type]
        second.weight = nn.Parameter(back)
    if bias is not None:
        second.bias = nn.Parameter(bias.detach().clone())
    pair = nn.Sequential(first, second)
    if inherit == "none":
        for module in pair:
            reinitialize(module, generator)
    model.set_submodule(name, pair.train(first.training))
