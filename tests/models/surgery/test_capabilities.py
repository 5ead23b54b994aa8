from __future__ import annotations

from typing import Any

import pytest
import timm

from autotune.models.backbone import Backbone, data_config
from autotune.models.layers import list_layers
from autotune.models.surgery.aligned_pool import POOLS as POOLINGS
from autotune.models.surgery.capabilities import KERNELS, POOLS, LayerCapabilities, channel_count
from autotune.models.surgery.components import ACTIVATIONS
from autotune.models.surgery.probing import cached_capabilities, probe_layers, without_weights
from autotune.plan import KEEP, LayerPlan
from tests.support.surgery import FAMILIES, offers, source, values

FIELDS = tuple(LayerPlan().__dict__)


@pytest.mark.parametrize(
    ("value", "size", "unit", "expected"),
    [
        (0.5, 96, 1, 48),
        (1.0, 96, 1, 96),
        (0.1, 8, 1, 1),
        (0.1, 24, 3, 3),
        (0.5, 368, 46, 184),
        (0.4, 368, 46, 138),
        (0.01, 64, 32, 32),  # at least one of each block
        (7.99, 10, 1, 80),
        (8, 96, 1, 8),
        (33, 1024, 32, 33),  # as it was said; whether it fits is asked elsewhere
        (100, 8, 1, 100),
        (8.0, 3, 1, 8),
    ],
)
def test_channel_count(value: float, size: int, unit: int, expected: int) -> None:
    found = channel_count(value, size, unit)
    assert found == expected
    assert isinstance(found, int)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_has_something_to_change_or_a_reason(name: str) -> None:
    found = offers(name)
    assert [offer.index for offer in found] == list(range(1, len(found) + 1))
    for offer in found:
        things = {
            "kernel": offer.convolutions,
            "width": offer.groups,
            "bridge": offer.residual_writers,
            "activation": offer.activations,
            "pool": offer.pools,
            "dropout": offer.dropouts,
            "drop_path": offer.drop_paths,
        }
        assert set(things) == set(FIELDS)
        for field, some in things.items():
            assert bool(some) != (field in offer.reasons), (offer.index, field)
        assert all(reason and not reason.endswith(".") for reason in offer.reasons.values())
        model = source(name).pretrained
        for key in (
            *offer.convolutions,
            *offer.residual_writers,
            *offer.activations,
            *offer.pools,
        ):
            model.get_submodule(key)


def test_what_layers_of_known_blocks_offer() -> None:
    last, bottleneck = offers("test_resnet")[:2]
    assert last.convolutions == {"layer4.0.conv1": (3, 3), "layer4.0.conv2": (3, 3)}
    assert bottleneck.convolutions == {"layer3.0.conv2": (3, 3)}
    assert last.pools == {"layer4.0.downsample.0": "avg2"}
    assert last.activations == {"layer4.0.act1": "relu", "layer4.0.act2": "relu"}
    assert last.residual_writers == {"layer4.0.conv2": 96}
    assert bottleneck.residual_writers == {"layer3.0.conv3": 192}
    assert last.drop_paths == ("layer4.0.drop_path",)
    assert last.reasons == {"dropout": "it has no dropout"}
    vit = offers("test_vit")[0]
    assert vit.reasons["kernel"] == "it has no spatial convolution"
    assert vit.reasons["pool"] == "it does not pool"
    assert vit.activations == {"blocks.5.mlp.act": "gelu"}
    assert {"blocks.5.mlp.drop1", "blocks.5.mlp.drop2"} <= set(vit.dropouts)
    assert set(vit.drop_paths) == {"blocks.5.drop_path1", "blocks.5.drop_path2"}


def test_activations_of_gates_stay() -> None:
    found = offers("mobilenetv3_small_050")[2]
    assert all(".se." not in name for name in found.activations)
    assert set(found.activations.values()) == {"hardswish"}


def test_growth_is_refused_where_it_fails() -> None:
    """GhostNet cuts what it computes to a fixed number of channels."""
    found = offers("ghostnet_050")
    assert found[0].can_grow
    for offer in found[1:]:
        assert not offer.can_grow and offer.groups
        size = offer.groups[0].size
        assert offer.reason_unsupported("width", 1.2).startswith(
            f"must be at most {size} or a ratio up to 1"
        )
        assert offer.reason_unsupported("width", size + 8)
        assert not offer.reason_unsupported("width", 1.0) and not offer.reason_unsupported(
            "width", size
        )
        assert not offer.reason_unsupported("width", 0.5)
    assert all(offer.can_grow for offer in offers("test_resnet"))


