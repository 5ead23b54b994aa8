"""Learning rates and weight decays by optimizer: in the study file, a space and its plans."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from autotune.config.schema import OPTIMIZERS, StudyConfig
from autotune.plan import TrainingPolicy
from autotune.results.values.parameter_words import parameter_words
from autotune.search.greedy import list_stages
from autotune.search.initial_plans import default_plans
from autotune.search.manual_plans import manual_plan
from autotune.search.parameters.activity import is_active
from autotune.search.parameters.by_optimizer import (
    FINE_TUNING_LR,
    LR,
    LR_RANGES,
    RANGES,
    WEIGHT_DECAY,
    head_lr,
    optimizer_of,
    shared_name,
)
from autotune.search.parameters.dimensions import contains, to_dimension
from autotune.search.space import Space
from autotune.search.space_checks import rule_problem
from tests.support.models.spaces import space_of

BOTH = ["adamw", "sgd"]


def space(**policy: Any) -> Space:
    training = {"optimizer": BOTH, "lr": "auto", "weight_decay": "auto", **policy}
    return space_of(trainable_layers={"low": 0, "high": 5}, training=training)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_optimizer_has_the_shared_parameters_with_its_ranges(optimizer: str) -> None:
    made = space(optimizer=optimizer)
    for name, ranges in RANGES.items():
        assert to_dimension(made.distributions[name]) == ranges[optimizer]
        assert not rule_problem(name, ranges[optimizer])
    policy = made.baseline().policy
    assert policy.lr == head_lr(optimizer)
    # The default, or the nearest to it.
    assert policy.weight_decay == (1e-3 if optimizer == "adamw" else 1e-4)


def test_the_published_values_lie_within_the_ranges() -> None:
    for optimizer, ends in LR_RANGES.items():
        assert ends["low"] <= 3 * FINE_TUNING_LR[optimizer]
        assert head_lr(optimizer) <= ends["high"]
    made = space().distributions
    assert all(contains(made[f"{WEIGHT_DECAY}.adamw"], value) for value in (0.02, 0.05))
    assert all(contains(made[f"{WEIGHT_DECAY}.sgd"], value) for value in (1e-6, 1e-4, 1e-3))
    assert not contains(made[f"{WEIGHT_DECAY}.sgd"], 0.05)


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


@pytest.mark.parametrize(
    ("name", "given", "values"),
    [
        (LR, {"adamw": {"low": 1e-4, "high": 1e-3, "log": True}}, (5e-4, 0.2)),
        (WEIGHT_DECAY, {"sgd": [1e-4, 5e-4]}, (0.05, 5e-4)),
    ],
)
def test_each_of_several_optimizers_has_its_own(
    name: str, given: dict[str, Any], values: tuple[float, float]
) -> None:
    field = name.removeprefix("training.")
    made = space(**{field: given})
    assert name not in {*made.distributions, *made.fixed}
    for optimizer in BOTH:
        expected = given.get(optimizer, RANGES[name][optimizer])
        assert to_dimension(made.distributions[f"{name}.{optimizer}"]) == expected
    assert Space.from_json(json.loads(json.dumps(made.to_json()))) == made
    for optimizer, other, value in zip(BOTH, reversed(BOTH), values, strict=True):
        start = {"lr": head_lr(optimizer), "weight_decay": 1e-3 if optimizer == "adamw" else 1e-4}
        plan = replace(
            made.baseline(), policy=TrainingPolicy(optimizer, **{**start, field: value})
        )
        params = made.params(plan)
        assert params is not None and made.plan(params) == plan
        assert not is_active(f"{name}.{other}", {**made.fixed, **params})
        assert made.canonical({**params, f"{name}.{other}": 1e-3}) == params
    foreign = replace(plan.policy, optimizer=BOTH[0])
    assert made.params(replace(plan, policy=foreign)) is None


def test_a_space_with_one_decay_and_own_rates_is_read() -> None:
    made = space(weight_decay={"low": 1e-5, "high": 1e-3, "log": True})
    assert WEIGHT_DECAY in made.distributions and LR not in made.distributions
    assert Space.from_json(made.to_json()) == made


def test_the_first_plans_have_the_values_of_their_optimizer() -> None:
    made = space()
    plans = default_plans(made, epochs=10)
    assert all(start.params == made.params(start.plan) for start in plans)
    found = [(start.title.removeprefix("known good: "), start.plan.policy) for start in plans]
    of_sgd = [(title, policy.lr) for title, policy in found if policy.optimizer == "sgd"]
    assert of_sgd == [
        ("last layer trainable, sgd", 0.03),
        ("last 5 layers trainable at a low rate, sgd", 0.01),
    ]
    assert {policy.lr for _, policy in found if policy.optimizer == "adamw"} <= {9e-4, 3e-4}
    decays = {(policy.optimizer, policy.weight_decay) for _, policy in found}
    assert decays == {("adamw", 1e-3), ("sgd", 1e-4)}


def test_a_layer_of_a_greedy_search_varies_the_rates_and_not_the_decays() -> None:
    (layer, *_) = list_stages(space())
    assert {f"{LR}.{name}" for name in BOTH} <= set(layer.free)
    assert not any(shared_name(name) == WEIGHT_DECAY for name in layer.free)


@pytest.mark.parametrize(
    ("given", "rate", "decay"),
    [
        ({"lr": 0.1, "optimizer": "sgd"}, 0.1, 1e-4),
        ({"lr": 1e-3}, 1e-3, 1e-3),
        ({"optimizer": "sgd"}, 0.1, 1e-4),
        ({"weight_decay": 0.05}, head_lr("adamw"), 0.05),
        ({"weight_decay": 1e-3, "optimizer": "sgd"}, 0.1, 1e-3),
    ],
)
def test_a_plan_by_hand_means_the_values_of_its_optimizer(
    given: dict[str, Any], rate: float, decay: float
) -> None:
    made = space()
    policy = manual_plan(made, given, made.baseline(), is_default=True).plan.policy
    optimizer = given.get("optimizer", "adamw")
    assert policy == TrainingPolicy(optimizer, rate, weight_decay=decay)


def test_names() -> None:
    assert [optimizer_of(name) for name in (WEIGHT_DECAY, f"{WEIGHT_DECAY}.sgd")] == ["", "sgd"]
    assert shared_name(f"{WEIGHT_DECAY}.sgd") == WEIGHT_DECAY
    assert shared_name("layer.1.width") == "layer.1.width"
    assert parameter_words(f"{WEIGHT_DECAY}.sgd") == "weight decay with sgd"
    assert parameter_words(f"{LR}.adamw") == "learning rate with adamw"
