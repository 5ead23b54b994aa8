"""Bring old weights into new shapes: which channels stay, are doubled, or are shared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning.dependency import Dependency, Group, Node
from torch_pruning.pruner import function
from torch_pruning.pruner.importance import GroupMagnitudeImportance

from autotune.models.surgery.channel_groups import ChannelGroup, Member
from autotune.models.surgery.kernels import he_normal


def magnitude_scores(model: nn.Module, group: ChannelGroup) -> Tensor:
    """Score channels by the size of the weights that write, scale and read them.

    torch-pruning's group importance (Fang et al. 2023, arXiv 2301.12900, section 3.3).

    Returns:
        One score a channel, ``(group.size,)``.
    """
    chosen = Group()
    for member in group.members:
        module, prune = _pruned_module(model, member)
        if module is None or len(member.segments) != 1:
            continue
        start, blocks, run = member.segments[0]
        node = Node(module, None, member.name)
        entries = list(range(start, start + blocks * group.size * run))
        chosen.add_dep(Dependency(prune, prune, node, node), entries)
        chosen[-1].root_idxs = [
            channel for _ in range(blocks) for channel in range(group.size) for _ in range(run)
        ]
    scores = GroupMagnitudeImportance(p=2)(chosen)
    # Sized as the first member, which may hold each channel several times.
    return torch.ones(group.size) if scores is None else scores[: group.size].float().cpu()


def _pruned_module(model: nn.Module, member: Member) -> tuple[nn.Module | None, Any]:
    """Return the module of a member, and torch-pruning's function for it."""
    name, side = member.name, member.side
    if side == "vector":
        name, _, leaf = name.rpartition(".")
        module = model.get_submodule(name)
        if leaf == "weight" and isinstance(module, nn.modules.batchnorm._BatchNorm):
            return module, function.prune_batchnorm_out_channels
        return None, None
    module = model.get_submodule(name)
    kind = "linear" if isinstance(module, nn.Linear) else "conv"
    return module, getattr(function, f"prune_{kind}_{side}_channels")


def activation_scores(
    model: nn.Module, group: ChannelGroup, norms: Mapping[str, Tensor]
) -> Tensor:
    """Score channels by what they contribute to the layers that read them.

    The norm of a channel over some images times the norm of the weights that read it, summed over
    the readers: the measure of Wanda (Sun et al. 2023, arXiv 2306.11695, equation 1) for whole
    channels.

    Returns:
        One score a channel, ``(group.size,)``; :func:`magnitude_scores` where nothing reads them.
    """
    scores = torch.zeros(group.size)
    for member in group.members:
        if member.side != "in" or member.name not in norms:
            continue
        weight = model.get_parameter(f"{member.name}.weight").detach()
        columns = weight.flatten(2).pow(2).sum(2) if weight.ndim > 2 else weight.pow(2)
        groups = len(norms[member.name]) // weight.shape[1]
        read = columns.view(groups, -1, weight.shape[1]).sum(1).flatten()
        contribution = (read.sqrt().cpu() * norms[member.name]).square()
        for start, blocks, run in member.segments:
            stretch = contribution[start : start + blocks * group.size * run]
            scores += stretch.view(blocks, group.size, run).sum((0, 2))
    return scores.sqrt() if bool(scores.any()) else magnitude_scores(model, group)


@torch.no_grad()
def channel_norms(
    model: nn.Module, readers: Iterable[str], images: Tensor
) -> Mapping[str, Tensor]:
    """Measure the root mean square of every input channel of some modules.

    Args:
        model: The network in evaluation mode.
        readers: Names of convolutions and linear layers.
        images: ``(N, C, H, W)``, normalized, on the device of the network.

    Returns:
        Vectors ``(in,)`` by module.
    """
    norms: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            given = args[0].float()
            channels = given.ndim - 1 if isinstance(module, nn.Linear) else 1
            dims = [dim for dim in range(given.ndim) if dim != channels]
            norms[name] = given.square().mean(dims).sqrt().cpu()

        return hook

    with ExitStack() as stack:
        for name in readers:
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(note(name)).remove)
        model(images)
    return norms


def select_channels(
    scores: Tensor, count: int, unit: int, generator: torch.Generator
) -> list[int]:
    """Choose the old channel of every new one.

    Fewer: those with the best scores. More: all, and random ones again (Net2WiderNet, Chen et
    al. 2016, arXiv 1511.05641, section 2.2); none is taken a third time before all are doubled.

    Args:
        scores: One a channel.
        count: New number of channels, a multiple of ``unit``.
        unit: Number of equal blocks, from each of which as many are taken.
        generator: Source of the choice of doubled channels.

    Returns:
        Old channels in ascending order.
    """
    blocks = scores.view(unit, -1)
    size, wanted = blocks.shape[1], count // unit
    chosen: list[int] = []
    for block, row in enumerate(blocks):
        if wanted <= size:
            kept = row.argsort(descending=True, stable=True)[:wanted]
        else:
            extra = torch.randperm(size, generator=generator)[: wanted % size]
            kept = torch.cat([torch.arange(size).repeat(wanted // size), extra])
        chosen += sorted(block * size + int(channel) for channel in kept)
    return chosen


def split_copies(weight: Tensor, copies: Sequence[int], generator: torch.Generator) -> Tensor:
    """Divide the weights that read doubled channels among the copies; their sum stays the same.

    The shares are random, not halves: copies that are read alike would train alike and stay
    copies for ever.

    Args:
        weight: ``(out, copies, ...)``: the weights of a channel repeated for each of its copies.
        copies: The channel that each is a copy of.
        generator: Source of the shares.

    Returns:
        The divided weights, of the same shape.
    """
    number = torch.tensor(copies)
    alone = torch.bincount(number)[number] == 1
    if bool(alone.all()):
        return weight
    drawn = torch.rand(weight.shape[0], len(number), generator=generator) * 0.5 + 0.25
    total = torch.zeros(weight.shape[0], int(number.max()) + 1).index_add_(1, number, drawn)
    shares = torch.where(alone, torch.ones(()), drawn / total[:, number])
    return weight * shares.view(*shares.shape, *(1,) * (weight.ndim - 2)).to(weight)


def reinitialize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw new weights for a convolution, linear layer or norm, in place.

    As the paper's changed layers do (He et al. 2015, arXiv 1502.01852).
    """
    weight: Any = getattr(module, "weight", None)
    bias: Any = getattr(module, "bias", None)
    with torch.no_grad():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if not weight.is_meta:
                groups = getattr(module, "groups", 1)
                weight.copy_(he_normal(weight.shape, groups, generator))
        elif isinstance(weight, Tensor) and not isinstance(module, nn.PReLU):
            weight.fill_(1.0)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
        if isinstance(bias, Tensor):
            bias.zero_()
