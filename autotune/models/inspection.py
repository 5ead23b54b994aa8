"""Inspect a backbone layer by layer: what each layer is, and what it can become.

Everything is measured on the meta device: no weights are made, read or downloaded.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from timm.layers.drop import DropPath
from torch import nn

from autotune.config.fields import KERNELS
from autotune.config.schema import ACTIVATIONS, LAYER_POOLS, POOLS
from autotune.errors import PlanError
from autotune.models.backbone import build_backbone, data_config
from autotune.models.flops import UNASSIGNED, FlopsProfile
from autotune.models.layers import Layer, list_layers
from autotune.models.network import check_plan, pool_problem, set_pool
from autotune.models.pretrained.names import check_name
from autotune.models.surgery.apply import apply_layer_plans, validate_plans
from autotune.models.surgery.capabilities import MAX_RATIO, MIN_RATIO, LayerCapabilities
from autotune.models.surgery.probing import probe_layers
from autotune.plan import KEEP, LayerPlan, TrialPlan

#: Fields of a layer plan, in the order in which they are shown.
FIELDS = tuple(LayerPlan.__dataclass_fields__)
#: Limits of a head in a study file, see ``autotune.config.schema.HeadSpace``.
MAX_HIDDEN_LAYERS, MAX_UNITS, MAX_DROPOUT = 3, 65536, 0.95

Size = tuple[int, int, int]


@dataclass(frozen=True)
class InspectedLayer:
    """One layer and what is known of it without its weights.

    Args:
        layer: The layer.
        kind: The class of its main module in a word, e.g. ``Bottleneck``, ``conv`` or ``stem``.
        shape: Shape of its output for one image: ``(C, H, W)`` of a map, ``(tokens, C)`` of a
            sequence, ``(C,)`` of pooled features; empty where none of its modules ran.
        macs: Multiply-accumulates of its convolutions, linear layers and matrix products for
            one image.
        share: Its share of the backbone's multiply-accumulates.
        present: Current values of each field that can change; ``3x3`` for a kernel.
        capabilities: What it can become.
    """

    layer: Layer
    kind: str
    shape: tuple[int, ...]
    macs: int
    share: float
    present: Mapping[str, tuple[int | float | str, ...]]
    capabilities: LayerCapabilities

    @property
    def resolution(self) -> tuple[int, ...]:
        """Height and width of a map, number of tokens of a sequence, empty for features."""
        return self.shape[1:] if len(self.shape) == 3 else self.shape[:-1]

    def to_json(self) -> dict[str, Any]:
        """Return the layer as plain JSON values."""
        reasons = self.capabilities.reasons
        return {
            **self.layer.to_json(),
            "kind": self.kind,
            "shape": list(self.shape),
            "resolution": list(self.resolution),
            "macs": self.macs,
            "share": self.share,
            "offers": {
                name: {"present": list(self.present[name]), **_values(self.capabilities, name)}
                for name in FIELDS
                if name not in reasons
            },
            "reasons": dict(reasons),
        }


@dataclass(frozen=True)
class InspectedHead:
    """The number of features that the head reads, and the global poolings that work."""

    features: int
    pools: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the head as plain JSON values."""
        return {
            "features": self.features,
            "pool": list(self.pools),
            "hidden_layers": {"low": 0, "high": MAX_HIDDEN_LAYERS},
            "units": {"low": 1, "high": MAX_UNITS},
            "activation": list(ACTIVATIONS),
            "batch_norm": [True, False],
            "dropout": {"low": 0.0, "high": MAX_DROPOUT},
        }


