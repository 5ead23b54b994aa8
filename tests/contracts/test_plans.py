"""Plans within the capabilities run and survive JSON; others are refused with what is allowed."""

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
from tests.support.models.backbones import same_state
from tests.support.models.surgery import (
    built,
    capabilities,
    change,
    each_family,
    gives_features,
    pictures,
    plans,
    source,
    values,
)

#: Field -> values of which the first one that a layer can take is tried.
CHANGES: dict[str, tuple[Any, ...]] = {
    "kernel": (5, 2),
    "width": (0.5,),
    "bridge": (0.5,),
    "activation": ("mish",),
    "pool": ("avg3",),
    "drop_path": (0.3,),
}


def through_json(plan: TrialPlan) -> TrialPlan:
    again = TrialPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    return again


@each_family
@settings(max_examples=2)
@given(data=st.data())
def test_every_plan_runs_and_survives_json(name: str, data: st.DataObject) -> None:
    plan = data.draw(plans(name, ("weights", "data", "none")))
    first, second = built(plan, seed=3), built(through_json(plan), seed=3)
    assert same_state(first, second)
    with torch.no_grad():
        logits = first(pictures(name))
        assert torch.equal(logits, second(pictures(name)))
    assert logits.shape == (2, 3) and bool(torch.isfinite(logits).all())
    first.train()
    first(pictures(name)).square().sum().backward()
    gradients = [parameter.grad for parameter in first.parameters() if parameter.grad is not None]
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_a_plan_with_every_field_set_survives_json() -> None:
    plan = TrialPlan(
        "test_resnet",
        2,
        (
            LayerPlan(kernel=5, width=0.75, bridge=1.5, activation="elu", drop_path=0.1),
            LayerPlan(kernel=2, width=40, bridge=96, pool="max3", drop_path=0.0),
        ),
        HeadPlan((HiddenLayer(16, 0.2), HiddenLayer(8)), "max", "gelu", False),
        TrainingPolicy("sgd", 0.01, 0.5, 1e-3, 0.1),
        "none",
    )
    net = built(plan)
    assert same_state(net, built(through_json(plan)))
    key = "backbone.layer4.0.conv1.weight"
    assert not torch.equal(built(plan, seed=1).get_parameter(key), net.get_parameter(key))


def _all(name: str, field: str, every_other: bool = False) -> TrialPlan:
    """Change a field of all layers, or of every other one, that can take one of the values."""
    changes = {}
    for one in capabilities(name):
        outer = field == "width" and not all(group.inner for group in one.groups)
        if every_other and (one.index % 2 == 0 or outer):  # readers of outer channels change too
            continue
        if field in values(one):
            fitting = [v for v in CHANGES[field] if not one.reason_unsupported(field, v)]
            changes[one.index] = {field: fitting[0]}
    return change(name, changes)


@each_family
def test_modules_stay_in_their_layers(name: str) -> None:
    before = list_layers(source(name).pretrained)
    for field in ("kernel", "width", "bridge", "activation", "drop_path"):
        net = built(_all(name, field))
        assert [layer.index for layer in net.layers] == [one.index for one in before]
        place = {key: layer.index for layer in net.layers for key in layer.modules}
        for layer in before:
            assert {place[key] for key in layer.modules} <= {layer.index}, field
        for key, index in place.items():  # new ones lie where their parents do
            assert index == place.get(key.rpartition(".")[0], index)
        tensors = {*dict(net.backbone.named_parameters()), *dict(net.backbone.named_buffers())}
        assert {key for layer in net.layers for key in layer.names} == tensors


