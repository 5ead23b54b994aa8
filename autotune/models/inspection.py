"""What a backbone is made of, layer by layer, and what each layer can become.

Everything is measured on the meta device: no weights are made, read or downloaded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from timm.layers.drop import DropPath
from torch import nn

from autotune.config.fields import KERNELS
from autotune.config.schema import ACTIVATIONS, LAYER_POOLS, POOLS
from autotune.errors import PlanError
from autotune.models.backbone import build_backbone, check_name, data_config
from autotune.models.flops import UNASSIGNED, FlopsProfile
from autotune.models.layers import Layer, list_layers
from autotune.models.network import check_plan, pool_problem, set_pool
from autotune.models.surgery.apply import apply_layer_plans, validate_plans
from autotune.models.surgery.capabilities import MAX_RATIO, MIN_RATIO, LayerCapabilities
from autotune.models.surgery.probing import probe_layers
from autotune.plan import KEEP, LayerPlan, TrialPlan

#: Fields of a layer plan, in the order in which they are shown.
FIELDS = tuple(LayerPlan.__dataclass_fields__)
#: What a study file allows of a head, see ``autotune.config.schema.HeadSpace``.
MAX_HIDDEN_LAYERS, MAX_UNITS, MAX_DROPOUT = 3, 65536, 0.95

Size = tuple[int, int, int]


@dataclass(frozen=True)
class InspectedLayer:
    """One layer and what can be known of it without its weights.

    Args:
        layer: The layer.
        kind: The class of its main module in a word, e.g. ``Bottleneck``, ``conv`` or ``stem``.
        shape: Of its output for one image: ``(C, H, W)`` of a map, ``(tokens, C)`` of a
            sequence, ``(C,)`` of pooled features; empty where none of its modules ran.
        macs: Multiply-accumulates of its convolutions, linear layers and matrix products for
            one image.
        share: Its share of the backbone's multiply-accumulates.
        present: What it has now of each field that can change; ``3x3`` of a kernel.
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
                if name not in self.capabilities.reasons
            },
            "reasons": dict(self.capabilities.reasons),
        }


@dataclass(frozen=True)
class InspectedHead:
    """What the head can be.

    Args:
        features: Number of pooled features that it reads.
        pools: Global poolings that work with the backbone.
    """

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
        macs: Multiply-accumulates of the whole backbone for one image.
        remainder: Those of them that belong to no layer.
    """

    backbone: str
    input_size: Size
    head: InspectedHead
    layers: tuple[InspectedLayer, ...]
    macs: int
    remainder: int

    @property
    def parameters(self) -> int:
        """Number of trainable values, the head's not counted."""
        return sum(one.layer.parameters for one in self.layers)

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
    """Look at a backbone on the meta device.

    Args:
        name: timm model name, with or without a pretrained tag.
        image_size: Side of the square input in pixels; ``None`` for the backbone's own.

    Raises:
        BackboneError: When the backbone is unknown or cannot take images of that size.
    """
    model, input_size = _blank(name, image_size)
    layers = list_layers(model)
    passed = FlopsProfile.from_model(model, layers, input_size)
    kinds = _kinds(model, layers)
    offers = probe_layers(model, layers, input_size)
    inspected = tuple(
        InspectedLayer(
            layer=layer,
            kind=kind,
            shape=passed.shapes.get(layer.index, ()),
            macs=passed.macs[layer.index],
            share=passed.macs[layer.index] / max(1, passed.total),
            present={one: tuple(_present(model, offer, one)) for one in FIELDS},
            capabilities=offer,
        )
        for layer, kind, offer in zip(layers, kinds, offers, strict=True)
    )
    head = InspectedHead(passed.features, tuple(_pools(model, name, input_size)))
    return Inspection(
        name, input_size, head, inspected, passed.total, passed.macs.get(UNASSIGNED, 0)
    )


@dataclass(frozen=True)
class PlanPreview:
    """What a plan makes of its backbone.

    Args:
        before: The layers of the backbone, the last one first.
        after: The same layers as the plan reshapes them.
        features: Number of features that its head reads.
        macs_before: Multiply-accumulates of the backbone for one image.
        macs_after: The same of the reshaped backbone.
    """

    before: tuple[Layer, ...]
    after: tuple[Layer, ...]
    features: int
    macs_before: int
    macs_after: int


def preview_plan(plan: TrialPlan, image_size: int | None = None) -> PlanPreview:
    """Apply a plan to its backbone on the meta device.

    Args:
        plan: The plan.
        image_size: Side of the square input in pixels; ``None`` for the backbone's own.

    Raises:
        BackboneError: When the backbone is unknown or cannot take images of that size.
        PlanError: When the plan does not fit the backbone.
    """
    model, input_size = _blank(plan.backbone, image_size)
    before = list_layers(model)
    check_plan(plan, plan.backbone, len(before))
    works = tuple(_pools(model, plan.backbone, input_size))
    if plan.head.pool not in works:
        raise PlanError(
            f"head.pool: must be one of {', '.join(works)} for {plan.backbone!r}, but got "
            f"{plan.head.pool!r}"
        )
    if plan.head.activation not in ACTIVATIONS:
        raise PlanError(
            f"head.activation: must be one of {', '.join(ACTIVATIONS)}, but got "
            f"{plan.head.activation!r}"
        )
    changed = copy.deepcopy(model).eval()
    if plan.reshaped:
        offers = probe_layers(model, before[: max(plan.reshaped)], input_size)
        validate_plans(plan, offers)
        # The meta device has no weights to inherit or to compare.
        apply_layer_plans(changed, replace(plan, inherit="none"), offers, seed=0)
    after = list_layers(changed)
    set_pool(changed, plan.head.pool, plan.backbone)
    passed = FlopsProfile.from_model(changed, after, input_size)
    return PlanPreview(
        before,
        after,
        passed.features,
        FlopsProfile.from_model(model, before, input_size).total,
        passed.total,
    )


