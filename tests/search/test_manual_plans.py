"""Plans that people give by hand: names as they write them, and one message for all mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.config.schema import BaselineConfig
from autotune.errors import ConfigError
from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrainingPolicy, TrialPlan
from autotune.search.manual_plans import ManualPlan, manual_plan
from autotune.search.space import Space
from tests.support.models.spaces import space_of

LR = {"low": 1e-5, "high": 1.0, "log": True}
SPACE = space_of(
    trainable_layers={"low": 0, "high": 5},
    layers={"max_layers": 3, "kernel": ["keep", 1, 5], "dropout": {"low": 0.0, "high": 0.5}},
    head={"hidden_layers": [0, 1, 2], "units": [64, 256], "dropout": {"low": 0.0, "high": 0.8}},
    training={"lr": LR, "layer_decay": {"low": 0.5, "high": 1.0}, "optimizer": "adamw"},
)


def plan_of(given: dict[str, Any], space: Space = SPACE) -> ManualPlan:
    return manual_plan(space, given, space.baseline(), is_default=True)


def mistakes(given: dict[str, Any], base: TrialPlan | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        manual_plan(SPACE, given, base or SPACE.baseline(), is_default=base is None)
    return str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"depth": 2, "training.lr": 0.001},
        {"layers": 2, "lr": 1e-3},
        {"trainable_layers": 2.0, "space.training.lr": "1e-3"},
        {"space.trainable_layers": 2, "training.lr": 0.001, "optimizer": "adamw"},
    ],
)
def test_a_value_has_several_names(given: dict[str, Any]) -> None:
    made = plan_of(given)
    assert made.plan == TrialPlan(
        SPACE.backbone,
        2,
        (LayerPlan(dropout=0.0), LayerPlan(dropout=0.0)),
        policy=TrainingPolicy(lr=0.001),
    )
    assert SPACE.plan(made.params) == made.plan and SPACE.canonical(made.params) == made.params
    assert "training.lr" not in made.filled and made.filled["training.layer_decay"] == 1.0


def test_a_name_without_number_means_all() -> None:
    plan = plan_of({"layers": 2, "kernel": 5, "head.layers": 2, "head.dropout": 0.5}).plan
    assert [layer.kernel for layer in plan.layers] == [5, 5]
    assert plan.head.hidden == (HiddenLayer(256, 0.5), HiddenLayer(256, 0.5))
    one = plan_of({"layers": 2, "layers.1.kernel": 5}).plan
    assert [layer.kernel for layer in one.layers] == [5, "keep"]


def test_the_rest_is_that_of_a_plan() -> None:
    base = TrialPlan(
        SPACE.backbone,
        1,
        (LayerPlan(kernel=5, dropout=0.25),),
        HeadPlan((HiddenLayer(64, 0.5),)),
        TrainingPolicy(lr=0.01, layer_decay=0.5),
    )
    made = manual_plan(SPACE, {"layers": 2}, base, is_default=False)
    assert made.plan.layers == (base.layers[0], LayerPlan(dropout=0.0))
    assert (made.plan.head, made.plan.policy) == (base.head, base.policy)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layer.1.kernal": 5}, "did you mean 'layer.1.kernel'"),
        ({"layer.4.kernel": 5}, "is kept by this study; it changes layer.1-3.kernel, layer.1-3.d"),
        ({"layer.1.width": 2}, "is kept by this study"),
        ({"dropout": 0.1}, "is ambiguous: give head.dropout or layer.dropout"),
        ({"layers": 6}, "layers (depth): must be from 0 to 5, but got 6"),
        ({"layers": True}, "must be from 0 to 5, but got True"),
        ({"layers": None}, "must be from 0 to 5, but got None"),
        ({"lr": float("nan")}, "lr (training.lr): must be from 1e-05 to 1.0, log, but got nan"),
        ({"lr": "fast"}, "but got 'fast'"),
        ({"layer.1.kernel": "x"}, "layer.1.kernel: must be one of keep, 1, 5, but got 'x'"),
        ({"layer.1.kernel": True}, "layer.1.kernel: must be one of keep, 1, 5, but got True"),
        ({"optimizer": "sgd"}, "is fixed at adamw in this study, but got 'sgd'"),
        ({"backbone": "vgg11"}, "backbone: must be resnet18, but got"),
        ({"layers": 2, "layer.3.kernel": 5}, "layers is 2 in this plan; give layers=3 or more"),
        ({"head.dropout": 0.2}, "head.hidden_layers is 0 in this plan; give head.hidden_layers=1"),
        ({"layer_decay": 0.7}, "no layer but the head trains in this plan; give layers=1 or more"),
        ({"lr": 0.1, "training.lr": 0.2}, "gives training.lr a second value"),
    ],
)
def test_what_is_wrong(given: dict[str, Any], said: str) -> None:
    assert said in mistakes(given)


def test_all_mistakes_come_together() -> None:
    assert "the plan: 3 mistakes" in mistakes({"layers": 9, "kernel": 4, "x": 1})


def test_a_plan_of_another_space() -> None:
    said = mistakes({}, TrialPlan(SPACE.backbone, 1, (LayerPlan(kernel=7, dropout=0.0),)))
    assert "layer.1.kernel: is 7 in that plan, and this study has keep, 1, 5" in said
    said = mistakes({}, TrialPlan("vgg11", policy=TrainingPolicy("sgd")))
    assert "backbone: is vgg11 in that plan" in said
    assert "training.optimizer: is sgd in that plan, and this study has adamw" in said


def test_a_number_that_yaml_reads_as_a_text_is_one() -> None:
    space = space_of(training={"lr": [1e-3, 1e-2], "weight_decay": 5e-5})
    policy = plan_of({"lr": "1e-3", "weight_decay": "5e-5"}, space).plan.policy
    assert policy == TrainingPolicy(lr=1e-3, weight_decay=5e-5)


INIT = space_of(
    ["weights", "data"],
    trainable_layers={"low": 0, "high": 5},
    layers={"max_layers": 1, "kernel": ["keep", 5], "width": ["keep", 0.5]},
    training={"optimizer": ["adamw", "sgd"], "lr": "auto"},
)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"layers": 1, "kernel": 5, "init": "activations"},
            "init: has no effect: no layer gets another width in this plan",
        ),
        ({"lr": 1e-3, "optimizer": "nadam"}, "must be one of adamw, sgd, but got 'nadam'"),
    ],
)
def test_values_that_another_value_makes_useless(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(given, INIT)


def test_lr_means_that_of_the_optimizer_that_is_taken() -> None:
    """The study file gives the baseline an optimizer that the space does not have."""
    base = INIT.baseline(BaselineConfig(optimizer="adagrad"))
    policy = manual_plan(INIT, {"lr": 1e-3}, base, is_default=True).plan.policy
    assert (policy.optimizer, policy.lr) == ("adamw", 1e-3)
