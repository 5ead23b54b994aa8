from __future__ import annotations

import math
import random

import pytest

from autotune.search.study_view import Curve, FinalValuePredictor, last_value

FEW = [({1: 0.5, 2: 0.6, 3: 0.9}, 0.9), ({1: 0.2, 2: 0.3, 3: 0.8}, 0.8), ({2: 0.5}, 0.5)]
#: Who is behind gains more: half of what was missing at the first step is made good.
LINE = [({1: at}, 0.5 + at / 2) for at in (0.2, 0.4, 0.6, 0.8)]
ODD = [({1: 0.5, 2: math.nan}, 0.9), ({1: 0.5, 2: 0.7}, 0.9), ({2: 0.1}, math.inf)]


def finals(*values: float) -> list[tuple[Curve, float]]:
    return [({1: at}, end) for at, end in zip((0.1, 0.2, 0.3, 0.4), values, strict=True)]


def test_the_last_finite_value() -> None:
    assert last_value({3: 0.3, 1: 0.1, 4: math.inf}) == (3, 0.3)
    assert last_value({1: math.nan}) is last_value({}) is None


@pytest.mark.parametrize(
    ("complete", "curve", "predicted"),
    [
        (FEW, {1: 0.4, 2: 0.4}, 0.4 + 0.3),  # few trials: the median gain, of 0.3, 0.5 and 0
        (FEW, {1: 0.4}, 0.4 + 0.5),  # of 0.4 and 0.6
        (FEW, {1: 0.4, 3: 0.4}, 0.4),
        (FEW, {7: 0.4}, 0.4),  # no other has come there
        ([], {1: 0.4}, 0.4),
        (LINE, {1: 0.3}, 0.65),
        (LINE, {1: 0.1}, 0.55),
        (finals(0.9, 0.8, 0.7, 0.6), {1: 0.1}, 0.75),  # the order turned round: it says nothing
        (finals(0.2, 0.5, 0.8, 1.1), {1: 0.1}, 0.65 + (0.1 - 0.25)),  # a lead does not grow
        ([({1: 0.5}, end) for end in (0.6, 0.7, 0.8, 0.9)], {1: 0.4}, 0.65),  # no line
        (ODD, {1: 0.1, 2: 0.3, 3: math.nan}, 0.3 + 0.2),
        (ODD, {1: math.nan, 2: math.inf}, None),
        (ODD, {}, None),
    ],
)
def test_the_prediction(
    complete: list[tuple[Curve, float]], curve: Curve, predicted: float | None
) -> None:
    expected = predicted if predicted is None else pytest.approx(predicted)
    assert FinalValuePredictor(complete).predict(curve) == expected


def test_what_pruning_left_out_does_not_bend_the_line() -> None:
    rng = random.Random(0)
    curves = [
        ({1: at}, 0.6 + 0.4 * at + rng.gauss(0, 0.02)) for at in [rng.random() for _ in range(400)]
    ]
    survivors = [curve for curve in curves if curve[0][1] > 0.5]
    assert FinalValuePredictor(survivors).predict({1: 0.2}) == pytest.approx(0.68, abs=0.02)
    gained = sorted(final - curve[1] for curve, final in survivors)[len(survivors) // 2]
    assert abs(0.2 + gained - 0.68) > 0.1  # the gain of the survivors is another one
