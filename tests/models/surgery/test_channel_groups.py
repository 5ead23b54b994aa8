"""Which tensors hold the channels of real blocks."""

from __future__ import annotations

import functools

import pytest
import timm
import torch

from autotune.models.layers import list_layers
from autotune.models.surgery.channel_groups import (
    ChannelGroup,
    ChannelGroups,
    find_channel_groups,
)
from autotune.models.surgery.probing import without_weights
from tests.support.models.surgery import FAMILIES, source

NORM = ("weight", "bias", "running_mean", "running_var")


@functools.cache
def channels(name: str, last: int = 5) -> ChannelGroups:
    model = without_weights(source(name).pretrained)
    size = FAMILIES[name].size
    return find_channel_groups(
        model, list_layers(model)[:last], torch.zeros(1, 3, size, size, device="meta")
    )


def members(group: ChannelGroup) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"out": set(), "vector": set(), "in": set()}
    for member in group.members:
        found[member.side].add(member.name)
    return found


#: An inverted residual with a gate, and a layer of a dense block.
GATED, DENSE = "blocks.4.2", "features.denseblock4.denselayer2"


def norm(name: str) -> set[str]:
    return {f"{name}.{leaf}" for leaf in NORM}


@pytest.mark.parametrize(
    ("name", "index", "out", "vector", "read", "writer"),
    [
        (
            *("test_resnet", 2, {"layer3.0.conv1"}, norm("layer3.0.bn1"), {"layer3.0.conv2"}),
            "layer3.0.conv3",
        ),
        (
            *("mobilenetv3_small_050", 3, {f"{GATED}.conv_pw", f"{GATED}.se.conv_expand"}),
            {f"{GATED}.conv_dw", *norm(f"{GATED}.bn1"), *norm(f"{GATED}.bn2")},
            {f"{GATED}.se.conv_reduce", f"{GATED}.conv_pwl"},
            f"{GATED}.conv_pwl",
        ),
        (
            *("densenet121", 1, {f"{DENSE}.conv1"}, norm(f"{DENSE}.norm2"), {f"{DENSE}.conv2"}),
            f"{DENSE}.conv2",
        ),
        ("vgg11", 3, {"features.16"}, set(), {"features.18"}, None),  # a plain chain
        ("test_vit", 2, {"blocks.4.mlp.fc1"}, set(), {"blocks.4.mlp.fc2"}, "blocks.4.mlp.fc2"),
    ],
)
def test_members_of_known_blocks(
    name: str, index: int, out: set[str], vector: set[str], read: set[str], writer: str | None
) -> None:
    found = channels(name)
    group = found.groups[index][0]
    assert members(group) == {"out": out, "vector": vector, "in": read}
    assert (group.layer, group.unit, group.inner) == (index, 1, writer is not None)
    assert group.exact
    assert found.residual_writers[index] == (() if writer is None else (writer,))


def test_a_bottleneck_has_the_channels_of_both_its_inner_convolutions() -> None:
    first, second = channels("test_resnet").groups[2]
    assert first.readers == second.producers == ("layer3.0.conv2",)
    assert first.size == second.size == 48


@pytest.mark.parametrize("name", ["test_efficientnet", "mobilenetv3_small_050", "test_byobnet"])
def test_what_a_gate_squeezes_to_is_left_alone(name: str) -> None:
    for groups in channels(name).groups.values():
        for group in groups:
            first = group.producers[0]
            assert not any(word in first for word in (".se.", ".attn.")), first


def test_a_grouped_convolution_sets_the_unit() -> None:
    before, behind = channels("resnext50_32x4d").groups[1]
    assert before.unit == behind.unit == 32
    assert before.size == behind.size == 1024
    assert before.readers == behind.producers == ("layer4.0.conv2",)


def test_swiglu_has_two_producers_or_blocks() -> None:
    (group,) = channels("eva02_tiny_patch14_224").groups[2]
    held = sum(
        blocks
        for member in group.members
        if member.side == "out"
        for _, blocks, _ in member.segments
    )
    assert held == 2
    assert group.size == 512 and group.exact


def test_a_layer_without_a_group_says_why() -> None:
    found = channels("skresnet18")
    assert 5 not in found.groups
    assert "another order" in found.reasons[5] or "earlier layer" in found.reasons[5]
    model = without_weights(timm.create_model("test_vit", num_classes=0))
    image = torch.zeros(1, 3, 160, 160, device="meta")
    last = find_channel_groups(model, list_layers(model)[-1:], image)
    assert not last.groups
    assert last.reasons
