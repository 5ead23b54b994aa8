"""Pruners by name, with settings that fit a study of short trainings."""

from __future__ import annotations

import copy
import math
from typing import Any

from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, PercentilePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.config.fields import is_plugin_ref
from autotune.optuna_private import StudyProxy
from autotune.search.plugins import load_pruner_plugin

#: Minimum number of other trials with a value at an epoch before a trial is pruned there.
N_MIN_TRIALS = 5
#: Percent of the trials that a pruner keeps at every epoch.
KEPT_PERCENT = {"median": 50.0, "percentile": 75.0}
#: Shares of the trials that ``narrowing`` keeps after the warm-up and at the end.
NARROWING_SHARES = (0.5, 0.1)


def make_pruner(name: str, epochs: int, workers: int, head_epochs: int = 0) -> BasePruner:
    """Make the pruner of a study; steps are epochs, counted from 1.

    Every trial first gets its head-only epochs and a tenth of the others, in which the learning
    rate warms up. To wait longer saves less and tells no more: until the rate has come down far,
    later epochs predict the last one as badly (benchmarks/search_quality.py). ``median`` ends the
    worse half of the trials, ``narrowing`` the worse half at first and more and more later,
    ``percentile`` the worst quarter; they compare with all trials, running ones included, see
    :class:`AllTrialsPruner`. They wait for :data:`N_MIN_TRIALS` other trials at the epoch: so the
    first trials finish, and with many workers those in the lead.

    Args:
        name: ``median``, ``narrowing``, ``percentile``, ``hyperband``, ``none`` or
            ``my_file.py:MyPruner``.
        epochs: Epochs of an unpruned trial.
        workers: Workers of the study, for a custom pruner.
        head_epochs: The most epochs for which a trial trains its head only.

    Raises:
        KeyError: When there is no such pruner; the study file has been checked before.
    """
    if is_plugin_ref(name):
        return load_pruner_plugin(name, epochs, workers)
    warmup = head_epochs + max(1, (epochs - head_epochs) // 10)
    if name == "narrowing":
        return AllTrialsPruner(NarrowingPruner(warmup, epochs), epochs)
    if name in KEPT_PERCENT:
        base = PercentilePruner(KEPT_PERCENT[name], 0, warmup, n_min_trials=N_MIN_TRIALS)
        return AllTrialsPruner(base, epochs)
    if name == "hyperband":
        return HyperbandPruner(min_resource=warmup, max_resource=epochs, reduction_factor=3)
    if name == "none":
        return NopPruner()
    raise KeyError(name)


class NarrowingPruner(BasePruner):
    """Keep the better half of the trials after the warm-up, and the best tenth at the end.

    The share that is kept falls with the root of the time: the first evaluations say whether a
    trial is among the bad ones, the later ones whether it can still win.

    Args:
        warmup: Epochs before which no trial is pruned.
        epochs: Epochs of an unpruned trial.
    """

    def __init__(self, warmup: int, epochs: int) -> None:
        self._warmup = warmup
        self._epochs = epochs

    def share(self, epoch: int) -> float:
        """Return the share of the trials that is kept after an epoch."""
        first, last = NARROWING_SHARES
        time = (epoch - self._warmup) / max(1, self._epochs - self._warmup)
        return first + (last - first) * math.sqrt(min(max(time, 0.0), 1.0))

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell whether to prune a trial."""
        if trial.last_step is None:
            return False
        percent = 100 * self.share(trial.last_step)
        rule = PercentilePruner(percent, 0, self._warmup, n_min_trials=N_MIN_TRIALS)
        return rule.prune(study, trial)


class AllTrialsPruner(BasePruner):
    """Let a pruner compare a trial with every other trial that has a value at its epoch.

    A pruned trial keeps its last value in later epochs: it is among the worst there, so survivors
    only have to be better than what was given up. A running trial counts as far as it has come.
    """

    def __init__(self, base: BasePruner, epochs: int) -> None:
        self._base = base
        self._epochs = epochs

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell whether to prune a trial."""
        others: Any = _Others(study, trial, self._epochs)
        return self._base.prune(others, trial)


class _Others(StudyProxy):
    """A study in which all trials except one are complete."""

    def __init__(self, study: Study, trial: FrozenTrial, epochs: int) -> None:
        super().__init__(study)
        self._trial = trial
        self._epochs = epochs

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        """Return the trials with a curve."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        return [
            self._extend(trial)
            for trial in self._study.get_trials(deepcopy=False, states=states)
            if trial.intermediate_values and trial.number != self._trial.number
        ]

    def _extend(self, trial: FrozenTrial) -> FrozenTrial:
        if trial.state != TrialState.PRUNED:
            return trial
        extended, curve = copy.copy(trial), trial.intermediate_values
        last = max(curve)
        later = dict.fromkeys(range(last + 1, self._epochs + 1), curve[last])
        extended.intermediate_values = {**curve, **later}
        return extended
