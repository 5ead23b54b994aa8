"""Pruners by name, with the settings that fit a study of short trainings."""

from __future__ import annotations

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, PercentilePruner

from autotune.rules import is_own
from autotune.search.among import AmongAll
from autotune.search.own import load_own_pruner

#: So many other trials must have a value at an epoch before they are a measure for it.
MEASURE = 5


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
        see :class:`autotune.search.among.AmongAll`. :data:`MEASURE` others must have come as far:
        so the first trials finish, and with many workers those that are ahead.

    Raises:
        KeyError: When there is no such pruner; the study file has been checked before.
    """
    if is_own(name):
        return load_own_pruner(name, epochs, workers)
    warmup = head_epochs + max(1, (epochs - head_epochs) // 10)
    if name == "median":
        return AmongAll(MedianPruner(0, warmup, n_min_trials=MEASURE), epochs)
    if name == "percentile":
        return AmongAll(PercentilePruner(75.0, 0, warmup, n_min_trials=MEASURE), epochs)
    if name == "hyperband":
        return HyperbandPruner(min_resource=warmup, max_resource=epochs, reduction_factor=3)
    if name == "none":
        return NopPruner()
    raise KeyError(name)
