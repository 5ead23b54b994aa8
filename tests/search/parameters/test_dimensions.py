"""One dimension of a study file: its distribution, and the nearest value that it can take."""

from __future__ import annotations

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

from autotune.search.parameters.dimensions import (
    contains,
    describe,
    integer_values,
    nearest_in,
    to_distribution,
)


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
    assert to_distribution(dimension, integer) == expected


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
    assert nearest_in(found, value) == nearest
    assert contains(found, nearest_in(found, value))


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
    near = nearest_in(found, value)
    assert contains(found, near)
    clipped = min(max(value, found.low), found.high)
    assert abs(near - clipped) <= step / 2 + 1e-9


@pytest.mark.parametrize(
    ("found", "values"),
    [
        (IntDistribution(0, 3), [0, 1, 2, 3]),
        (IntDistribution(1, 9, step=4), [1, 5, 9]),
        (CategoricalDistribution([5, 0, 2]), [5, 0, 2]),
    ],
)
def test_whole_numbers(found: BaseDistribution, values: list[int]) -> None:
    assert list(integer_values(found)) == values


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (IntDistribution(0, 3), "0 to 3"),
        (IntDistribution(0, 8, step=2), "0 to 8 in steps of 2"),
        (FloatDistribution(0.5, 1.0), "0.5 to 1.0"),
        (FloatDistribution(0.001, 0.1, log=True), "0.001 to 0.1, log"),
        (CategoricalDistribution(["keep", 3]), "keep, 3"),
    ],
)
def test_in_words(found: BaseDistribution, words: str) -> None:
    assert describe(found) == words
