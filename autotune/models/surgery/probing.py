"""Find out what the last layers of a backbone can become, by trying it on the meta device.

No weights are needed. Every kind of change is tried for all layers at once, and layer by layer
only where that fails; what fails is not offered, with the reason.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from autotune.models.backbone import Backbone
from autotune.models.layers import Layer
from autotune.models.meta_device import MetaShapes
from autotune.models.surgery.aligned_pool import POOLS, change_pool, is_pool
from autotune.models.surgery.capabilities import LayerCapabilities, channel_count
from autotune.models.surgery.channel_groups import ChannelGroup, find_channel_groups
from autotune.models.surgery.components import (
    activation_name,
    find_drop_paths,
    find_dropouts,
    is_activation,
    set_activation,
    set_drop_path,
)
from autotune.models.surgery.kernels import is_spatial, kernel_problem, replace_kernel
from autotune.models.surgery.widths import WidthChange, add_bridge, change_widths
from autotune.text import error_line

logger = logging.getLogger(__name__)

_Change = Callable[[LayerCapabilities, nn.Module], None]
#: Field of a plan -> attribute of the capabilities -> reason where there is none.
_FIELDS = {
    "kernel": ("convolutions", "it has no spatial convolution"),
    "width": ("groups", "no convolution or linear layer of it has its own channels"),
    "bridge": ("residual_writers", "none of its channels lead to channels of other layers"),
    "activation": ("activations", "it has no activation function as a module"),
    "pool": ("pools", "it does not pool"),
    "dropout": ("dropouts", "it has no dropout"),
    "drop_path": ("drop_paths", "it has no residual branch that can be dropped"),
}
#: Minimum number of last layers that are probed, once for each backbone.
_MIN_LAYERS = 8
_cache: WeakKeyDictionary[nn.Module, tuple[LayerCapabilities, ...]] = WeakKeyDictionary()


class _MetaProbe:
    """Runs changed copies of a backbone on the meta device."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.model = model
        self.image = image
        self._tensors = {id(tensor): tensor for tensor in _tensors(model)}
        #: Modules that run, with the pixels or values that they write; 1 for pooled channels.
        self.extents: dict[str, int] = {}
        with ExitStack() as stack, torch.no_grad(), MetaShapes():
            for name, module in model.named_modules():
                stack.callback(module.register_forward_hook(self._note_extent(name)).remove)
            self.shape: torch.Size = model(image).shape

    def _note_extent(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            extent = 1
            if isinstance(output, Tensor) and output.ndim > 2:
                # Channels come second in maps and last in sequences.
                extent = output[0, 0].numel() if output.ndim == 4 else output.numel()
            self.extents[name] = max(extent, self.extents.get(name, 0))

        return hook

    def problem(self, change: Callable[[nn.Module], object], same_shape: bool = True) -> str:
        """Run a changed copy; return why that fails, "" if it works."""
        # Surgery replaces tensors, it does not write into them: the copy has those of the model.
        changed = copy.deepcopy(self.model, dict(self._tensors))
        try:
            change(changed)
            with torch.no_grad(), MetaShapes():
                shape = changed(self.image).shape
        except Exception as error:  # each architecture fails in its own way
            return error_line(error)
        if len(shape) != len(self.shape) or (same_shape and shape != self.shape):
            return f"the output would be {tuple(shape)} instead of {tuple(self.shape)}"
        return ""


def probe_layers(
    model: nn.Module, layers: Sequence[Layer], input_size: tuple[int, int, int]
) -> tuple[LayerCapabilities, ...]:
    """Find out what the last layers of a backbone on the meta device can become."""
    model = copy.deepcopy(model).eval()
    image = torch.zeros(1, *input_size, device="meta")
    probe = _MetaProbe(model, image)
    channels = find_channel_groups(model, layers, image)
    candidates = []
    for layer in layers:
        writers = {
            name: int(module.weight.shape[0])  # type: ignore[index]
            for name in channels.residual_writers.get(layer.index, ())
            if getattr(module := model.get_submodule(name), "groups", 1) == 1
        }
        groups = channels.groups.get(layer.index, ())
        candidates.append(
            replace(_candidates(probe, layer), groups=groups, residual_writers=writers)
        )
    checked = _without_failing_widths(probe, _without_failing_changes(probe, candidates))
    return tuple(
        _with_reasons(candidate, channels.reasons.get(candidate.index)) for candidate in checked
    )


def _with_reasons(candidate: LayerCapabilities, width_reason: str | None) -> LayerCapabilities:
    """Add the reasons for fields with nothing to change."""
    reasons = dict(candidate.reasons)
    for name, (attribute, reason) in _FIELDS.items():
        if not getattr(candidate, attribute):
            reasons.setdefault(name, (name == "width" and width_reason) or reason)
    return replace(candidate, reasons=reasons)


def cached_capabilities(
    backbone: Backbone, layers: Sequence[Layer], last: int
) -> tuple[LayerCapabilities, ...]:
    """Return what the last ``last`` layers or more can become, probed once for each backbone."""
    capabilities = _cache.get(backbone.pretrained, ())
    if len(capabilities) < last:
        model = without_weights(backbone.pretrained)
        chosen = layers[: max(last, _MIN_LAYERS)]
        capabilities = probe_layers(model, chosen, backbone.data_config["input_size"])
        _cache[backbone.pretrained] = capabilities
    return capabilities


def without_weights(model: nn.Module) -> nn.Module:
    """Copy a network to the meta device without copying its weights on the way."""
    on_meta: dict[int, Any] = {}
    for tensor in _tensors(model):
        empty = torch.empty_like(tensor, device="meta")
        on_meta[id(tensor)] = (
            nn.Parameter(empty, requires_grad=tensor.requires_grad)
            if isinstance(tensor, nn.Parameter)
            else empty
        )
    return copy.deepcopy(model, on_meta)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _candidates(probe: _MetaProbe, layer: Layer) -> LayerCapabilities:
    """List what could change in a layer by the classes of its modules, apart from its channels."""
    model, extents = probe.model, probe.extents
    running = [name for name in layer.modules if name in extents]
    modules = {name: model.get_submodule(name) for name in running}
    spatial = {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d) and is_spatial(module)
    }
    problems = {name: kernel_problem(module) for name, module in spatial.items()}
    unsupported = bool(problems) and all(problems.values())
    activations = {name: module for name, module in modules.items() if is_activation(module)}
    widest = max((extents[name] for name in activations), default=0)
    return LayerCapabilities(
        layer.index,
        convolutions={
            name: (module.kernel_size[0], module.kernel_size[1])
            for name, module in spatial.items()
            if not problems[name]
        },
        can_grow=True,
        # Activations of pooled channels belong to gates.
        activations={
            name: activation_name(module)
            for name, module in activations.items()
            if extents[name] > 1 or widest == 1
        },
        pools={
            name: next((to for to in POOLS if change_pool(module, to) is module), "")
            for name, module in modules.items()
            if is_pool(module)
        },
        dropouts=tuple(find_dropouts(model, running)),
        drop_paths=tuple(find_drop_paths(model, layer.modules)),
        reasons={"kernel": next(iter(problems.values()))} if unsupported else {},
    )


