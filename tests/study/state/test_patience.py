"""When a search has gone on for long enough: a count, or what it could still gain."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.study.state import attrs
from autotune.study.state.budget import (
    MIN_TRIALS,
    comparison_error,
    gain_of_doubling,
    impatience,
)
from autotune.study.state.predictions import encode_scores

MAXIMIZE, MINIMIZE = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
IMAGES = 200


def trials_of(scores: Sequence[np.ndarray], pruned: int = 0) -> list[FrozenTrial]:
    """Make trials that end one after the other, from what they scored on single images."""
    trials = [
        create_trial(
            value=float(score.mean()), user_attrs={attrs.IMAGE_SCORES: encode_scores(score)}
        )
        for score in scores
    ]
    trials += [create_trial(state=TrialState.PRUNED) for _ in range(pruned)]
    for number, trial in enumerate(trials):
        trial.number = number
        trial.datetime_complete = datetime(2026, 1, 1, 0, 0, number)
    return trials


def right(counts: Sequence[int], images: int = IMAGES) -> list[np.ndarray]:
    """Return scores of networks that have the first so many images right."""
    return [(np.arange(images) < count).astype(float) for count in counts]


@pytest.mark.parametrize("direction", [MAXIMIZE, MINIMIZE])
def test_the_gain_of_doubling_is_that_over_all_halves(direction: StudyDirection) -> None:
    values = [0.5, 0.9, 0.7, 0.7, 0.1, 0.3]
    trials = [create_trial(value=value) for value in values]
    best = max if direction == MAXIMIZE else min
    halves = [best(half) for half in itertools.combinations(values, 3)]
    wanted = abs(best(values) - sum(halves) / len(halves))
    assert gain_of_doubling(trials, direction) == pytest.approx(wanted)


def test_a_pruned_trial_is_in_no_half_the_best() -> None:
    trials = trials_of(right([150, 140, 130, 120]))
    more = trials_of(right([150, 140, 130, 120]), pruned=4)
    assert gain_of_doubling(more, MAXIMIZE) > gain_of_doubling(trials, MAXIMIZE)


def test_a_search_goes_on_while_it_gains_more_than_the_error() -> None:
    rising = trials_of(right([*range(100, 98 + MIN_TRIALS), 150, 190]))
    assert impatience(rising, MAXIMIZE, "noise") == ""
    level = trials_of(right([150 + index % 3 for index in range(MIN_TRIALS)]))
    assert impatience(level[:-1], MAXIMIZE, "noise") == ""
    text = impatience(level, MAXIMIZE, "noise")
    gain = gain_of_doubling(level, MAXIMIZE)
    assert text.startswith(f"as many trials again would gain about {gain:.2g}, less than")
    error = comparison_error(level, MAXIMIZE)
    assert error is not None and f"{error:.2g}" in text


def test_the_error_is_that_of_paired_images() -> None:
    first, other = right([100, 90])
    other[95:99] = 1.0  # they disagree on 6 images
    trials = trials_of([first, other])
    wanted = (first - other).std(ddof=1) / IMAGES**0.5
    assert comparison_error(trials, MAXIMIZE) == pytest.approx(wanted, rel=1e-6)


def test_the_error_counts_all_images_where_few_are_kept() -> None:
    few, many = (trials_of(right([n // 2, n // 2 - n // 50], n)) for n in (1000, 4000))
    errors = [comparison_error(trials, MAXIMIZE) for trials in (few, many)]
    assert errors[0] is not None and errors[1] is not None
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.05)


def test_trials_of_older_versions_end_no_study() -> None:
    trials = trials_of(right([150] * MIN_TRIALS))
    for trial in trials:
        trial.user_attrs = {}
    assert impatience(trials, MAXIMIZE, "noise") == ""
