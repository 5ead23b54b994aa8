"""What stands below the answer of a study: key figures, and how far to trust the numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from optuna.trial import TrialState

from autotune.results.diagnosis.answer import last_test
from autotune.results.figures.history import last_moment
from autotune.results.noise import noise_between
from autotune.results.study_results import StudyResults
from autotune.results.values.speed import describe_speed
from autotune.study.state import attrs
from autotune.study.state.budget import (
    EXHAUSTED,
    STOPPED,
    TIMEOUT,
    TRIALS,
    device_hours_used,
)
from autotune.text import format_duration

#: What ended a study, as a budget is called -> in words, where that says more.
_ENDED_BY = {
    TRIALS: "number of trials",
    TIMEOUT: "time limit",
    EXHAUSTED: "no further plan",
    STOPPED: "request",
}


def key_figures(results: StudyResults) -> list[tuple[str, str, str]]:
    """Return the numbers below the headline: name, number, what it is made of."""
    trials = results.trials
    figures = [("finished trials", results.finished, results.format_counts())]
    start, end = attrs.first_start(trials), last_moment(trials)
    if start is not None and end is not None:
        workers = {trial.user_attrs.get(attrs.WORKER) for trial in trials} - {None}
        devices = sorted({str(trial.user_attrs.get(attrs.DEVICE, "")) for trial in trials} - {""})
        seconds = 3600 * device_hours_used(trials, time.time())
        begin, until = start.astimezone(), end.astimezone()  # Optuna's times are local
        period = f"{begin:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M %Z}"
        on = f"{seconds:,.0f} s on {len(workers)} worker{'s' * (len(workers) != 1)}"
        on += f" ({', '.join(devices)})" if devices else ""
        figures += [
            ("wall time", format_duration((end - start).total_seconds()), period),
            ("device time", format_duration(seconds), on),
        ]
    if results.selection is not None:
        value, ends = results.selection.value, results.objective.format_value
        basis = (
            f"95 % interval {ends(value.low)} to {ends(value.high)}; the best of "
            f"{len(results.selection.chances)} was chosen by the images that measured it"
        )
        figures.append(("best value, corrected", ends(value.value), basis))
    if epochs := sum(attrs.trained_epochs(trial) for trial in results.last_attempts):
        saved = describe_saved_epochs(results) or "pruning saved none yet"
        figures.append(("epochs trained", f"{epochs:,}", saved))
    images, computed = _frozen_passes(results)
    if images > computed:
        share = f"{100 * (images - computed) / images:.0f} %"
        passes = f"{images - computed:,} of {images:,} passes of an image through frozen layers"
        figures.append(("features reused", share, passes))
    if results.stop_reason is not None:
        reason = results.stop_reason
        figures.append(("ended by", _ENDED_BY.get(reason.kind, reason.kind), reason.text))
    return figures


def describe_saved_epochs(results: StudyResults) -> str:
    """Say how many epochs pruning has saved, of those of all complete and pruned trials.

    Example:
        ``pruning saved 312 of 800 epochs (39 %)``; empty when it saved none
    """
    saved = attrs.pruned_epochs(results.trials, results.epochs)
    total = results.epochs * sum(
        trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        and not attrs.ended_infeasible(trial)
        for trial in results.trials
    )
    if not saved:
        return ""
    return f"pruning saved {saved:,} of {total:,} epochs ({100 * saved / total:.0f} %)"


def _frozen_passes(results: StudyResults) -> tuple[int, int]:
    """Count the images that networks with cached features got, and those that were computed.

    Each of k folds trains on k - 1 parts of the images and validates on the other one.
    """
    dataset = results.dataset
    train, validation = int(dataset.get("train", 0)), int(dataset.get("validation", 0))
    folds = len(dataset.get("folds") or ())
    caches = [
        (trial, cache)
        for trial in results.last_attempts
        if "computed" in (cache := trial.user_attrs.get(attrs.CACHES, {}))
    ]
    epochs = sum(attrs.trained_epochs(trial) for trial, _ in caches)
    images = epochs * (train * folds if folds else train + validation)
    return images, sum(int(cache["computed"]) for _, cache in caches)


def describe_correction(results: StudyResults) -> str:
    """Say what the best value is worth; empty while fewer than two trials can be compared.

    Example:
        ``corrected for the choice among 40 plans: 94.3 %``
    """
    if results.selection is None:
        return ""
    value = results.objective.format_value(results.selection.value.value)
    return f"corrected for the choice among {len(results.selection.chances)} plans: {value}"


def describe_confirmation(results: StudyResults) -> str:
    """Describe what ``autotune confirm`` found; empty where it was not called."""
    verdict, best = results.verdict, results.best
    if verdict is None:
        return ""
    confirmed = "Confirmed" if verdict.is_better else "Not confirmed"
    text = f"{confirmed} over seeds, on validation images: {verdict.describe(results.objective)}"
    if best is not None and best.number not in verdict.trials and not attrs.is_baseline(best):
        text += f"; trial {best.number}, the best one now, was not among them"
    return f"{text}."


def describe_refit(results: StudyResults) -> str:
    """Describe what ``autotune refit`` last measured on the test split; empty if never called."""
    last, objective = last_test(results), results.objective
    if last is None:
        return ""
    value, baseline = (float(last[name][objective.name]) for name in ("test", "baseline"))
    gain = objective.format_difference(value, baseline)
    if interval := last.get("gain"):
        _, *ends = objective.gain_interval(interval)
        gain += f", interval of the gain {objective.format_interval(*ends)}"
    reads = len(results.attributes[attrs.TEST_READS])
    often = f"{reads} times; a choice that uses these values makes them optimistic"
    speed = f" {describe_speed(last['speed'])}" if "speed" in last else ""
    return (
        f"On the test split, which no trial has seen: trial {last['trial']}, trained on training "
        f"and validation images, has {objective.format_value(value)}, the baseline "
        f"{objective.format_value(baseline)} ({gain}). {_describe_combination(results, last)}It "
        f"was read {'once' if reads == 1 else often}.{speed}"
    )


def _describe_combination(results: StudyResults, last: Mapping[str, Any]) -> str:
    """Say what a combination of several trainings adds on the test split, if there was one."""
    combined, objective = last.get("combination"), results.objective
    if not combined:
        return ""
    value, single = (float(each["test"][objective.name]) for each in (combined, last))
    _, *ends = objective.gain_interval(combined["gain_to_single"])
    return (
        f"The model in the folder, {combined['name']}, has {objective.format_value(value)} "
        f"({objective.format_difference(value, single)}, interval of the gain "
        f"{objective.format_interval(*ends)}). "
    )


def caveats(results: StudyResults) -> list[str]:
    """Say how far the numbers of a report can be trusted."""
    best, baseline, objective = results.best, results.baseline, results.objective
    if best is None:
        return []
    text = (
        "The values of trials are validation values. The best of many is chosen by the very value "
        "that is shown, so it is optimistic"
    )
    missing = [] if results.verdict else ["autotune confirm trains the best plans anew"]
    if last_test(results) is None:
        missing.append("autotune refit measures the test split, which no trial has seen, once")
    if corrected := describe_correction(results):
        text += f" ({corrected})"
    texts = [f"{text}; {', and '.join(missing)}." if missing else f"{text}."]
    if folds := results.dataset.get("folds"):
        texts.append(
            f"Every value is a mean over {len(folds)} folds, and ± the standard deviation over "
            "them. That is how much one fold differs from another, not the error of the mean, "
            "which is smaller."
        )
    has_gain = best is not baseline and not results.is_tied
    noise = noise_between(results, best, baseline) if baseline and has_gain else None
    if noise is not None and baseline is not None:
        gain = objective.gain(best.values[0], baseline.values[0])
        text = (
            f"The gain of {objective.format_gain(gain)} has a noise of "
            f"{objective.format_gain(noise.error)}, {noise.basis}"
        )
        if gain < 2 * noise.error:
            text += ": it is less than twice that, so it may be chance"
        texts.append(f"{text}.")
    return texts