def _changes() -> list[tuple[str, _Change]]:
    """Return for each field a change to try."""
    generator = torch.Generator().manual_seed(0)

    def kernels(side: int) -> _Change:
        def change(layer: LayerCapabilities, model: nn.Module) -> None:
            for name, sides in layer.convolutions.items():
                new = side + 2 if side in sides else side
                replace_kernel(model, name, new, inherit=False, generator=generator)

        return change

    def bridges(layer: LayerCapabilities, model: nn.Module) -> None:
        for name, size in layer.residual_writers.items():
            add_bridge(model, name, channel_count(0.5, size, 1), "weights", generator)

    def activations(layer: LayerCapabilities, model: nn.Module) -> None:
        for name in layer.activations:
            set_activation(model, name, "elu")

    def pools(layer: LayerCapabilities, model: nn.Module) -> None:
        for name, kind in layer.pools.items():
            to = "avg3" if kind != "avg3" else "max2"
            model.set_submodule(name, change_pool(model.get_submodule(name), to))

    def drop_paths(layer: LayerCapabilities, model: nn.Module) -> None:
        for name in layer.drop_paths:
            set_drop_path(model, name, 0.1)

    return [
        ("kernel", kernels(5)),
        ("kernel", kernels(1)),
        ("bridge", bridges),
        ("activation", activations),
        ("pool", pools),
        ("drop_path", drop_paths),
    ]


def _without_failing_changes(
    probe: _MetaProbe, candidates: Sequence[LayerCapabilities]
) -> list[LayerCapabilities]:
    """Try each change on all layers at once, then on each alone; take back what fails."""
    checked = list(candidates)
    for name, change in _changes():
        attribute = _FIELDS[name][0]
        is_possible = any(getattr(layer, attribute) for layer in checked)
        if not is_possible or not probe.problem(partial(_apply_to_all, change, checked)):
            continue
        for position, layer in enumerate(checked):
            if problem := probe.problem(partial(change, layer)):
                logger.debug("layer %d, %s: %s", layer.index, name, problem)
                empty: Any = type(getattr(layer, attribute))()
                reasons = {**layer.reasons, name: _does_not_run(problem)}
                checked[position] = replace(layer, **{attribute: empty, "reasons": reasons})
    return checked


def _apply_to_all(change: _Change, layers: Sequence[LayerCapabilities], model: nn.Module) -> None:
    for layer in layers:
        change(layer, model)


def _does_not_run(problem: str) -> str:
    return f"the network does not run with it ({problem})"


def _without_failing_widths(
    probe: _MetaProbe, candidates: Sequence[LayerCapabilities]
) -> list[LayerCapabilities]:
    """Take back the groups that cannot shrink; note where they cannot grow."""

    def problem(groups: Sequence[ChannelGroup], ratio: float) -> str:
        counts = [(group, channel_count(ratio, group.size, group.unit)) for group in groups]
        widths = [WidthChange(group, count) for group, count in counts if count != group.size]
        generator = torch.Generator().manual_seed(0)
        return probe.problem(
            lambda model: change_widths(model, widths, "none", generator),
            same_shape=all(width.group.inner for width in widths),
        )

    def all_groups() -> list[ChannelGroup]:
        return [group for layer in checked for group in layer.groups]

    checked = list(candidates)
    if problem(all_groups(), 0.5):
        for position, layer in enumerate(checked):
            if reason := problem(layer.groups, 0.5):
                working = tuple(group for group in layer.groups if not problem([group], 0.5))
                working = () if problem(working, 0.5) else working
                reasons = {**layer.reasons, "width": _does_not_run(reason)}
                checked[position] = replace(
                    layer, groups=working, reasons=layer.reasons if working else reasons
                )
    if problem(all_groups(), 1.5):
        checked = [replace(layer, can_grow=not problem(layer.groups, 1.5)) for layer in checked]
    return checked
