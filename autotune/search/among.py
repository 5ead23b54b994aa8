"""Pruning against all trials, those that were pruned included.

Optuna's percentile pruners compare a trial with the complete ones alone. Those have survived the
pruner themselves, so the bar rises with every trial that does, until half of the best plans fall
below it: while a learning rate comes down, curves of good plans cross.
"""

from __future__ import annotations

import copy
from typing import Any

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


class AmongAll(BasePruner):
    """Let a pruner compare a trial with every trial that has ended.

    A pruned trial counts as one that would have stayed where it was: at later epochs it is among
    the worst, so survivors have only to be better than what was given up.

    Args:
        base: A pruner that compares with complete trials.
        epochs: Epochs of an unpruned trial.
    """

    def __init__(self, base: BasePruner, epochs: int) -> None:
        self._base = base
        self._epochs = epochs

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell whether a trial is to end here."""
        view: Any = _Ended(study, self._epochs)
        return self._base.prune(view, trial)


class _Ended:
    """A study whose pruned trials are complete ones that stayed at their last value."""

    def __init__(self, study: Study, epochs: int) -> None:
        self._study = study
        self._epochs = epochs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        """Return the trials that have ended with a curve."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        return [
            self._extended(one)
            for one in self._study.get_trials(deepcopy=False, states=ended)
            if one.intermediate_values
        ]

    def _extended(self, trial: FrozenTrial) -> FrozenTrial:
        if trial.state == TrialState.COMPLETE:
            return trial
        shown = copy.copy(trial)
        curve = trial.intermediate_values
        last = max(curve)
        later = dict.fromkeys(range(last + 1, self._epochs + 1), curve[last])
        shown.intermediate_values = {**curve, **later}
        return shown
