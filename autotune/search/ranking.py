"""The order of trials from best to worst, shared by the search and the reports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


def is_infeasible(trial: FrozenTrial) -> bool:
    """Tell whether a trial's plan costs more than its study allows."""
    return any(value > 0.0 for value in trial.constraints.values())


def best_trial(trials: Iterable[FrozenTrial], direction: StudyDirection) -> FrozenTrial | None:
    """Return the first trial of :func:`rank_trials`, or ``None``."""
    return next(iter(rank_trials(trials, direction)), None)


def rank_trials(trials: Iterable[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    """Return the complete, feasible trials, best first.

    Trials with equal metrics are ordered by cost (with two objectives), then by number.
    """
    sign = _sign(direction)
    return sorted(
        _feasible(trials),
        key=lambda trial: (sign * trial.values[0], *trial.values[1:], trial.number),
    )


def pareto_front(trials: Iterable[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    """Return the Pareto front of trials with two objectives, from best metric to lowest cost.

    Of trials with equal values it has the first.
    """
    front: list[FrozenTrial] = []
    for trial in rank_trials(trials, direction):
        if not front or trial.values[1] < front[-1].values[1]:
            front.append(trial)
    return front


def is_dominated(
    values: Sequence[float], trials: Iterable[FrozenTrial], direction: StudyDirection
) -> bool:
    """Tell whether a feasible trial is at least as good as these values in all objectives."""
    sign = _sign(direction)
    return any(
        sign * trial.values[0] <= sign * values[0]
        and all(old <= new for old, new in zip(trial.values[1:], values[1:], strict=True))
        for trial in _feasible(trials)
    )


def _feasible(trials: Iterable[FrozenTrial]) -> Iterator[FrozenTrial]:
    return (
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.values and not is_infeasible(trial)
    )


def _sign(direction: StudyDirection) -> float:
    return -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
