from __future__ import annotations

import itertools
import random

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from autotune.search.deduplication import Key, _walk, canonical_key, nearest_unseen, seen_keys
from autotune.search.space import Space
from tests.support.models.spaces import space_of_three, start_of

SMALL = space_of_three(
    ["weights", "data", "none"],
    trainable_layers={"low": 0, "high": 2},
    layers={"kernel": ["keep", 5], "width": ["keep", 0.5]},
    head={"hidden_layers": [0, 1], "dropout": {"low": 0, "high": 0.2, "step": 0.1}},
    training={"optimizer": ["adamw", "sgd"], "momentum": [0.5, 0.9], "layer_decay": [0.5, 1.0]},
)
CONTINUOUS = space_of_three(
    trainable_layers=[0, 1], training={"lr": {"low": 1e-4, "high": 1, "log": True}}
)
GRIDS = space_of_three(
    trainable_layers={"low": 1, "high": 3, "log": True},
    training={"weight_decay": {"low": 0.1, "high": 0.8, "step": 0.1}},
)


def every_plan(space: Space) -> set[Key]:
    """The slow way: the product of all values, in canonical form."""
    values = []
    for found in space.distributions.values():
        if isinstance(found, CategoricalDistribution):
            values.append(list(found.choices))
        else:
            step = found.step or 1  # type: ignore[attr-defined]
            count = round((found.high - found.low) / step) + 1  # type: ignore[attr-defined]
            values.append([found.low + step * i for i in range(count)])  # type: ignore[attr-defined]
    names = list(space.distributions)
    return {
        canonical_key(space, dict(zip(names, chosen, strict=True)))
        for chosen in itertools.product(*values)
    }


@pytest.mark.parametrize("space", [SMALL, GRIDS])
def test_every_plan_comes_once_and_then_none(space: Space) -> None:
    plans = list(_walk(space, start_of(space), random.Random(0), space.distributions))
    assert all(space.canonical(params) == params for params in plans)
    assert all(space.params(space.plan(params)) == params for params in plans)
    seen = {canonical_key(space, params) for params in plans}
    assert len(seen) == len(plans)
    assert seen == every_plan(space)
    last = plans[-1]
    assert nearest_unseen(space, start_of(space), seen, random.Random(0)) is None
    left = nearest_unseen(
        space, start_of(space), seen - {canonical_key(space, last)}, random.Random(0)
    )
    assert left == last


def test_what_comes_first_changes_last() -> None:
    start = start_of(SMALL)
    seen = {canonical_key(SMALL, start)}
    near = nearest_unseen(SMALL, start, seen, random.Random(0))
    assert near is not None
    assert {name for name in near if near[name] != start[name]} == {"training.optimizer"}


def test_a_plan_that_is_new_is_returned_itself() -> None:
    start = SMALL.canonical({**start_of(SMALL), "depth": 2, "layer.2.kernel": 5})
    assert nearest_unseen(SMALL, start, set(), random.Random(0)) == start


def test_only_what_is_free_varies() -> None:
    start = SMALL.canonical({**start_of(SMALL), "depth": 1})
    free = ("layer.1.kernel", "layer.1.width", "inherit")
    seen: set[Key] = set()
    plans = []
    while (params := nearest_unseen(SMALL, start, seen, random.Random(1), free)) is not None:
        seen.add(canonical_key(SMALL, params))
        plans.append(params)
    # keep, keep; kernel alone with weights, none; width (and both) with weights, data, none.
    assert len(plans) == 1 + 2 + 3 + 3
    assert {(plan["depth"], plan["training.optimizer"]) for plan in plans} == {(1, "adamw")}


def test_a_continuous_space_has_no_end() -> None:
    seen: set[Key] = set()
    for _ in range(200):
        params = nearest_unseen(CONTINUOUS, start_of(CONTINUOUS), seen, random.Random(len(seen)))
        assert params is not None
        assert 1e-4 <= params["training.lr"] <= 1
        seen.add(canonical_key(CONTINUOUS, params))
    assert len(seen) == 200


def test_steps_that_differ_by_rounding_are_one_plan() -> None:
    one, other = ({"depth": 1, "training.weight_decay": value} for value in (0.1 + 0.2, 0.3))
    assert canonical_key(GRIDS, one) == canonical_key(GRIDS, other)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60))
def test_drawn_plans_do_not_come_back(seed: int, count: int) -> None:
    rng = random.Random(seed)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed % 2**31))
    for _ in range(count):
        study.add_trial(
            create_trial(
                state=rng.choice([TrialState.RUNNING, TrialState.FAIL, TrialState.PRUNED]),
                params=(params := study.ask(dict(SMALL.distributions)).params),
                distributions=dict(SMALL.distributions),
            )
        )
    seen = seen_keys(SMALL, study.trials)
    found = nearest_unseen(SMALL, params if count else start_of(SMALL), seen, rng)
    assert found is not None
    assert canonical_key(SMALL, found) not in seen


def test_queued_plans_are_drawn_and_plans_outside_the_space_are_not() -> None:
    study = optuna.create_study()
    study.enqueue_trial({**start_of(SMALL), "depth": 2})
    study.enqueue_trial({})
    assert seen_keys(SMALL, study.trials) == {
        canonical_key(SMALL, {**start_of(SMALL), "depth": 2})
    }
