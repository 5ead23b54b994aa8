"""Apply the layer plans of a trial to a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autotune.errors import PlanError
from autotune.models.surgery.aligned_pool import change_pool
from autotune.models.surgery.capabilities import LayerCapabilities, channel_count
from autotune.models.surgery.components import set_activation, set_drop_path, set_dropout
from autotune.models.surgery.kernels import replace_kernel
from autotune.models.surgery.widths import WidthChange, add_bridge, change_widths
from autotune.plan import KEEP, LayerPlan, TrialPlan


def validate_plans(plan: TrialPlan, capabilities: Sequence[LayerCapabilities]) -> None:
    """Refuse a plan that asks a layer for what it cannot become.

    Raises:
        PlanError: With the layer, the field, the value and what is allowed.
    """
    for index in plan.reshaped:
        for field, value in plan.layers[index - 1].changes().items():
            if reason := capabilities[index - 1].reason_unsupported(field, value):
                raise PlanError(f"layer {index}, {field}: {reason}")


def apply_layer_plans(
    model: nn.Module,
    plan: TrialPlan,
    capabilities: Sequence[LayerCapabilities],
    seed: int,
    norms: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Give the layers of a backbone the shapes of a plan, in place.

    Args:
        model: The backbone without a classifier.
        plan: A plan that :func:`validate_plans` accepts.
        capabilities: Those of its last layers, the last one first.
        seed: Seed of the weights that are drawn and the channels that are doubled.
        norms: Activity of the channels for ``init: activations``, see
            :func:`~autotune.models.surgery.inheritance.activation_scores`.

    Returns:
        The channels that are left where a width changes, see
        :func:`~autotune.models.surgery.widths.change_widths`.
    """
    generator = torch.Generator().manual_seed(seed)
    changed = [(capabilities[index - 1], plan.layers[index - 1]) for index in plan.reshaped]
    widths = [
        WidthChange(group, channel_count(layer.width, group.size, group.unit))
        for layer_capabilities, layer in changed
        for group in layer_capabilities.groups
        if layer.width != KEEP
    ]
    channels = change_widths(model, widths, plan.inherit, generator, norms)
    for layer_capabilities, layer in changed:
        if layer.kernel != KEEP:
            for name in layer_capabilities.convolutions:
                replace_kernel(model, name, int(layer.kernel), plan.inherit != "none", generator)
        if layer.bridge != KEEP:
            for name, size in layer_capabilities.residual_writers.items():
                count = channel_count(layer.bridge, size, 1)
                add_bridge(model, name, count, plan.inherit, generator)
        _change_components(model, layer_capabilities, layer)
    return channels


def _change_components(
    model: nn.Module, capabilities: LayerCapabilities, layer: LayerPlan
) -> None:
    """Change what has no weights to inherit."""
    if layer.activation != KEEP:
        for name in capabilities.activations:
            set_activation(model, name, layer.activation)
    if layer.pool != KEEP:
        for name in capabilities.pools:
            model.set_submodule(name, change_pool(model.get_submodule(name), layer.pool))
    if layer.dropout != KEEP:
        for name in capabilities.dropouts:
            set_dropout(model, name, float(layer.dropout))
    if layer.drop_path != KEEP:
        for name in capabilities.drop_paths:
            set_drop_path(model, name, float(layer.drop_path))
