"""The trials of a study as a sampler should see them.

Optuna's GP uses complete trials only and would sample at random while most trials are pruned;
neither the GP nor TPE learns from a plan that diverged. So they see:

- a pruned trial (GP only) as complete, with the value that
  :class:`FinalValuePredictor` predicts from its curve;
- a plan that failed (:data:`FAILED_PLAN`) as complete, with the worst value of the study;
- a plan beyond a constraint, which was never trained (GP only), with the median value and its
  constraints: its value is not what is wrong with it.

The memory of the device is a constraint (:data:`DEVICE_MEMORY`) that is known only of plans that
did not fit. The GP requires the same constraints of all trials, so from the first such plan on,
all ended trials have them: as measured, else the usual value. A study without such a plan is shown
as it is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from statistics import StatisticsError, linear_regression, mean, median
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune import optuna_private
from autotune.optuna_private import StorageProxy, StudyProxy

#: User attribute (true) of a trial that failed because of its plan: it diverged, or does not fit
#: its backbone.
FAILED_PLAN = "failed_plan"
#: Constraint of a plan that did not fit into device memory: the excess as a share of the memory.
DEVICE_MEMORY = "device_memory"
#: User attributes: peak memory of a trial on its device, and the memory of the device.
PEAK_MEMORY_MB = "peak_memory_mb"
DEVICE_MEMORY_MB = "device_memory_mb"
#: Excess that is assumed for trials that fit, if none was measured: half of the memory is free.
_UNKNOWN_EXCESS = -0.5
#: Most trials that a GP sees; the time of a suggestion grows with their third power.
MAX_TRIALS = 120
#: Minimum number of complete trials for a regression line; with fewer, only the gain is used.
MIN_FOR_LINE = 4
#: Optuna's id of a trial that is not created yet.
UPCOMING = -1
Curve = Mapping[int, float]
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class _Storage(StorageProxy):
    """The storage of a study, for a base sampler.

    Optuna's samplers write what they draw to the trial at once, for others to see while its
    parameters are suggested one by one. A trial that does not exist yet gets all of them later.
    """

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write to a trial that exists."""
        if trial_id != UPCOMING:
            self._storage.set_trial_system_attr(trial_id, key, value)


class StudyView(StudyProxy):
    """A study as a base sampler should see it.

    Args:
        study: The study.
        names: The sampled parameters; trials without all of them are hidden.
        impute: Whether pruned and infeasible trials are shown as complete.
        matches: Tells by its parameters whether a trial is shown.
        trials: The trials of the study, if they have been read already.
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
        self._visible = [
            trial
            for trial in _equally_constrained(_imputed(study, trials, impute))
            if set(names) <= trial.params.keys() and matches(trial.params)
        ]
        if impute:
            self._visible = _thinned(self._visible, study)

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials to show."""
        return [trial for trial in self._visible if states is None or trial.state in states]


def _imputed(study: Study, trials: Sequence[FrozenTrial], impute: bool) -> list[FrozenTrial]:
    """Return all informative trials, with a value where they have none."""
    if len(study.directions) > 1:
        left = [trial for trial in trials if trial.state != TrialState.FAIL]
        return _with_medians(left) if impute else left
    predictor = FinalValuePredictor(
        (trial.intermediate_values, trial.value)
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.value is not None
    )
    visible: list[FrozenTrial] = []
    failed: list[FrozenTrial] = []
    untrained: list[FrozenTrial] = []
    for trial in trials:
        if trial.state == TrialState.FAIL and trial.user_attrs.get(FAILED_PLAN):
            failed.append(trial)
        elif trial.state == TrialState.PRUNED and impute:
            value = predictor.predict(trial.intermediate_values)
            if value is None:
                untrained.append(trial)
            else:
                visible.append(_as_complete(trial, value))
        elif trial.state != TrialState.FAIL:
            visible.append(trial)
    values = [v for trial in visible if (v := trial.value) is not None and math.isfinite(v)]
    if values:
        worst = max(values) if study.direction == StudyDirection.MINIMIZE else min(values)
        visible += [_as_complete(trial, worst) for trial in failed]
        visible += [_as_complete(trial, median(values)) for trial in untrained]
    return sorted(visible, key=lambda trial: trial.number)


