"""The trials of a study as a sampler should see them.

Optuna's GP looks at complete trials only and would sample at random for as long as most trials
are pruned; neither it nor TPE learns from a plan that diverged. So both are shown what such trials
are worth:

- a pruned trial (to the GP) as a complete one with the value that its curve promises, see
  :class:`autotune.search.promise.Promises`;
- a plan that failed (:data:`FAILED_PLAN`) as a complete one with the worst value there is;
- a plan beyond a constraint, which was never trained (to the GP), with the median value and its
  constraints: what is wrong with it is not its value.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import median
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune.search.promise import Promises

#: User attribute (true) of a trial that failed because of its plan: it diverged, or does not fit.
FAILED_PLAN = "failed_plan"
#: Most trials that a GP is shown; the time of a suggestion grows with their third power.
MOST_TRIALS = 120
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


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
    promises = Promises(
        (one.intermediate_values, one.value)
        for one in trials
        if one.state == TrialState.COMPLETE and one.value is not None
    )
    shown: list[FrozenTrial] = []
    bad: list[FrozenTrial] = []
    unmeasured: list[FrozenTrial] = []
    for trial in trials:
        if trial.state == TrialState.FAIL and trial.user_attrs.get(FAILED_PLAN):
            bad.append(trial)
        elif trial.state == TrialState.PRUNED and impute:
            value = promises.of(trial.intermediate_values)
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
