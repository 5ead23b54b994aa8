"""Pruners by name, with the settings that fit a study of short trainings."""

from __future__ import annotations

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, PercentilePruner

from autotune.rules import is_own
from autotune.search.among import AmongAll
from autotune.search.own import load_own_pruner


def make_pruner(name: str, epochs: int, workers: int, head_epochs: int = 0) -> BasePruner:
    """Make the pruner of a study; steps are epochs, counted from 1.

    Args:
        name: ``median``, ``percentile``, ``hyperband``, ``none`` or ``my_file.py:MyPruner``.
        epochs: Epochs of an unpruned trial.
        workers: Workers of the study; with many, the first finished trials come in together.
        head_epochs: The most epochs for which a trial trains its head alone.

    Returns:
        A pruner that lets the first trials finish and leaves every trial, after the epochs of its
        head alone, a tenth of the others, in which the learning rate warms up. Waiting longer
        saves less and tells no more: until the rate has come down far, the values of later epochs
        say as little of the last one (benchmarks/search_quality.py). Median and percentile are
        those of all trials, see :class:`autotune.search.among.AmongAll`.

    Raises:
        KeyError: When there is no such pruner; the study file has been checked before.
    """
    if is_own(name):
        return load_own_pruner(name, epochs, workers)
    startup = max(5, 2 * workers)
    warmup = head_epochs + max(1, (epochs - head_epochs) // 10)
    if name == "median":
        return AmongAll(MedianPruner(startup, warmup, n_min_trials=3), epochs)
    if name == "percentile":
        return AmongAll(PercentilePruner(25.0, startup, warmup, n_min_trials=3), epochs)
    if name == "hyperband":
        return HyperbandPruner(min_resource=warmup, max_resource=epochs, reduction_factor=3)
    if name == "none":
        return NopPruner()
    raise KeyError(name)
