"""The tables of a report: trials, backbones, and the reasons of failed attempts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from autotune.config.schema import COSTS
from autotune.errors import join_sentences
from autotune.results.study_results import NEVER_STARTED, StudyResults
from autotune.search import ranking
from autotune.study.state import attrs

#: Rows of the table of trials: half of them for the best trials, half for the newest.
MAX_ROWS = 600


@dataclass(frozen=True)
class Cell:
    """A cell of the table: its text, and the key it is sorted by (empty sorts last)."""

    text: str
    key: str


@dataclass(frozen=True)
class TrialRow:
    """A trial.

    Args:
        number, state, value, epochs, seconds, plan: As in :mod:`.dataframe`.
        chance: Probability that it is the best of the complete trials; empty where unknown.
        mark: ``best``, ``baseline``, both or neither.
        costs: Costs of its network, in the order of :func:`cost_names`.
        metrics: The other metrics, in the order of :func:`metric_names`.
        reason: Why it failed or was not trained, which trial it retries, or why it was queued at
            the start.
    """

    number: int
    state: str
    mark: str
    value: Cell
    chance: Cell
    costs: tuple[Cell, ...]
    metrics: tuple[Cell, ...]
    epochs: Cell
    seconds: Cell
    plan: str
    reason: str


def metric_names(results: StudyResults) -> tuple[str, ...]:
    """Return the metrics that trials have besides the objective."""
    stored = (trial.user_attrs.get(attrs.METRICS, {}) for trial in results.trials)
    names = dict.fromkeys(name for metrics in stored for name in metrics)
    return tuple(name for name in names if name != results.objective.name)


def cost_names(results: StudyResults) -> tuple[str, ...]:
    """Return the costs that a study asks for: those it limits, and its second objective."""
    limits = results.definition.get("constraints", {})
    objectives = results.definition.get("objectives") or ()
    return tuple(
        name for name in COSTS if name in objectives or limits.get(f"max_{name}") is not None
    )


def choose_rows(results: StudyResults) -> list[FrozenTrial]:
    """Choose the trials of the table: of many, the best and the newest ones and the baseline.

    The complete trials come first, the best one at the top; then the others by their numbers.
    """
    ranked, trials = ranking.rank_trials(results.trials, results.direction), results.trials
    if len(trials) > MAX_ROWS:
        half = MAX_ROWS // 2
        chosen = {trial.number for trial in (*ranked[:half], *trials[-half:])}
        if results.baseline is not None:
            chosen.add(results.baseline.number)
        trials = tuple(trial for trial in trials if trial.number in chosen)
    place = {trial.number: rank for rank, trial in enumerate(ranked)}
    return sorted(trials, key=lambda trial: (place.get(trial.number, len(place)), trial.number))


def trial_rows(results: StudyResults, trials: Iterable[FrozenTrial]) -> list[TrialRow]:
    """Return a row for each of some trials of a study."""
    metrics, costs = metric_names(results), cost_names(results)
    return [_row(trial, results, metrics, costs) for trial in trials]


def _row(
    trial: FrozenTrial, results: StudyResults, names: Iterable[str], costs: Iterable[str]
) -> TrialRow:
    objective, stored = results.objective, trial.user_attrs
    chance = results.selection.chances.get(trial.number) if results.selection else None

    def cell(name: str, value: float | None) -> Cell:
        text = objective.with_name(name).format_value(value, attrs.metric_deviation(trial, name))
        return Cell(text, _key(value))

    metrics, measured = stored.get(attrs.METRICS, {}), stored.get(attrs.COSTS, {})
    value = attrs.metric_value(trial) if trial.state.is_finished() else None
    is_left = trial.number in results.never_started
    epochs = attrs.trained_epochs(trial)
    seconds = attrs.own_seconds(trial) if attrs.SECONDS in stored else None
    earlier = ", ".join(map(str, attrs.earlier_attempts(trial)))
    origin = join_sentences(f"retry of {earlier}" if earlier else "", attrs.trial_origin(trial))
    return TrialRow(
        number=trial.number,
        state=NEVER_STARTED if is_left else results.state_of(trial),
        mark=_mark(trial is results.best, attrs.is_baseline(trial)),
        value=cell(objective.name, value),
        chance=Cell(f"{100 * chance:.0f} %" if chance else "", _key(chance)),
        costs=tuple(cell(name, measured.get(name)) for name in costs),
        metrics=tuple(cell(name, metrics.get(name)) for name in names),
        epochs=Cell(str(epochs), _key(epochs)),
        seconds=Cell("–" if seconds is None else f"{seconds:,.1f}", _key(seconds)),
        plan=results.describe_plan(trial),
        reason=str(stored.get(attrs.REASON, "")) or origin,
    )


def _mark(is_best: bool, is_baseline: bool) -> str:
    return " ".join(["best"] * is_best + ["baseline"] * is_baseline)


def _key(number: float | None) -> str:
    return "" if number is None or math.isnan(number) else repr(float(number))


@dataclass(frozen=True)
class BackboneRow:
    """A backbone: its size, the fingerprint of its weights, and its complete trials."""

    name: str
    mark: str
    parameters: int
    layers: int
    weights: str
    trials: int
    value: str


def backbone_rows(results: StudyResults) -> list[BackboneRow]:
    """Return a row for each backbone of a study, that of the baseline first."""
    complete: dict[str, list[FrozenTrial]] = {}
    for trial in results.trials:
        plan = attrs.trial_plan(trial)
        if plan is not None and trial.state == TrialState.COMPLETE:
            complete.setdefault(plan.backbone, []).append(trial)
    rows: list[BackboneRow] = []
    for name, facts in results.backbones.items():
        trials = complete.get(name, [])
        best = ranking.best_trial(trials, results.direction)
        rows.append(
            BackboneRow(
                name=name,
                mark=_mark(best is not None and best is results.best, not rows),
                parameters=int(facts["parameters"]),
                layers=len(facts["layers"]),
                weights=str(facts["weights_hash"]),
                trials=len(trials),
                value=results.format_values(best) if best else "–",
            )
        )
    return rows


@dataclass(frozen=True)
class Failure:
    """A reason, and the numbers of the attempts that it ended, ``failed`` or ``retried``."""

    reason: str
    state: str
    numbers: tuple[int, ...]


def failures(results: StudyResults) -> list[Failure]:
    """Group the failed attempts by their reason, the most frequent reason first."""
    groups: dict[tuple[str, str], list[int]] = {}
    for trial in results.trials:
        if trial.state == TrialState.FAIL:
            reason = str(trial.user_attrs.get(attrs.REASON, "")) or "no reason was recorded"
            state = results.state_of(trial)
            groups.setdefault((reason, state), []).append(trial.number)
    found = [Failure(*key, tuple(numbers)) for key, numbers in groups.items()]
    return sorted(found, key=lambda failure: -len(failure.numbers))