@pytest.mark.parametrize("name", ["test_resnet", "resnext50_32x4d", "test_vit", "ghostnet_050"])
def test_problems(name: str) -> None:
    for offer in offers(name):
        for field in FIELDS:
            assert offer.reason_unsupported(field, KEEP) == ""
            if field in offer.reasons:
                assert offer.reasons[field] in offer.reason_unsupported(field, 0.5)
        good = {
            "kernel": KERNELS,
            "activation": tuple(ACTIVATIONS),
            "pool": POOLS,
            "dropout": (0, 0.0, 0.99),
            "drop_path": (0, 0.5),
            "bridge": (0.1, 1.0, 7.99, 8, 9, 1000, 12.0),
            "width": (0.1, 0.5, 1.0),
        }
        bad = {
            "kernel": (0, 4, 9, 3.5, "3"),
            "activation": ("Relu", "softmax", 1),
            "pool": ("max", "avg4", 2),
            "dropout": (1, -0.1, "none"),
            "drop_path": (1.0, "0.1"),
            "bridge": (0.0, 0.09, -1, 8.5, 100.1, "half"),
            "width": (0.0, 0.099, -2, 8.5, "half"),
        }
        for field in FIELDS:
            if field in offer.reasons:
                continue
            assert [one for one in good[field] if offer.reason_unsupported(field, one)] == []
            assert [one for one in bad[field] if not offer.reason_unsupported(field, one)] == []
            for value in bad[field]:
                assert str(value) in offer.reason_unsupported(field, value)


def test_absolute_widths_of_grouped_channels() -> None:
    offer = offers("resnext50_32x4d")[0]
    assert not offer.reason_unsupported("width", 32) and not offer.reason_unsupported(
        "width", 1056
    )
    assert "must be a multiple of 32" in offer.reason_unsupported("width", 40)
    assert not offer.reason_unsupported("width", 0.51)  # a ratio goes to the nearest multiple


def test_what_a_layer_has_already_is_no_change() -> None:
    last, bottleneck = offers("test_resnet")[:2]
    assert last.is_noop("kernel", 3) and not last.is_noop("kernel", 5)
    assert last.is_noop("width", 1.0) and last.is_noop("width", 96)
    assert last.is_noop("width", 1.001)  # rounds to the same number
    assert not last.is_noop("width", 0.5) and not last.is_noop("width", 48)
    assert last.is_noop("activation", "relu") and not last.is_noop("activation", "gelu")
    assert last.is_noop("pool", "avg2") and not last.is_noop("pool", "avg3")
    for field in FIELDS:
        assert last.is_noop(field, KEEP)
    # There is one more convolution, whatever its width.
    assert not bottleneck.is_noop("bridge", 1.0)
    assert not offers("test_vit")[0].is_noop("dropout", 0.0)


def test_a_layer_of_several_kinds_is_never_unchanged() -> None:
    offer = LayerCapabilities(
        1,
        convolutions={"a": (3, 3), "b": (5, 5)},
        activations={"a": "relu", "b": "gelu"},
        pools={"a": "max2", "b": ""},
    )
    for field, options in (("kernel", (3, 5)), ("activation", ("relu",)), ("pool", ("max2",))):
        assert not any(offer.is_noop(field, value) for value in options)
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
        ({"kernel": 7, "activation": "gelu"}, False, False),
        ({"pool": "avg3"}, False, False),
    ],
)
def test_what_leaves_the_function_of_a_layer_as_it_is(
    changes: dict[str, Any], weights: bool, none: bool
) -> None:
    last = offers("test_resnet")[0]
    plan = LayerPlan(**changes)
    assert (
        last.is_function_preserving(plan, "weights")
        is last.is_function_preserving(plan, "data")
        is weights
    )
    assert last.is_function_preserving(plan, "none") is none


def test_outer_and_inexact_channels_promise_nothing() -> None:
    wider = LayerPlan(width=1.5)
    assert not offers("gmlp_ti16_224")[0].is_function_preserving(wider, "weights")
    assert not offers("mobilenetv3_small_050")[0].is_function_preserving(wider, "weights")


def test_the_poolings_are_those_that_there_are() -> None:
    assert set(POOLS) == set(POOLINGS)


def test_offers_are_worked_out_once_and_for_more_layers_when_asked() -> None:
    model = timm.create_model("test_convnext", num_classes=0).eval()
    found = Backbone("test_convnext", model, data_config(model, 64), "")
    layers = list_layers(model)
    first = cached_capabilities(found, layers, 2)
    assert len(first) == 8
    assert cached_capabilities(found, layers, 8) is first
    more = cached_capabilities(found, layers, 10)
    assert len(more) == 10
    assert more[:8] == first
    assert cached_capabilities(found, layers, 1) is more
    assert all(one.device.type == "cpu" for one in model.parameters())


def test_offers_need_no_weights_and_leave_none_behind() -> None:
    model = timm.create_model("test_resnet", num_classes=0).eval()
    empty = without_weights(model)
    assert all(one.is_meta for one in [*empty.parameters(), *empty.buffers()])
    assert not any(one.is_meta for one in [*model.parameters(), *model.buffers()])
    found = probe_layers(empty, list_layers(empty), (3, 64, 64))
    expected = offers("test_resnet")
    assert [one.groups for one in found[: len(expected)]] == [one.groups for one in expected]
    assert all(not one._forward_hooks for one in empty.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_there_is_something_to_search(name: str) -> None:
    assert any(len(values(offer)) >= 3 for offer in offers(name))
