"""Small real backbones of many families, plans that change their layers, and folders of models."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import strategies as st
from timm.layers import trunc_normal_
from torch import Tensor, nn

from autotune.models.backbone import Backbone, data_config, hash_weights
from autotune.models.layers import list_layers
from autotune.models.network import Network, build_network
from autotune.models.surgery.aligned_pool import POOLS
from autotune.models.surgery.capabilities import KERNELS, LayerCapabilities
from autotune.models.surgery.channel_groups import ChannelGroup, Member
from autotune.models.surgery.components import ACTIVATIONS
from autotune.models.surgery.probing import cached_capabilities
from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrialPlan
from autotune.results.model.model import ModelSpec
from autotune.results.model.model_folder import save_model


@dataclass(frozen=True)
class Family:
    """How to build a small member of a model family.

    Args:
        size: Side of its images in pixels.
        options: Given to timm.
    """

    size: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "test_resnet": Family(),
    "test_vit": Family(32, {"img_size": 32}),
    "test_convnext": Family(),
    "test_efficientnet": Family(),
    "test_byobnet": Family(),
    "test_nfnet": Family(),  # weight standardized, grouped
    "mobilenetv3_small_050": Family(),
    "levit_128s": Family(96, {"img_size": 96}),
    "densenet121": Family(64, {"block_config": (2, 2, 2, 2)}),
    "resnext50_32x4d": Family(64, {"layers": (1, 1, 1, 1)}),
    "regnetx_002": Family(),
    "ghostnet_050": Family(),
    "vgg11": Family(64, {"mlp_ratio": 1 / 128}),
    "resnest14d": Family(),
    "skresnet18": Family(64, {"layers": (1, 1, 1, 1)}),
    "gmlp_ti16_224": Family(64, {"img_size": 64}),
    "eva02_tiny_patch14_224": Family(28, {"img_size": 28, "depth": 3}),  # SwiGLU
}
#: Families that differ in kind: every run tries them, only slow runs try the others.
DEFAULT = ("test_resnet", "test_vit", "test_efficientnet", "densenet121", "gmlp_ti16_224")
#: Layers whose changes are tried, the last ones.
LAST = 4


def slow_unless_default(names: Iterable[str]) -> list[Any]:
    return [one if one in DEFAULT else pytest.param(one, marks=pytest.mark.slow) for one in names]


each_family = pytest.mark.parametrize("name", slow_unless_default(FAMILIES))

torch.set_num_threads(1)  # networks as small as these are no faster on more


@functools.cache
def source(name: str) -> Backbone:
    """Make a backbone in which nothing is zero or one that a fresh model has zero or one."""
    family = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model(name, num_classes=0, **family.options)
        stir(model)
    model.eval().requires_grad_(False)
    return Backbone(name, model, data_config(model, family.size), hash_weights(model))


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """Give biases, norms and scales random values: a branch that is zero would hide errors."""
    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    for key, value in model.named_parameters():
        leaf = key.rpartition(".")[2]
        if leaf == "bias":
            trunc_normal_(value, std=0.1)
        elif value.ndim < 2 or leaf in ("gain", "skipinit_gain", "gamma"):
            value.uniform_(0.5, 1.5)


def capabilities(name: str) -> tuple[LayerCapabilities, ...]:
    """Return what the last layers of a family's backbone can become."""
    found = source(name)
    layers = list_layers(found.pretrained)
    return cached_capabilities(found, layers, min(LAST, len(layers)))[:LAST]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def member(
    name: str, side: str, length: int, *segments: tuple[int, int, int], dim: int = 0
) -> Member:
    return Member(name, side, dim, length, segments or ((0, 1, 1),))  # type: ignore[arg-type]


def group(size: int, *members: Member, unit: int = 1) -> ChannelGroup:
    return ChannelGroup(1, size, unit, True, True, members)


def change(name: str, changes: Mapping[int, Mapping[str, Any]], **more: Any) -> TrialPlan:
    """Make a plan from what becomes of some layers, trainable as deep as they go."""
    depth = more.pop("depth", max(changes, default=0))
    layers = tuple(LayerPlan(**changes.get(index, {})) for index in range(1, depth + 1))
    return TrialPlan(name, depth, layers, **more)


def built(plan: TrialPlan, seed: int = 0, classes: int = 3) -> Network:
    """Apply a plan to the backbone of its family."""
    return build_network(
        source(plan.backbone), plan, classes, seed, lambda: pictures(plan.backbone, 4, 7)
    ).eval()


def pictures(name: str, count: int = 2, seed: int = 0) -> Tensor:
    """Draw normalized images ``(count, 3, size, size)``."""
    size = FAMILIES[name].size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@functools.cache
