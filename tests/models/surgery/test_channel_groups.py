"""Which tensors hold the channels of real blocks."""

from __future__ import annotations

import functools

import pytest
import timm
import torch

from autotune.models.layers import list_layers
from autotune.models.surgery.channel_groups import (
    MIN_CHANNELS,
    ChannelGroup,
    ChannelGroups,
    find_channel_groups,
)
from autotune.models.surgery.probing import without_weights
from tests.support.models.surgery import FAMILIES, each_family, source

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


def norm(name: str) -> set[str]:
    return {f"{name}.{leaf}" for leaf in NORM}


def test_a_bottleneck_has_the_channels_of_both_its_inner_convolutions() -> None:
    first, second = channels("test_resnet").groups[2]
    assert members(first) == {
        "out": {"layer3.0.conv1"},
        "vector": norm("layer3.0.bn1"),
        "in": {"layer3.0.conv2"},
    }
    assert members(second) == {
        "out": {"layer3.0.conv2"},
        "vector": norm("layer3.0.bn2"),
        "in": {"layer3.0.conv3"},
    }
    assert channels("test_resnet").residual_writers[2] == ("layer3.0.conv3",)
    for group in (first, second):
        assert (group.layer, group.size, group.unit) == (2, 48, 1)
        assert group.inner and group.exact
        assert group.producers == (group.members[0].name,)


def test_the_mlp_of_a_transformer_but_not_its_attention() -> None:
    found = channels("test_vit")
    for index in range(1, 6):
        (group,) = found.groups[index]
        block = f"blocks.{6 - index}.mlp"
        assert group.producers == (f"{block}.fc1",)
        assert group.readers == (f"{block}.fc2",)
        assert group.exact and group.inner
        assert found.residual_writers[index] == (f"{block}.fc2",)


def test_an_inverted_residual_with_its_gate() -> None:
    found = channels("mobilenetv3_small_050")
    group = found.groups[3][0]
    block = "blocks.4.2"
    assert members(group) == {
        "out": {f"{block}.conv_pw", f"{block}.se.conv_expand"},
        "vector": {f"{block}.conv_dw", *norm(f"{block}.bn1"), *norm(f"{block}.bn2")},
        "in": {f"{block}.se.conv_reduce", f"{block}.conv_pwl"},
    }
    assert group.size == 288
    assert found.residual_writers[3] == (f"{block}.conv_pwl",)


@pytest.mark.parametrize("name", ["test_efficientnet", "mobilenetv3_small_050", "test_byobnet"])
def test_what_a_gate_squeezes_to_is_left_alone(name: str) -> None:
    for groups in channels(name).groups.values():
        for group in groups:
            first = group.producers[0]
            assert not any(word in first for word in (".se.", ".attn.")), first


def test_a_dense_layer_is_read_by_one_convolution() -> None:
    found = channels("densenet121")
    (group,) = found.groups[1]
    layer = "features.denseblock4.denselayer2"
    assert members(group) == {
        "out": {f"{layer}.conv1"},
        "vector": norm(f"{layer}.norm2"),
        "in": {f"{layer}.conv2"},
    }
    assert found.residual_writers[1] == (f"{layer}.conv2",)


def test_a_convolution_of_a_plain_chain_has_its_outputs() -> None:
    found = channels("vgg11")
    (group,) = found.groups[3]
    assert not group.inner
    assert members(group) == {"out": {"features.16"}, "vector": set(), "in": {"features.18"}}
    assert found.residual_writers[3] == ()
    assert 3 not in found.reasons


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


def test_a_norm_across_the_channels_is_not_exact() -> None:
    for groups in channels("gmlp_ti16_224").groups.values():
        for group in groups:
            assert not group.exact
            (producer,) = (member for member in group.members if member.side == "out")
            assert producer.segments == ((0, 2, 1),)  # value and gate, one behind the other


def test_split_attention_softmax_and_stacked_paths() -> None:
    (group,) = channels("skresnet18").groups[1]
    assert set(group.producers) >= {
        "layer4.0.conv1.paths.0.conv",
        "layer4.0.conv1.paths.1.conv",
        "layer4.0.conv1.attn.fc_select",
    }


@each_family
def test_members_lie_in_tensors_of_the_network(name: str) -> None:
    model = source(name).pretrained
    found = channels(name)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    place = {
        key: layer.index for layer in list_layers(model) for key in (*layer.modules, *layer.names)
    }
    seen: set[tuple[str, str, int, int]] = set()
    for index, groups in found.groups.items():
        assert groups
        for group in groups:
            assert group.layer == index
            assert group.size >= MIN_CHANNELS and group.size % group.unit == 0
            assert group.producers and all(place[one] == index for one in group.producers)
            sides = [member.side for member in group.members]
            assert sides == sorted(sides, key=["out", "vector", "in"].index)
            for member in group.members:
                weight = tensors.get(member.name, tensors.get(f"{member.name}.weight"))
                assert weight is not None
                dim, blocks = {"out": 0, "in": 1}.get(member.side, member.dim), 1
                if member.side == "in":
                    blocks = getattr(model.get_submodule(member.name), "groups", 1)
                assert weight.shape[dim] * blocks == member.length
                for start, blocks, run in member.segments:
                    assert start + blocks * run * group.size <= member.length
                    # No channel of a tensor is in two groups.
                    assert (member.name, member.side, member.dim, start) not in seen
                    seen.add((member.name, member.side, member.dim, start))
            if group.inner:
                assert {place[member.name] for member in group.members} == {index}


def test_a_layer_without_a_group_says_why() -> None:
    found = channels("skresnet18")
    assert 5 not in found.groups
    assert "another order" in found.reasons[5] or "earlier layer" in found.reasons[5]
    model = without_weights(timm.create_model("test_vit", num_classes=0))
    image = torch.zeros(1, 3, 160, 160, device="meta")
    last = find_channel_groups(model, list_layers(model)[-1:], image)
    assert not last.groups
    assert last.reasons