@dataclass(frozen=True)
class Inspection:
    """A backbone, layer by layer.

    Args:
        backbone: timm model name.
        input_size: Channels, height and width of its images.
        head: The head, which is layer 0.
        layers: The layers, the last one first.
        macs: Multiply-accumulates of the backbone for one image.
        remainder: Those that belong to no layer.
    """

    backbone: str
    input_size: Size
    head: InspectedHead
    layers: tuple[InspectedLayer, ...]
    macs: int
    remainder: int

    @property
    def parameters(self) -> int:
        """Number of trainable values without the head."""
        return sum(inspected.layer.parameters for inspected in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as plain JSON values."""
        return {
            "backbone": self.backbone,
            "input_size": list(self.input_size),
            "parameters": self.parameters,
            "macs": self.macs,
            "remainder": self.remainder,
            "head": self.head.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }


def inspect_layers(name: str, image_size: int | None = None) -> Inspection:
    """Inspect a backbone on the meta device, by default for its own size of images.

    Raises:
        BackboneError: When the backbone is unknown or cannot take images of that size.
    """
    model, input_size = _build_on_meta(name, image_size)
    layers = list_layers(model)
    profile = FlopsProfile(model, layers, input_size)
    inspected = tuple(
        InspectedLayer(
            layer=layer,
            kind=kind,
            shape=profile.shapes.get(layer.index, ()),
            macs=profile.macs[layer.index],
            share=profile.macs[layer.index] / max(1, profile.total),
            present={field: _present(model, capabilities, field) for field in FIELDS},
            capabilities=capabilities,
        )
        for layer, kind, capabilities in zip(
            layers, _kinds(model, layers), probe_layers(model, layers, input_size), strict=True
        )
    )
    head = InspectedHead(profile.features, _working_pools(model, name, input_size))
    remainder = profile.macs.get(UNASSIGNED, 0)
    return Inspection(name, input_size, head, inspected, profile.total, remainder)


@dataclass(frozen=True)
class PlanPreview:
    """What a plan makes of its backbone.

    Args:
        before: The layers of the backbone, the last one first.
        after: The same layers as the plan reshapes them.
        features: Number of features that its head reads.
        macs_before: Multiply-accumulates of one image before.
        macs_after: Those after.
    """

    before: tuple[Layer, ...]
    after: tuple[Layer, ...]
    features: int
    macs_before: int
    macs_after: int


def preview_plan(plan: TrialPlan, image_size: int | None = None) -> PlanPreview:
    """Apply a plan to its backbone on the meta device.

    Raises:
        BackboneError: When the backbone is unknown or cannot take images of that size.
        PlanError: When the plan does not fit the backbone.
    """
    model, input_size = _build_on_meta(plan.backbone, image_size)
    before = list_layers(model)
    check_plan(plan, plan.backbone, len(before))
    pools = _working_pools(model, plan.backbone, input_size)
    if plan.head.pool not in pools:
        raise PlanError(
            f"head.pool: must be one of {', '.join(pools)} for {plan.backbone!r}, but got "
            f"{plan.head.pool!r}"
        )
    if plan.head.activation not in ACTIVATIONS:
        raise PlanError(
            f"head.activation: must be one of {', '.join(ACTIVATIONS)}, but got "
            f"{plan.head.activation!r}"
        )
    changed = copy.deepcopy(model).eval()
    if plan.reshaped:
        capabilities = probe_layers(model, before[: max(plan.reshaped)], input_size)
        validate_plans(plan, capabilities)
        # The meta device has no weights to inherit or to compare.
        apply_layer_plans(changed, replace(plan, inherit="none"), capabilities, seed=0)
    after = list_layers(changed)
    set_pool(changed, plan.head.pool, plan.backbone)
    profile = FlopsProfile(changed, after, input_size)
    macs_before = FlopsProfile(model, before, input_size).total
    return PlanPreview(before, after, profile.features, macs_before, profile.total)


def _build_on_meta(name: str, image_size: int | None) -> tuple[nn.Module, Size]:
    check_name(name)
    model = build_backbone(name, image_size, device="meta")
    return model, data_config(model, image_size)["input_size"]


def _working_pools(model: nn.Module, name: str, input_size: Size) -> tuple[str, ...]:
    return tuple(pool for pool in POOLS if not pool_problem(model, name, pool, input_size))


def _kinds(model: nn.Module, layers: Sequence[Layer]) -> list[str]:
    """Name what each layer is; the convolution next to the input is the stem."""
    kinds = [_kind(model, layer) for layer in layers]
    is_conv = kinds[-1] == "conv" or kinds[-1].startswith("Conv")
    if "stem" in layers[-1].label.lower() or (is_conv and kinds[-1] not in kinds[:-1]):
        kinds[-1] = "stem"
    return kinds


def _kind(model: nn.Module, layer: Layer) -> str:
    """Name the class of the module of a layer that has the most parameters."""

    def size(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    tops = [name for name in layer.modules if name.rpartition(".")[0] not in layer.modules]
    main = max((model.get_submodule(name) for name in tops), key=size, default=nn.Identity())
    if not size(main):
        return "parameters"
    count = 1
    while type(main) in (nn.Sequential, nn.ModuleList):
        members = [member for member in main.children() if size(member)]
        if not members:
            break
        main = max(members, key=size)
        count = len(members) if all(type(member) is type(main) for member in members) else 1
    is_norm = all(parameter.ndim <= 1 for parameter in main.parameters())
    word = "norm" if is_norm else type(main).__name__
    word = {"Conv2d": "conv", "Linear": "linear"}.get(word, word)
    return word if count == 1 else f"{count} {word}"


def _present(
    model: nn.Module, capabilities: LayerCapabilities, field: str
) -> tuple[int | float | str, ...]:
    """List the different values that a layer has of a field, in the order of the network."""
    values: Sequence[int | float | str]
    match field:
        case "kernel":
            values = [f"{rows}x{columns}" for rows, columns in capabilities.convolutions.values()]
        case "width":
            values = [group.size for group in capabilities.groups]
        case "bridge":
            values = list(capabilities.residual_writers.values())
        case "activation":
            values = [
                name or type(model.get_submodule(path)).__name__.lower()
                for path, name in capabilities.activations.items()
            ]
        case "pool":
            values = [name or _pool_name(model, path) for path, name in capabilities.pools.items()]
        case "dropout":
            values = [float(model.get_submodule(path).p) for path in capabilities.dropouts]  # type: ignore[arg-type]
        case _:
            values = [_drop_rate(model, path) for path in capabilities.drop_paths]
    return tuple(dict.fromkeys(values))


def _pool_name(model: nn.Module, path: str) -> str:
    pool = model.get_submodule(path)
    kernel: Any = pool.kernel_size
    sides = kernel if isinstance(kernel, int) else max(kernel)
    return f"{'max' if 'Max' in type(pool).__name__ else 'avg'}{sides}"


def _drop_rate(model: nn.Module, path: str) -> float:
    owner, _, attribute = path.rpartition(".")
    drop = getattr(model.get_submodule(owner), attribute)
    return round(drop.drop_prob or 0.0, 6) if isinstance(drop, DropPath) else 0.0


def _values(capabilities: LayerCapabilities, field: str) -> dict[str, Any]:
    """Describe the values that a field of a layer can take."""
    match field:
        case "kernel":
            return {"values": [KEEP, *KERNELS]}
        case "activation":
            return {"values": [KEEP, *ACTIVATIONS]}
        case "pool":
            return {"values": [KEEP, *LAYER_POOLS]}
        case "width":
            most = MAX_RATIO if capabilities.can_grow else 1.0
            unit = max(group.unit for group in capabilities.groups)
        case "bridge":
            most, unit = MAX_RATIO, 1
        case _:
            return {"low": 0.0, "below": 1.0}
    return {"smallest_ratio": MIN_RATIO, "largest_ratio": most, "multiple_of": unit}
