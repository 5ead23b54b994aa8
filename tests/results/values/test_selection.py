"""What the best of many plans is worth, in cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.results.values.selection import Floats, Selection, judge_selection


def judge(scores: Floats, **options: int) -> Selection:
    values = dict(enumerate(scores.mean(axis=1).tolist()))
    return judge_selection(values, dict(enumerate(scores)), **options)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_best_of_equal_plans_is_worth_their_mean(sign: int) -> None:
    """In the mean of some studies the best looks more than 3 points better than it is."""
    generator, raw, corrected = np.random.default_rng(0), [], []
    for _ in range(20):
        scores = sign * (generator.random((12, 200)) < 0.9).astype(float)
        selection = judge(scores, maximized=sign > 0)
        raw.append(max(sign * scores.mean(axis=1)))
        corrected.append(sign * selection.value.value)
        assert sum(selection.chances.values()) == pytest.approx(1)
    assert np.mean(raw) > 0.93
    assert np.mean(corrected) == pytest.approx(0.9, abs=0.012)


def test_a_clear_winner_keeps_its_value() -> None:
    generator = np.random.default_rng(1)
    scores = generator.random((10, 400)) < np.array([[0.9], *[[0.5]] * 9])
    selection = judge(scores.astype(float), baseline=9)
    value = scores[0].mean()
    assert selection.chances[0] == 1
    assert selection.value.value == pytest.approx(value, abs=0.002)
    assert selection.value.low < value < selection.value.high
    assert selection.gain is not None
    assert selection.gain.value == pytest.approx(value - scores[9].mean(), abs=0.003)
    assert selection.gain.low > 0.3


def test_scores_of_a_part_of_the_images_stand_for_all() -> None:
    scores = (np.random.default_rng(2).random((5, 100)) < 0.8).astype(float)
    few, many = judge(scores), judge(scores, images=10_000)
    assert few.value.high - few.value.low > 5 * (many.value.high - many.value.low)
    assert abs(many.value.value - scores.mean(axis=1).max()) < 0.01
