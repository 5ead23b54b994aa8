"""Model folders of small real backbones after surgery."""

from __future__ import annotations

from pathlib import Path

from autotune.plan import HeadPlan, HiddenLayer, TrialPlan
from autotune.results.model.model import ModelSpec, save_model
from tests.support.surgery import FAMILIES, built, change, source

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
