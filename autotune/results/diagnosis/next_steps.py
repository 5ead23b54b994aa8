"""What to do next with a study: steps in the order in which they help, with their commands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
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
from autotune.results.diagnosis.space_edges import wider_range
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
    study = _Study(results, storage_url)
    return (*_steps(study), *_changes_to_training(study.facts), *_longer_training(study))


def run_commands(results: StudyResults, storage_url: str, values: Mapping[str, Any]) -> str:
    """Return the commands that continue a study with some other values, one a line."""
    return _Study(results, storage_url).run(values)


@dataclass(frozen=True)
class _Study:
    """A study, what its trials say, and its commands."""

    results: StudyResults
    storage_url: str

    @cached_property
    def facts(self) -> Facts:
        return Facts(self.results)

    def verb(self, verb: str, *options: str) -> str:
        return command_line("autotune", verb, self.results.name, self._options(*options))

    def run(self, values: Mapping[str, Any] | None = None, name: str = "") -> str:
        """Write the study file to a file, and run it with other values."""
        file = f"{slug(self.results.name) or 'study'}-next.yaml"
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
        return self.run(values, f"{slug(self.results.name) or 'study'}-{ending}")

    def _options(self, *options: str) -> str:
        quoted = "".join(f" {shell_quote(option)}" for option in options)
        return quoted + full_storage_option(self.storage_url)


def _steps(study: _Study) -> Iterator[NextStep]:
    results = study.results
    progress, ended = results.progress, results.stop_reason
    if not results.trials:
        yield NextStep("Nothing has run yet. Run the study.", study.run())
        return
    missing = progress.budget - progress.finished
    if progress.running:
        text = "The study is running. Wait until it has ended; this shows how far it is."
        yield NextStep(text, study.verb("status", "--watch"))
        return
    if (ended is None or ended.is_request) and missing > 0:
        trials = f"{missing} of {progress.budget} trials are missing"
        text = f"The study is not at its end: {trials}. Run it again; it continues where it ended."
        yield NextStep(text, study.run())
    if results.best is None:
        if results.no_result is not None:
            yield NextStep(f"{results.no_result.advice}.")
        if closest := results.closest_to_feasible:
            excess = describe_excess(closest)
            yield NextStep(f"The nearest is trial {closest.number}: {excess}.")
        return
    answer = find_answer(results)
    if answer.is_better:
        yield from _after_gain(study, answer)
    elif answer.is_better is not None:
        yield from _without_gain(study, answer)
    elif results.baseline is not None and answer.trial is not results.baseline:
        yield from _with_unclear_gain(study)
    cheapest = find_cheapest(results)
    if cheapest is not None and cheapest.trial not in (answer.trial, results.best):
        text = f"Or make a cheaper model that is about as good. {describe_cheapest(results)}"
        yield NextStep(text, study.verb("refit", "--trial", CHEAPEST))


def _changes_to_training(facts: Facts) -> Iterator[NextStep]:
    """Say what to change where much fails, diverges, overfits or is pruned too early."""
    if facts.results.progress.running:
        return
    for check in (check_failures, check_stability, check_overfitting, check_pruning):
        finding = check(facts)
        if finding.severity == "action":
            reason = finding.answer.partition(": ")[2]
            yield NextStep(f"{finding.advice} The reason: {reason}")


def _longer_training(study: _Study) -> Iterator[NextStep]:
    """Train for twice the epochs where the best trial still learned at its end."""
    best, epochs = study.facts.best, study.results.epochs
    losses = None if best is None else LossCurves.from_trial(best)
    if study.results.progress.running or not best or not losses or not losses.still_learns:
        return
    text = (
        f"Train for longer, {2 * epochs} epochs instead of {epochs}: both losses of trial "
        f"{best.number} still fell at its end, so more epochs may help every plan."
    )
    yield NextStep(text, study.another("longer", {"training.epochs": 2 * epochs}))


def _after_gain(study: _Study, answer: Answer) -> Iterator[NextStep]:
    """Take the next step from the search to the seeds, to the test split, to its use."""
    match answer.evidence:
        case "search":
            yield _confirm(study)
        case "confirmed":
            text = (
                "Make the final model: train the confirmed plan on all images but those of the "
                f"test split, and measure it on these{_describe_time(study.results, 2)}."
            )
            yield NextStep(text, study.verb("refit"))
        case _:
            yield _use(study)
    yield from _widen(study)
    if study.results.never_started or saturation(study.facts).state == "rising":
        yield _more_trials(study)


def _with_unclear_gain(study: _Study) -> Iterator[NextStep]:
    """Search on while it is not over, then compare over seeds, then search elsewhere."""
    if saturation(study.facts).state not in ("saturated", "exhausted"):
        yield _more_trials(study)
    yield from _widen(study)
    yield _confirm(study)
    yield from _another_backbone(study)


def _without_gain(study: _Study, answer: Answer) -> Iterator[NextStep]:
    """Say what may still help where no plan is shown to be better; else keep the baseline."""
    yield from _widen(study)
    if saturation(study.facts).state not in ("saturated", "exhausted"):
        yield _more_trials(study)
    yield from _another_backbone(study)
    if answer.evidence == "test":
        yield _use(study)
    elif (baseline := study.results.baseline) is not None:
        text = (
            "Or take the baseline as it is: train the final model with it, and measure it on the "
            f"test split{_describe_time(study.results, 1)}."
        )
        yield NextStep(text, study.verb("refit", "--trial", str(baseline.number)))


def _confirm(study: _Study) -> NextStep:
    """Compare the best plans with the baseline over seeds."""
    trials = study.results.trials
    complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    trainings = (1 + min(_CONFIRMED_PLANS, complete - 1)) * _CONFIRMED_SEEDS
    text = (
        "Check that the gain is no luck: train the best plans and the baseline under other seeds"
        f"{_describe_time(study.results, trainings)}."
    )
    return NextStep(text, study.verb("confirm"))


def _another_backbone(study: _Study) -> Iterator[NextStep]:
    """Try the next larger backbone of the list."""
    backbones = study.results.backbones
    used = {name.partition(".")[0] for name in backbones}
    largest = max((facts["parameters"] for facts in backbones.values()), default=math.inf) / 1e6
    for backbone, size in _BACKBONES.items():
        name = backbone.partition(".")[0]
        if size > largest and name not in used:
            text = (
                f"Try another backbone, {backbone}: other features may suit these images better."
            )
            yield NextStep(text, study.another(name, {"backbone": backbone, "weights": "hub"}))
            return


def _widen(study: _Study) -> Iterator[NextStep]:
    """Widen the ranges at whose edges the best plan lies."""
    facts = study.facts
    edges = [edge for edge in edges_of_best(facts) if edge.can_be_widened]
    if not edges or facts.candidate is None:
        return
    layers = len(study.results.layers_of(facts.candidate))
    wider = dict(filter(None, (wider_range(study.results, edge, layers) for edge in edges)))
    ends = " and ".join(
        f"the {edge.side} end of the {parameter_words(edge.parameter)} ({edge.bound})"
        for edge in edges
    )
    text = (
        f"Search beyond {ends}, where {facts.describe_candidate()} lies: a wider range may hold a "
        "better plan."
    )
    values = {key: _format_flow(value) for key, value in wider.items()}
    yield NextStep(text, study.another("wider", values) if values else "")


def _more_trials(study: _Study) -> NextStep:
    """Double the trials, or have as many as tell whether further ones would help."""
    progress, queued = study.results.progress, len(study.results.never_started)
    trials = max(2 * progress.finished, progress.finished + MIN_TRAINED, progress.budget)
    more = trials - progress.finished
    first = f", beginning with {plural(queued, 'queued plan')}" if queued else ""
    text = (
        f"Run {more:,} more trials{first}{_describe_time(study.results, more)}; the study "
        "continues where it ended."
    )
    return NextStep(text, study.run({"search.trials": trials}))


def _use(study: _Study) -> NextStep:
    """Say how to use the model of the refit."""
    folder = str(study.results.dataset.get("name", ""))
    if folder and Path(folder).is_dir():
        text = "Use the model: sort images into the classes. Name the folder of your own images."
        return NextStep(text, study.verb("predict", folder))
    text = (
        "Use the model: autotune predict sorts images into the classes; this writes it for other "
        "programs."
    )
    return NextStep(text, study.verb("export", "--format", "torch-export"))


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
