from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm

from autotune.models.backbone import Backbone, data_config
from autotune.models.layers import list_layers
from autotune.models.surgery.capabilities import KERNELS, POOLS, LayerCapabilities, channel_count
from autotune.models.surgery.components import ACTIVATIONS
from autotune.models.surgery.probing import cached_capabilities, probe_layers, without_weights
from autotune.plan import KEEP, LayerPlan
from tests.support.models.surgery import (
    capabilities,
    each_family,
    slow_unless_default,
    source,
    values,
)

FIELDS = tuple(LayerPlan().__dict__)


@pytest.mark.parametrize(
    ("value", "size", "unit", "expected"),
    [
        (0.5, 96, 1, 48),
        (1.0, 96, 1, 96),
        (0.1, 8, 1, 1),
        (0.4, 368, 46, 138),
        (0.01, 64, 32, 32),  # at least one of each block
        (7.99, 10, 1, 80),
        (8, 96, 1, 8),
        (33, 1024, 32, 33),  # as given; whether it fits is checked elsewhere
        (8.0, 3, 1, 8),
    ],
)
def test_channel_count(value: float, size: int, unit: int, expected: int) -> None:
    found = channel_count(value, size, unit)
    assert found == expected and isinstance(found, int)


@each_family
def test_every_field_has_something_to_change_or_a_reason(name: str) -> None:
    found = capabilities(name)
    assert [one.index for one in found] == list(range(1, len(found) + 1))
    assert any(len(values(one)) >= 3 for one in found)
    for one in found:
        candidates: dict[str, Any] = {
            "kernel": one.convolutions,
            "width": one.groups,
            "bridge": one.residual_writers,
            "activation": one.activations,
            "pool": one.pools,
            "dropout": one.dropouts,
            "drop_path": one.drop_paths,
        }
        assert tuple(candidates) == FIELDS
        assert {field for field in FIELDS if not candidates[field]} == set(one.reasons)
        assert all(reason and not reason.endswith(".") for reason in one.reasons.values())
        for key in (*one.convolutions, *one.residual_writers, *one.activations, *one.pools):
            source(name).pretrained.get_submodule(key)


def test_capabilities_of_known_blocks() -> None:
    last, bottleneck, third = capabilities("test_resnet")[:3]
    assert last.convolutions == {"layer4.0.conv1": (3, 3), "layer4.0.conv2": (3, 3)}
    assert bottleneck.convolutions == {"layer3.0.conv2": (3, 3)}
    assert last.pools == {"layer4.0.downsample.0": "avg2"}
    assert last.activations == {"layer4.0.act1": "relu", "layer4.0.act2": "relu"}
    assert last.residual_writers == {"layer4.0.conv2": 96}
    assert bottleneck.residual_writers == {"layer3.0.conv3": 192}
    assert last.drop_paths == ("layer4.0.drop_path",)
    assert last.reasons == {"dropout": "it has no dropout"}
    assert last.can_grow and bottleneck.can_grow and third.can_grow
    vit = capabilities("test_vit")[0]
    assert vit.reasons["kernel"] == "it has no spatial convolution"
    assert vit.reasons["pool"] == "it does not pool"
    assert vit.activations == {"blocks.5.mlp.act": "gelu"}
    assert {"blocks.5.mlp.drop1", "blocks.5.mlp.drop2"} <= set(vit.dropouts)
    assert set(vit.drop_paths) == {"blocks.5.drop_path1", "blocks.5.drop_path2"}


def test_activations_of_gates_stay() -> None:
    gated = capabilities("test_efficientnet")[1]
    modules = list_layers(source("test_efficientnet").pretrained)[1].modules
    assert any(".se.act" in name for name in modules)
    assert gated.activations and all(".se." not in name for name in gated.activations)


@pytest.mark.slow
def test_growth_is_refused_where_it_fails() -> None:
    """GhostNet cuts what it computes to a fixed number of channels."""
    first, *others = capabilities("ghostnet_050")
    assert first.can_grow
    for other in others:
        assert not other.can_grow and other.groups


#: Field -> values that every layer with this field can take, and values that none can.
GOOD_AND_BAD: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "kernel": (KERNELS, (0, 4, 9, 3.5, "3")),
    "activation": (tuple(ACTIVATIONS), ("Relu", "softmax", 1)),
    "pool": (tuple(POOLS), ("max", "avg4", 2)),
    "dropout": ((0, 0.0, 0.99), (1, -0.1, "none")),
    "drop_path": ((0, 0.5), (1.0, "0.1")),
    "bridge": ((0.1, 1.0, 7.99, 8, 9, 1000, 12.0), (0.0, 0.09, -1, 8.5, 100.1, "half")),
    "width": ((0.1, 0.5, 1.0), (0.0, 0.099, -2, 8.5, "half")),
}


