from __future__ import annotations

import torch
from timm.layers.drop import DropPath
from torch import nn

from autotune.models.surgery.aligned_pool import GridAlignedPool2d
from autotune.models.surgery.apply import apply_layer_plans, validate_plans
from autotune.models.surgery.components import activation_name
from autotune.models.surgery.inheritance import channel_norms
from autotune.plan import TrialPlan
from tests.support.models.backbones import state_of
from tests.support.models.surgery import capabilities, change, pictures, source


def reshaped(plan: TrialPlan, seed: int = 0) -> nn.Module:
    model = source(plan.backbone).fresh()
    validate_plans(plan, capabilities(plan.backbone))
    norms = None
    if plan.inherit == "data":
        readers = [
            name
            for offer in capabilities(plan.backbone)
            for group in offer.groups
            for name in group.readers
        ]
        norms = channel_norms(model, readers, pictures(plan.backbone, 4))
    apply_layer_plans(model, plan, capabilities(plan.backbone), seed, norms)
    return model


def test_every_field_does_what_it_says() -> None:
    plan = change(
        "test_resnet",
        {
            1: {"kernel": 5, "width": 40, "activation": "elu", "pool": "max3", "drop_path": 0.2},
            2: {"bridge": 64},
        },
    )
    block = reshaped(plan).get_submodule("layer4.0")
    assert block.conv1.weight.shape == (40, 192, 5, 5)
    assert block.conv2.weight.shape == (96, 40, 5, 5)
    assert block.bn1.num_features == 40
    assert activation_name(block.act1) == activation_name(block.act2) == "elu"
    assert isinstance(block.downsample[0], GridAlignedPool2d)
    assert isinstance(block.drop_path, DropPath) and block.drop_path.drop_prob == 0.2
    assert block.downsample[1].kernel_size == (1, 1)
    first, second = reshaped(plan).get_submodule("layer3.0.conv3")
    assert first.weight.shape == (64, 48, 1, 1) and second.weight.shape == (192, 64, 1, 1)


def test_a_bridge_stands_behind_the_new_kernel() -> None:
    model = reshaped(change("test_resnet", {1: {"kernel": 5, "width": 0.5, "bridge": 32}}))
    first, second = model.get_submodule("layer4.0.conv2")
    assert first.weight.shape == (32, 48, 5, 5) and second.weight.shape == (96, 32, 1, 1)
    assert model(pictures("test_resnet")).shape == (2, 96)


def test_dropout_is_set_in_the_layer_alone() -> None:
    model = reshaped(change("test_vit", {2: {"dropout": 0.4}}))
    shares = {
        name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)
    }
    inside = {name: share for name, share in shares.items() if name.startswith("blocks.4.")}
    assert {share for name, share in inside.items() if "attn_drop" not in name} == {0.4}
    assert inside["blocks.4.attn.attn_drop"] == 0.0
    assert {share for name, share in shares.items() if name not in inside} == {0.0}


def test_what_is_inherited_makes_a_difference() -> None:
    states = {
        inherit: state_of(reshaped(change("test_resnet", {2: {"width": 0.5}}, inherit=inherit)))
        for inherit in ("weights", "data", "none")
    }
    key = "layer3.0.conv1.weight"
    old = source("test_resnet").pretrained.get_parameter(key)
    for inherit in ("weights", "data"):
        rows = states[inherit][key].flatten(1)
        assert all(bool((old.flatten(1) == row).all(1).any()) for row in rows)
    assert not torch.isin(states["none"][key], old).any()


def test_the_random_state_of_the_process_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for inherit in ("weights", "none"):
        fields = {"kernel": 5, "width": 1.5, "bridge": 0.5}
        reshaped(change("test_resnet", {1: fields, 2: fields}, inherit=inherit))
        assert torch.equal(torch.get_rng_state(), before)


def test_the_pretrained_weights_are_not_shared() -> None:
    """Training a reshaped network must not write into the backbone of the next trial."""
    name = "test_resnet"
    fields = {"kernel": 5, "width": 1.5, "bridge": 1.5}
    model = reshaped(change(name, {1: fields, 2: fields}))
    before = state_of(source(name).pretrained)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    after = state_of(source(name).pretrained)
    assert all(torch.equal(before[key], after[key]) for key in before)
