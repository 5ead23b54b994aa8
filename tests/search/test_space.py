from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from autotune.config import BaselineConfig, SpaceConfig
from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrainingPolicy, TrialPlan
from autotune.search.space import Params, Space, contains, distribution, inert_value, within

FULL: dict[str, Any] = {
    "depth": {"low": 0, "high": 5},
    "head": {
        "hidden_layers": {"low": 0, "high": 2},
        "units": [64, 128],
        "dropout": {"low": 0, "high": 0.8, "step": 0.1},
        "pool": ["avg", "keep", "max"],
    },
    "training": {
        "optimizer": ["adamw", "sgd"],
        "lr": {"low": 1e-4, "high": 1, "log": True},
        "layer_decay": {"low": 0.3, "high": 1},
        "weight_decay": [0, 0.1],
        "label_smoothing": [0.0, 0.1],
    },
}


def space_of(**config: Any) -> Space:
    return Space.from_config("resnet18", SpaceConfig.model_validate(config))


def dimension(low: float, high: float, integer: bool) -> st.SearchStrategy[Any]:
    """Fixed values, choices and ranges, with or without steps."""
    grid = [low + (high - low) * i / 4 for i in range(5)]
    one = st.sampled_from([round(x) for x in grid] if integer else grid)
    ends = st.tuples(one, one).map(sorted)
    return (
        one
        | st.lists(one, min_size=1, max_size=3, unique=True)
        | ends.map(lambda pair: {"low": pair[0], "high": pair[1]})
        | ends.map(
            lambda pair: {
                "low": pair[0],
                "high": pair[1],
                **({"log": True} if pair[0] > 0 else {"step": pair[1] or 1}),
            }
        )
    )


def names(*allowed: str) -> st.SearchStrategy[Any]:
    return st.sampled_from(allowed) | st.lists(st.sampled_from(allowed), min_size=1, unique=True)


spaces = st.fixed_dictionaries(
    {
        "depth": dimension(0, 8, True),
        "head": st.fixed_dictionaries(
            {
                "hidden_layers": dimension(0, 3, True),
                "units": dimension(1, 512, True),
                "dropout": dimension(0, 0.9, False),
                "pool": names("keep", "avg", "max", "avgmax"),
            }
        ),
        "training": st.fixed_dictionaries(
            {
                "optimizer": names("adamw", "sgd", "adagrad"),
                "lr": dimension(1e-4, 1, False),
                "layer_decay": dimension(0.2, 1, False),
                "weight_decay": dimension(0, 1, False),
                "label_smoothing": dimension(0, 0.5, False),
            }
        ),
    }
).map(lambda values: space_of(**values))


def value_in(found: BaseDistribution) -> st.SearchStrategy[Any]:
    if isinstance(found, CategoricalDistribution):
        return st.sampled_from(found.choices)
    assert isinstance(found, IntDistribution | FloatDistribution)
    if found.step is not None:
        count = round((found.high - found.low) / found.step)
        return st.integers(0, count).map(lambda i: min(found.low + i * found.step, found.high))
    return st.floats(found.low, found.high)


def params_in(space: Space) -> st.SearchStrategy[Params]:
    return st.fixed_dictionaries(
        {name: value_in(found) for name, found in space.distributions.items()}
    )


with_params = spaces.flatmap(lambda space: st.tuples(st.just(space), params_in(space)))
with_two = spaces.flatmap(
    lambda space: st.tuples(st.just(space), params_in(space), params_in(space))
)


# Dimensions -> distributions


@pytest.mark.parametrize(
    ("dimension", "integer", "expected"),
    [
        (3, True, None),
        ("keep", False, None),
        ([3], True, None),
        ({"low": 3, "high": 3}, True, None),
        ({"low": 0.5, "high": 0.5, "log": True}, False, None),
        ({"low": 0, "high": 3}, True, IntDistribution(0, 3)),
        ({"low": 1, "high": 8, "log": True}, True, IntDistribution(1, 8, log=True)),
        ({"low": 0, "high": 8, "step": 2}, True, IntDistribution(0, 8, step=2)),
        ({"low": 0.0, "high": 1.0}, False, FloatDistribution(0, 1)),
        ({"low": 0.1, "high": 1.0, "log": True}, False, FloatDistribution(0.1, 1, log=True)),
        ({"low": 0.0, "high": 0.8, "step": 0.1}, False, FloatDistribution(0, 0.8, step=0.1)),
        (["a", "b"], False, CategoricalDistribution(["a", "b"])),
        ([0.0, 0.1], False, CategoricalDistribution([0.0, 0.1])),
    ],
)
def test_distributions(dimension: Any, integer: bool, expected: BaseDistribution | None) -> None:
    assert distribution(dimension, integer) == expected


