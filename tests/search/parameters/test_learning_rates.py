"""Learning rates by optimizer: in the study file, in the space, in the first plans."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from autotune.config.schema import OPTIMIZERS, StudyConfig
from autotune.plan import TrainingPolicy
from autotune.search.greedy import list_stages
from autotune.search.initial_plans import default_plans
from autotune.search.manual_plans import manual_plan
from autotune.search.parameters.activity import is_active
from autotune.search.parameters.by_optimizer import FINE_TUNING_LR, LR_RANGES, head_lr
from autotune.search.parameters.dimensions import to_dimension
from autotune.search.space import Space
from tests.support.models.spaces import space_of

BOTH = {"optimizer": ["adamw", "sgd"], "lr": "auto"}
DEPTH = {"low": 0, "high": 5}


def two(**policy: Any) -> Space:
    return space_of(trainable_layers=DEPTH, training={**BOTH, **policy})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_range_holds_the_rates_that_are_known_to_be_good(optimizer: str) -> None:
    low, high = (LR_RANGES[optimizer][end] for end in ("low", "high"))
    assert low <= 3 * FINE_TUNING_LR[optimizer] and head_lr(optimizer) <= high
    space = space_of(trainable_layers=DEPTH, training={"optimizer": optimizer, "lr": "auto"})
    assert to_dimension(space.distributions["training.lr"]) == LR_RANGES[optimizer]
    assert space.baseline().policy.lr == head_lr(optimizer)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, 3e-3),
        ({"optimizer": "adamw"}, 3e-3),
        ({"optimizer": "sgd"}, "auto"),
        ({"optimizer": ["adamw", "adagrad"]}, "auto"),
        ({"optimizer": "sgd", "lr": 0.5}, 0.5),
    ],
)
def test_an_optimizer_without_a_rate_has_its_own(policy: dict[str, Any], expected: Any) -> None:
    study = {"dataset": "digits", "backbone": "resnet18", "space": {"training": policy}}
    assert StudyConfig.model_validate(study).space.training.lr == expected


def test_each_optimizer_has_a_parameter_of_its_own() -> None:
    space = two(lr={"adamw": {"low": 1e-4, "high": 1e-3, "log": True}})
    assert "training.lr" not in {*space.distributions, *space.fixed}
    assert to_dimension(space.distributions["training.lr.sgd"]) == LR_RANGES["sgd"]
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
    for policy in (TrainingPolicy("adamw", 5e-4), TrainingPolicy("sgd", 0.2)):
        plan = replace(space.baseline(), policy=policy)
        params = space.params(plan)
        assert params is not None and space.plan(params) == plan
        other = "sgd" if policy.optimizer == "adamw" else "adamw"
        assert not is_active(f"training.lr.{other}", {**space.fixed, **params})
        assert space.canonical({**params, f"training.lr.{other}": 1e-3}) == params
    assert space.params(replace(plan, policy=TrainingPolicy("adamw", 0.2))) is None


def test_the_first_plans_have_the_rates_of_their_optimizer() -> None:
    plans = default_plans(two(), epochs=10)
    for start in plans:
        assert start.params == two().params(start.plan)
    assert [
        (one.title.removeprefix("known good: "), one.plan.policy.lr)
        for one in plans
        if one.plan.policy.optimizer == "sgd"
    ] == [
        ("last layer trainable, sgd", 0.03),
        ("last 5 layers trainable at a low rate, sgd", 0.01),
    ]
    assert {one.plan.policy.lr for one in plans} - {0.03, 0.01} <= {9e-4, 3e-4}


def test_a_greedy_stage_searches_the_rates_of_all() -> None:
    (stage, *_) = list_stages(two())
    assert {"training.lr.adamw", "training.lr.sgd"} <= set(stage.free)


@pytest.mark.parametrize(
    ("given", "rate"),
    [({"lr": 0.1, "optimizer": "sgd"}, 0.1), ({"lr": 1e-3}, 1e-3), ({"optimizer": "sgd"}, 0.1)],
)
def test_lr_means_that_of_the_optimizer_of_the_plan(given: dict[str, Any], rate: float) -> None:
    space = two()
    plan = manual_plan(space, given, space.baseline(), is_default=True).plan
    assert plan.policy == TrainingPolicy(str(given.get("optimizer", "adamw")), rate)
