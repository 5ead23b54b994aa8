"""Pruners by name, with the settings that fit a study of short trainings."""

from __future__ import annotations

import copy
from typing import Any

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, PercentilePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.config.fields import is_plugin_ref
from autotune.optuna_private import StudyProxy
from autotune.search.plugins import load_pruner_plugin

#: So many other trials must have a value at an epoch before they are a measure for it.
N_MIN_TRIALS = 5


def make_pruner(name: str, epochs: int, workers: int, head_epochs: int = 0) -> BasePruner:
    """Make the pruner of a study; steps are epochs, counted from 1.

    Args:
        name: ``median``, ``percentile``, ``hyperband``, ``none`` or ``my_file.py:MyPruner``.
        epochs: Epochs of an unpruned trial.
        workers: Workers of the study, for a pruner of one's own.
        head_epochs: The most epochs for which a trial trains its head alone.

    Returns:
        A pruner that leaves every trial, after the epochs of its head alone, a tenth of the
        others, in which the learning rate warms up. Waiting longer saves less and tells no more:
        until the rate has come down far, the values of later epochs say as little of the last one
        (benchmarks/search_quality.py). ``median`` ends the worse half of the trials and
        ``percentile`` the worst quarter; both are measured by all trials, running ones included,
        see :class:`AllTrialsPruner`. :data:`N_MIN_TRIALS` others must have come as far:
        so the first trials finish, and with many workers those that are ahead.

    Raises:
        KeyError: When there is no such pruner; the study file has been checked before.
    """
    if is_plugin_ref(name):
        return load_pruner_plugin(name, epochs, workers)
    warmup = head_epochs + max(1, (epochs - head_epochs) // 10)
    if name == "median":
        return AllTrialsPruner(MedianPruner(0, warmup, n_min_trials=N_MIN_TRIALS), epochs)
    if name == "percentile":
        return AllTrialsPruner(
            PercentilePruner(75.0, 0, warmup, n_min_trials=N_MIN_TRIALS), epochs
        )
    if name == "hyperband":
        return HyperbandPruner(min_resource=warmup, max_resource=epochs, reduction_factor=3)
    if name == "none":
        return NopPruner()
    raise KeyError(name)


class AllTrialsPruner(BasePruner):
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


class _Others(StudyProxy):
    """A study in which all trials but one are complete."""

    def __init__(self, study: Study, trial: FrozenTrial, epochs: int) -> None:
        super().__init__(study)
        self._trial = trial
        self._epochs = epochs

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
