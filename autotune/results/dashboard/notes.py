"""What a study and its trials are, in Markdown: the notes that the dashboard shows beside them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.results.diagnosis.headline import describe_confirmation, ended_by, headline
from autotune.results.figures.layer_diagram import as_text, layer_rows
from autotune.results.report.reproduction import commands, next_commands, study_file
from autotune.results.values.objective import Objective, format_duration, format_values
from autotune.search import ranking
from autotune.study.state import attrs
from autotune.study.state.constraints import COST_LABELS, format_cost, format_count
from autotune.text import visible

#: So many classes are named.
_NAMED_CLASSES = 12
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")


def study_note(study: Study, storage_url: str) -> str:
    """Describe a study: its answer so far, its definition, its images, how to run it again.

    Args:
        study: The study, at any stage.
        storage_url: URL of the storage; a password in it is left out.
    """
    trials = study.get_trials(deepcopy=False)
    attributes = study.user_attrs
    best = ranking.best_trial(trials, attrs.metric_direction(study))
    answer = [f"**{escape_markdown(headline(study))}**", escape_markdown(_so_far(study, trials))]
    if said := describe_confirmation(study, best):
        answer.append(escape_markdown(said))
    answer += [f"- {escape_markdown(one)}" for one in attrs.image_warnings(attributes)]
    return "\n\n".join(
        [
            *answer,
            "### Definition",
            _table(_definition(study)),
            "### Images",
            _table(_images(attributes.get(attrs.DATASET, {}))),
            "### To go on",
            _fenced(next_commands(study, storage_url), "sh"),
            "### To run it again",
            _fenced(study_file(study, storage_url), "yaml"),
            _fenced(commands(study, storage_url), "sh"),
        ]
    )


def _so_far(study: Study, trials: Sequence[FrozenTrial]) -> str:
    progress = attrs.count_progress(trials, attrs.trial_budget(study))
    counts = {
        "complete": progress.complete,
        "pruned": progress.pruned,
        "infeasible": progress.infeasible,
        "failed": progress.failed,
        "running": progress.running,
        "waiting": progress.waiting,
    }
    parts = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    of_budget = f" of {progress.budget:,}" if progress.budget else ""
    ended = ended_by(study, progress)
    end = f". The study has ended: {ended.text}" if ended else ""
    return f"{progress.finished:,}{of_budget} trials finished ({parts or 'none yet'}){end}."


def _definition(study: Study) -> Iterator[tuple[str, str]]:
    attributes = study.user_attrs
    definition = attributes[attrs.DEFINITION]
    for name, known in attributes.get(attrs.BACKBONES, {}).items():
        layers, size = len(known["layers"]), format_count(known["parameters"])
        yield "backbone", f"{name}: {layers} layers, {size} parameters"
    names = study.metric_names or ()
    for name, direction in zip(names, study.directions, strict=False):
        one = Objective(name, direction)
        where = "of the network" if one.is_cost else "on the validation part"
        yield (
            "objective",
            f"{one.label} {where}, the {'more' if one.is_maximized else 'less'} the better",
        )
    limits: Mapping[str, Any] = definition.get("constraints") or {}
    within = [
        f"{COST_LABELS[cost]} at most {format_cost(cost, limits[key])}"
        for cost in COST_LABELS
        if limits.get(key := f"max_{cost}") is not None
    ]
    if within:
        yield "limits", ", ".join(within)
    searched = attributes.get(attrs.SPACE, {}).get("distributions", {})
    if searched:
        yield "searched", ", ".join(searched)
    search, training = definition.get("search", {}), definition.get("training", {})
    yield (
        "search",
        f"sampler {search.get('sampler')}, pruner {search.get('pruner')}, "
        f"{training.get('epochs')} epochs a trial, seed {search.get('seed')}",
    )
    baseline = attrs.find_baseline(study.get_trials(deepcopy=False))
    plan = attrs.trial_plan(baseline) if baseline is not None else None
    if baseline is not None and plan is not None:
        value = Objective.from_study(study).format_value(baseline.values[0])
        yield (
            "baseline",
            f"trial {baseline.number}, {value}: "
            f"{plan.describe(attrs.has_several_backbones(attributes))}",
        )


def _images(dataset: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "data set", str(dataset.get("name", ""))
    classes = list(dataset.get("classes", ()))
    more = f" and {len(classes) - _NAMED_CLASSES:,} more" * (len(classes) > _NAMED_CLASSES)
    yield "classes", f"{len(classes):,}: {', '.join(classes[:_NAMED_CLASSES])}{more}"
    if folds := dataset.get("folds"):
        split = f"{dataset['train']:,} take turns in {len(folds)} folds"
    else:
        split = f"{dataset.get('train', 0):,} train, {dataset.get('validation', 0):,} validate"
    yield "images", f"{split}, {dataset.get('test', 0):,} are the test part"
    if skipped := dataset.get("skipped"):
        yield "unreadable", f"{len(skipped):,}"
    yield "fingerprint", str(dataset.get("fingerprint", ""))


@dataclass(frozen=True)
class NoteContext:
    """What the notes of all trials of a study refer to, read once.

    Args:
        attributes: User attributes of the study.
        objective: What it optimises.
        cost: Its second objective, where there is one.
        baseline: Its completed baseline.
    """

    attributes: Mapping[str, Any]
    objective: Objective
    cost: Objective | None
    baseline: FrozenTrial | None

    @staticmethod
    def of(study: Study) -> NoteContext:
        """Read it."""
        baseline = attrs.find_baseline(study.get_trials(deepcopy=False))
        return NoteContext(
            study.user_attrs,
            Objective.from_study(study),
            Objective.cost_from_study(study),
            baseline,
        )


def trial_note(trial: FrozenTrial, setting: NoteContext) -> str:
    """Describe a trial: how it ended, its plan in words and as a picture, what it took.

    Args:
        trial: The trial, at any stage.
        setting: That of its study.
    """
    plan = attrs.trial_plan(trial)
    said = [f"**{escape_markdown(_outcome(trial, setting))}**"]
    if plan is not None:
        said.append(
            escape_markdown(plan.describe(attrs.has_several_backbones(setting.attributes)))
        )
        if layers := attrs.backbone_layers(setting.attributes, plan):
            said.append(_fenced(as_text(layer_rows(layers, plan)), "text"))
    if sizes := ", ".join(_sizes(trial)):
        said.append(escape_markdown(sizes))
    if origin := attrs.trial_origin(trial):
        said.append(escape_markdown(f"queued at the start: {origin}"))
    if earlier := attrs.earlier_attempts(trial):
        said.append(f"goes on from trial {', '.join(map(str, earlier))}")
    return "\n\n".join(said)


def _outcome(trial: FrozenTrial, setting: NoteContext) -> str:
    reason = str(trial.user_attrs.get(attrs.REASON, ""))
    role = "the baseline, " if attrs.is_baseline(trial) else ""
    epochs = attrs.trained_epochs(trial)
    if trial.state == TrialState.COMPLETE:
        shown, start = format_values(trial, setting.objective, setting.cost), setting.baseline
        if start is not None and not attrs.is_baseline(trial):
            gained = setting.objective.format_difference(trial.values[0], start.values[0])
            shown += f", {gained} against the baseline"
        # A baseline beyond the limits is trained all the same.
        return f"{role}{shown}" + (f"; {reason}" if reason else "")
    if attrs.ended_infeasible(trial):
        return f"{role}{reason or attrs.INFEASIBLE}"
    if trial.state == TrialState.PRUNED:
        return f"{role}pruned after epoch {epochs}"
    if trial.state == TrialState.FAIL:
        return f"{role}failed: {reason}" if reason else f"{role}failed"
    return f"{role}{trial.state.name.lower()}"


def _sizes(trial: FrozenTrial) -> Iterator[str]:
    known = trial.user_attrs
    costs: Mapping[str, float] = known.get(attrs.COSTS, {})
    if (trainable := known.get(attrs.TRAINABLE_PARAMETERS)) is not None:
        of = (
            f" of {format_cost('parameters', costs['parameters'])}"
            if "parameters" in costs
            else ""
        )
        yield f"{format_count(trainable)}{of} parameters trainable"
    yield from (
        f"{COST_LABELS[cost]} {format_cost(cost, value)}"
        for cost, value in costs.items()
        if cost != "parameters"
    )
    if attrs.SECONDS in known:
        epochs = attrs.trained_epochs(trial)
        on = f" on {known[attrs.DEVICE]}" if attrs.DEVICE in known else ""
        yield f"{epochs} epoch{'s' * (epochs != 1)} in {format_duration(known[attrs.SECONDS])}{on}"
    elif trial.state == TrialState.RUNNING:
        yield f"for {format_duration(attrs.device_seconds(trial, time.time()))}"


def escape_markdown(text: str) -> str:
    """Have Markdown show a text as it is, in one line, and nothing in it act on the page."""
    return _MARKS.sub(r"\\\1", visible(" ".join(text.split())))


def _table(found: Iterator[tuple[str, str]]) -> str:
    lines = [f"| {name} | {escape_markdown(value)} |" for name, value in found]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _fenced(text: str, language: str) -> str:
    """Put lines in a block of code, whose fence is longer than any in them."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"