def _with_medians(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Show plans that did not fit into memory as complete, in a study of several objectives."""
    values = [trial.values for trial in trials if trial.state == TrialState.COMPLETE]
    if not values:
        return list(trials)
    medians = [median(column) for column in zip(*values, strict=True)]
    return [
        _as_complete(trial, *medians)
        if trial.state == TrialState.PRUNED and DEVICE_MEMORY in trial.constraints
        else trial
        for trial in trials
    ]


def _as_complete(trial: FrozenTrial, *values: float) -> FrozenTrial:
    copied = copy.copy(trial)
    copied.state = TrialState.COMPLETE
    copied.values = list(values)
    return copied


def _equally_constrained(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Give all ended trials the same constraints, if one of them did not fit into memory."""
    ended = [trial for trial in trials if trial.state in _ENDED]
    if not any(DEVICE_MEMORY in trial.constraints for trial in ended):
        return list(trials)
    constraints = {trial.number: {**_excess(trial), **trial.constraints} for trial in ended}
    names = sorted({name for own in constraints.values() for name in own})
    usual = {
        name: median(own[name] for own in constraints.values() if name in own) for name in names
    }
    # A trial of unknown memory did fit.
    fits = [own[DEVICE_MEMORY] for own in constraints.values() if own.get(DEVICE_MEMORY, 1.0) <= 0]
    usual[DEVICE_MEMORY] = median(fits) if fits else _UNKNOWN_EXCESS
    return [
        _constrained(
            trial, {name: constraints[trial.number].get(name, usual[name]) for name in names}
        )
        if trial.number in constraints
        else trial
        for trial in trials
    ]


def _excess(trial: FrozenTrial) -> dict[str, float]:
    """Return the memory constraint of a trial that fit, if its memory is known."""
    attributes = trial.user_attrs
    if PEAK_MEMORY_MB not in attributes or DEVICE_MEMORY_MB not in attributes:
        return {}
    share = float(attributes[PEAK_MEMORY_MB]) / float(attributes[DEVICE_MEMORY_MB])
    return {DEVICE_MEMORY: min(0.0, share - 1.0)}


def _constrained(trial: FrozenTrial, constraints: Mapping[str, float]) -> FrozenTrial:
    """Copy a trial with these constraints instead of its own; the GP relies on their order."""
    copied = optuna_private.without_constraints(trial)
    for name, value in constraints.items():
        copied.set_constraint(name, value)
    return copied


def _thinned(trials: Sequence[FrozenTrial], study: Study) -> list[FrozenTrial]:
    """Keep at most ``MAX_TRIALS`` ended trials: half of them the best, half the newest others."""
    ended = [trial for trial in trials if trial.state in _ENDED]
    if len(ended) <= MAX_TRIALS or len(study.directions) > 1:
        return list(trials)
    sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
    by_value = sorted(ended, key=lambda trial: sign * (trial.value or 0.0))
    best = {trial.number for trial in by_value[: MAX_TRIALS // 2]}
    newest = [trial.number for trial in ended if trial.number not in best][-(MAX_TRIALS // 2) :]
    kept = best | set(newest)
    return [trial for trial in trials if trial.state not in _ENDED or trial.number in kept]


def last_value(curve: Curve) -> tuple[int, float] | None:
    """Return step and value of the last finite value of a curve."""
    finite = [step for step, value in curve.items() if math.isfinite(value)]
    return (max(finite), curve[max(finite)]) if finite else None


class FinalValuePredictor:
    """Predicts the final value of pruned trials by regression on the complete trials of a study.

    Of the trials that continued beyond a step, the final value is regressed on the value at that
    step. A line, not the mean gain: plans that are behind early, above all those with a high
    learning rate, gain more than others. With the gain alone they look as bad as they were when
    they were pruned (the GP then learns from its pruner; benchmarks/search_quality.py). Selection
    by the pruner does not bend the line: it selects by the variable that is regressed on.
    """

    def __init__(self, complete: Iterable[tuple[Curve, float]]) -> None:
        self._complete = list(complete)
        self._lines: dict[int, tuple[float, float]] = {}

    def predict(self, curve: Curve) -> float | None:
        """Return the predicted final value, ``None`` for a curve without a finite value.

        If no complete trial has a value at the last step of the curve, it is the last value.
        """
        last = last_value(curve)
        if last is None:
            return None
        step, value = last
        if step not in self._lines:
            self._lines[step] = self._line(step)
        slope, intercept = self._lines[step]
        return slope * value + intercept

    def _line(self, step: int) -> tuple[float, float]:
        """Return slope and intercept; the slope is limited to 0 to 1."""
        pairs = [
            (curve[step], final)
            for curve, final in self._complete
            if math.isfinite(curve.get(step, math.nan)) and math.isfinite(final)
        ]
        if not pairs:
            return 1.0, 0.0
        if len(pairs) < MIN_FOR_LINE:
            return 1.0, median(final - value for value, final in pairs)
        values, finals = zip(*pairs, strict=True)
        try:
            slope = min(1.0, max(0.0, linear_regression(values, finals).slope))
        except StatisticsError:  # all values are equal
            slope = 1.0
        return slope, mean(finals) - slope * mean(values)
