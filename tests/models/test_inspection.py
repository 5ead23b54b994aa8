"""What is said of a backbone, held against what is known of it."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from autotune.config.schema import SpaceConfig
from autotune.errors import BackboneError, PlanError
from autotune.models.inspection import (
    FIELDS,
    MAX_DROPOUT,
    MAX_HIDDEN_LAYERS,
    MAX_UNITS,
    InspectedLayer,
    Inspection,
    inspect_layers,
    preview_plan,
)
from autotune.plan import HeadPlan, LayerPlan, TrialPlan
from tests.support.marks import slow

inspected = functools.cache(inspect_layers)


def layer(name: str, index: int) -> InspectedLayer:
    return inspected(name).layers[index - 1]


def check_whole(found: Inspection) -> None:
    assert sum(layer.macs for layer in found.layers) + found.remainder == found.macs
    assert sum(layer.share for layer in found.layers) == pytest.approx(
        1 - found.remainder / found.macs
    )
    assert all(layer.shape and layer.kind for layer in found.layers)
    assert [layer.layer.index for layer in found.layers] == list(range(1, len(found.layers) + 1))
    for one in found.layers:
        for field in FIELDS:
            assert (field in one.capabilities.reasons) != bool(one.present[field])


def test_what_is_known_of_resnet50() -> None:
    found = inspected("resnet50.a1_in1k")
    assert found.input_size == (3, 224, 224)
    assert found.parameters == 25_557_032 - 1000 * 2049
    # 4.09 G with the classifier of 2 M: timm's results-imagenet.csv and torchvision agree on 4.1.
    assert found.macs == 4_087_136_256
    assert (found.remainder, found.head.features) == (0, 2048)
    assert found.head.pools == ("keep", "avg", "max", "avgmax")
    check_whole(found)
    stages = [(layer.kind, layer.shape) for layer in found.layers]
    assert stages == [
        *[("Bottleneck", (2048, 7, 7))] * 3,
        *[("Bottleneck", (1024, 14, 14))] * 6,
        *[("Bottleneck", (512, 28, 28))] * 4,
        *[("Bottleneck", (256, 56, 56))] * 3,
        ("stem", (64, 56, 56)),
    ]
    stem = found.layers[-1]
    assert stem.macs == 112 * 112 * 64 * 3 * 49
    assert (stem.resolution, stem.present["kernel"], stem.present["pool"]) == (
        (56, 56),
        ("7x7",),
        ("max3",),
    )
    # 1x1, 3x3, 1x1
    assert found.layers[0].macs == 49 * (2048 * 512 + 512 * 512 * 9 + 512 * 2048)
    assert found.layers[0].present["width"] == (512,)


def test_the_size_of_the_images_counts() -> None:
    small, own = inspected("test_resnet", 32), inspected("test_resnet")
    assert (small.input_size, small.layers[0].shape) == ((3, 32, 32), (96, 1, 1))
    assert small.parameters == own.parameters
    assert small.macs < own.macs / 3


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("test_vit", (101, 64), "Block"),
        ("test_convnext", (64, 5, 5), "ConvNeXtBlock"),
        ("test_efficientnet", (256, 5, 5), "InvertedResidual"),
        slow("mobilenetv3_small_050", (1024,), "conv"),
        slow("densenet121", (1024, 7, 7), "DenseLayer"),
        slow("hiera_tiny_224", (49, 768), "HieraBlock"),  # torch.fx cannot trace it
        slow("poolformer_s12", (512, 7, 7), "MetaFormerStage"),  # timm has no matcher for it
        slow("pit_ti_224", (256, 7, 7), "Transformer"),
    ],
)
def test_other_families(name: str, shape: tuple[int, ...], kind: str) -> None:
    found = inspected(name)
    check_whole(found)
    assert found.remainder == 0
    assert (found.layers[0].shape, found.layers[0].kind) == (shape, kind)


@pytest.mark.slow
def test_channels_come_first_wherever_the_network_has_them() -> None:
    """Swin computes in (N, H, W, C)."""
    found = inspected("swin_tiny_patch4_window7_224")
    assert (found.layers[0].shape, found.layers[-1].shape) == ((768, 7, 7), (96, 56, 56))


def test_attention_counts_where_it_runs() -> None:
    """Its products read no parameter: 2 tokens^2 channels, with 12 channels^2 a token around."""
    block = layer("test_vit", 2)
    tokens, channels = 101, 64
    hidden = block.present["width"][0]
    assert isinstance(hidden, int)
    linear = tokens * (4 * channels**2 + 2 * channels * hidden)
    assert block.macs == linear + 2 * tokens**2 * channels


@pytest.mark.slow
def test_a_layer_of_several_blocks_counts_them() -> None:
    kinds = [layer.kind for layer in inspected("mobilenetv3_small_050").layers]
    assert kinds[1:3] == ["ConvBnAct", "InvertedResidual"]
    assert kinds[-1] == "stem"


def test_an_inspection_is_json() -> None:
    found = inspected("resnet50.a1_in1k")
    values = json.loads(json.dumps(found.to_json()))
    assert values["parameters"] == found.parameters
    first = values["layers"][0]
    assert first["label"] == "layer4.2"
    assert first["offers"]["kernel"] == {"present": ["3x3"], "values": ["keep", 1, 2, 3, 5, 7]}
    assert first["offers"]["width"]["present"] == [512]
    assert first["reasons"]["pool"] == "it does not pool"
    assert set(first["offers"]) | set(first["reasons"]) == set(FIELDS)
    assert values["head"]["features"] == 2048


@pytest.mark.parametrize(
    ("key", "most", "step"),
    [
        ("hidden_layers", MAX_HIDDEN_LAYERS, 1),
        ("units", MAX_UNITS, 1),
        ("dropout", MAX_DROPOUT, 0.01),
    ],
)
def test_the_head_has_the_limits_of_a_study_file(key: str, most: float, step: float) -> None:
    SpaceConfig.model_validate({"head": {key: most}})
    with pytest.raises(ValidationError):
        SpaceConfig.model_validate({"head": {key: most + step}})


def test_nothing_is_downloaded_and_the_device_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    inspect_layers("test_resnet.r160_in1k")
    assert torch.zeros(1).device.type == "cpu"


def test_an_unknown_backbone() -> None:
    with pytest.raises(BackboneError, match="did you mean 'resnet50'"):
        inspect_layers("resnet5O")


def plan(*layers: LayerPlan, name: str = "test_resnet", head: HeadPlan | None = None) -> TrialPlan:
    return TrialPlan(name, len(layers), layers, head or HeadPlan())


def test_a_plan_is_tried() -> None:
    tried = preview_plan(plan(LayerPlan(), LayerPlan(width=0.5), head=HeadPlan(pool="max")))
    before = [one.parameters for one in tried.before]
    after = [one.parameters for one in tried.after]
    assert (before[0], before[2:]) == (after[0], after[2:])
    assert before[1] > after[1]
    assert tried.macs_before > tried.macs_after
    assert tried.features == inspected("test_resnet").head.features
    kept = preview_plan(plan(LayerPlan()))
    assert (kept.before, kept.macs_before) == (kept.after, kept.macs_after)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (plan(LayerPlan(kernel=4)), "layer 1, kernel: must be one of keep, 1, 2, 3, 5, 7, but"),
        (plan(LayerPlan(), LayerPlan(dropout=0.1)), "layer 2, dropout: must be keep, but got 0.1"),
        (replace(plan(), depth=99), "depth must be between 0 and the 5 layers of 'test_resnet'"),
        (
            plan(name="levit_128s", head=HeadPlan(pool="max")),
            "head.pool: must be one of keep, avg for 'levit_128s', but got 'max'",
        ),
        (plan(head=HeadPlan(activation="rellu")), "head.activation: must be one of relu, gelu, "),
    ],
)
def test_a_plan_that_does_not_fit(wrong: TrialPlan, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        preview_plan(wrong)
