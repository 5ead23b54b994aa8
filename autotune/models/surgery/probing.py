"""Finding out what the last layers of a backbone can become, by trying it on the meta device.

Nothing here needs weights. Every kind of change is tried for all layers at once, and layer by
layer only where that fails; what fails is not offered, with the reason.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from autotune.models.backbone import Backbone
from autotune.models.layers import Layer
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
from autotune.models.surgery.kernels import change_kernel, is_spatial, kernel_problem
from autotune.models.surgery.widths import WidthChange, add_bridge, change_widths

logger = logging.getLogger(__name__)


class _MetaProbe:
    """Runs changed copies of a backbone on the meta device."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.model = model
        self.image = image
        self.shape: torch.Size | None = None
        #: Modules that run, with how much they write; 1 stands for pooled channels.
        self.extents: dict[str, int] = {}
        with ExitStack() as stack, torch.no_grad():
            for name, module in model.named_modules():
                stack.callback(module.register_forward_hook(self._note(name)).remove)
            self.shape = model(image).shape

    def _note(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            extent = 1
            if isinstance(output, Tensor):
                # Channels come second in maps and last in sequences.
                extent = output[0, 0].numel() if output.ndim == 4 else output.numel()
                extent = extent if output.ndim > 2 else 1
            self.extents[name] = max(extent, self.extents.get(name, 0))

        return hook

    def problem(self, change: Callable[[nn.Module], None], same: bool = True) -> str:
        """Change a copy and run it; return why that fails, or an empty string.

        Args:
            change: What to do to the copy.
            same: Whether the output must have the old shape; else the number of features may
                differ.
        """
        changed = copy.deepcopy(self.model)
        try:
            change(changed)
            with torch.no_grad():
                shape = changed(self.image).shape
        except Exception as error:  # whatever a network makes of an unexpected shape
            lines = str(error).strip().splitlines()
            return f"{type(error).__name__}: {lines[0][:160] if lines else 'no details'}"
        assert self.shape is not None
        if len(shape) != len(self.shape) or (same and shape != self.shape):
            return f"the output would be {tuple(shape)} instead of {tuple(self.shape)}"
        return ""


def probe_layers(
    model: nn.Module, layers: Sequence[Layer], input_size: tuple[int, int, int]
) -> tuple[LayerCapabilities, ...]:
    """Find out what layers can become.

    Args:
        model: The backbone without a classifier, in evaluation mode, on the meta device.
        layers: Its last layers, the last one first.
        input_size: Channels, height and width of its images.

    Returns:
        One offer for each of the layers.
    """
    model = copy.deepcopy(model).eval()
    image = torch.zeros(1, *input_size, device="meta")
    bench = _MetaProbe(model, image)
    channels = find_channel_groups(model, layers, image)
    drafts = []
    for layer in layers:
        residual_writers = {
            name: int(module.weight.shape[0])  # type: ignore[index]
            for name in channels.residual_writers.get(layer.index, ())
            if getattr(module := model.get_submodule(name), "groups", 1) == 1
        }
        drafts.append(
            replace(
                _draft(bench, layer),
                groups=channels.groups.get(layer.index, ()),
                can_grow=True,
                residual_writers=residual_writers,
            )
        )
    offers = _try_all(bench, drafts, channels.reasons)
    return tuple(offers)


#: Offers are worked out for at least this many of the last layers, once for each backbone.
_AT_LEAST = 8
_known: WeakKeyDictionary[nn.Module, tuple[LayerCapabilities, ...]] = WeakKeyDictionary()


def cached_capabilities(
    backbone: Backbone, layers: Sequence[Layer], last: int
) -> tuple[LayerCapabilities, ...]:
    """Return what the last layers of a backbone can become; worked out once and kept.

    Args:
        backbone: The backbone.
        layers: All of its layers, the last one first.
        last: How many of them are asked for.

    Returns:
        Offers for the last ``last`` layers or more.
    """
    found = _known.get(backbone.pretrained, ())
    if len(found) < last:
        chosen = layers[: max(last, _AT_LEAST)]
        model = without_weights(backbone.pretrained)
        found = probe_layers(model, chosen, backbone.data_config["input_size"])
        _known[backbone.pretrained] = found
    return found


def without_weights(model: nn.Module) -> nn.Module:
    """Copy a network on to the meta device; its weights are not copied on the way."""
    tensors = [*model.parameters(), *model.buffers()]
    on_meta: dict[int, Any] = {}
    for one in tensors:
        empty = torch.empty_like(one, device="meta")
        on_meta[id(one)] = (
            nn.Parameter(empty, requires_grad=one.requires_grad)
            if isinstance(one, nn.Parameter)
            else empty
        )
    return copy.deepcopy(model, on_meta)


def _draft(bench: _MetaProbe, layer: Layer) -> LayerCapabilities:
    """List what could change in a layer by the kinds of its modules."""
    model = bench.model
    running = [name for name in layer.modules if name in bench.extents]
    modules = {name: model.get_submodule(name) for name in running}
    reasons: dict[str, str] = {}
    spatial = {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d) and is_spatial(module)
    }
    convolutions = {
        name: (module.kernel_size[0], module.kernel_size[1])
        for name, module in spatial.items()
        if not kernel_problem(module)
    }
    if not convolutions:
        problems = [kernel_problem(module) for module in spatial.values()]
        reasons["kernel"] = problems[0] if problems else "it has no spatial convolution"
    acts = {name: module for name, module in modules.items() if is_activation(module)}
    widest = max((bench.extents[name] for name in acts), default=0)
    return LayerCapabilities(
        layer.index,
        convolutions=convolutions,
        # Those of pooled channels belong to gates.
        activations={
            name: activation_name(module)
            for name, module in acts.items()
            if bench.extents[name] > 1 or widest == 1
        },
        pools={
            name: next((to for to in POOLS if change_pool(module, to) is module), "")
            for name, module in modules.items()
            if is_pool(module)
        },
        dropouts=tuple(find_dropouts(model, running)),
        drop_paths=tuple(find_drop_paths(model, layer.modules)),
        reasons=reasons,
    )


