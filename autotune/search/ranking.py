"""The order of trials from best to worst, shared by the search and the reports.

With few validation images many trials have equal values, and their number says nothing about them:
the baseline has the lowest. The log loss on the same images, which also counts how sure a network
is, tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

#: User attribute of a trial: its validation metrics by name.
METRICS = "metrics"


def is_infeasible(trial: FrozenTrial) -> bool:
    """Tell whether a trial's plan costs more than its study allows."""
    return any(value > 0.0 for value in trial.constraints.values())


def best_trial(trials: Iterable[FrozenTrial], direction: StudyDirection) -> FrozenTrial | None:
    """Return the first trial of :func:`rank_trials`, or ``None``."""
    return next(iter(rank_trials(trials, direction)), None)


def rank_trials(trials: Iterable[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    """Return the complete, feasible trials, best first.

    Trials with equal :func:`rank_key` are ordered by number.
    """
    return sorted(_feasible(trials), key=lambda trial: (_key(trial, direction), trial.number))


def rank_key(
    values: Sequence[float], log_loss: float | None, direction: StudyDirection
) -> tuple[float, ...]:
    """Return what results are ordered by: the metric, the cost if there is one, the log loss.

    The best result has the smallest key.

    Args:
        values: The metric and, with two objectives, the cost.
        log_loss: The validation log loss. A result without one comes after equal ones.
        direction: The direction of the metric.
    """
    metric = -values[0] if direction == StudyDirection.MAXIMIZE else values[0]
    return metric, *values[1:], math.inf if log_loss is None else log_loss


def log_loss_of(trial: FrozenTrial) -> float | None:
    """Return the validation log loss of a trial; ``None`` where it is not stored."""
    value = trial.user_attrs.get(METRICS, {}).get("log_loss")
    return None if value is None else float(value)


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
    trial: FrozenTrial,
    values: Sequence[float],
    trials: Iterable[FrozenTrial],
    direction: StudyDirection,
) -> bool:
    """Tell whether a feasible trial is at least as good in all objectives.

    Of trials with equal values, the first of :func:`rank_trials` dominates the others.

    Args:
        trial: A trial that is about to end.
        values: Its values.
        trials: The trials of its study.
        direction: The direction of the metric.
    """
    own = (rank_key(values, log_loss_of(trial), direction), trial.number)
    return any(
        (_key(other, direction), other.number) < own
        and all(old <= new for old, new in zip(other.values[1:], values[1:], strict=True))
        for other in _feasible(trials)
    )


def _key(trial: FrozenTrial, direction: StudyDirection) -> tuple[float, ...]:
    return rank_key(trial.values, log_loss_of(trial), direction)


def _feasible(trials: Iterable[FrozenTrial]) -> Iterator[FrozenTrial]:
    return (
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.values and not is_infeasible(trial)
    )
