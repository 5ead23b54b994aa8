"""What to do next with a study: steps in the order in which they help, with their commands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from optuna.trial import TrialState

from autotune.config.loading import slug
from autotune.config.schema import NAME_RULE
from autotune.results.cheapest import CHEAPEST, describe_cheapest, find_cheapest
from autotune.results.diagnosis.answer import Answer, find_answer
from autotune.results.diagnosis.curve_checks import (
    check_overfitting,
    check_pruning,
    check_stability,
)
from autotune.results.diagnosis.facts import Facts
from autotune.results.diagnosis.loss_curves import LossCurves
from autotune.results.diagnosis.space_checks import (
    MIN_TRAINED,
    check_failures,
    edges_of_best,
    saturation,
)
from autotune.results.diagnosis.space_edges import Edge, wider_range
from autotune.results.study_results import StudyResults, describe_excess
from autotune.results.values.parameter_words import parameter_words
from autotune.storage.commands import command_line, full_storage_option
from autotune.study.state import attrs
from autotune.text import format_duration, plural, shell_quote

#: Backbones to try where re-training one does not help, by their parameters in millions.
_BACKBONES = {
    "mobilenetv3_large_100.ra_in1k": 4.2,
    "resnet18.a1_in1k": 11.2,
    "resnet50.a1_in1k": 23.5,
    "convnext_tiny.fb_in22k_ft_in1k": 27.8,
    "convnext_small.fb_in22k_ft_in1k": 49.5,
}
#: Plans and seeds of ``autotune confirm``, unless it is told otherwise.
_CONFIRMED_PLANS, _CONFIRMED_SEEDS = 5, 5


@dataclass(frozen=True)
class NextStep:
    """Something to do.

    Args:
        text: What, and why, in a sentence or two.
        command: Commands for a shell, one a line; empty where there is none.
    """

    text: str
    command: str = ""


def next_steps(results: StudyResults, storage_url: str = "") -> tuple[NextStep, ...]:
    """Return what to do next, the most useful step first."""
    if not results.definition:  # a study of another program
        return ()
    commands = _Commands(results, storage_url)
    steps = _steps(results, commands)
    return (*steps, *_changes_to_training(results), *_longer_training(results, commands))


def file_of_next(name: str) -> str:
    """Return the name of the file to which the study file is written for a next study."""
    return f"{slug(name) or 'study'}-next.yaml"


def run_commands(results: StudyResults, storage_url: str, values: Mapping[str, Any]) -> str:
    """Return the commands that continue a study with some other values, one a line."""
    return _Commands(results, storage_url).run(values)


@dataclass(frozen=True)
class _Commands:
    """The commands of a study."""

    results: StudyResults
    storage_url: str

    def verb(self, verb: str, *options: str) -> str:
        return command_line("autotune", verb, self.results.name, self._options(*options))

    def run(self, values: Mapping[str, Any] | None = None, name: str = "") -> str:
        """Write the study file to a file, and run it with other values."""
        file = file_of_next(self.results.name)
        changes = (f" {shell_quote(f'{key}={value}')}" for key, value in (values or {}).items())
        if not name and not NAME_RULE.fullmatch(self.results.name):
            name = self.results.name
        named = f" --name {shell_quote(name)}" if name else ""
        run = f"autotune run {shell_quote(file)}{''.join(changes)}{named}{self._options()}"
        return f"{self.verb('report', '-o', file)}\n{run}"

    def another(self, ending: str, values: dict[str, Any]) -> str:
        """Run another study, which tries the best plans of this one first where it can."""
        strategy = self.results.definition.get("search", {}).get("strategy")
        if strategy != "greedy" and "backbone" not in values:
            values = {**values, "search.warm_start": _format_flow([self.results.name])}
        name = f"{slug(self.results.name) or 'study'}-{ending}"
        return self.run(values, name)

    def _options(self, *options: str) -> str:
        quoted = "".join(f" {shell_quote(option)}" for option in options)
        return quoted + full_storage_option(self.storage_url)


def _steps(results: StudyResults, commands: _Commands) -> Iterator[NextStep]:
    progress, ended = results.progress, results.stop_reason
    if not results.trials:
        yield NextStep("Nothing has run yet. Run the study.", commands.run())
        return
    missing = progress.budget - progress.finished
    if progress.running:
        text = "The study is running. Wait until it has ended; this shows how far it is."
        yield NextStep(text, commands.verb("status", "--watch"))
        return
    if (ended is None or ended.is_request) and missing > 0:
        trials = f"{missing} of {progress.budget} trials are missing"
        text = f"The study is not at its end: {trials}. Run it again; it continues where it ended."
        yield NextStep(text, commands.run())
    if results.best is None:
        if results.no_result is not None:
            yield NextStep(f"{results.no_result.advice}.")
        if closest := results.closest_to_feasible:
            excess = describe_excess(closest)
            yield NextStep(f"The nearest is trial {closest.number}: {excess}.")
        return
    answer = find_answer(results)
    if answer.is_better:
        yield from _after_gain(results, answer, commands)
    elif answer.is_better is not None:
        yield from _without_gain(results, answer, commands)
    elif results.baseline is not None and answer.trial is not results.baseline:
        yield from _with_unclear_gain(results, commands)
    cheapest = find_cheapest(results)
    if cheapest is not None and cheapest.trial not in (answer.trial, results.best):
        text = f"Or make a cheaper model that is about as good. {describe_cheapest(results)}"
        yield NextStep(text, commands.verb("refit", "--trial", CHEAPEST))


def _changes_to_training(results: StudyResults) -> Iterator[NextStep]:
    """Say what to change where much fails, diverges, overfits or is pruned too early."""
    if results.progress.running:
        return
    facts = Facts(results)
    for check in (check_failures, check_stability, check_overfitting, check_pruning):
        finding = check(facts)
        if finding.severity == "action":
            reason = finding.answer.partition(": ")[2]
            yield NextStep(f"{finding.advice} The reason: {reason}")


def _longer_training(results: StudyResults, commands: _Commands) -> Iterator[NextStep]:
    """Train for twice the epochs where the best trial still learned at its end."""
    best = Facts(results).best
    losses = None if best is None else LossCurves.from_trial(best)
    if results.progress.running or best is None or losses is None or not losses.still_learns:
        return
    epochs = 2 * results.epochs
    text = (
        f"Train for longer, {epochs} epochs instead of {results.epochs}: both losses of trial "
        f"{best.number} still fell at its end, so more epochs may help every plan."
    )
    yield NextStep(text, commands.another("longer", {"training.epochs": epochs}))


def _after_gain(results: StudyResults, answer: Answer, commands: _Commands) -> Iterator[NextStep]:
    """Take the next step from the search to the seeds, to the test split, to its use."""
    match answer.evidence:
        case "search":
            yield _confirm(results, commands)
        case "confirmed":
            text = (
                "Make the final model: train the confirmed plan on all images but those of the "
                f"test split, and measure it on these{_describe_time(results, 2)}."
            )
            yield NextStep(text, commands.verb("refit"))
        case _:
            yield NextStep(*_use(results, commands))
    yield from _widen(results, commands)
    if results.never_started or saturation(Facts(results)).state == "rising":
        yield _more_trials(results, commands)


def _with_unclear_gain(results: StudyResults, commands: _Commands) -> Iterator[NextStep]:
    """Search on while it is not over, then compare over seeds, then search elsewhere."""
    state = saturation(Facts(results)).state
    if state not in ("saturated", "exhausted"):
        yield _more_trials(results, commands)
    yield from _widen(results, commands)
    yield _confirm(results, commands)
    yield from _another_backbone(results, commands)


def _without_gain(
    results: StudyResults, answer: Answer, commands: _Commands
) -> Iterator[NextStep]:
    """Say what may still help where no plan is shown to be better; else keep the baseline."""
    yield from _widen(results, commands)
    state = saturation(Facts(results)).state
    if state not in ("saturated", "exhausted"):
        yield _more_trials(results, commands)
    yield from _another_backbone(results, commands)
    if answer.evidence == "test":
        yield NextStep(*_use(results, commands))
    elif results.baseline is not None:
        text = (
            "Or take the baseline as it is: train the final model with it, and measure it on the "
            f"test split{_describe_time(results, 1)}."
        )
        number = str(results.baseline.number)
        yield NextStep(text, commands.verb("refit", "--trial", number))


def _confirm(results: StudyResults, commands: _Commands) -> NextStep:
    """Compare the best plans with the baseline over seeds."""
    text = (
        "Check that the gain is no luck: train the best plans and the baseline under other seeds"
        f"{_describe_time(results, _count_confirmed(results))}."
    )
    return NextStep(text, commands.verb("confirm"))


def _another_backbone(results: StudyResults, commands: _Commands) -> Iterator[NextStep]:
    """Try the next larger backbone of the list."""
    if backbone := _next_backbone(results):
        text = f"Try another backbone, {backbone}: other features may suit these images better."
        values = {"backbone": backbone, "weights": "hub"}
        yield NextStep(text, commands.another(backbone.partition(".")[0], values))


def _widen(results: StudyResults, commands: _Commands) -> Iterator[NextStep]:
    """Widen the ranges at whose edges the best plan lies."""
    facts = Facts(results)
    edges = [edge for edge in edges_of_best(facts) if edge.can_be_widened]
    if not edges or facts.candidate is None:
        return
    layers = len(results.layers_of(facts.candidate))
    wider = dict(filter(None, (wider_range(results, edge, layers) for edge in edges)))
    text = (
        f"Search beyond {_describe_edges(edges)}, where {facts.describe_candidate()} lies: a "
        "wider range may hold a better plan."
    )
    values = {key: _format_flow(value) for key, value in wider.items()}
    yield NextStep(text, commands.another("wider", values) if values else "")


def _describe_edges(edges: Sequence[Edge]) -> str:
    ends = (
        f"the {edge.side} end of the {parameter_words(edge.parameter)} ({edge.bound})"
        for edge in edges
    )
    return " and ".join(ends)


def _more_trials(results: StudyResults, commands: _Commands) -> NextStep:
    """Double the trials, or have as many as tell whether further ones would help."""
    finished = results.progress.finished
    trials = max(2 * finished, finished + MIN_TRAINED, results.progress.budget)
    more = trials - finished
    queued = len(results.never_started)
    first = f", beginning with {plural(queued, 'queued plan')}" if queued else ""
    text = (
        f"Run {more:,} more trials{first}{_describe_time(results, more)}; the study continues "
        "where it ended."
    )
    return NextStep(text, commands.run({"search.trials": trials}))


def _next_backbone(results: StudyResults) -> str:
    """Return the next larger backbone of the list; empty where there is none."""
    used = {name.partition(".")[0] for name in results.backbones}
    sizes = [facts["parameters"] for facts in results.backbones.values()]
    largest = max(sizes, default=math.inf) / 1e6
    larger = (
        name
        for name, size in _BACKBONES.items()
        if size > largest and name.partition(".")[0] not in used
    )
    return next(larger, "")


def _use(results: StudyResults, commands: _Commands) -> tuple[str, str]:
    """Say how to use the model of the refit."""
    folder = str(results.dataset.get("name", ""))
    if folder and Path(folder).is_dir():
        text = "Use the model: sort images into the classes. Name the folder of your own images."
        return text, commands.verb("predict", folder)
    text = (
        "Use the model: autotune predict sorts images into the classes; this writes it for other "
        "programs."
    )
    return text, commands.verb("export", "--format", "torch-export")


def _count_confirmed(results: StudyResults) -> int:
    complete = sum(trial.state == TrialState.COMPLETE for trial in results.trials)
    return (1 + min(_CONFIRMED_PLANS, complete - 1)) * _CONFIRMED_SEEDS


def _describe_time(results: StudyResults, trainings: int) -> str:
    """Say how long some trainings take on one device; empty where that is not known."""
    seconds = [
        attrs.own_seconds(trial)
        for trial in results.trials
        if trial.state == TrialState.COMPLETE and attrs.SECONDS in trial.user_attrs
    ]
    if not seconds:
        return ""
    time = format_duration(max(1.0, fmean(seconds) * trainings))
    return f" ({plural(trainings, 'training')}, about {time} on one device)"


def _format_flow(value: Any) -> str:
    """Write a value of a study file on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return text.strip()
