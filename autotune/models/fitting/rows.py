"""Collect the rows of a regression: what a layer sees, and what it should compute from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autotune.models.fitting.regression import Moments
from autotune.models.fitting.sites import Runner, Site

#: Limits the rows (pixels, tokens) of a batch: neighbors are alike.
MAX_ROWS = 2048
#: Limits the values of the inputs of a convolution that are in memory at a time.
_MAX_VALUES = 1 << 24


class _ReachedError(Exception):
    """A module has run: the rest of the network is not needed."""


def measure(student: Runner, teacher: Runner, site: Site, batch: Any) -> Moments:
    """Return the moments of a layer for a batch of inputs of both networks."""
    module = student.module.get_submodule(site.name)
    is_norm = isinstance(module, _BatchNorm)
    given = _tensor_of(student, site.name, batch, is_output=False)
    goal = _tensor_of(teacher, site.target, batch, is_output=not is_norm)
    if isinstance(module, nn.Linear):
        x, y = (tensor.reshape(1, -1, tensor.shape[-1]) for tensor in (given, goal))
        y = y if site.channels is None else y[..., site.channels.to(y.device)]
        chosen = _sample(x.shape[1], x.device)
        return Moments.from_rows(x[:, chosen].float(), y[:, chosen].float())
    goal = goal if site.channels is None else goal.index_select(1, site.channels.to(goal.device))
    groups = given.shape[1] if is_norm else int(module.groups)  # type: ignore[arg-type]
    pixels = goal[0, 0].numel()
    chosen = _sample(len(goal) * pixels, goal.device)
    x = _columns(module, given, groups, pixels, chosen)
    return Moments.from_rows(x, _rows(goal, groups, chosen))


@torch.no_grad()
def _tensor_of(runner: Runner, name: str, batch: Any, is_output: bool) -> Tensor:
    """Return the output of a module for a batch, or its input."""
    module = runner.module.get_submodule(name)
    tensors: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...], output: Any = None) -> None:
        tensors.append((output if is_output else args[0]).clone())  # some work in place
        raise _ReachedError

    register: Any = module.register_forward_hook if is_output else module.register_forward_pre_hook
    handle = register(keep)
    try:
        runner.run(batch)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return tensors[0]


def _sample(total: int, device: torch.device) -> Tensor:
    count = min(total, MAX_ROWS)
    return torch.arange(count, device=device) * total // count


def _rows(tensor: Tensor, groups: int, chosen: Tensor) -> Tensor:
    """Turn maps ``(N, C, ...)`` into rows ``(G, R, C / G)``."""
    flat = tensor.flatten(2) if tensor.ndim > 2 else tensor[..., None]
    return (
        flat.movedim(1, 0).reshape(groups, -1, len(flat) * flat.shape[2])[..., chosen].mT.float()
    )


@torch.no_grad()
def _columns(module: nn.Module, given: Tensor, groups: int, pixels: int, chosen: Tensor) -> Tensor:
    """Return what each weight of a module meets in some rows, ``(G, R, K)``."""
    if not isinstance(module, nn.Conv2d):  # a norm has one weight a channel
        return _rows(given, groups, chosen)
    taps = module.weight[0, 0].numel()
    step = max(1, _MAX_VALUES // (given.shape[1] * taps * pixels))
    parts = []
    for start in range(0, len(given), step):
        maps = _taps(module, given[start : start + step])
        inside = (chosen >= start * pixels) & (chosen < (start + len(maps)) * pixels)
        parts.append(_rows(maps, groups, chosen[inside] - start * pixels))
    return torch.cat(parts, 1)


def _taps(conv: nn.Conv2d, given: Tensor) -> Tensor:
    """Return what each tap of a convolution reads, ``(N, in * kh * kw, H, W)``.

    The convolution itself reads it, with a kernel for each tap that is 1 there: so its stride,
    its padding and whatever else it does apply.
    """
    weight, bias, groups = conv._parameters["weight"], conv._parameters["bias"], conv.groups
    assert weight is not None
    taps = weight[0, 0].numel()
    units = torch.eye(taps, device=weight.device, dtype=weight.dtype)
    units = units.view(taps, 1, *weight.shape[2:]).repeat(given.shape[1], 1, 1, 1)
    try:
        conv._parameters["weight"], conv._parameters["bias"] = units, None  # type: ignore[assignment]
        conv.groups = given.shape[1]
        maps: Tensor = type(conv).forward(conv, given)
    finally:
        conv._parameters["weight"], conv._parameters["bias"] = weight, bias
        conv.groups = groups
    return maps
