"""The answer of a study in words: a headline, the numbers below it, how far to trust them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.results.diagnosis.diagnostics import Diagnostic
from autotune.results.diagnosis.savings import saved_by_pruning
from autotune.results.figures.history import last_moment
from autotune.results.values.objective import Objective, format_duration, format_values
from autotune.results.values.pareto_front import closest_to_feasible, explain_no_best, front_of
from autotune.results.values.verdict import Verdict, format_gain
from autotune.search import ranking
from autotune.study.state import attrs
from autotune.study.state.attrs import Progress
from autotune.study.state.budget import StopReason, device_hours_used


def headline(study: Study) -> str:
    """Answer in one sentence what a study found, for a page or a terminal.

    Args:
        study: The study, at any stage.
    """
    trials = study.get_trials(deepcopy=False)
    objective, cost = Objective.from_study(study), Objective.cost_from_study(study)
    direction = attrs.metric_direction(study)
    best, baseline = ranking.best_trial(trials, direction), attrs.find_baseline(trials)
    if best is None:
        if closest_to_feasible(trials) is not None:
            return explain_no_best(trials)
        return _nothing_yet(attrs.count_progress(trials, attrs.trial_budget(study)))
    plan = attrs.trial_plan(best)
    words = f": {plan.describe(attrs.has_several_backbones(study.user_attrs))}" if plan else ""
    shown = format_values(best, objective, cost)
    if baseline is None:
        return f"best {shown} (trial {best.number}){words}; the baseline is not complete yet"
    value, start = best.values[0], baseline.values[0]
    if best is not baseline:
        return (
            f"baseline {format_values(baseline, objective, cost)} → best {shown} (trial "
            f"{best.number}, {objective.format_difference(value, start)}){words}{_of_front(study)}"
        )
    others = [one for one in trials if one is not baseline]
    second = ranking.best_trial(others, direction)
    if second is None:
        return f"only the baseline is complete: {shown}"
    if second.values[0] == value:
        return (
            f"no trial is better than the baseline: {shown}, which trial {second.number} "
            "reaches as well"
        )
    return (
        f"no trial is better than the baseline: {shown}; the nearest is trial {second.number} "
        f"with {format_values(second, objective, cost)} "
        f"({objective.format_difference(second.values[0], value)}){_of_front(study)}"
    )


def _of_front(study: Study) -> str:
    """Say how many trials trade the metric for a cost; nothing where there is one objective."""
    count = len(front_of(study))
    return f"; {count} trials on the Pareto front" if count > 1 else ""


def _nothing_yet(progress: Progress) -> str:
    counts = {
        "running": progress.running,
        "waiting": progress.waiting,
        "pruned": progress.pruned,
        "infeasible": progress.infeasible,
        "failed": progress.failed,
        "given back": progress.retried,
    }
    seen = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"no trial is complete yet ({seen})" if seen else "nothing has run yet"


def key_figures(
    study: Study, trials: Sequence[FrozenTrial], progress: Progress
) -> list[tuple[str, str, str]]:
    """Return the numbers below the headline: name, number, what it is made of."""
    of_budget = f" of {progress.budget}" if progress.budget else ""
    parts = {
        "complete": progress.complete,
        "pruned": progress.pruned,
        "infeasible": progress.infeasible,
        "failed": progress.failed,
        "retried": progress.retried,
        "running": progress.running,
        "waiting": progress.waiting,
    }
    counted = ", ".join(f"{n} {name}" for name, n in parts.items() if n or name in _ALWAYS)
    found = [("finished trials", f"{progress.finished}{of_budget}", counted)]
    start, end = attrs.first_start(trials), last_moment(trials)
    if start is not None and end is not None:
        workers = {one.user_attrs.get(attrs.WORKER) for one in trials} - {None}
        devices = sorted({str(one.user_attrs.get(attrs.DEVICE, "")) for one in trials} - {""})
        spent = 3600 * device_hours_used(trials, time.time())
        period = f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}"
        many = "s" if len(workers) != 1 else ""
        found += [
            ("wall time", format_duration((end - start).total_seconds()), period),
            (
                "device time",
                format_duration(spent),
                f"{spent:,.0f} s on {len(workers)} worker{many}"
                + (f" ({', '.join(devices)})" if devices else ""),
            ),
        ]
    trained = _epochs_trained(trials)
    if trained:
        saved = saved_by_pruning(study, trials) or "pruning saved none yet"
        found.append(("epochs trained", f"{trained:,}", saved))
    ended = ended_by(study, progress)
    if ended is not None:
        found.append(("ended by", ended.kind, ended.text))
    return found


_ALWAYS = ("complete", "pruned", "failed")


def ended_by(study: Study, progress: Progress) -> StopReason | None:
    """Return what has ended a study; ``None`` while something runs."""
    return None if progress.running else StopReason.from_study(study)


def _epochs_trained(trials: Sequence[FrozenTrial]) -> int:
    """Count the epochs trained.

    A retry's count includes its earlier attempts, so attempts with a successor are left out.
    """
    superseded = attrs.retried_numbers(trials)
    return sum(attrs.trained_epochs(one) for one in trials if one.number not in superseded)


def describe_confirmation(study: Study, best: FrozenTrial | None) -> str:
    """Say what ``autotune confirm`` found, empty where it was not called.

    Args:
        study: The study.
        best: Its best trial now.
    """
    verdict = Verdict.from_study(study)
    if verdict is None:
        return ""
    said = f"Confirmed over seeds: {verdict.describe(Objective.from_study(study))}"
    if best is not None and best.number not in verdict.trials and not attrs.is_baseline(best):
        said += f"; trial {best.number}, the best one now, was not among them"
    return f"{said}."


def describe_refit(study: Study) -> str:
    """Say what the last ``autotune refit`` measured on the test part; empty where there was none.

    Args:
        study: The study.
    """
    reads: Sequence[Mapping[str, Any]] = study.user_attrs.get(attrs.TEST_READS, ())
    if not reads:
        return ""
    last, objective = reads[-1], Objective.from_study(study)
    value, baseline = (last[who].get(objective.name) for who in ("test", "baseline"))
    if value is None or baseline is None:
        return ""
    known = ""
    if gain := last.get("gain"):
        low, high = (format_gain(objective, gain[end], unit=False) for end in ("low", "high"))
        known = f", interval of the gain {low} to {high}"
    often = "once" if len(reads) == 1 else f"{len(reads)} times"
    said = (
        f"On the test part, which no trial has seen: trial {last['trial']}, fitted on training "
        f"and validation images, has {objective.format_value(value)}, the baseline "
        f"{objective.format_value(baseline)} "
        f"({objective.format_difference(value, baseline)}{known}). It was read {often}"
    )
    if len(reads) > 1:
        said += "; where one chooses by what it says, it is optimistic as well"
    return f"{said}."


def caveats(
    objective: Objective,
    best: FrozenTrial | None,
    baseline: FrozenTrial | None,
    dataset: Mapping[str, Any],
) -> list[str]:
    """Say how far the numbers on the page can be trusted."""
    value = attrs.metric_value(best) if best is not None else None
    if best is None or value is None:
        return []
    said = [
        "These are validation values. The best of many trials is chosen by the very value that "
        "is shown, so it is optimistic; autotune confirm trains the best plans under other seeds, "
        "and autotune refit measures the test part, which no trial has seen, once."
    ]
    if folds := dataset.get("folds"):
        said.append(
            f"Every value is a mean over {len(folds)} folds, and ± the standard deviation over "
            "them. That is how much one fold differs from another, not the error of the mean, "
            "which is smaller."
        )
    images = int(dataset.get("validation") or 0)
    if objective.name == "accuracy" and images:
        # Of a binomial share; the two share their images, so their difference is known better.
        error = math.sqrt(max(0.0, value * (1 - value)) / images)
        noise = (
            f"On {images:,} validation images, one standard error of "
            f"{objective.format_value(value)} is {100 * error:.1f} points"
        )
        gained = value - baseline.values[0] if baseline is not None else 0.0
        if best is not baseline and 0 < gained < 2 * error:
            noise += (
                f"; the gain of {100 * gained:.{objective.decimals}f} points is less than two "
                "of them, so it may be chance"
            )
        said.append(noise + ".")
    return said


def action_items(
    progress: Progress, asked: Sequence[Diagnostic], ended: StopReason | None = None
) -> list[str]:
    """Say what asks for something to be done.

    Args:
        progress: How many trials ended how.
        asked: The answers of the playbook.
        ended: What has ended the study, or ``None``.
    """
    said = []
    if ended is None and progress.budget and progress.finished < progress.budget:
        said.append(
            f"The study is not at its end: {progress.budget - progress.finished} of "
            f"{progress.budget} trials are missing."
        )
    return said + [f"{one.question} {one.answer}" for one in asked if one.mark == "act"]