@each_family
def test_nothing_outside_a_changed_layer_changes_its_shape(name: str) -> None:
    expected = _shapes(built(change(name, {})), name)
    for field in ("kernel", "width", "bridge", "activation", "pool"):
        plan = _all(name, field, every_other=True)  # each between layers that are kept
        if not plan.reshaped:
            continue
        net = built(plan)
        shapes = _shapes(net, name)
        changed = {key for index in plan.reshaped for key in net.layers[index - 1].modules}
        outside = [
            key
            for layer in net.layers
            for key in layer.modules
            if key in expected
            and key not in changed
            and not any(one.startswith(f"{key}.") for one in changed)
        ]
        assert outside and all(shapes[key] == expected[key] for key in outside)


def _shapes(net: Network, name: str) -> dict[str, list[torch.Size]]:
    """Return the shapes that every module gives out."""
    shapes: dict[str, list[torch.Size]] = {}

    def note(key: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes.setdefault(key, []).append(output.shape)

        return hook

    for key, module in net.backbone.named_modules():
        module.register_forward_hook(note(key))
    with torch.no_grad():
        net(pictures(name, 1))
    return shapes


@pytest.mark.parametrize(
    ("name", "index", "field", "value", "message"),
    [
        ("test_resnet", 2, "kernel", 4, "must be one of keep, 1, 2, 3, 5, 7, but got 4"),
        (
            "test_resnet",
            1,
            "width",
            0.01,
            "must be keep, a ratio from 0.1 to below 8, or a whole number of channels from 8 on, "
            "but got 0.01",
        ),
        ("test_resnet", 1, "bridge", 8.5, "whole number of channels from 8 on, but got 8.5"),
        ("test_vit", 3, "kernel", 3, "must be keep, but got 3: it has no spatial convolution"),
        (
            "test_resnet",
            1,
            "activation",
            "rleu",
            "must be one of keep, relu, gelu, silu, hardswish, leaky_relu, elu, selu, sigmoid, "
            "tanh, mish, but got 'rleu'; did you mean 'relu'?",
        ),
        ("test_resnet", 2, "pool", "mean3", "keep, max2, max3, avg2, avg3, but got 'mean3'"),
        ("test_vit", 1, "pool", "avg3", "must be keep, but got 'avg3': it does not pool"),
        ("test_vit", 1, "dropout", 1.0, "must be from 0 to below 1, but got 1.0"),
        ("test_vit", 2, "drop_path", -0.1, "must be from 0 to below 1, but got -0.1"),
        ("test_resnet", 1, "width", "half", "must be keep or a number, but got 'half'"),
    ],
)
def test_an_impossible_plan_is_refused(
    name: str, index: int, field: str, value: Any, message: str
) -> None:
    with pytest.raises(PlanError) as caught:
        built(change(name, {index: {field: value}}))
    assert str(caught.value).startswith(f"layer {index}, {field}: ")
    assert message in str(caught.value)


def test_the_first_problem_of_several_layers_is_named() -> None:
    plan = change("test_resnet", {1: {"kernel": 5}, 2: {"kernel": 9}, 3: {"width": 0.0}})
    with pytest.raises(PlanError, match=r"^layer 2, kernel"):
        built(plan)


@each_family
def test_what_has_a_reason_is_refused_with_it(name: str) -> None:
    sample = {"kernel": 3, "width": 0.5, "bridge": 0.5, "activation": "elu", "pool": "avg3"}
    for one in capabilities(name):
        for field, reason in one.reasons.items():
            value = sample.get(field, 0.1)
            with pytest.raises(PlanError) as caught:
                validate_plans(change(name, {one.index: {field: value}}), capabilities(name))
            assert str(caught.value) == (
                f"layer {one.index}, {field}: must be keep, but got {value!r}: {reason}"
            )


def test_features_that_are_fewer_have_less_of_a_head() -> None:
    name = "mobilenetv3_small_050"
    assert gives_features(capabilities(name)[0])
    net = built(change(name, {1: {"width": 0.25}}, head=HeadPlan((HiddenLayer(8),))))
    assert isinstance(net.head[0], nn.Linear)
    assert net.head[0].in_features == 256
    assert net(pictures(name)).shape == (2, 3)
