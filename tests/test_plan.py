from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrainingPolicy, TrialPlan

numbers = st.floats(0, 1e6, allow_nan=False)
shares = st.just("keep") | st.floats(0, 0.9)
widths = st.just("keep") | st.floats(0.1, 7.9) | st.integers(8, 65536)
layer_plans = st.builds(
    LayerPlan,
    kernel=st.sampled_from(["keep", 1, 5]),
    width=widths,
    bridge=widths,
    activation=st.sampled_from(["keep", "elu"]),
    pool=st.sampled_from(["keep", "avg3"]),
    dropout=shares,
    drop_path=shares,
)
plans = st.integers(0, 8).flatmap(
    lambda depth: st.builds(
        TrialPlan,
        backbone=st.text(min_size=1),
        depth=st.just(depth),
        layers=st.lists(layer_plans, min_size=depth, max_size=depth).map(tuple),
        head=st.builds(
            HeadPlan,
            hidden=st.lists(
                st.builds(HiddenLayer, units=st.integers(1, 4096), dropout=numbers), max_size=3
            ).map(tuple),
            pool=st.sampled_from(["keep", "avg", "max", "avgmax"]),
            activation=st.sampled_from(["relu", "tanh"]),
            batch_norm=st.booleans(),
        ),
        inherit=st.sampled_from(["weights", "data", "none"]),
        policy=st.builds(
            TrainingPolicy,
            optimizer=st.sampled_from(["adamw", "sgd", "adagrad"]),
            lr=numbers,
            layer_decay=numbers,
            weight_decay=numbers,
            momentum=numbers,
            label_smoothing=numbers,
            head_epochs=st.integers(0, 100),
            l2_sp=numbers,
            mixup=numbers,
            cutmix=numbers,
        ),
    )
)


@given(plans)
def test_json_out_and_in_again(plan: TrialPlan) -> None:
    text = json.dumps(plan.to_json())
    again = TrialPlan.from_json(json.loads(text))
    assert again == plan
    assert hash(again) == hash(plan)
    assert json.dumps(again.to_json()) == text


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (TrialPlan("r"), "backbone frozen, linear head, adamw lr 0.003"),
        (
            TrialPlan("r", 1, (LayerPlan(),), policy=TrainingPolicy("sgd", 0.1)),
            "last layer trainable, linear head, sgd lr 0.1",
        ),
        (
            TrialPlan(
                "r",
                2,
                (LayerPlan(),) * 2,
                HeadPlan((HiddenLayer(512, 0.3), HiddenLayer(128)), "avgmax"),
                TrainingPolicy(lr=1e-4, layer_decay=0.75),
            ),
            "last 2 layers trainable, head 512 (dropout 0.3) + 128, avgmax pooling, "
            "adamw lr 0.0001, layer decay 0.75",
        ),
        (
            TrialPlan(
                "r",
                policy=TrainingPolicy(layer_decay=0.5, momentum=0.5, head_epochs=3, l2_sp=0.1),
            ),
            "backbone frozen, linear head, adamw lr 0.003",
        ),
        (
            TrialPlan(
                "r",
                1,
                (LayerPlan(),),
                policy=TrainingPolicy(
                    "sgd", 0.1, 0.5, 0.0, 0.0, 0.0, head_epochs=3, l2_sp=0.01, mixup=0.2, cutmix=1
                ),
            ),
            "last layer trainable, linear head, sgd lr 0.1, momentum 0, layer decay 0.5, "
            "head alone for 3 epochs, L2-SP 0.01, mixup 0.2, cutmix 1",
        ),
        (
            TrialPlan("r", 1, (LayerPlan(),), policy=TrainingPolicy(head_epochs=1)),
            "last layer trainable, linear head, adamw lr 0.003, head alone for 1 epoch",
        ),
        (
            TrialPlan(
                "r",
                4,
                (LayerPlan(width=512),) * 2 + (LayerPlan(), LayerPlan(pool="max2")),
                inherit="none",
            ),
            "last 4 layers trainable (layers 1-2 width 512; layer 4 pool max2; changed layers "
            "drawn anew), linear head, adamw lr 0.003",
        ),
        (
            TrialPlan("r", 1, (LayerPlan(width=1.5),), inherit="data"),
            "last layer trainable (layer 1 width 1.5; channels chosen by activity), linear head, "
            "adamw lr 0.003",
        ),
        (
            TrialPlan("r", 1, (LayerPlan(dropout=0.25, drop_path=0.1312),), inherit="none"),
            "last layer trainable (layer 1 dropout 0.25, drop path 0.131), linear head, "
            "adamw lr 0.003",
        ),
        (
            TrialPlan("r", head=HeadPlan((HiddenLayer(8),), "max", "gelu", False)),
            "backbone frozen, head 8, gelu, no batch norm, max pooling, adamw lr 0.003",
        ),
        (
            TrialPlan("r", head=HeadPlan((), "max", "gelu", False)),
            "backbone frozen, linear head, max pooling, adamw lr 0.003",
        ),
    ],
)
def test_describe(plan: TrialPlan, words: str) -> None:
    assert plan.describe() == words


def test_a_plan_from_before_there_were_some_fields_has_their_defaults() -> None:
    values = TrialPlan("r", 1, (LayerPlan(),), policy=TrainingPolicy("sgd", 0.1)).to_json()
    old = ("optimizer", "lr", "layer_decay", "weight_decay", "label_smoothing")
    policy = {name: values["policy"][name] for name in old}
    assert TrialPlan.from_json({**values, "policy": policy}) == TrialPlan.from_json(values)


def test_reshaped_layers_are_those_that_change() -> None:
    layers = (LayerPlan(), LayerPlan(dropout=0.0), LayerPlan(), LayerPlan(kernel=1))
    assert TrialPlan("r", 4, layers).reshaped == (2, 4)
    assert layers[1].changes() == {"dropout": 0.0}


def test_from_json_refuses_what_no_plan_has() -> None:
    values = TrialPlan("r", 1, (LayerPlan(),)).to_json()
    with pytest.raises(TypeError):
        TrialPlan.from_json({**values, "policy": {**values["policy"], "speed": 1}})
    del values["head"]
    with pytest.raises(KeyError):
        TrialPlan.from_json(values)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("backbone",), "a word"),
        (("depth",), "a whole number"),
        (("layers", 0, "kernel"), "a whole number or a word"),
        (("layers", 0, "width"), "a number or a word"),
        (("head", "batch_norm"), "true or false"),
        (("head", "hidden", 0, "units"), "a whole number"),
        (("policy", "lr"), "a number"),
    ],
)
def test_from_json_refuses_values_of_other_types(path: tuple[str | int, ...], words: str) -> None:
    """They would be tracebacks later, wherever a plan is shown or built."""
    plan = TrialPlan(
        "resnet18", 1, (LayerPlan(kernel=5, width=0.5),), HeadPlan((HiddenLayer(8, 0.1),))
    )
    for wrong in (None, [], {}, [1], float("nan"), float("inf")):
        values = json.loads(json.dumps(plan.to_json()))
        part = values
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = wrong
        with pytest.raises(TypeError, match=f"{path[-1]} must be {words}, but got"):
            TrialPlan.from_json(values)
    assert TrialPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
