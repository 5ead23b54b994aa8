"""Applying the layer plans of a trial to a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autotune.errors import PlanError
from autotune.models.surgery.aligned_pool import change_pool
from autotune.models.surgery.capabilities import LayerCapabilities, channel_count
from autotune.models.surgery.components import set_activation, set_drop_path, set_dropout
from autotune.models.surgery.kernels import change_kernel
from autotune.models.surgery.widths import WidthChange, add_bridge, change_widths
from autotune.plan import KEEP, LayerPlan, TrialPlan


def validate_plans(plan: TrialPlan, offers: Sequence[LayerCapabilities]) -> None:
    """Refuse a plan that asks a layer for what it cannot become.

    Raises:
        PlanError: With the layer, the field, the value and what is allowed.
    """
    for index in plan.reshaped:
        offer = offers[index - 1]
        for field, value in plan.layers[index - 1].changes().items():
            problem = offer.reason_unsupported(field, value)
            if problem:
                raise PlanError(f"layer {index}, {field}: {problem}")


def apply_layer_plans(
    model: nn.Module,
    plan: TrialPlan,
    offers: Sequence[LayerCapabilities],
    seed: int,
    norms: Mapping[str, Tensor] | None = None,
) -> None:
    """Give the layers of a backbone the shapes of a plan.

    Args:
        model: The backbone without a classifier; changed in place.
        plan: A plan that :func:`validate_plans` let pass.
        offers: What its last layers can become, the last one first.
        seed: Of the weights that are drawn and the channels that are doubled.
        norms: How active the channels are, see
            :func:`~autotune.models.surgery.inheritance.activation_scores`; asked for by ``inherit:
            data``.
    """
    generator = torch.Generator().manual_seed(seed)
    changed = [(offers[index - 1], plan.layers[index - 1]) for index in plan.reshaped]
    widths = [
        WidthChange(group, channel_count(layer.width, group.size, group.unit))
        for offer, layer in changed
        for group in offer.groups
        if layer.width != KEEP
    ]
    change_widths(model, widths, plan.inherit, generator, norms)
    for offer, layer in changed:
        if layer.kernel != KEEP:
            for name in offer.convolutions:
                old = model.get_submodule(name)
                assert isinstance(old, nn.Conv2d)
                new = change_kernel(old, int(layer.kernel), plan.inherit != "none", generator)
                model.set_submodule(name, new)
        if layer.bridge != KEEP:
            for name in offer.residual_writers:
                count = channel_count(layer.bridge, offer.residual_writers[name], 1)
                add_bridge(model, name, count, plan.inherit, generator)
        _change_parts(model, offer, layer)


def _change_parts(model: nn.Module, offer: LayerCapabilities, layer: LayerPlan) -> None:
    """Change what has no weights to inherit."""
    if layer.activation != KEEP:
        for name in offer.activations:
            set_activation(model, name, layer.activation)
    if layer.pool != KEEP:
        for name in offer.pools:
            model.set_submodule(name, change_pool(model.get_submodule(name), layer.pool))
    if layer.dropout != KEEP:
        for name in offer.dropouts:
            set_dropout(model, name, float(layer.dropout))
    if layer.drop_path != KEEP:
        for name in offer.drop_paths:
            set_drop_path(model, name, float(layer.drop_path))
