"""Plans that the offers allow run and survive JSON; others are refused, with what is allowed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autotune.errors import PlanError
from autotune.models.layers import list_layers
from autotune.models.network import Network
from autotune.models.surgery.apply import validate_plans
from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrainingPolicy, TrialPlan
from tests.support.backbones import state_of
from tests.support.surgery import (
    FAMILIES,
    built,
    change,
    gives_features,
    offers,
    pictures,
    plans,
    source,
    values,
)

INHERITS = ("weights", "data", "none")
#: Field -> values of which the first one that a layer can take is tried.
CHANGES: dict[str, tuple[Any, ...]] = {
    "kernel": (5, 2),
    "width": (0.5,),
    "bridge": (0.5,),
    "activation": ("mish",),
    "pool": ("avg3",),
    "drop_path": (0.3,),
}


# What the offers allow works.


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=2)
@given(data=st.data())
def test_every_plan_runs_and_survives_json(name: str, data: st.DataObject) -> None:
    plan = data.draw(plans(name, INHERITS))
    again = TrialPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    first, second = built(plan, seed=3), built(again, seed=3)
    states = state_of(first), state_of(second)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    with torch.no_grad():
        logits = first(pictures(name))
        assert torch.equal(logits, second(pictures(name)))
    assert logits.shape == (2, 3) and bool(torch.isfinite(logits).all())
    first.train()
    first(pictures(name)).square().sum().backward()
    gradients = [one.grad for one in first.parameters() if one.requires_grad]
    assert all(one is None or bool(torch.isfinite(one).all()) for one in gradients)


def test_a_plan_with_every_field_set_survives_json() -> None:
    name = "test_resnet"
    layers = (
        LayerPlan(kernel=5, width=0.75, bridge=1.5, activation="elu", drop_path=0.1),
        LayerPlan(kernel=2, width=40, bridge=96, pool="max3", drop_path=0.0),
    )
    plan = TrialPlan(
        name,
        2,
        layers,
        HeadPlan((HiddenLayer(16, 0.2), HiddenLayer(8)), "max", "gelu", False),
        TrainingPolicy("sgd", 0.01, 0.5, 1e-3, 0.1),
        "none",
    )
    fields = {field for layer in layers for field in layer.changes()}
    assert fields == {"kernel", "width", "bridge", "activation", "pool", "drop_path"}
    again = TrialPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    states = state_of(built(plan)), state_of(built(again))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(
        built(plan, seed=1).backbone.get_parameter("layer4.0.conv1.weight"),
        states[0]["backbone.layer4.0.conv1.weight"],
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layers_stay_the_layers(name: str) -> None:
    """Whatever changes, a module lies in the layer that it lay in."""
    before = list_layers(source(name).pretrained)
    for field in ("kernel", "width", "bridge", "activation", "drop_path"):
        net = built(_all(name, field))
        assert [one.index for one in net.layers] == [one.index for one in before]
        place = {key: layer.index for layer in net.layers for key in layer.modules}
        for layer in before:
            for key in layer.modules:
                assert place[key] == layer.index, (field, key)
        for key, index in place.items():  # new ones lie where their parents do
            parent = key.rpartition(".")[0]
            assert index == place.get(parent, index)
        assert {key for layer in net.layers for key in layer.names} == {
            *dict(net.backbone.named_parameters()),
            *dict(net.backbone.named_buffers()),
        }


def _all(name: str, field: str, odd: int = 0) -> TrialPlan:
    """Change a field of all layers, or of every other one, that can take one of the values."""
    changes = {}
    for offer in offers(name):
        outer = field == "width" and not all(group.inner for group in offer.groups)
        if odd and (offer.index % 2 == 0 or outer):  # what reads outer channels changes as well
            continue
        if field in values(offer):
            fitting = [
                value for value in CHANGES[field] if not offer.reason_unsupported(field, value)
            ]
            changes[offer.index] = {field: fitting[0]}
    return change(name, changes)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_outside_a_changed_layer_changes_its_shape(name: str) -> None:
    expected = _shapes(built(change(name, {})), name)
    for field in ("kernel", "width", "bridge", "activation", "pool"):
        # Every other layer, so that each lies between layers that are kept.
        plan = _all(name, field, 1)
        if not plan.reshaped:
            continue
        net = built(plan)
        found = _shapes(net, name)
        changed = {key for index in plan.reshaped for key in net.layers[index - 1].modules}
        outside = [
            key
            for layer in net.layers
            for key in layer.modules
            if key in expected
            and key not in changed
            and not any(one.startswith(f"{key}.") for one in changed)
        ]
        assert {key: found[key] for key in outside} == {key: expected[key] for key in outside}
        assert outside


def _shapes(net: Network, name: str) -> dict[str, list[torch.Size]]:
    """Return the shapes that every module gives out."""
    shapes: dict[str, list[torch.Size]] = {}

    def note(key: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes.setdefault(key, []).append(output.shape)

        return hook

    hooks = [
        module.register_forward_hook(note(key)) for key, module in net.backbone.named_modules()
    ]
    with torch.no_grad():
        net(pictures(name, 1))
    for one in hooks:
        one.remove()
    return shapes


# What they do not allow is refused: layer, field, value, and what would be allowed.


@pytest.mark.parametrize(
    ("name", "index", "changes", "message"),
    [
        (
            "test_resnet",
            2,
            {"kernel": 4},
            "layer 2, kernel: must be one of keep, 1, 2, 3, 5, 7, but got 4",
        ),
        (
            "test_resnet",
            1,
            {"width": 0.01},
            "layer 1, width: must be keep, a ratio from 0.1 to below 8, or a whole number of "
            "channels from 8 on, but got 0.01",
        ),
        (
            "test_resnet",
            1,
            {"bridge": 8.5},
            "layer 1, bridge: must be keep, a ratio from 0.1 to below 8, or a whole number of "
            "channels from 8 on, but got 8.5",
        ),
        (
            "resnext50_32x4d",
            2,
            {"width": 33},
            "layer 2, width: must be a multiple of 32 because the channels of "
            "'layer3.0.conv1' are grouped, but got 33",
        ),
        (
            "test_vit",
            3,
            {"kernel": 3},
            "layer 3, kernel: must be keep, but got 3: it has no spatial convolution",
        ),
        (
            "test_resnet",
            1,
            {"activation": "rleu"},
            "layer 1, activation: must be one of keep, relu, gelu, silu, hardswish, leaky_relu, "
            "elu, selu, sigmoid, tanh, mish, but got 'rleu'; did you mean 'relu'?",
        ),
        (
            "test_resnet",
            2,
            {"pool": "mean3"},
            "layer 2, pool: must be one of keep, max2, max3, avg2, avg3, but got 'mean3'",
        ),
        (
            "test_vit",
            1,
            {"pool": "avg3"},
            "layer 1, pool: must be keep, but got 'avg3': it does not pool",
        ),
        (
            "test_vit",
            1,
            {"dropout": 1.0},
            "layer 1, dropout: must be from 0 to below 1, but got 1.0",
        ),
        (
            "test_vit",
            2,
            {"drop_path": -0.1},
            "layer 2, drop_path: must be from 0 to below 1, but got -0.1",
        ),
        (
            "test_resnet",
            1,
            {"width": "half"},
            "layer 1, width: must be keep or a number, but got 'half'",
        ),
        (
            "ghostnet_050",
            2,
            {"width": 1.5},
            "layer 2, width: must be at most 240 or a ratio up to 1 because the channels of "
            "'blocks.8.3.ghost1.primary_conv.0' cannot become more, but got 1.5",
        ),
    ],
)
def test_an_impossible_plan_is_refused(
    name: str, index: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanError) as caught:
        built(change(name, {index: changes}))
    assert message in str(caught.value)


def test_a_plan_that_is_too_deep_is_refused() -> None:
    layers = (LayerPlan(kernel=5),) * 6
    with pytest.raises(PlanError, match=r"depth must be between 0 and the 5 layers .*got depth 6"):
        built(TrialPlan("test_resnet", 6, layers))
    with pytest.raises(PlanError, match="with one layer plan each, but got depth 2 with 1"):
        built(TrialPlan("test_resnet", 2, layers[:1]))


def test_the_first_problem_of_several_layers_is_named() -> None:
    plan = change("test_resnet", {1: {"kernel": 5}, 2: {"kernel": 9}, 3: {"width": 0.0}})
    with pytest.raises(PlanError, match=r"^layer 2, kernel"):
        built(plan)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_has_a_reason_is_refused_with_it(name: str) -> None:
    found = offers(name)
    sample = {"kernel": 3, "width": 0.5, "bridge": 0.5, "activation": "elu", "pool": "avg3"}
    for offer in found:
        for field, reason in offer.reasons.items():
            value = sample.get(field, 0.1)
            with pytest.raises(PlanError) as caught:
                validate_plans(change(name, {offer.index: {field: value}}), found)
            assert str(caught.value) == (
                f"layer {offer.index}, {field}: must be keep, but got {value!r}: {reason}"
            )


def test_features_that_are_wider_have_more_of_a_head() -> None:
    name = "mobilenetv3_small_050"
    assert gives_features(offers(name)[0])
    net = built(change(name, {1: {"width": 0.25}}, head=HeadPlan((HiddenLayer(8),))))
    assert isinstance(net.head[0], nn.Linear)
    assert net.head[0].in_features == 256
    assert net(pictures(name)).shape == (2, 3)
