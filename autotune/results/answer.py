"""The answer of a study in words: a headline, the numbers below it, how far to trust them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.results.course import last_moment
from autotune.results.edges import Edge
from autotune.results.front import front_of, nearest, none_yet
from autotune.results.objective import Objective, show_values
from autotune.results.verdict import Verdict
from autotune.search import ranking
from autotune.study import record
from autotune.study.budget import Ending, held_hours
from autotune.study.record import Progress

#: Share of failed trials from which the page asks to look into them.
_MANY_FAILURES = 0.1
#: Share of infeasible trials from which the page asks to change the space or the limits.
_MANY_INFEASIBLE = 0.5
#: A best trial among the last of this share of the finished ones asks for more trials.
_LATE = 0.15


def headline(study: Study) -> str:
    """Answer in one sentence what a study found, for a page or a terminal.

    Args:
        study: The study, at any stage.
    """
    trials = study.get_trials(deepcopy=False)
    objective, cost = Objective.of(study), Objective.cost_of(study)
    direction = record.direction_of(study)
    best, baseline = ranking.best_of(trials, direction), record.baseline_of(trials)
    if best is None:
        if nearest(trials) is not None:
            return none_yet(trials)
        return _nothing_yet(record.progress_of(trials, record.budget_of(study)))
    plan = record.plan_of(best)
    words = f": {plan.in_words(record.has_several(study.user_attrs))}" if plan else ""
    shown = show_values(best, objective, cost)
    if baseline is None:
        return f"best {shown} (trial {best.number}){words}; the baseline is not complete yet"
    value, start = best.values[0], baseline.values[0]
    if best is not baseline:
        return (
            f"baseline {show_values(baseline, objective, cost)} → best {shown} (trial "
            f"{best.number}, {objective.difference(value, start)}){words}{_of_front(study)}"
        )
    others = [one for one in trials if one is not baseline]
    second = ranking.best_of(others, direction)
    if second is None:
        return f"only the baseline is complete: {shown}"
    if second.values[0] == value:
        return (
            f"no trial is better than the baseline: {shown}, which trial {second.number} "
            "reaches as well"
        )
    return (
        f"no trial is better than the baseline: {shown}; the nearest is trial {second.number} "
        f"with {show_values(second, objective, cost)} "
        f"({objective.difference(second.values[0], value)}){_of_front(study)}"
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


def facts(
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
    start, end = record.started(trials), last_moment(trials)
    if start is not None and end is not None:
        workers = {one.user_attrs.get(record.WORKER) for one in trials} - {None}
        devices = sorted({str(one.user_attrs.get(record.DEVICE, "")) for one in trials} - {""})
        spent = 3600 * held_hours(trials, time.time())
        period = f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}"
        many = "s" if len(workers) != 1 else ""
        found += [
            ("wall time", in_time((end - start).total_seconds()), period),
            (
                "device time",
                in_time(spent),
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
        found.append(("ended by", ended.kind, ended.words))
    return found


_ALWAYS = ("complete", "pruned", "failed")


def in_time(seconds: float) -> str:
    """Write a duration with two units.

    Example:
        >>> in_time(4980)
        '1 h 23 min'
    """
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.3g} s"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def ended_by(study: Study, progress: Progress) -> Ending | None:
    """Return what has ended a study; ``None`` while something runs."""
    return None if progress.running else Ending.of(study)


def saved_by_pruning(study: Study, trials: Sequence[FrozenTrial]) -> str:
    """Say how many epochs pruning has saved, of those of all complete and pruned trials.

    Example:
        ``pruning saved 312 of 800 epochs (39 %)``; empty when it saved none
    """
    training = study.user_attrs.get(record.DEFINITION, {}).get("training", {})
    epochs = int(training.get("epochs", 0))
    saved = record.saved_epochs(trials, epochs)
    judged = sum(
        one.state in (TrialState.COMPLETE, TrialState.PRUNED) and not record.is_untrained(one)
        for one in trials
    )
    if not saved:
        return ""
    share = _percent(saved / (judged * epochs))
    return f"pruning saved {saved:,} of {judged * epochs:,} epochs ({share})"


def _epochs_trained(trials: Sequence[FrozenTrial]) -> int:
    """Count the epochs trained.

    A retry's count includes its earlier attempts, so attempts with a successor are left out.
    """
    superseded = record.superseded(trials)
    return sum(record.epochs_of(one) for one in trials if one.number not in superseded)


def confirmed(study: Study, best: FrozenTrial | None) -> str:
    """Say what ``autotune confirm`` found, empty where it was not called.

    Args:
        study: The study.
        best: Its best trial now.
    """
    verdict = Verdict.of(study)
    if verdict is None:
        return ""
    said = f"Confirmed over seeds: {verdict.in_words(Objective.of(study))}"
    if best is not None and best.number not in verdict.trials and not record.is_baseline(best):
        said += f"; trial {best.number}, the best one now, was not among them"
    return f"{said}."


def cautions(
    objective: Objective,
    best: FrozenTrial | None,
    baseline: FrozenTrial | None,
    dataset: Mapping[str, Any],
) -> list[str]:
    """Say how far the numbers on the page can be trusted."""
    value = record.metric_of(best) if best is not None else None
    if best is None or value is None:
        return []
    said = [
        "These are validation values. The best of many trials is chosen by the very value that "
        "is shown, so it is optimistic; autotune confirm trains the best plans under other seeds, "
        "and autotune fit measures the test part, which no trial has seen, once."
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
            f"{objective.show(value)} is {100 * error:.1f} points"
        )
        gained = value - baseline.values[0] if baseline is not None else 0.0
        if best is not baseline and 0 < gained < 2 * error:
            noise += (
                f"; the gain of {100 * gained:.{objective.decimals}f} points is less than two "
                "of them, so it may be chance"
            )
        said.append(noise + ".")
    return said


def notes(
    trials: Sequence[FrozenTrial],
    best: FrozenTrial | None,
    progress: Progress,
    edges: Sequence[Edge],
    ended: Ending | None = None,
) -> list[str]:
    """Say what to do next.

    The questions are those of the Deep Learning Tuning Playbook (Godbole et al. 2023, "Examining
    the training curves" and "Identifying bad search space boundaries"):
    https://github.com/google-research/tuning_playbook
    """
    said = []
    if ended is None and progress.budget and progress.finished < progress.budget:
        said.append(
            f"The study is not at its end: {progress.budget - progress.finished} of "
            f"{progress.budget} trials are missing."
        )
    if progress.finished and progress.infeasible / progress.finished >= _MANY_INFEASIBLE:
        share = progress.infeasible / progress.finished
        said.append(
            f"{_percent(share)} of the finished trials were beyond the limits, or the memory of "
            "their device, and have no value: a space with smaller plans, wider limits, or a "
            "larger device leaves more to the search."
        )
    if progress.finished and progress.failed / progress.finished >= _MANY_FAILURES:
        share = progress.failed / progress.finished
        said.append(f"{_percent(share)} of the finished trials failed; see the failures below.")
    finished = [one.number for one in trials if one.state.is_finished()]
    if best is not None and len(finished) >= 10:
        after = sum(number > best.number for number in finished)
        if after < _LATE * len(finished):
            many = "s" if after != 1 else ""
            said.append(
                f"The best trial came late ({after} trial{many} after it): more trials may find a "
                "better one."
            )
    outwards = [edge for edge in edges if edge.can_be_widened]
    if outwards:
        said.append(
            "The best plan lies at the edge of the space: "
            + ", ".join(f"{edge.parameter} = {edge.value}" for edge in outwards)
            + ". A wider range may hold a better one."
        )
    return said
