from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from autotune.config.schema import StudyConfig
from autotune.errors import BackboneError
from autotune.models.backbone import Backbone, build_backbone, data_config
from autotune.models.image_border import describe_unseen_border, unseen_border
from autotune.study.setup.definition import define


class Patches(nn.Module):
    """Patches that a window or a stride cuts off in its own way."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layers(images)
        return features


@pytest.mark.parametrize(
    ("layers", "size", "unseen"),
    [
        ([nn.Conv2d(3, 4, 14, 14)], 28, 0),
        ([nn.Conv2d(3, 4, 14, 14)], 41, 13),
        ([nn.Conv2d(3, 4, 3, 2, 1)], 33, 0),
        ([nn.Conv2d(3, 4, 3, 2)], 32, 1),
        ([nn.Conv2d(3, 4, 1), nn.MaxPool2d(8)], 30, 6),
        ([nn.Conv2d(3, 4, 2, 2), nn.AvgPool2d(4)], 31, 7),
        ([nn.ZeroPad2d((0, 0, -5, -9)), nn.Conv2d(3, 4, 3)], 24, 9),
    ],
)
def test_the_rows_that_no_feature_depends_on(
    layers: list[nn.Module], size: int, unseen: int
) -> None:
    assert unseen_border(Patches(*layers).eval(), size) == unseen


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "resnet18"])
def test_branches_that_start_at_zero_hide_nothing(name: str) -> None:
    model = build_backbone(name, 96).eval()
    before = [parameter.clone() for parameter in model.parameters()]
    assert unseen_border(model, 96) == 0
    assert all(map(torch.equal, before, model.parameters()))


def backbone(name: str, size: int) -> Backbone:
    model = build_backbone(name, size).eval()
    return Backbone(name, model, data_config(model, size), "")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_tiny_patch16_224", 100, "not see the last 4 rows and columns; .* 96 or 112 loses"),
        ("mixer_s32_224", 48, "not see the last 16 rows and columns; .* 32 or 64 loses none"),
        (
            "vit_tiny_patch16_224",
            47,
            "not see the last 15 rows and columns; .* 32 or 48 loses none",
        ),
        ("vit_tiny_patch16_224", 96, ""),
        ("test_convnext", 97, ""),  # a row of 97
    ],
)
def test_the_nearest_sizes_are_named(name: str, size: int, message: str) -> None:
    text = describe_unseen_border(backbone(name, size), size)
    assert bool(text) == bool(message)
    assert re.search(message, text)
    assert describe_unseen_border(backbone(name, size), None) == ""


@pytest.mark.parametrize(("name", "size"), [("maxvit_pico_rw_256", 31), ("test_vit", 97)])
def test_a_size_that_a_backbone_cannot_take(name: str, size: int) -> None:
    """Windows larger than the features divide by zero."""
    with pytest.raises(BackboneError, match=f"cannot take images of {size} px"):
        build_backbone(name, size, device="meta")


def test_a_study_says_it() -> None:
    config = StudyConfig.model_validate(
        {
            "name": "border",
            "dataset": "digits",
            "backbone": "vit_tiny_patch16_224",
            "weights": "none",
            "data": {"image_size": 40},
        }
    )
    assert (
        "last 8 rows and columns; data.image_size 32 or 48 loses none" in define(config).notes[0]
    )