@pytest.mark.parametrize("name", ["test_resnet", "resnext50_32x4d", "test_vit"])
def test_reasons_for_unsupported_values(name: str) -> None:
    for capability in capabilities(name):
        for field, (good, bad) in GOOD_AND_BAD.items():
            assert capability.reason_unsupported(field, KEEP) == ""
            if field in capability.reasons:
                assert capability.reasons[field] in capability.reason_unsupported(field, 0.5)
                continue
            assert [value for value in good if capability.reason_unsupported(field, value)] == []
            for value in bad:
                assert str(value) in capability.reason_unsupported(field, value)


def test_numbers_of_channels_that_do_not_fit() -> None:
    grouped = capabilities("resnext50_32x4d")[0]
    fixed = replace(capabilities("test_resnet")[0], can_grow=False)
    # A ratio goes to the nearest multiple.
    assert not any(grouped.reason_unsupported("width", value) for value in (32, 1056, 0.51))
    assert grouped.reason_unsupported("width", 33) == (
        "must be a multiple of 32 because the channels of 'layer4.0.conv1' are grouped, but got 33"
    )
    assert not any(fixed.reason_unsupported("width", value) for value in (1.0, 96, 0.5))
    assert fixed.reason_unsupported("width", 1.5) == (
        "must be at most 96 or a ratio up to 1 because the channels of 'layer4.0.conv1' cannot "
        "become more, but got 1.5"
    )


@pytest.mark.parametrize(
    ("field", "present", "others"),
    [
        ("kernel", (3,), (5,)),
        ("width", (1.0, 96, 1.001), (0.5, 48)),  # 1.001 rounds to the same number
        ("activation", ("relu",), ("gelu",)),
        ("pool", ("avg2",), ("avg3",)),
        ("bridge", (), (1.0,)),  # one more convolution, whatever its width
        ("drop_path", (), (0.0,)),
    ],
)
def test_present_values_are_no_change(
    field: str, present: tuple[Any, ...], others: tuple[Any, ...]
) -> None:
    last = capabilities("test_resnet")[0]
    assert all(last.is_noop(field, value) for value in (KEEP, *present))
    assert not any(last.is_noop(field, value) for value in others)


def test_a_layer_of_several_kinds_always_changes() -> None:
    mixed = LayerCapabilities(
        1,
        convolutions={"a": (3, 3), "b": (5, 5)},
        activations={"a": "relu", "b": "gelu"},
        pools={"a": "max2", "b": ""},
    )
    for field, value in (("kernel", 3), ("kernel", 5), ("activation", "relu"), ("pool", "max2")):
        assert not mixed.is_noop(field, value)
    flat = LayerCapabilities(1, convolutions={"a": (1, 7), "b": (7, 1)})
    assert flat.is_noop("kernel", 7)  # sides of 1 stay


@pytest.mark.parametrize(
    ("changes", "weights", "none"),
    [
        ({}, True, True),
        ({"drop_path": 0.2}, True, True),
        ({"kernel": 3, "width": 96, "activation": "relu", "pool": "avg2"}, True, True),
        ({"kernel": 5}, True, False),
        ({"kernel": 2}, False, False),
        ({"width": 1.5}, True, False),
        ({"width": 0.9}, False, False),
        ({"width": 1.001}, True, True),
        ({"bridge": 1.0}, True, False),
        ({"bridge": 95}, False, False),
        ({"kernel": 7, "width": 97, "bridge": 2.0}, True, False),
        ({"pool": "avg3"}, False, False),
    ],
)
def test_plans_that_preserve_the_function(
    changes: dict[str, Any], weights: bool, none: bool
) -> None:
    last, plan = capabilities("test_resnet")[0], LayerPlan(**changes)
    preserving = {
        one: last.is_function_preserving(plan, one) for one in ("weights", "data", "none")
    }
    assert preserving == {"weights": weights, "data": weights, "none": none}


@pytest.mark.parametrize("name", slow_unless_default(["gmlp_ti16_224", "mobilenetv3_small_050"]))
def test_more_outer_or_inexact_channels_change_the_function(name: str) -> None:
    assert not capabilities(name)[0].is_function_preserving(LayerPlan(width=1.5), "weights")


def test_capabilities_are_probed_once_and_for_more_layers_when_needed() -> None:
    model = timm.create_model("test_convnext", num_classes=0).eval()
    backbone = Backbone("test_convnext", model, data_config(model, 64), "")
    layers = list_layers(model)
    first = cached_capabilities(backbone, layers, 2)
    assert len(first) == 8
    assert cached_capabilities(backbone, layers, 8) is first
    more = cached_capabilities(backbone, layers, 10)
    assert len(more) == 10
    assert more[:8] == first
    assert cached_capabilities(backbone, layers, 1) is more
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_probing_needs_no_weights_and_leaves_no_hooks() -> None:
    model = timm.create_model("test_resnet", num_classes=0).eval()
    empty = without_weights(model)
    assert all(one.is_meta for one in [*empty.parameters(), *empty.buffers()])
    assert not any(one.is_meta for one in [*model.parameters(), *model.buffers()])
    found = probe_layers(empty, list_layers(empty), (3, 64, 64))
    expected = capabilities("test_resnet")
    assert [one.groups for one in found[: len(expected)]] == [one.groups for one in expected]
    assert all(not module._forward_hooks for module in empty.modules())
