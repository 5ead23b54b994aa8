"""Weight decays by optimizer: in the study file, in the space, in the first plans."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from autotune.config.schema import OPTIMIZERS
from autotune.plan import TrainingPolicy
from autotune.results.values.parameter_words import parameter_words
from autotune.search.greedy import list_stages
from autotune.search.initial_plans import default_plans
from autotune.search.manual_plans import manual_plan
from autotune.search.parameters.activity import is_active
from autotune.search.parameters.by_optimizer import (
    RANGES,
    WEIGHT_DECAY,
    WEIGHT_DECAY_RANGES,
    optimizer_of,
    shared_name,
)
from autotune.search.parameters.dimensions import contains, to_dimension
from autotune.search.space import Space
from autotune.search.space_checks import rule_problem
from tests.support.models.spaces import space_of

DEPTH = {"low": 0, "high": 5}
BOTH = ["adamw", "sgd"]


def space(decay: Any = "auto", **policy: Any) -> Space:
    training = {"optimizer": BOTH, "weight_decay": decay, **policy}
    return space_of(trainable_layers=DEPTH, training=training)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_optimizer_has_the_shared_parameter_with_its_range(optimizer: str) -> None:
    made = space(optimizer=optimizer)
    expected = WEIGHT_DECAY_RANGES[optimizer]
    assert to_dimension(made.distributions[WEIGHT_DECAY]) == expected
    assert not rule_problem(WEIGHT_DECAY, expected)
    low = 1e-3 if optimizer == "adamw" else 1e-4  # the default, or the nearest to it
    assert made.baseline().policy.weight_decay == low


def test_the_published_values_lie_within_the_ranges() -> None:
    made = space().distributions
    assert all(contains(made[f"{WEIGHT_DECAY}.adamw"], value) for value in (0.02, 0.05))
    assert all(contains(made[f"{WEIGHT_DECAY}.sgd"], value) for value in (1e-6, 1e-4, 1e-3))
    assert not contains(made[f"{WEIGHT_DECAY}.sgd"], 0.05)


def test_each_of_several_optimizers_has_its_own() -> None:
    made = space({"sgd": [1e-4, 5e-4]})
    assert WEIGHT_DECAY not in {*made.distributions, *made.fixed}
    assert to_dimension(made.distributions[f"{WEIGHT_DECAY}.sgd"]) == [1e-4, 5e-4]
    assert Space.from_json(json.loads(json.dumps(made.to_json()))) == made
    adamw = TrainingPolicy("adamw", weight_decay=0.05)
    sgd = TrainingPolicy("sgd", weight_decay=5e-4)
    for policy in (adamw, sgd):
        plan = replace(made.baseline(), policy=policy)
        params = made.params(plan)
        assert params is not None and made.plan(params) == plan
        other = "sgd" if policy is adamw else "adamw"
        assert not is_active(f"{WEIGHT_DECAY}.{other}", {**made.fixed, **params})
    assert made.params(replace(plan, policy=replace(sgd, weight_decay=0.05))) is None


def test_a_space_with_one_decay_and_own_rates_is_read() -> None:
    made = space({"low": 1e-5, "high": 1e-3, "log": True}, lr="auto")
    assert WEIGHT_DECAY in made.distributions and "training.lr" not in made.distributions
    assert Space.from_json(made.to_json()) == made


def test_the_first_plans_have_a_decay_of_their_optimizer() -> None:
    made = space(lr="auto")
    plans = default_plans(made, epochs=10)
    assert {one.plan.policy.optimizer for one in plans} == set(BOTH)
    for one in plans:
        assert one.params == made.params(one.plan)
        expected = 1e-3 if one.plan.policy.optimizer == "adamw" else 1e-4
        assert one.plan.policy.weight_decay == expected


def test_a_layer_of_a_greedy_search_varies_the_rates_and_not_the_decays() -> None:
    (layer, *_) = list_stages(space(lr="auto"))
    assert {f"training.lr.{name}" for name in BOTH} <= set(layer.free)
    assert not any(shared_name(name) == WEIGHT_DECAY for name in layer.free)


@pytest.mark.parametrize(
    ("given", "decay"),
    [({"weight_decay": 0.05}, 0.05), ({"weight_decay": 1e-4, "optimizer": "sgd"}, 1e-4)],
)
def test_a_plan_by_hand_means_the_decay_of_its_optimizer(
    given: dict[str, Any], decay: float
) -> None:
    made = space(lr="auto")
    plan = manual_plan(made, given, made.baseline(), is_default=True).plan
    assert plan.policy.weight_decay == decay
    assert plan.policy.optimizer == given.get("optimizer", "adamw")


def test_names() -> None:
    assert [optimizer_of(name) for name in (WEIGHT_DECAY, f"{WEIGHT_DECAY}.sgd")] == ["", "sgd"]
    assert shared_name(f"{WEIGHT_DECAY}.sgd") == WEIGHT_DECAY
    assert shared_name("layer.1.width") == "layer.1.width"
    assert parameter_words(f"{WEIGHT_DECAY}.sgd") == "weight decay with sgd"
    assert parameter_words("training.lr.adamw") == "learning rate with adamw"
    assert set(RANGES) == {"training.lr", WEIGHT_DECAY}
