"""The answer of a study in words: the headline, the key figures, and how far to trust them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import TrialState

from autotune.results.diagnosis.diagnostics import Diagnostic
from autotune.results.figures.history import last_moment
from autotune.results.study_results import StudyResults, describe_excess
from autotune.search import ranking
from autotune.study.state import attrs
from autotune.study.state.budget import device_hours_used
from autotune.text import format_duration


def headline(results: StudyResults) -> str:
    """Answer in one sentence what a study found."""
    best, baseline = results.best, results.baseline
    if best is None:
        if results.no_result is not None:
            return results.no_result.reason
        if results.closest_to_feasible is not None:
            return results.explain_no_best()
        counts = results.format_counts(with_zeros=False)
        return f"no trial is complete yet ({counts})" if counts else "nothing has run yet"
    plan = results.describe_plan(best)
    plan = f": {plan}" if plan else ""
    value = results.format_values(best)
    if baseline is None:
        state = "failed" if results.baseline_failure else "is not complete yet"
        return f"best {value} (trial {best.number}){plan}; the baseline {state}"
    front = f"; {len(results.front)} trials on the Pareto front" if len(results.front) > 1 else ""
    difference = results.objective.format_difference
    if best is not baseline:
        gain = difference(best.values[0], baseline.values[0])
        return (
            f"baseline {results.format_values(baseline)} → best {value} (trial {best.number}, "
            f"{gain}){plan}{front}"
        )
    others = (trial for trial in results.trials if trial is not baseline)
    second = ranking.best_trial(others, results.direction)
    if second is None:
        return f"only the baseline is complete: {value}"
    if second.values[0] == best.values[0]:
        return (
            f"no trial is better than the baseline: {value}, which trial {second.number} reaches "
            "as well"
        )
    return (
        f"no trial is better than the baseline: {value}; the nearest is trial {second.number} "
        f"with {results.format_values(second)} "
        f"({difference(second.values[0], best.values[0])}){front}"
    )


def key_figures(results: StudyResults) -> list[tuple[str, str, str]]:
    """Return the numbers below the headline: name, number, what it is made of."""
    trials = results.trials
    figures = [("finished trials", results.finished, results.format_counts())]
    start, end = attrs.first_start(trials), last_moment(trials)
    if start is not None and end is not None:
        workers = {trial.user_attrs.get(attrs.WORKER) for trial in trials} - {None}
        devices = sorted({str(trial.user_attrs.get(attrs.DEVICE, "")) for trial in trials} - {""})
        seconds = 3600 * device_hours_used(trials, time.time())
        period = f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}"
        on = f"{seconds:,.0f} s on {len(workers)} worker{'s' * (len(workers) != 1)}"
        on += f" ({', '.join(devices)})" if devices else ""
        figures += [
            ("wall time", format_duration((end - start).total_seconds()), period),
            ("device time", format_duration(seconds), on),
        ]
    if epochs := sum(attrs.trained_epochs(trial) for trial in results.last_attempts):
        saved = describe_saved_epochs(results) or "pruning saved none yet"
        figures.append(("epochs trained", f"{epochs:,}", saved))
    images, computed = _frozen_passes(results)
    if images > computed:
        share = f"{100 * (images - computed) / images:.0f} %"
        passes = f"{images - computed:,} of {images:,} passes of an image through frozen layers"
        figures.append(("features reused", share, passes))
    if results.stop_reason is not None:
        figures.append(("ended by", results.stop_reason.kind, results.stop_reason.text))
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


def describe_confirmation(results: StudyResults) -> str:
    """Describe what ``autotune confirm`` found; empty where it was not called."""
    verdict, best = results.verdict, results.best
    if verdict is None:
        return ""
    text = f"Confirmed over seeds: {verdict.describe(results.objective)}"
    if best is not None and best.number not in verdict.trials and not attrs.is_baseline(best):
        text += f"; trial {best.number}, the best one now, was not among them"
    return f"{text}."


def describe_refit(results: StudyResults) -> str:
    """Describe what ``autotune refit`` last measured on the test split; empty if never called."""
    reads: Sequence[Mapping[str, Any]] = results.attributes.get(attrs.TEST_READS, ())
    if not reads:
        return ""
    last, objective = reads[-1], results.objective
    value, baseline = (last[name].get(objective.name) for name in ("test", "baseline"))
    if value is None or baseline is None:
        return ""
    gain = objective.format_difference(value, baseline)
    if interval := last.get("gain"):
        low, high = (objective.format_gain(interval[end], unit=False) for end in ("low", "high"))
        gain += f", interval of the gain {low} to {high}"
    text = (
        f"On the test split, which no trial has seen: trial {last['trial']}, trained on training "
        f"and validation images, has {objective.format_value(value)}, the baseline "
        f"{objective.format_value(baseline)} ({gain}). It was read "
    )
    if len(reads) == 1:
        return f"{text}once."
    return f"{text}{len(reads)} times; a choice that uses these values makes them optimistic."


def caveats(results: StudyResults) -> list[str]:
    """Say how far the numbers of a report can be trusted."""
    best, baseline, objective = results.best, results.baseline, results.objective
    if best is None:
        return []
    value = best.values[0]
    texts = [
        "These are validation values. The best of many trials is chosen by the very value that "
        "is shown, so it is optimistic; autotune confirm trains the best plans under other seeds, "
        "and autotune refit measures the test split, which no trial has seen, once."
    ]
    if folds := results.dataset.get("folds"):
        texts.append(
            f"Every value is a mean over {len(folds)} folds, and ± the standard deviation over "
            "them. That is how much one fold differs from another, not the error of the mean, "
            "which is smaller."
        )
    images = int(results.dataset.get("validation") or 0)
    if objective.name == "accuracy" and images:
        # Of a binomial share. Best and baseline share their images, so their difference is known
        # better.
        error = math.sqrt(max(0.0, value * (1 - value)) / images)
        noise = (
            f"On {images:,} validation images, one standard error of "
            f"{objective.format_value(value)} is {100 * error:.1f} points"
        )
        gain = value - baseline.values[0] if baseline is not None else 0.0
        if best is not baseline and 0 < gain < 2 * error:
            noise += (
                f"; the gain of {objective.format_gain(gain)} is less than two of them, so it may "
                "be chance"
            )
        texts.append(f"{noise}.")
    return texts


def action_items(results: StudyResults, diagnostics: Sequence[Diagnostic]) -> list[str]:
    """Say what should be done next."""
    progress, texts = results.progress, []
    missing = progress.budget - progress.finished
    reason = results.stop_reason
    if (reason is None or reason.is_request) and missing > 0:
        texts.append(
            f"The study is not at its end: {missing} of {progress.budget} trials are missing."
        )
    if results.no_result is not None:
        texts.append(f"{results.no_result.advice}.")
        if closest := results.closest_to_feasible:
            texts.append(f"The nearest is trial {closest.number}: {describe_excess(closest)}.")
    return texts + [
        f"{diagnostic.question} {diagnostic.answer}"
        for diagnostic in diagnostics
        if diagnostic.severity == "action"
    ]
