"""The trials of a study as a sampler should see them.

Optuna's GP looks at complete trials only and would sample at random for as long as most trials
are pruned; neither it nor TPE learns from a plan that diverged. So both are shown what such trials
are worth:

- a pruned trial (to the GP) as a complete one with the value that its curve promises, see
  :func:`promise`;
- a plan that failed (:data:`FAILED_PLAN`) as a complete one with the worst value there is;
- a plan beyond a constraint, which was never trained (to the GP), with the median value and its
  constraints: what is wrong with it is not its value.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

#: User attribute (true) of a trial that failed because of its plan: it diverged, or does not fit.
FAILED_PLAN = "failed_plan"
#: Most trials that a GP is shown; the time of a suggestion grows with their third power.
MOST_TRIALS = 120
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def last_value(curve: Mapping[int, float]) -> tuple[int, float] | None:
    """Return step and value of the last finite value of a curve."""
    finite = [step for step, value in curve.items() if math.isfinite(value)]
    return (max(finite), curve[max(finite)]) if finite else None


def promise(
    curve: Mapping[int, float], complete: Iterable[tuple[Mapping[int, float], float]]
) -> float | None:
    """Tell what a trial that was pruned would have reached.

    Its last value, plus the median of what complete trials gained from that step to their end.
    Where none has a value at that step, its last value alone.

    Args:
        curve: Values of the pruned trial by step.
        complete: Curve and final value of every complete trial.

    Returns:
        The value, or ``None`` when the trial reported none that is finite.
    """
    last = last_value(curve)
    if last is None:
        return None
    step, value = last
    gains = [
        final - other[step]
        for other, final in complete
        if math.isfinite(other.get(step, math.nan))
    ]
    return value + (median(gains) if gains else 0.0)


class StudyView:
    """A study as a base sampler should see it.

    Args:
        study: The study.
        names: The parameters that are sampled; trials that do not have them all are left out.
        impute: Whether pruned and infeasible trials are shown as complete ones.
        matches: Tells by its parameters whether a trial is shown at all.
    """

    def __init__(
        self,
        study: Study,
        names: Collection[str],
        impute: bool,
        matches: Callable[[Mapping[str, Any]], bool] = lambda params: True,
    ) -> None:
        self._study = study
        self._shown = [
            trial
            for trial in _imputed(study, impute)
            if set(names) <= trial.params.keys() and matches(trial.params)
        ]
        if impute:
            self._shown = _thinned(self._shown, study)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Collection[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        return [one for one in self._shown if states is None or one.state in states]

    get_trials = _get_trials


def _imputed(study: Study, impute: bool) -> list[FrozenTrial]:
    """Return all trials that say something, with a value where they have none."""
    trials = study._get_trials(deepcopy=False, use_cache=False)
    if len(study.directions) > 1:
        return [one for one in trials if one.state != TrialState.FAIL]
    curves = [
        (one.intermediate_values, one.value)
        for one in trials
        if one.state == TrialState.COMPLETE and one.value is not None
    ]
    shown: list[FrozenTrial] = []
    bad: list[FrozenTrial] = []
    unmeasured: list[FrozenTrial] = []
    for trial in trials:
        if trial.state == TrialState.FAIL and trial.user_attrs.get(FAILED_PLAN):
            bad.append(trial)
        elif trial.state == TrialState.PRUNED and impute:
            value = promise(trial.intermediate_values, curves)
            if value is None:
                unmeasured.append(trial)
            else:
                shown.append(_as_complete(trial, value))
        elif trial.state != TrialState.FAIL:
            shown.append(trial)
    values = [one.value for one in shown if one.value is not None and math.isfinite(one.value)]
    if values:
        worst = max(values) if study.direction == StudyDirection.MINIMIZE else min(values)
        shown += [_as_complete(one, worst) for one in bad]
        shown += [_as_complete(one, median(values)) for one in unmeasured]
    return sorted(shown, key=lambda one: one.number)


def _as_complete(trial: FrozenTrial, value: float) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.state = TrialState.COMPLETE
    shown.values = [value]
    return shown


def _thinned(trials: Sequence[FrozenTrial], study: Study) -> list[FrozenTrial]:
    """Leave at most ``MOST_TRIALS`` ended ones: the best half of them, and the newest."""
    ended = [one for one in trials if one.state in _ENDED]
    if len(ended) <= MOST_TRIALS or len(study.directions) > 1:
        return list(trials)
    sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
    by_value = sorted(ended, key=lambda one: sign * (one.value or 0.0))
    best = {one.number for one in by_value[: MOST_TRIALS // 2]}
    newest = [one.number for one in ended if one.number not in best][-(MOST_TRIALS // 2) :]
    kept = best | set(newest)
    return [one for one in trials if one.state not in _ENDED or one.number in kept]
