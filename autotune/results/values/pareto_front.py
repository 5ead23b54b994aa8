"""The Pareto front of a study of two objectives, and plans beyond the limits of a study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.results.values.objective import Objective
from autotune.search import ranking
from autotune.study.state import attrs

#: Trials of a Pareto front that the terminal lists.
MAX_FRONT_LINES = 10


def front_of(study: Study) -> list[FrozenTrial]:
    """Return the Pareto front of a study; empty where there is one objective.

    Args:
        study: The study.

    Returns:
        The trials from the best metric to the lowest cost.
    """
    if Objective.cost_from_study(study) is None:
        return []
    return ranking.pareto_front(study.get_trials(deepcopy=False), attrs.metric_direction(study))


def closest_to_feasible(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Return the trial that is beyond the limits by the least, or ``None`` if none is."""
    beyond = [one for one in trials if ranking.is_infeasible(one) and one.state.is_finished()]
    return min(beyond, key=lambda one: max(one.constraints.values()), default=None)


def explain_no_best(trials: Sequence[FrozenTrial]) -> str:
    """Say why a study has no best trial."""
    least = closest_to_feasible(trials)
    if least is None:
        return "no complete trial yet"
    return (
        f"no complete trial within the limits; the nearest is trial {least.number}, "
        f"{describe_excess(least)}"
    )


def describe_excess(trial: FrozenTrial) -> str:
    """Return what a trial's plan has too much of: ``12.3 M parameters, at most 10.0 M``."""
    reason = str(trial.user_attrs.get(attrs.REASON, attrs.INFEASIBLE))
    return reason.removeprefix(f"{attrs.INFEASIBLE}: ")
