"""Find the layers to fit, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autotune.models.surgery.kernels import kernel_problem, without_standardization

#: Limits the inputs of a layer: the matrix of their products is solved in memory.
_MAX_INPUTS = 6144


@dataclass(frozen=True)
class Runner:
    """A network, and how it computes its features from a batch of inputs."""

    module: nn.Module
    run: Callable[[Any], Tensor]


@dataclass(frozen=True)
class Site:
    """A layer that is fitted.

    Args:
        name: Convolution, linear layer or batch norm of the changed network.
        target: Module of the pretrained network whose outputs are the goal; its inputs, of a norm.
        channels: Channels of these outputs that are left; ``None`` for all.
        norm: Batch norm that takes its outputs; a norm itself.
        bridge: 1x1 layer behind it that is fitted with it, as factors of a low rank.
    """

    name: str
    target: str
    channels: Tensor | None = None
    norm: str | None = None
    bridge: str | None = None


@dataclass
class _Trace:
    """What a network computed for a batch: the inputs of its layers, and which norm reads what."""

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def _trace(runner: Runner, batch: Any) -> _Trace:
    trace = _Trace()
    writers: dict[int, str] = {}
    alive: list[Tensor] = []  # an id is that of a tensor while the tensor lives

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            trace.inputs.setdefault(name, []).append(args[0])
            if isinstance(module, _BatchNorm) and id(args[0]) in writers:
                trace.norms[writers[id(args[0])]] = name
            alive.extend((args[0], output))
            writers[id(output)] = name

        return hook

    with ExitStack() as stack:
        for name, module in runner.module.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear | _BatchNorm):
                stack.callback(module.register_forward_hook(note(name)).remove)
        runner.run(batch)
    return trace


def find_sites(
    student: Runner,
    teacher: Runner,
    layers: frozenset[str],
    norms: frozenset[str],
    channels: Mapping[str, Tensor],
    batch: Any,
) -> list[Site]:
    """List the layers that compute something else than the pretrained ones.

    Args:
        student: The changed network.
        teacher: The pretrained network.
        layers: Names of modules whose weights may be fitted.
        norms: Names of modules whose norms may be fitted.
        channels: Channels that are left of the outputs of a module, by its name or that of its
            tensor, see :func:`autotune.models.surgery.apply.apply_layer_plans`.
        batch: Inputs of both; a few images suffice.
    """
    ours, theirs = _trace(student, batch), _trace(teacher, batch)
    sites: list[Site] = []
    for name, inputs in ours.inputs.items():
        module: Any = student.module.get_submodule(name)
        is_norm = isinstance(module, _BatchNorm)
        target, bridge = _counterpart(student.module, teacher.module, name)
        given = theirs.inputs.get(target, ())
        # What runs twice has no one goal.
        if name not in (norms if is_norm else layers) or len(inputs) != 1 or len(given) != 1:
            continue
        if _is_same(module, teacher.module.get_submodule(target), inputs[0], given[0]):
            continue
        if is_norm:
            if all(site.norm != name for site in sites):
                left = channels.get(f"{name}.weight", channels.get(f"{name}.running_mean"))
                sites.append(Site(name, target, left, norm=name))
            continue
        if bridge == name or not _is_plain(module) or module.weight[0].numel() > _MAX_INPUTS:
            continue
        norm = ours.norms.get(bridge or name)
        sites.append(
            Site(name, target, channels.get(target), norm if norm in norms else None, bridge)
        )
    return sites


def _counterpart(student: nn.Module, teacher: nn.Module, name: str) -> tuple[str, str | None]:
    """Name the pretrained module of a module, and the bridge that is fitted with it.

    A layer with a bridge is a sequence of two instead of one. With fewer channels in between the
    two are fitted together, else the second one alone.
    """
    parent, _, leaf = name.rpartition(".")
    names = dict(teacher.named_modules())
    if name in names or not isinstance(names.get(parent), nn.Conv2d | nn.Linear):
        return name, None
    first, second = student.get_submodule(parent).children()
    if first.weight.shape[0] < second.weight.shape[0]:  # type: ignore[index]
        return parent, f"{parent}.1"
    return parent, name if leaf == "0" else None


def _is_same(module: Any, old: Any, given: Tensor, old_given: Tensor) -> bool:
    """Tell whether a module has the weights and the inputs of the pretrained one."""
    pairs = zip(module.state_dict().values(), old.state_dict().values(), strict=False)
    return (
        given.shape == old_given.shape
        and torch.equal(given, old_given)
        and module.state_dict().keys() == old.state_dict().keys()
        and all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
    )


def _is_plain(module: nn.Module) -> bool:
    """Tell whether a layer computes with its weight as it is."""
    if isinstance(module, nn.Conv2d):
        return without_standardization(module) is module and not kernel_problem(module)
    return type(module).forward is nn.Linear.forward and "weight" in module._parameters