#: Field of a plan -> attribute of an offer -> reason where there is none.
_PARTS = {
    "kernel": ("convolutions", "it has no spatial convolution"),
    "width": ("groups", "no convolution or linear layer of it has channels of its own"),
    "bridge": (
        "residual_writers",
        "it writes to no channels of other layers from channels of its own",
    ),
    "activation": ("activations", "it has no activation function as a module"),
    "pool": ("pools", "it does not pool"),
    "dropout": ("dropouts", "it has no dropout"),
    "drop_path": ("drop_paths", "it has no residual branch that can be dropped"),
}


def _try_all(
    bench: _MetaProbe, offers: Sequence[LayerCapabilities], reasons: Mapping[int, str]
) -> list[LayerCapabilities]:
    """Try every kind of change and take back what does not work."""
    drawn = torch.Generator().manual_seed(0)

    def kernels(side: int) -> Callable[[nn.Module, LayerCapabilities], None]:
        def change(model: nn.Module, offer: LayerCapabilities) -> None:
            for name in offer.convolutions:
                old = model.get_submodule(name)
                assert isinstance(old, nn.Conv2d)
                new = side if side not in old.kernel_size else side + 2
                model.set_submodule(name, change_kernel(old, new, inherit=False, generator=drawn))

        return change

    def bridges(model: nn.Module, offer: LayerCapabilities) -> None:
        for name, size in offer.residual_writers.items():
            add_bridge(model, name, channel_count(0.5, size, 1), "weights", drawn)

    def activations(model: nn.Module, offer: LayerCapabilities) -> None:
        for name in offer.activations:
            set_activation(model, name, "elu")

    def pools(model: nn.Module, offer: LayerCapabilities) -> None:
        for name, kind in offer.pools.items():
            to = "avg3" if kind != "avg3" else "max2"
            model.set_submodule(name, change_pool(model.get_submodule(name), to))

    def paths(model: nn.Module, offer: LayerCapabilities) -> None:
        for name in offer.drop_paths:
            set_drop_path(model, name, 0.1)

    checked = list(offers)
    for name, change in (
        ("kernel", kernels(5)),
        ("kernel", kernels(1)),
        ("bridge", bridges),
        ("activation", activations),
        ("pool", pools),
        ("drop_path", paths),
    ):
        checked = _without_failing(bench, checked, name, change)
    checked = _try_widths(bench, checked)
    for position, offer in enumerate(checked):
        found = dict(offer.reasons)
        for name, (attribute, reason) in _PARTS.items():
            if not getattr(offer, attribute):
                own = reasons.get(offer.index, reason) if name == "width" else reason
                found.setdefault(name, own)
        checked[position] = replace(offer, reasons=found)
    return checked


def _without_failing(
    bench: _MetaProbe,
    offers: Sequence[LayerCapabilities],
    name: str,
    change: Callable[[nn.Module, LayerCapabilities], None],
) -> list[LayerCapabilities]:
    """Try a change on all layers at once, then on each alone; take back what fails."""
    attribute = _PARTS[name][0]
    concerned = [offer for offer in offers if getattr(offer, attribute)]

    def together(model: nn.Module) -> None:
        for offer in concerned:
            change(model, offer)

    if not concerned or not bench.problem(together):
        return list(offers)
    checked = []
    for offer in offers:
        problem = bench.problem(lambda model, one=offer: change(model, one))  # type: ignore[misc]
        if problem:
            logger.debug("layer %d, %s: %s", offer.index, name, problem)
            empty: Any = type(getattr(offer, attribute))()
            reasons = {**offer.reasons, name: f"the network does not run with it ({problem})"}
            offer = replace(offer, **{attribute: empty, "reasons": reasons})
        checked.append(offer)
    return checked


def _try_widths(bench: _MetaProbe, offers: Sequence[LayerCapabilities]) -> list[LayerCapabilities]:
    """Take back the groups that cannot shrink; note where they cannot grow."""

    def problem(groups: Iterable[ChannelGroup], ratio: float) -> str:
        widths = [
            WidthChange(group, channel_count(ratio, group.size, group.unit)) for group in groups
        ]
        widths = [one for one in widths if one.count != one.group.size]
        drawn = torch.Generator().manual_seed(0)
        return bench.problem(
            lambda model: change_widths(model, widths, "none", drawn),
            same=all(width.group.inner for width in widths),
        )

    def every(some: Sequence[LayerCapabilities]) -> list[ChannelGroup]:
        return [group for offer in some for group in offer.groups]

    checked = list(offers)
    if problem(every(checked), 0.5):
        for position, offer in enumerate(checked):
            reason = problem(offer.groups, 0.5)
            if reason:
                alone = [problem([group], 0.5) for group in offer.groups]
                works = tuple(
                    group for group, why in zip(offer.groups, alone, strict=True) if not why
                )
                if problem(works, 0.5):
                    works = ()
                reason = f"the network does not run with it ({reason})"
                reasons = offer.reasons if works else {**offer.reasons, "width": reason}
                checked[position] = replace(offer, groups=works, reasons=reasons)
    if problem(every(checked), 1.5):
        checked = [replace(offer, can_grow=not problem(offer.groups, 1.5)) for offer in checked]
    return checked
