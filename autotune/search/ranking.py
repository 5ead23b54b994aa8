"""Which of some trials is the best: the order that the search and the reports share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


def is_infeasible(trial: FrozenTrial) -> bool:
    """Tell whether a trial's plan costs more than its study allows."""
    return any(value > 0.0 for value in trial.constraints.values())


def best_trial(trials: Iterable[FrozenTrial], direction: StudyDirection) -> FrozenTrial | None:
    """Return the best completed trial within the limits, or ``None``.

    Of two objectives that is the one with the best metric. Among equals it is the one that costs
    less, then the earliest.

    Args:
        trials: The trials.
        direction: Direction of the metric.
    """
    return next(iter(rank_trials(trials, direction)), None)


def pareto_front(trials: Iterable[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    """Return the Pareto front: no other trial has a better metric and costs no more.

    Args:
        trials: The trials, of two objectives; of those with equal values the first counts.
        direction: Direction of the metric.

    Returns:
        The trials from the best metric to the lowest cost.
    """
    front: list[FrozenTrial] = []
    for one in rank_trials(trials, direction):
        if not front or one.values[1] < front[-1].values[1]:
            front.append(one)
    return front


def is_dominated(
    values: Sequence[float], trials: Iterable[FrozenTrial], direction: StudyDirection
) -> bool:
    """Tell whether some trial within the limits is as good as these values in all objectives."""
    sign = _sign(direction)
    return any(
        sign * one.values[0] <= sign * values[0]
        and all(has <= new for has, new in zip(one.values[1:], values[1:], strict=True))
        for one in _feasible(trials)
    )


def rank_trials(trials: Iterable[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    """Return the completed trials within the limits, the best one first; see :func:`best_trial`.

    Args:
        trials: The trials.
        direction: Direction of the metric.
    """
    sign = _sign(direction)
    return sorted(
        _feasible(trials), key=lambda one: (sign * one.values[0], *one.values[1:], one.number)
    )


def _feasible(trials: Iterable[FrozenTrial]) -> Iterator[FrozenTrial]:
    return (
        one
        for one in trials
        if one.state == TrialState.COMPLETE and one.values and not is_infeasible(one)
    )


def _sign(direction: StudyDirection) -> float:
    return -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