def test_every_key_is_either_searched_or_fixed_under_its_dotted_name() -> None:
    space = space_of(**FULL)
    assert list(space.distributions) == [
        "depth",
        "head.pool",
        "head.hidden_layers",
        "head.units.1",
        "head.dropout.1",
        "head.units.2",
        "head.dropout.2",
        "training.optimizer",
        "training.lr",
        "training.layer_decay",
        "training.weight_decay",
        "training.label_smoothing",
    ]
    assert not space.fixed
    plain = space_of()
    assert not plain.distributions
    assert plain.fixed == {
        "depth": 0,
        "head.pool": "keep",
        "head.hidden_layers": 0,
        "training.optimizer": "adamw",
        "training.lr": 3e-3,
        "training.layer_decay": 1.0,
        "training.weight_decay": 1e-4,
        "training.label_smoothing": 0.0,
    }


@pytest.mark.parametrize(("hidden", "count"), [(0, 0), (2, 2), ([0, 3], 3), ([1], 1)])
def test_there_are_as_many_hidden_layers_as_there_can_be(hidden: Any, count: int) -> None:
    space = space_of(head={"hidden_layers": hidden, "units": [1, 2]})
    assert sum(name.startswith("head.units.") for name in space.distributions) == count


@given(spaces)
def test_no_distribution_is_adjusted(space: Space) -> None:
    assert not space.fixed.keys() & space.distributions.keys()
    assert all(not found.single() for found in space.distributions.values())


# Canonical form


@given(with_params)
def test_canonical_form(given: tuple[Space, Params]) -> None:
    space, params = given
    canonical = space.canonical(params)
    assert list(canonical) == list(space.distributions)
    assert space.canonical(canonical) == canonical
    assert all(contains(space.distributions[name], value) for name, value in canonical.items())
    assert space.plan(canonical) == space.plan(params)


@given(with_params)
def test_a_plan_leads_back_to_the_canonical_parameters(given: tuple[Space, Params]) -> None:
    space, params = given
    assert space.params(space.plan(params)) == space.canonical(params)


@given(with_two)
def test_equal_canonical_parameters_are_equal_plans(given: tuple[Space, Params, Params]) -> None:
    space, one, other = given
    assert (space.canonical(one) == space.canonical(other)) == (
        space.plan(one) == space.plan(other)
    )


def test_what_has_no_meaning_takes_its_inert_value() -> None:
    space = space_of(**FULL)
    params = {
        "depth": 0,
        "head.pool": "max",
        "head.hidden_layers": 1,
        "head.units.1": 64,
        "head.dropout.1": 0.3,
        "head.units.2": 128,
        "head.dropout.2": 0.5,
        "training.optimizer": "sgd",
        "training.lr": 0.1,
        "training.layer_decay": 0.4,
        "training.weight_decay": 0.1,
        "training.label_smoothing": 0.1,
    }
    inert = {"head.units.2": 64, "head.dropout.2": 0.8, "training.layer_decay": 1.0}
    assert space.canonical(params) == {**params, **inert}
    assert space.canonical({**params, "depth": 1, "head.hidden_layers": 2}) == {
        **params,
        "depth": 1,
        "head.hidden_layers": 2,
    }
    assert inert_value(space.distributions["head.pool"]) == "keep"


def test_the_plan_of_parameters() -> None:
    space = space_of(
        depth=2, head={"hidden_layers": 1, "units": [8, 16], "dropout": 0.5, "pool": "max"}
    )
    assert space.plan({"head.units.1": 16}) == TrialPlan(
        "resnet18",
        2,
        (LayerPlan(), LayerPlan()),
        HeadPlan((HiddenLayer(16, 0.5),), "max"),
        TrainingPolicy(),
    )


@pytest.mark.parametrize(
    "plan",
    [
        TrialPlan("resnet34"),
        TrialPlan("resnet18", 6, (LayerPlan(),) * 6),
        TrialPlan("resnet18", head=HeadPlan(pool="avgmax")),
        TrialPlan("resnet18", head=HeadPlan((HiddenLayer(65),))),
        TrialPlan("resnet18", head=HeadPlan((HiddenLayer(64, 0.35),))),
        TrialPlan("resnet18", head=HeadPlan((HiddenLayer(64),) * 3)),
        TrialPlan("resnet18", policy=TrainingPolicy("adagrad")),
        TrialPlan("resnet18", policy=TrainingPolicy(lr=2.0)),
        TrialPlan("resnet18", policy=TrainingPolicy(weight_decay=1e-4)),
        TrialPlan("resnet18", 1, (LayerPlan(kernel="3"),), policy=TrainingPolicy(weight_decay=0)),
    ],
)
def test_a_plan_outside_of_the_space_has_no_parameters(plan: TrialPlan) -> None:
    assert space_of(**FULL).params(plan) is None


