"""Pruning against all trials: those that were pruned and those that still run included.

Optuna's percentile pruners compare a trial with the complete ones alone. Those have survived the
pruner themselves, so the bar rises with every trial that does, until half of the best plans fall
below it: while a learning rate comes down, curves of good plans cross. And where many workers
train side by side, their first trials have no complete one to be compared with.
"""

from __future__ import annotations

import copy
from typing import Any

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


class AmongAll(BasePruner):
    """Let a pruner compare a trial with every other that has a value at its epoch.

    A pruned trial counts as one that would have stayed where it was: at later epochs it is among
    the worst, so survivors have only to be better than what was given up. A running one counts as
    far as it has come.

    Args:
        base: A pruner that compares with complete trials.
        epochs: Epochs of an unpruned trial.
    """

    def __init__(self, base: BasePruner, epochs: int) -> None:
        self._base = base
        self._epochs = epochs

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell whether a trial is to end here."""
        view: Any = _Others(study, trial, self._epochs)
        return self._base.prune(view, trial)


class _Others:
    """A study in which all trials but one are complete."""

    def __init__(self, study: Study, trial: FrozenTrial, epochs: int) -> None:
        self._study = study
        self._trial = trial
        self._epochs = epochs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        """Return the trials with a curve."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        return [
            self._extended(one)
            for one in self._study.get_trials(deepcopy=False, states=states)
            if one.intermediate_values and one.number != self._trial.number
        ]

    def _extended(self, trial: FrozenTrial) -> FrozenTrial:
        if trial.state != TrialState.PRUNED:
            return trial
        shown = copy.copy(trial)
        curve = trial.intermediate_values
        last = max(curve)
        later = dict.fromkeys(range(last + 1, self._epochs + 1), curve[last])
        shown.intermediate_values = {**curve, **later}
        return shown
