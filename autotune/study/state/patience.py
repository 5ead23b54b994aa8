"""When a search has run for long enough with little success, or none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from autotune.search import ranking
from autotune.study.state import attrs
from autotune.study.state.image_scores import paired_error

#: Finished trials before anything is said about more of them.
MIN_TRIALS = 20
#: Trials whose differences to the best one tell the error of a comparison.
RIVALS = 10


def impatience(
    trials: Sequence[FrozenTrial], direction: StudyDirection, patience: int | str
) -> str:
    """Return why a study has used up its patience; empty while it has not.

    Args:
        trials: The trials of the study.
        direction: Of its metric.
        patience: Finished trials without a better one, or ``noise``: the study ends when as many
            trials again would gain less than the error with which two of them are compared.
    """
    if isinstance(patience, int):
        since = trials_since_best(trials, direction)
        return f"no better trial in the last {since}" if since >= patience else ""
    ended = _ended(trials)
    if len(ended) < MIN_TRIALS:  # before scores are decoded, at each claim
        return ""
    error = comparison_error(ended, direction)
    if error is None or (gain := gain_of_doubling(ended, direction)) >= error:
        return ""
    return (
        f"as many trials again would gain about {gain:.2g}, less than the standard error of a "
        f"comparison, {error:.2g}"
    )


def trials_since_best(trials: Sequence[FrozenTrial], direction: StudyDirection) -> int:
    """Count the trials that ended after the best one, in the order in which they ended.

    Among equals the first one is the best. Before a trial is complete, none is counted.
    """
    ended = _ended(trials)
    best = ranking.best_trial(ended, direction)
    if best is None:
        return 0
    first = next(
        index
        for index, trial in enumerate(ended)
        if trial.value == best.value and ranking.best_trial([trial], direction) is not None
    )
    return len(ended) - 1 - first


def gain_of_doubling(ended: Sequence[FrozenTrial], direction: StudyDirection) -> float:
    """Return how much the best value gains on average when the number of trials doubles.

    That is the best value of all trials less the mean best value of all halves of them. Trials
    without a value of their own are in no half the best.
    """
    values = [trial.values[0] for trial in ranking.rank_trials(ended, direction)]
    count, half = len(ended), len(ended) // 2
    halves = math.comb(count, half)
    # The share of the halves whose best trial is the one at this rank.
    shares = [math.comb(count - 1 - rank, half - 1) / halves for rank in range(len(values))]
    mean = sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares)
    return float(abs(values[0] - mean))


def comparison_error(ended: Sequence[FrozenTrial], direction: StudyDirection) -> float | None:
    """Return the usual standard error of the difference of the best trial to those behind it.

    ``None`` where the trials have no scores of single images.
    """
    ranked = ranking.rank_trials(ended, direction)
    is_share = direction == StudyDirection.MAXIMIZE
    errors = [paired_error(ranked[0], rival, is_share) for rival in ranked[1 : 1 + RIVALS]]
    known = [error for error in errors if error is not None]
    return median(known) if known else None


def _ended(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that have ended for good, in the order in which they ended."""
    retried = attrs.retried_numbers(trials)
    return sorted(
        (trial for trial in trials if trial.state.is_finished() and trial.number not in retried),
        key=lambda trial: (attrs.ended_at(trial), trial.number),
    )
