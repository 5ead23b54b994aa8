"""Every trial of a study as a row, and the reasons of those that came to nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.config.schema import COSTS
from autotune.errors import join_sentences
from autotune.results.figures.history import describe_state
from autotune.results.values.objective import Objective
from autotune.study.state import attrs


@dataclass(frozen=True)
class Cell:
    """A cell of the table: what is shown, and what it is sorted by (empty sorts last)."""

    text: str
    key: str


@dataclass(frozen=True)
class Row:
    """A trial.

    Args:
        number: Its number.
        state: Its state in words.
        mark: ``best``, ``baseline``, both or neither.
        value: Its metric.
        costs: What its network costs, in the order of :func:`cost_names`.
        metrics: The other metrics, in the order of :func:`metric_names`.
        epochs: Epochs trained.
        seconds: Seconds of training.
        plan: Its plan in words.
        worker: Who ran it.
        reason: Why it failed or was not trained, of what it is a retry, or why it was queued at
            the start.
    """

    number: int
    state: str
    mark: str
    value: Cell
    costs: tuple[Cell, ...]
    metrics: tuple[Cell, ...]
    epochs: Cell
    seconds: Cell
    plan: str
    worker: str
    reason: str


def metric_names(trials: Sequence[FrozenTrial], objective: Objective) -> tuple[str, ...]:
    """Return the metrics that trials have besides the objective."""
    names = dict.fromkeys(name for one in trials for name in one.user_attrs.get(attrs.METRICS, {}))
    return tuple(name for name in names if name != objective.name)


def cost_names(study: Study) -> tuple[str, ...]:
    """Return the costs that a study asks for: what it limits, and its second objective."""
    definition = study.user_attrs.get(attrs.DEFINITION, {})
    limits = definition.get("constraints", {})
    objectives = definition.get("objectives") or ()
    return tuple(one for one in COSTS if one in objectives or limits.get(f"max_{one}") is not None)


def table_of(
    trials: Sequence[FrozenTrial],
    objective: Objective,
    best: FrozenTrial | None,
    costs: Sequence[str] = (),
    several: bool = False,
    among: Sequence[FrozenTrial] | None = None,
) -> list[Row]:
    """Return a row for every trial that is given.

    Args:
        trials: The trials.
        objective: The objective.
        best: The best of them, if there is one.
        costs: Names of the costs to show.
        several: Whether there are several backbones, so that a plan is shown with its own.
        among: All trials of the study, where the given ones are a part of them.
    """
    every = trials if among is None else among
    superseded = attrs.retried_numbers(every)
    names = metric_names(every, objective)
    return [_row(one, objective, names, costs, superseded, best, several) for one in trials]


def _row(
    trial: FrozenTrial,
    objective: Objective,
    names: Sequence[str],
    costs: Sequence[str],
    superseded: set[int],
    best: FrozenTrial | None,
    several: bool,
) -> Row:
    attributes = trial.user_attrs
    metrics = attributes.get(attrs.METRICS, {})
    marks = [
        mark
        for mark, holds in (("best", trial is best), ("baseline", attrs.is_baseline(trial)))
        if holds
    ]
    plan = attrs.trial_plan(trial)
    value = attrs.metric_value(trial) if trial.state.is_finished() else None
    known = attributes.get(attrs.COSTS, {})
    seconds = attributes.get(attrs.SECONDS)
    earlier = ", ".join(map(str, attrs.earlier_attempts(trial)))
    retry = f"retry of {earlier}" if earlier else ""
    return Row(
        number=trial.number,
        state=describe_state(trial, superseded),
        mark=" ".join(marks),
        value=Cell(
            objective.format_value(value, attrs.metric_deviation(trial, objective.name)),
            _key(value),
        ),
        costs=tuple(
            Cell(objective.with_name(name).format_value(known.get(name)), _key(known.get(name)))
            for name in costs
        ),
        metrics=tuple(
            Cell(
                objective.with_name(name).format_value(
                    metrics.get(name), attrs.metric_deviation(trial, name)
                ),
                _key(metrics.get(name)),
            )
            for name in names
        ),
        epochs=Cell(str(attrs.trained_epochs(trial)), _key(attrs.trained_epochs(trial))),
        seconds=Cell("–" if seconds is None else f"{float(seconds):,.1f}", _key(seconds)),
        plan=plan.describe(several) if plan else "",
        worker=str(attributes.get(attrs.WORKER, "")),
        reason=str(attributes.get(attrs.REASON, ""))
        or join_sentences(retry, attrs.trial_origin(trial)),
    )


def _key(number: float | None) -> str:
    return "" if number is None or math.isnan(number) else repr(float(number))


@dataclass(frozen=True)
class Failure:
    """A reason, and the attempts that it ended.

    Args:
        reason: The reason.
        state: ``failed`` or ``retried``.
        numbers: Numbers of the attempts.
    """

    reason: str
    state: str
    numbers: tuple[int, ...]


def failures_of(trials: Sequence[FrozenTrial]) -> list[Failure]:
    """Group the attempts that came to nothing, the most frequent reason first."""
    superseded = attrs.retried_numbers(trials)
    groups: dict[tuple[str, str], list[int]] = {}
    for one in trials:
        if one.state == TrialState.FAIL:
            reason = str(one.user_attrs.get(attrs.REASON, "")) or "no reason was recorded"
            groups.setdefault((reason, describe_state(one, superseded)), []).append(one.number)
    found = [Failure(reason, state, tuple(of)) for (reason, state), of in groups.items()]
    return sorted(found, key=lambda failure: -len(failure.numbers))
