"""What a study and its trials are, in Markdown: the notes that the dashboard shows beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from autotune.results.diagnosis.answer import find_answer
from autotune.results.diagnosis.headline import describe_confirmation, describe_refit
from autotune.results.diagnosis.next_steps import next_steps
from autotune.results.figures.layer_diagram import as_text, layer_rows
from autotune.results.report.reproduction import commands, study_file
from autotune.results.study_results import StudyResults
from autotune.results.values.markdown import escape, fenced, table
from autotune.study.state import attrs
from autotune.study.state.constraints import COST_LABELS, format_cost, format_count
from autotune.text import format_duration, join_some, plural

#: Classes that are named.
_MAX_CLASSES = 12


def study_note(results: StudyResults, storage_url: str) -> str:
    """Describe a study: its answer so far, its definition, its images, how to run it again.

    Args:
        results: The study, at any stage.
        storage_url: URL of the storage; a password in it is left out.
    """
    progress = results.describe_progress()
    if reason := results.stop_reason:
        progress += f". The study {'is' if reason.is_request else 'has ended:'} {reason.text}"
    answer = find_answer(results)
    texts = (answer.plain, f"trials: {progress}.")
    evidence = (describe_confirmation(results), describe_refit(results))
    return "\n\n".join(
        [
            f"**{escape(answer.text)}**",
            *(escape(text) for text in (*texts, *evidence) if text),
            *(f"- {escape(warning)}" for warning in results.image_warnings),
            "### Definition",
            table(("", ""), _definition(results)),
            "### Images",
            table(("", ""), _images(results.dataset)),
            "### What next",
            *_steps(results, storage_url),
            "### To run it again",
            fenced(study_file(results, storage_url), "yaml"),
            fenced(commands(results, storage_url), "sh"),
        ]
    )


def _steps(results: StudyResults, storage_url: str) -> Iterator[str]:
    for step in next_steps(results, storage_url):
        yield escape(step.text)
        if step.command:
            yield fenced(step.command, "sh")


def _definition(results: StudyResults) -> Iterator[tuple[str, str]]:
    for name, facts in results.backbones.items():
        layers, size = len(facts["layers"]), format_count(facts["parameters"])
        yield "backbone", f"{name}: {layers} layers, {size} parameters"
    for objective in (results.objective, results.cost):
        if objective is not None:
            where = "of the network" if objective.is_cost else "on the validation split"
            better = "more" if objective.is_maximized else "less"
            yield "objective", f"{objective.label} {where}, the {better} the better"
    limits: Mapping[str, Any] = results.definition.get("constraints") or {}
    within = [
        f"{label} at most {format_cost(cost, limits[key])}"
        for cost, label in COST_LABELS.items()
        if limits.get(key := f"max_{cost}") is not None
    ]
    if within:
        yield "limits", ", ".join(within)
    if searched := results.attributes.get(attrs.SPACE, {}).get("distributions", {}):
        yield "searched", ", ".join(searched)
    search = results.definition.get("search", {})
    yield (
        "search",
        f"sampler {search.get('sampler')}, pruner {search.get('pruner')}, "
        f"{results.epochs} epochs a trial, seed {search.get('seed')}",
    )
    if (baseline := results.baseline) is not None and attrs.PLAN in baseline.user_attrs:
        value = results.objective.format_value(baseline.values[0])
        yield "baseline", f"trial {baseline.number}, {value}: {results.describe_plan(baseline)}"


def _images(dataset: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "data set", str(dataset.get("name", ""))
    classes = list(dataset.get("classes", ()))
    yield "classes", f"{len(classes):,}: {join_some(classes, _MAX_CLASSES)}"
    if folds := dataset.get("folds"):
        split = f"{dataset['train']:,} take turns in {len(folds)} folds"
    else:
        split = f"{dataset.get('train', 0):,} train, {dataset.get('validation', 0):,} validate"
    yield "images", f"{split}, {dataset.get('test', 0):,} are the test split"
    if skipped := dataset.get("skipped"):
        yield "unreadable", f"{len(skipped):,}"
    yield "fingerprint", str(dataset.get("fingerprint", ""))


def trial_note(trial: FrozenTrial, results: StudyResults) -> str:
    """Describe a trial: how it ended, its plan in words and as a diagram, what it took."""
    texts = [f"**{escape(_outcome(trial, results))}**"]
    if (plan := attrs.trial_plan(trial)) is not None:
        texts.append(escape(results.describe_plan(trial)))
        if layers := results.layers_of(trial):
            texts.append(fenced(as_text(layer_rows(layers, plan)), "text"))
    if sizes := ", ".join(_sizes(trial)):
        texts.append(escape(sizes))
    if origin := attrs.trial_origin(trial):
        when = "" if attrs.is_enqueued(trial) else "queued at the start: "
        texts.append(escape(f"{when}{origin}"))
    if earlier := attrs.earlier_attempts(trial):
        texts.append(f"continues trial {', '.join(map(str, earlier))}")
    return "\n\n".join(texts)


def _outcome(trial: FrozenTrial, results: StudyResults) -> str:
    reason = str(trial.user_attrs.get(attrs.REASON, ""))
    role = "the baseline, " if attrs.is_baseline(trial) else ""
    if trial.state == TrialState.COMPLETE:
        text, baseline = results.format_values(trial), results.baseline
        if baseline is not None and not attrs.is_baseline(trial):
            gain = results.objective.format_difference(trial.values[0], baseline.values[0])
            text += f", {gain} against the baseline"
        # A baseline beyond the limits is trained all the same.
        return f"{role}{text}" + (f"; {reason}" if reason else "")
    if attrs.ended_infeasible(trial):
        return f"{role}{reason or attrs.INFEASIBLE}"
    if trial.state == TrialState.PRUNED:
        return f"{role}pruned after epoch {attrs.trained_epochs(trial)}"
    if trial.state == TrialState.FAIL:
        return f"{role}failed: {reason}" if reason else f"{role}failed"
    return f"{role}{trial.state.name.lower()}"


def _sizes(trial: FrozenTrial) -> Iterator[str]:
    stored = trial.user_attrs
    costs: Mapping[str, float] = stored.get(attrs.COSTS, {})
    if (trainable := stored.get(attrs.TRAINABLE_PARAMETERS)) is not None:
        total = costs.get("parameters")
        of = "" if total is None else f" of {format_cost('parameters', total)}"
        yield f"{format_count(trainable)}{of} parameters trainable"
    yield from (
        f"{COST_LABELS[cost]} {format_cost(cost, value)}"
        for cost, value in costs.items()
        if cost != "parameters"
    )
    if attrs.SECONDS in stored:
        epochs = plural(attrs.trained_epochs(trial), "epoch")
        on = f" on {stored[attrs.DEVICE]}" if attrs.DEVICE in stored else ""
        yield f"{epochs} in {format_duration(attrs.own_seconds(trial))}{on}"
    elif trial.state == TrialState.RUNNING:
        yield f"for {format_duration(attrs.device_seconds(trial, time.time()))}"