def features(name: str) -> Tensor:
    """Return what the untouched backbone makes of the pictures."""
    with torch.no_grad():
        found: Tensor = source(name).pretrained(pictures(name))
    return found


@torch.no_grad()
def difference(net: Network, plan: TrialPlan) -> float:
    """Return the relative difference of the features (Frobenius norm) from the pretrained ones."""
    expected = features(plan.backbone)
    found = net.backbone(pictures(plan.backbone))
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def gives_features(offer: LayerCapabilities) -> bool:
    """Say whether a width of the layer is that of the features: then their number changes."""
    return offer.index == 1 and any(not group.inner for group in offer.groups)


def growths(offer: LayerCapabilities) -> dict[str, st.SearchStrategy[Any]]:
    """Return for every field that can make a layer larger the values that do so."""
    found: dict[str, st.SearchStrategy[Any]] = {}
    sides = [side for kernel in offer.convolutions.values() for side in kernel]
    larger = [side for side in KERNELS if side > max(sides, default=max(KERNELS))]
    if larger:
        found["kernel"] = st.sampled_from(larger)
    if offer.groups and offer.can_grow:
        size = max(group.size for group in offer.groups)
        unit = max(group.unit for group in offer.groups)
        widths = st.floats(1.05, 2.6) | st.integers(size // unit + 1, 2 * size // unit + 1).map(
            lambda blocks: max(8, blocks * unit)
        )
        found["width"] = widths.filter(lambda value: not offer.reason_unsupported("width", value))
    if offer.residual_writers:
        found["bridge"] = st.floats(1.0, 2.5) | st.integers(
            max(offer.residual_writers.values()), 2 * max(offer.residual_writers.values())
        ).filter(lambda count: count >= 8)
    return found


def values(offer: LayerCapabilities) -> dict[str, st.SearchStrategy[Any]]:
    """Return for every field of a layer that can change the values that it can take."""
    units = max((group.unit for group in offer.groups), default=1)
    wide = st.floats(0.1, 2.0) | st.integers(1, 12).map(lambda blocks: max(8, blocks * units))
    shares = st.floats(0, 0.9)
    found: dict[str, st.SearchStrategy[Any]] = {
        "kernel": st.sampled_from(KERNELS),
        "width": wide,
        "bridge": st.floats(0.1, 2.0) | st.integers(8, 100),
        "activation": st.sampled_from(list(ACTIVATIONS)),
        "pool": st.sampled_from(list(POOLS)),
        "dropout": shares,
        "drop_path": shares,
    }
    return {
        name: strategy.filter(lambda value, name=name: not offer.reason_unsupported(name, value))
        for name, strategy in found.items()
        if name not in offer.reasons
    }


@st.composite
def plans(draw: st.DrawFn, name: str, inherits: Sequence[str] = ("weights",)) -> TrialPlan:
    """Draw a plan that the offers of a family allow."""
    changes = {}
    for offer in capabilities(name):
        possible = values(offer)
        chosen = draw(st.sets(st.sampled_from(sorted(possible)))) if possible else set()
        changes[offer.index] = {field: draw(possible[field]) for field in sorted(chosen)}
    return change(name, changes, inherit=draw(st.sampled_from(list(inherits))))


CLASSES = ("cat", "dog", "käse, alt")
_HEAD = HeadPlan((HiddenLayer(16, 0.5),), activation="gelu")
#: A ResNet, a MobileNet, a ConvNeXt and a ViT whose last layers have other shapes.
RESHAPED = {
    plan.backbone: plan
    for plan in (
        change("test_resnet", {1: {"kernel": 5, "width": 0.5}, 2: {"bridge": 0.5}}, head=_HEAD),
        change("mobilenetv3_small_050", {2: {"width": 0.5}, 3: {"kernel": 3}}, head=_HEAD),
        change("test_convnext", {1: {"kernel": 3, "width": 1.5}}, head=_HEAD),
        change("test_vit", {1: {"width": 0.5, "activation": "relu"}}, head=_HEAD),
    )
}


def kept(name: str, depth: int = 1) -> TrialPlan:
    """Make a plan that tunes layers and keeps all shapes, with a linear head."""
    return change(name, {1: {"drop_path": 0.1}} if name == "test_resnet" else {}, depth=depth)


def saved(folder: Path, plan: TrialPlan, *, fast_decode: bool = False) -> Path:
    """Write the folder of a model, with weights that no pretrained network has."""
    backbone = source(plan.backbone)
    model_spec = ModelSpec(
        plan, CLASSES, backbone.data_config, FAMILIES[plan.backbone].size, fast_decode
    )
    save_model(folder, built(plan), model_spec, {"study": "made"})
    return folder
