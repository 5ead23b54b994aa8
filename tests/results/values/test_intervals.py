"""Confirming is honest: where nothing helps, a win is as rare as it is said to be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp

from autotune.results.values.intervals import (
    CONFIDENCE_LEVEL,
    Interval,
    compare_with_baseline,
    t_interval,
)

STUDIES = 600
PLANS = 5
#: A win is told by one side of intervals that have two.
FALSE_WINS = (1 - CONFIDENCE_LEVEL) / 2
VALIDATION = 180

#: Draws values (plans and the baseline, seeds).
Noise = Callable[[np.random.Generator, int], np.ndarray]


def shared(rng: np.random.Generator, seeds: int) -> np.ndarray:
    """Half of the variance is the seed's: the same for all."""
    return 0.01 * (rng.normal(size=seeds) + rng.normal(size=(PLANS + 1, seeds)))


def uneven(rng: np.random.Generator, seeds: int) -> np.ndarray:
    """The baseline, the last one, hardly varies; one plan varies more than all others."""
    deviations = np.array([0.04, 0.01, 0.01, 0.005, 0.002, 0.001])[:, None]
    return deviations * (rng.normal(size=(PLANS + 1, seeds)) + 0.5 * rng.normal(size=seeds))


def heavy(rng: np.random.Generator, seeds: int) -> np.ndarray:
    """Now and then a seed is far off, to either side."""
    return 0.01 * (rng.normal(size=seeds) + rng.standard_t(3, size=(PLANS + 1, seeds)))


def alike(rng: np.random.Generator, seeds: int) -> np.ndarray:
    """All plans are nearly one plan."""
    return 0.01 * (
        np.vstack([np.tile(rng.normal(size=seeds), (PLANS, 1)), rng.normal(size=seeds)])
        + 0.1 * rng.normal(size=(PLANS + 1, seeds))
    )


def few_images(rng: np.random.Generator, seeds: int) -> np.ndarray:
    """The deviation is half an image."""
    return 0.5 / VALIDATION * rng.normal(size=(PLANS + 1, seeds))


def wins(noise: Noise, seeds: int, gain: float = 0.0, maximized: bool = True) -> int:
    """Count the studies in which any plan is called better; the first one is, by ``gain``."""
    rng = np.random.default_rng(seeds)
    count = 0
    for _ in range(STUDIES):
        drawn = 0.9 + noise(rng, seeds)
        drawn[0] += gain
        values = np.round(drawn * VALIDATION) / VALIDATION
        *plans, baseline = (values if maximized else 1 - values).tolist()
        judged = compare_with_baseline(
            dict(enumerate(plans)), baseline, maximized=maximized, step=1 / VALIDATION
        )
        count += any(one.is_better for one in judged)
    return count


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("noise", [shared, uneven, heavy, alike, few_images])
def test_where_nothing_helps_a_win_is_rare(noise: Noise, seeds: int) -> None:
    assert wins(noise, seeds) <= binom.ppf(0.999, STUDIES, FALSE_WINS)


@pytest.mark.parametrize("maximized", [True, False])
def test_a_gain_that_is_there_is_found(maximized: bool) -> None:
    # Of the deviation of one plan from seed to seed, 0.01: the seed's own share cancels.
    assert wins(shared, 5, 0.05, maximized) > 0.85 * STUDIES
    assert wins(shared, 3, 0.05, maximized) < wins(shared, 5, 0.05, maximized)


def test_all_intervals_hold_together() -> None:
    rng = np.random.default_rng(1)
    truth = np.array([0.05, 0.03, 0.0, -0.02, -0.1, 0.0])[:, None]
    held = 0
    for _ in range(STUDIES):
        *plans, baseline = (truth + uneven(rng, 4)).tolist()
        judged = compare_with_baseline(dict(enumerate(plans)), baseline)
        held += all(one.gain.low <= truth[one.name] <= one.gain.high for one in judged)
    assert held >= binom.ppf(0.001, STUDIES, CONFIDENCE_LEVEL)


def test_an_interval_is_that_of_student() -> None:
    values = [0.91, 0.93, 0.96, 0.92]
    found = t_interval(values, 0.95)
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(("maximized", "order"), [(True, [3, 9, 7]), (False, [7, 3, 9])])
def test_the_best_mean_is_first(maximized: bool, order: list[int]) -> None:
    plans = {7: [0.5, 0.6], 3: [0.7, 0.8], 9: [0.8, 0.7]}
    found = compare_with_baseline(plans, [0.5, 0.5], maximized=maximized)
    assert [one.name for one in found] == order


def test_a_gain_is_positive_where_less_is_better() -> None:
    low, high = [0.2, 0.21, 0.19], [0.4, 0.41, 0.39]
    (found,) = compare_with_baseline({1: low}, high, maximized=False)
    assert found.gain == Interval(pytest.approx(0.2), pytest.approx(0.0, abs=1e-12))
    (worse,) = compare_with_baseline({1: high}, low, maximized=False)
    assert (found.is_better, worse.is_better) == (True, False)
    assert worse.gain.mean == pytest.approx(-0.2)


def test_one_image_more_under_every_seed_is_no_proof() -> None:
    plan, baseline = [0.91, 0.91, 0.91], [0.9, 0.9, 0.9]
    assert compare_with_baseline({1: plan}, baseline)[0].is_better
    assert not compare_with_baseline({1: plan}, baseline, step=0.01)[0].is_better
    assert compare_with_baseline({1: [0.95] * 3}, baseline, step=0.01)[0].is_better


def test_a_plan_that_is_left_out_counts() -> None:
    values, baseline = [0.92, 0.94, 0.93], [0.9, 0.9, 0.91]
    alone, chosen = (
        compare_with_baseline({1: values}, baseline, num_compared=among)[0] for among in (1, 5)
    )
    assert chosen.gain.half_width > 2 * alone.gain.half_width
    assert chosen.mean == alone.mean
