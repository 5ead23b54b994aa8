from __future__ import annotations

import math
import random

import pytest

from autotune.search.extrapolation import FinalValuePredictor, last_value


def test_the_last_value_that_is_one() -> None:
    assert last_value({3: 0.3, 1: 0.1, 4: math.inf}) == (3, 0.3)
    assert last_value({1: math.nan}) is None
    assert last_value({}) is None


def test_few_trials_promise_what_they_gained() -> None:
    promises = FinalValuePredictor(
        [({1: 0.5, 2: 0.6, 3: 0.9}, 0.9), ({1: 0.2, 2: 0.3, 3: 0.8}, 0.8), ({2: 0.5}, 0.5)]
    )
    assert promises.predict({1: 0.4, 2: 0.4}) == pytest.approx(0.4 + 0.3)  # of 0.3, 0.5 and 0
    assert promises.predict({1: 0.4}) == pytest.approx(0.4 + 0.5)  # of 0.4 and 0.6
    assert promises.predict({1: 0.4, 3: 0.4}) == pytest.approx(0.4)
    assert promises.predict({7: 0.4}) == 0.4  # nobody was there
    assert FinalValuePredictor([]).predict({1: 0.4}) == 0.4


def test_many_trials_promise_what_the_line_through_them_says() -> None:
    """Who is behind gains more: half of what was missing at the first step is made good."""
    promises = FinalValuePredictor([({1: at}, 0.5 + at / 2) for at in (0.2, 0.4, 0.6, 0.8)])
    assert promises.predict({1: 0.3}) == pytest.approx(0.65)
    assert promises.predict({1: 0.1}) == pytest.approx(0.55)


def test_what_pruning_left_out_does_not_bend_the_line() -> None:
    rng = random.Random(0)
    curves = [
        ({1: at}, 0.6 + 0.4 * at + rng.gauss(0, 0.02)) for at in [rng.random() for _ in range(400)]
    ]
    survivors = [one for one in curves if one[0][1] > 0.5]
    assert FinalValuePredictor(survivors).predict({1: 0.2}) == pytest.approx(0.68, abs=0.02)
    gained = sorted(final - curve[1] for curve, final in survivors)[len(survivors) // 2]
    assert abs(0.2 + gained - 0.68) > 0.1  # the gain of the survivors is another one


@pytest.mark.parametrize(
    ("finals", "promised"),
    [
        ([0.9, 0.8, 0.7, 0.6], 0.75),  # the order turned round: the step says nothing
        ([0.2, 0.5, 0.8, 1.1], 0.65 + (0.1 - 0.25)),  # a lead does not grow
    ],
)
def test_a_lead_neither_turns_round_nor_grows(finals: list[float], promised: float) -> None:
    starts = (0.1, 0.2, 0.3, 0.4)
    promises = FinalValuePredictor(
        [({1: at}, end) for at, end in zip(starts, finals, strict=True)]
    )
    assert promises.predict({1: 0.1}) == pytest.approx(promised)


def test_equal_starts_make_no_line() -> None:
    promises = FinalValuePredictor([({1: 0.5}, end) for end in (0.6, 0.7, 0.8, 0.9)])
    assert promises.predict({1: 0.4}) == pytest.approx(0.65)


def test_numbers_that_are_none_promise_nothing() -> None:
    promises = FinalValuePredictor(
        [({1: 0.5, 2: math.nan}, 0.9), ({1: 0.5, 2: 0.7}, 0.9), ({2: 0.1}, math.inf)]
    )
    assert promises.predict({1: 0.1, 2: 0.3, 3: math.nan}) == pytest.approx(0.3 + 0.2)
    assert promises.predict({1: math.nan, 2: math.inf}) is None
    assert promises.predict({}) is None