def _blank(name: str, image_size: int | None) -> tuple[nn.Module, Size]:
    """Build a backbone on the meta device; return it with the size of its images."""
    check_name(name)
    model = build_backbone(name, image_size, device="meta")
    return model, data_config(model, image_size)["input_size"]


def _pools(model: nn.Module, name: str, input_size: Size) -> Iterator[str]:
    """Yield the global poolings that work, found by trying each."""
    return (pool for pool in POOLS if not pool_problem(model, name, pool, input_size))


#: torch's classes -> the word for them.
_WORDS = {"Conv2d": "conv", "Linear": "linear"}


def _kinds(model: nn.Module, layers: Sequence[Layer]) -> list[str]:
    """Name what each layer is; the convolution next to the input is the stem."""
    kinds = [_kind(model, layer) for layer in layers]
    *others, first = kinds
    conv = first == "conv" or first.startswith("Conv")
    if "stem" in layers[-1].label.lower() or (conv and first not in others):
        kinds[-1] = "stem"
    return kinds


def _kind(model: nn.Module, layer: Layer) -> str:
    """Name the class of the module of a layer that has the most parameters."""
    inside = set(layer.modules)
    tops = [name for name in layer.modules if name.rpartition(".")[0] not in inside]
    main = _largest([model.get_submodule(name) for name in tops])
    count = 1
    while type(main) in (nn.Sequential, nn.ModuleList):
        assert main is not None
        members = [one for one in main.children() if _weight(one)]
        if not members:
            break
        main = _largest(members)
        assert main is not None
        alike = sum(type(one) is type(main) for one in members)
        count = alike if alike > 1 and alike == len(members) else 1
    if main is None:
        return "parameters"
    word = "norm" if _only_vectors(main) else type(main).__name__
    word = _WORDS.get(word, word)
    return word if count == 1 else f"{count} {word}"


def _weight(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def _largest(modules: Sequence[nn.Module]) -> nn.Module | None:
    found = max(modules, key=_weight, default=None)
    return found if found is not None and _weight(found) else None


def _only_vectors(module: nn.Module) -> bool:
    return all(one.ndim <= 1 for one in module.parameters())


def _present(model: nn.Module, offer: LayerCapabilities, name: str) -> list[int | float | str]:
    """List the different values that a layer has of a field, in the order of the network."""
    found: list[int | float | str]
    if name == "kernel":
        found = [f"{rows}x{columns}" for rows, columns in offer.convolutions.values()]
    elif name == "width":
        found = [group.size for group in offer.groups]
    elif name == "bridge":
        found = list(offer.residual_writers.values())
    elif name == "activation":
        found = [
            word or type(model.get_submodule(path)).__name__.lower()
            for path, word in offer.activations.items()
        ]
    elif name == "pool":
        found = [word or _pool_words(model, path) for path, word in offer.pools.items()]
    elif name == "dropout":
        found = [float(model.get_submodule(path).p) for path in offer.dropouts]  # type: ignore[arg-type]
    else:
        found = [_drop_rate(model, path) for path in offer.drop_paths]
    return list(dict.fromkeys(found))


def _pool_words(model: nn.Module, path: str) -> str:
    pool = model.get_submodule(path)
    kernel: Any = pool.kernel_size
    sides = kernel if isinstance(kernel, int) else max(kernel)
    return f"{'max' if 'Max' in type(pool).__name__ else 'avg'}{sides}"


def _drop_rate(model: nn.Module, path: str) -> float:
    owner, _, attribute = path.rpartition(".")
    drop = getattr(model.get_submodule(owner), attribute)
    return round(drop.drop_prob or 0.0, 6) if isinstance(drop, DropPath) else 0.0


def _values(offer: LayerCapabilities, name: str) -> dict[str, Any]:
    """Describe the values that a field of a layer can take."""
    lists: dict[str, Sequence[int | str]] = {
        "kernel": KERNELS,
        "activation": ACTIVATIONS,
        "pool": LAYER_POOLS,
    }
    if name in lists:
        return {"values": [KEEP, *lists[name]]}
    if name in ("width", "bridge"):
        width = name == "width"
        return {
            "smallest_ratio": MIN_RATIO,
            "largest_ratio": MAX_RATIO if offer.can_grow or not width else 1.0,
            "multiple_of": max(group.unit for group in offer.groups) if width else 1,
        }
    return {"low": 0.0, "below": 1.0}
