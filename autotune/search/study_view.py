"""The trials of a study as a sampler should see them.

Optuna's GP looks at complete trials only and would sample at random for as long as most trials
are pruned; neither it nor TPE learns from a plan that diverged. So both are shown what such trials
are worth:

- a pruned trial (to the GP) as a complete one with the value that its curve promises, see
  :class:`autotune.search.extrapolation.FinalValuePredictor`;
- a plan that failed (:data:`FAILED_PLAN`) as a complete one with the worst value there is;
- a plan beyond a constraint, which was never trained (to the GP), with the median value and its
  constraints: what is wrong with it is not its value.

The memory of its device is a constraint (:data:`DEVICE_MEMORY`) that only a plan tells which did
not fit. From the first such plan on, all ended trials are shown with the same constraints, which
the GP insists on: with what is known of their memory, or else with what is usual. A study that
never met one is shown as it is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from statistics import median
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune import optuna_private
from autotune.optuna_private import StorageProxy, StudyProxy
from autotune.search.extrapolation import FinalValuePredictor

#: User attribute (true) of a trial that failed because of its plan: it diverged, or does not fit
#: its backbone.
FAILED_PLAN = "failed_plan"
#: Constraint of a plan that did not fit into the memory of its device: what it wanted beyond
#: that, as a share of it.
DEVICE_MEMORY = "device_memory"
#: User attributes: what a trial held on its device at most, and what the device has.
PEAK_MEMORY_MB = "peak_memory_mb"
DEVICE_MEMORY_MB = "device_memory_mb"
#: What is taken of the memory by trials that fit where no trial tells: half of it.
_UNKNOWN_EXCESS = -0.5
#: Most trials that a GP is shown; the time of a suggestion grows with their third power.
MAX_TRIALS = 120
#: Id of a trial that is yet to be made, as Optuna has it.
UPCOMING = -1
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class _Storage(StorageProxy):
    """The storage of a study for a base sampler.

    Optuna's samplers write what they draw to the trial at once, for others to see while its
    parameters are suggested one by one. A trial that is not there yet will have them all.
    """

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write to a trial that is there."""
        if trial_id != UPCOMING:
            self._storage.set_trial_system_attr(trial_id, key, value)


class StudyView(StudyProxy):
    """A study as a base sampler should see it.

    Args:
        study: The study.
        names: The parameters that are sampled; trials that do not have them all are left out.
        impute: Whether pruned and infeasible trials are shown as complete ones.
        matches: Tells by its parameters whether a trial is shown at all.
        trials: The trials of the study, where they are at hand.
    """

    def __init__(
        self,
        study: Study,
        names: Collection[str],
        impute: bool,
        matches: Callable[[Mapping[str, Any]], bool] = lambda params: True,
        trials: Sequence[FrozenTrial] | None = None,
    ) -> None:
        super().__init__(study, _Storage(optuna_private.storage(study)))
        if trials is None:
            trials = study.get_trials(deepcopy=False)
        self._shown = [
            trial
            for trial in _equally_constrained(_imputed(study, trials, impute))
            if set(names) <= trial.params.keys() and matches(trial.params)
        ]
        if impute:
            self._shown = _thinned(self._shown, study)

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials to show."""
        return [one for one in self._shown if states is None or one.state in states]


def _imputed(study: Study, trials: Sequence[FrozenTrial], impute: bool) -> list[FrozenTrial]:
    """Return all trials that say something, with a value where they have none."""
    if len(study.directions) > 1:
        left = [one for one in trials if one.state != TrialState.FAIL]
        return _with_medians(left) if impute else left
    promises = FinalValuePredictor(
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
            value = promises.predict(trial.intermediate_values)
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


def _with_medians(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Show the plans that did not fit into memory as complete ones, of several objectives."""
    values = [one.values for one in trials if one.state == TrialState.COMPLETE]
    if not values:
        return list(trials)
    usual = [median(column) for column in zip(*values, strict=True)]
    return [
        _as_complete(one, *usual)
        if one.state == TrialState.PRUNED and DEVICE_MEMORY in one.constraints
        else one
        for one in trials
    ]


def _as_complete(trial: FrozenTrial, *values: float) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.state = TrialState.COMPLETE
    shown.values = list(values)
    return shown


def _equally_constrained(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Give all ended trials the same constraints, where one did not fit into memory."""
    ended = [one for one in trials if one.state in _ENDED]
    if not any(DEVICE_MEMORY in one.constraints for one in ended):
        return list(trials)
    told = {one.number: {**_excess_of(one), **one.constraints} for one in ended}
    names = sorted({name for known in told.values() for name in known})
    usual = {
        name: median(known[name] for known in told.values() if name in known) for name in names
    }
    # Who tells nothing of its memory did fit.
    fits = [known[DEVICE_MEMORY] for known in told.values() if known.get(DEVICE_MEMORY, 1.0) <= 0]
    usual[DEVICE_MEMORY] = median(fits) if fits else _UNKNOWN_EXCESS
    return [
        _constrained(one, {name: told[one.number].get(name, usual[name]) for name in names})
        if one.number in told
        else one
        for one in trials
    ]


def _excess_of(trial: FrozenTrial) -> dict[str, float]:
    """Return how the memory of a trial that fit lies to that of its device, if it is known."""
    attributes = trial.user_attrs
    if PEAK_MEMORY_MB not in attributes or DEVICE_MEMORY_MB not in attributes:
        return {}
    share = float(attributes[PEAK_MEMORY_MB]) / float(attributes[DEVICE_MEMORY_MB])
    return {DEVICE_MEMORY: min(0.0, share - 1.0)}


def _constrained(trial: FrozenTrial, constraints: Mapping[str, float]) -> FrozenTrial:
    """Copy a trial with these constraints in place of its own; their order counts to the GP."""
    shown = optuna_private.without_constraints(trial)
    for name, value in constraints.items():
        shown.set_constraint(name, value)
    return shown


def _thinned(trials: Sequence[FrozenTrial], study: Study) -> list[FrozenTrial]:
    """Leave at most ``MAX_TRIALS`` ended ones: the best half of them, and the newest."""
    ended = [one for one in trials if one.state in _ENDED]
    if len(ended) <= MAX_TRIALS or len(study.directions) > 1:
        return list(trials)
    sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
    by_value = sorted(ended, key=lambda one: sign * (one.value or 0.0))
    best = {one.number for one in by_value[: MAX_TRIALS // 2]}
    newest = [one.number for one in ended if one.number not in best][-(MAX_TRIALS // 2) :]
    kept = best | set(newest)
    return [one for one in trials if one.state not in _ENDED or one.number in kept]
