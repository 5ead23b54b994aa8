"""Pruners by name, with the settings that fit a study of short trainings."""

from __future__ import annotations

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, PercentilePruner

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
        head alone, a fifth of the others, in which the learning rate warms up and the layers find
        their feet.

    Raises:
        KeyError: When there is no such pruner; the study file has been checked before.
    """
    if ":" in name:
        return load_own_pruner(name, epochs, workers)
    startup = max(5, 2 * workers)
    warmup = head_epochs + max(1, (epochs - head_epochs) // 5)
    if name == "median":
        return MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup, n_min_trials=3)
    if name == "percentile":
        return PercentilePruner(
            25.0, n_startup_trials=startup, n_warmup_steps=warmup, n_min_trials=3
        )
    if name == "hyperband":
        return HyperbandPruner(min_resource=warmup, max_resource=epochs, reduction_factor=3)
    if name == "none":
        return NopPruner()
    raise KeyError(name)
