"""What pruning and the caches have saved of a study, in epochs, images and estimated seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.results.values.objective import format_duration
from autotune.study.state import attrs


@dataclass(frozen=True)
class Saving:
    """What one part of autotune has saved.

    Args:
        by: What saved it.
        counted: How much was saved, as counted.
        time: The seconds that this means, as an estimate with its basis; empty where there is
            none that would be honest.
    """

    by: str
    counted: str
    time: str = ""


def saved_of(study: Study) -> tuple[Saving, ...]:
    """Return what was saved in a study; nothing of what it did not record.

    Args:
        study: The study, at any stage.
    """
    trials = study.get_trials(deepcopy=False)
    superseded = attrs.retried_numbers(trials)
    # A retry has the counts of its earlier attempts.
    last = [one for one in trials if one.number not in superseded]
    found = (_by_pruning(study, last), _by_features(study, last), _by_decoding(study, last))
    return tuple(one for one in found if one is not None)


def saved_by_pruning(study: Study, trials: Sequence[FrozenTrial]) -> str:
    """Say how many epochs pruning has saved, of those of all complete and pruned trials.

    Example:
        ``pruning saved 312 of 800 epochs (39 %)``; empty when it saved none
    """
    counted = _pruned_epochs(study, trials)
    return f"pruning saved {counted}" if counted else ""


def _pruned_epochs(study: Study, trials: Sequence[FrozenTrial]) -> str:
    epochs = _epochs(study)
    saved = attrs.pruned_epochs(trials, epochs)
    judged = sum(
        one.state in (TrialState.COMPLETE, TrialState.PRUNED) and not attrs.ended_infeasible(one)
        for one in trials
    )
    if not saved:
        return ""
    return f"{saved:,} of {judged * epochs:,} epochs ({100 * saved / (judged * epochs):.0f} %)"


def _by_pruning(study: Study, trials: Sequence[FrozenTrial]) -> Saving | None:
    counted = _pruned_epochs(study, trials)
    if not counted:
        return None
    epochs, seconds = _epochs(study), 0.0
    for one in trials:
        trained, took = attrs.trained_epochs(one), one.user_attrs.get(attrs.SECONDS)
        if not attrs.pruned_epochs([one], epochs) or not trained:
            continue
        if took is None:
            return Saving("pruning", counted)
        seconds += float(took) / trained * (epochs - trained)
    return Saving(
        "pruning",
        counted,
        f"an estimated {format_duration(seconds)}, by the seconds per epoch of each pruned trial",
    )


def _by_features(study: Study, trials: Iterable[FrozenTrial]) -> Saving | None:
    """Compare the images that networks were shown with those that a frozen part computed."""
    split = [(one, _caches(one)) for one in trials if "computed" in _caches(one)]
    shown = sum(attrs.trained_epochs(one) for one, _ in split) * _images_of_an_epoch(study)
    computed = sum(int(caches["computed"]) for _, caches in split)
    kept = shown - computed
    if kept <= 0:
        return None
    counted = (
        f"{kept:,} of {shown:,} passes of an image through the frozen part of a network "
        f"({100 * kept / shown:.0f} %)"
    )
    if not computed:
        return Saving("kept features", counted)
    each = sum(float(caches["seconds"]) for _, caches in split) / computed
    return Saving(
        "kept features",
        counted,
        f"an estimated {format_duration(each * kept)}, at the {1000 * each:.2g} ms that each of "
        f"the {computed:,} computed ones took, reading and augmenting its image included",
    )


def _by_decoding(study: Study, trials: Iterable[FrozenTrial]) -> Saving | None:
    """Count the images shown from decoded ones; what decoding them would take is not known."""
    once = [one for one in trials if _caches(one).get("decoded") == "once"]
    dataset = study.user_attrs.get(attrs.DATASET, {})
    backbones = {plan.backbone for one in once if (plan := attrs.trial_plan(one)) is not None}
    images = int(dataset.get("train", 0))
    if not dataset.get("folds"):
        images += int(dataset.get("validation", 0))
    images *= len(backbones)
    shown = sum(attrs.trained_epochs(one) for one in once) * _images_of_an_epoch(study)
    if shown <= images:
        return None
    return Saving(
        "decoded images",
        f"{images:,} images, decoded at most once, stood for {shown:,} showings (the seconds of "
        "decoding are not recorded)",
    )


def _caches(trial: FrozenTrial) -> dict[str, Any]:
    found: dict[str, Any] = trial.user_attrs.get(attrs.CACHES, {})
    return found


def _epochs(study: Study) -> int:
    training = study.user_attrs.get(attrs.DEFINITION, {}).get("training", {})
    return int(training.get("epochs", 0))


def _images_of_an_epoch(study: Study) -> int:
    """Count the images of an epoch: those that are trained on, and those that judge.

    Of k folds every image trains k - 1 networks and judges one.
    """
    dataset = study.user_attrs.get(attrs.DATASET, {})
    train, validation = int(dataset.get("train", 0)), int(dataset.get("validation", 0))
    return train * len(dataset["folds"]) if dataset.get("folds") else train + validation