# Baseline


def test_the_baseline_takes_fixed_values_and_the_nearest_searched_ones() -> None:
    baseline = space_of(**FULL).baseline()
    assert baseline == TrialPlan("resnet18", policy=TrainingPolicy(weight_decay=0.0))
    fixed = space_of(depth={"low": 0, "high": 3}, training={"optimizer": "sgd", "lr": 0.5})
    assert fixed.baseline().policy == TrainingPolicy("sgd", 0.5)
    assert fixed.params(fixed.baseline()) == {"depth": 0}


def test_the_baseline_takes_what_the_study_file_gives_it() -> None:
    space = space_of(**FULL)
    given = BaselineConfig(optimizer="sgd", lr=0.03, weight_decay=0.1)
    assert space.baseline(given).policy == TrainingPolicy("sgd", 0.03, 1.0, 0.1)
    assert space.params(space.baseline(given)) is not None
    assert space.params(space.baseline(BaselineConfig(lr=50.0))) is None
    fixed = space_of(depth=[0, 1], training={"lr": 0.5})
    assert fixed.baseline(BaselineConfig(lr=0.1)).policy.lr == 0.1
    assert fixed.baseline(BaselineConfig(weight_decay=0.0)).policy.lr == 0.5


@given(spaces)
def test_the_baseline_is_the_untouched_backbone_with_a_linear_head(space: Space) -> None:
    baseline = space.baseline()
    assert (baseline.depth, baseline.layers, baseline.head) == (0, (), HeadPlan())
    assert baseline.policy.layer_decay == 1.0
    params = space.params(baseline)
    if params is not None:
        assert space.plan(params) == baseline
    inside = all(
        contains(space.distributions[name], wanted)
        if name in space.distributions
        else space.fixed[name] == wanted
        for name, wanted in {"depth": 0, "head.hidden_layers": 0, "head.pool": "keep"}.items()
    )
    assert inside == (params is not None)


@pytest.mark.parametrize(
    "config",
    [
        {"depth": 2},
        {"depth": {"low": 1, "high": 3}},
        {"depth": [1, 2]},
        {"depth": {"low": 1, "high": 8, "log": True}},
        {"head": {"pool": ["avg", "max"]}},
        {"head": {"pool": "avg"}},
        {"head": {"hidden_layers": 1}},
        {"head": {"hidden_layers": [1, 2], "units": [8, 16]}},
    ],
)
def test_a_space_can_exclude_the_baseline(config: dict[str, Any]) -> None:
    space = space_of(**config)
    assert space.params(space.baseline()) is None


# Near


@pytest.mark.parametrize(
    ("found", "value", "nearest"),
    [
        (FloatDistribution(0.01, 0.1), 0.003, 0.01),
        (FloatDistribution(1e-6, 1e-4, log=True), 0.003, 1e-4),
        (FloatDistribution(1e-4, 0.3, log=True), 0.003, 0.003),
        (FloatDistribution(0.0, 0.8, step=0.1), 0.34, 0.3),
        (FloatDistribution(0.0, 0.8, step=0.1), 0.36, 0.4),
        (FloatDistribution(0.0, 0.8, step=0.1), 2.0, 0.8),
        (IntDistribution(1, 9, step=4), 4, 5),
        (IntDistribution(1, 9, step=4), 0, 1),
        (FloatDistribution(0.1, 0.5, log=True), 0.0, 0.1),
        (CategoricalDistribution([0.3, 0.01, 0.001]), 0.003, 0.001),
        (CategoricalDistribution([0.3, 0.01]), 0.003, 0.01),
        (CategoricalDistribution([0.0, 0.1]), 0.07, 0.1),
        (CategoricalDistribution([0.5, 0.0]), 0.003, 0.0),
        (CategoricalDistribution(["sgd", "adagrad"]), "adamw", "sgd"),
    ],
)
def test_the_nearest_value(found: BaseDistribution, value: Any, nearest: Any) -> None:
    assert math.isclose(within(found, value), nearest) if nearest != "sgd" else True
    assert within(found, value) == nearest
    assert contains(found, within(found, value))


@given(
    st.integers(0, 50),
    st.integers(1, 40),
    st.sampled_from([0.1, 0.05, 0.3, 1e-3]),
    st.floats(-9, 99),
)
def test_the_nearest_value_is_on_the_grid(
    start: int, count: int, step: float, value: float
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an end that binary numbers do not reach is lowered
        found = FloatDistribution(start * 0.1, start * 0.1 + count * step, step=step)
    assume(not found.single())
    near = within(found, value)
    assert contains(found, near)
    clipped = min(max(value, found.low), found.high)
    assert abs(near - clipped) <= step / 2 + 1e-9
