"""Studies side by side: what they reach after as many trials, and after as much device time.

Where backbone or init vary inside a study, its trials are compared by these as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from operator import attrgetter
from typing import Any

from optuna.trial import FrozenTrial

from autotune.config.loading import get_dotted
from autotune.config.old_names import VALUES, new_key
from autotune.plan import INHERITING, OF_IMAGES, TrainingPolicy, TrialPlan
from autotune.results.study_results import StudyResults
from autotune.search import ranking
from autotune.study.setup.definition_changes import differences
from autotune.study.state import attrs

#: Most numbers of trials and most device times at which values are compared.
MAX_MARKS = 6
#: Sections of a definition that decide which images a value is measured on, and how.
_MEASURED_BY = ("dataset", "data.")


@dataclass(frozen=True)
class Point:
    """The best value of a group so far.

    Args:
        trials: Finished trials.
        device_s: Seconds for which attempts at trials have held a device.
        value: The best value; ``None`` before there is one.
    """

    trials: int
    device_s: float
    value: float | None


@dataclass(frozen=True)
class Group:
    """The trials of a study, or those of them with one backbone or one init."""

    label: str
    results: StudyResults
    trials: tuple[FrozenTrial, ...]

    @cached_property
    def best(self) -> FrozenTrial | None:
        """The best complete trial within the limits."""
        return ranking.best_trial(self.trials, self.results.direction)

    @cached_property
    def curve(self) -> tuple[Point, ...]:
        """The best value after every attempt, in the order in which they ended."""
        objective, superseded, now = self.results.objective, self.results.superseded, time.time()
        ended = [trial for trial in self.trials if trial.state.is_finished()]
        points, device_s, trials = [], 0.0, 0
        value: float | None = None
        for trial in sorted(ended, key=lambda trial: (attrs.ended_at(trial), trial.number)):
            device_s += attrs.device_seconds(trial, now)
            trials += trial.number not in superseded
            if ranking.best_trial([trial], self.results.direction) is not None:
                value = objective.best_of([trial.values[0], *([] if value is None else [value])])
            points.append(Point(trials, device_s, value))
        return tuple(points)

    @property
    def finished(self) -> int:
        """Number of finished trials."""
        return self.curve[-1].trials if self.curve else 0

    @property
    def device_s(self) -> float:
        """Seconds for which they have held a device."""
        return self.curve[-1].device_s if self.curve else 0.0

    def after_trials(self, count: int) -> float | None:
        """Return the best value after a number of trials; ``None`` where there are fewer."""
        return self._last(lambda point: point.trials <= count) if self.finished >= count else None

    def after_device_s(self, seconds: float) -> float | None:
        """Return the best value after so much device time; ``None`` where it took less."""
        if self.device_s < seconds:
            return None
        return self._last(lambda point: point.device_s <= seconds)

    def _last(self, is_within: Callable[[Point], bool]) -> float | None:
        within = [point for point in self.curve if is_within(point)]
        return within[-1].value if within else None


@dataclass(frozen=True)
class Comparison:
    """Studies that are compared.

    Args:
        studies: A group for each.
        parts: Groups of their trials by backbone and by init, where these vary.
    """

    studies: tuple[Group, ...]
    parts: tuple[Group, ...]

    @staticmethod
    def of(results: Sequence[StudyResults]) -> Comparison:
        """Compare studies."""
        studies = tuple(Group(each.name, each, each.trials) for each in results)
        return Comparison(studies, tuple(part for each in results for part in _parts(each)))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The studies, each followed by its parts."""
        return tuple(
            group
            for study in self.studies
            for group in (study, *(p for p in self.parts if p.results is study.results))
        )

    @cached_property
    def settings(self) -> Mapping[str, tuple[Any, ...]]:
        """The keys of the study files in which the studies differ, with the value of each."""
        definitions = [study.results.definition for study in self.studies]
        keys = {
            key
            for definition in definitions[1:]
            for key, _, _ in differences(definitions[0], definition)
        }
        return {key: tuple(get_dotted(each, key) for each in definitions) for key in sorted(keys)}

    @property
    def _with_values(self) -> list[Group]:
        return [study for study in self.studies if study.best is not None]

    @property
    def metrics(self) -> dict[str, str]:
        """The metric of every study."""
        return {study.label: study.results.objective.name for study in self.studies}

    def caveats(self) -> list[str]:
        """Say why values of the studies cannot be compared, in sentences; usually nothing."""
        texts = []
        if len(set(self.metrics.values())) > 1:
            texts.append(f"The studies have different metrics: {_pairs(self.metrics)}.")
        images = {study.label: _describe_images(study.results) for study in self.studies}
        prints = {study.results.dataset.get("fingerprint") for study in self.studies}
        if len(prints) > 1:
            texts.append(f"The studies have different images: {_pairs(images)}.")
        measured = [key for key in self.settings if key.startswith(_MEASURED_BY)]
        if len(prints) == 1 and measured:
            texts.append(f"Values are measured in different ways: {', '.join(measured)} differ.")
        return [*texts, "Values of one are no measure for those of another."] if texts else []

    def trial_marks(self) -> list[int]:
        """Return the numbers of trials at which values are compared."""
        most = max((group.finished for group in self.groups), default=0)
        marks = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
        ends = {study.finished for study in self._with_values}
        inside = {mark for mark in marks if 5 <= mark < most} - ends
        others = sorted(inside, reverse=True)[: max(0, MAX_MARKS - len(ends))]
        return sorted({*others, *ends})[-MAX_MARKS:]

    def device_marks(self) -> list[float]:
        """Return the device times at which values are compared: all of each study, and less."""
        totals = sorted({study.device_s for study in self._with_values})
        if not totals:
            return []
        return [totals[0] / 4, totals[0] / 2, *totals][:MAX_MARKS]

    def plan_rows(self) -> dict[str, list[str]]:
        """Return the best plans side by side: what it is, and the text of each group."""
        best = [group.best for group in self.groups]
        plans = [attrs.trial_plan(trial) if trial else None for trial in best]
        described = [dict(_describe(plan)) if plan else {} for plan in plans]
        rows = dict.fromkeys(key for plan in described for key in plan)
        return {key: [plan.get(key, "–") for plan in described] for key in rows}

    def to_json(self) -> dict[str, Any]:
        """Return everything for programs."""
        trials, seconds, plans = self.trial_marks(), self.device_marks(), self.plan_rows()
        return {
            "caveats": self.caveats(),
            "settings": {key: list(values) for key, values in self.settings.items()},
            "groups": [
                {
                    "label": group.label,
                    "study": group.results.name,
                    "metric": group.results.objective.name,
                    "finished": group.finished,
                    "device_seconds": group.device_s,
                    "baseline": _value(group.results.baseline),
                    "best": _value(group.best),
                    "best_trial": group.best.number if group.best else None,
                    "after_trials": {str(n): group.after_trials(n) for n in trials},
                    "after_device_seconds": {f"{s:.6g}": group.after_device_s(s) for s in seconds},
                    "plan": {key: texts[index] for key, texts in plans.items()},
                }
                for index, group in enumerate(self.groups)
            ],
        }


def _parts(results: StudyResults) -> Iterator[Group]:
    """Divide the trials of a study by backbone and by init, where these vary."""
    plans = {trial.number: attrs.trial_plan(trial) for trial in results.trials}
    for title, value_of in (("", attrgetter("backbone")), ("init ", _init)):
        values = {number: value_of(plan) for number, plan in plans.items() if plan}
        for value in sorted(set(values.values()) - {""}) if len(set(values.values())) > 1 else ():
            trials = tuple(t for t in results.trials if values.get(t.number) == value)
            yield Group(f"{results.name}: {title}{value}", results, trials)


def _init(plan: TrialPlan) -> str:
    """Return how the changed layers of a plan begin; empty where nothing new is made."""
    changed = {name for layer in plan.layers for name in layer.changes()}
    return VALUES["init"].get(plan.inherit, plan.inherit) if changed & set(INHERITING) else ""


def _describe(plan: TrialPlan) -> Iterator[tuple[str, str]]:
    """Yield the parts of a plan, as the report names them."""
    yield "backbone", plan.backbone
    yield "trainable layers", str(plan.depth)
    for index, layer in enumerate(plan.layers, start=1):
        if layer.changes():
            yield f"layer {index}", layer.describe()
    if init := _init(plan):
        yield "init", init
    yield "head", plan.head.describe()
    default = TrainingPolicy()
    for field in fields(TrainingPolicy):
        value = getattr(plan.policy, field.name)
        if value != getattr(default, field.name) or field.name in ("optimizer", "lr"):
            name = new_key(f"space.training.{field.name}").rpartition(".")[2]
            yield name, f"{value:.3g}" if isinstance(value, float) else str(value)
    for name in OF_IMAGES:
        if (value := getattr(plan, name)) is not None:
            yield name.replace("_", " "), f"{value:g}"


def _describe_images(results: StudyResults) -> str:
    dataset = results.dataset
    return f"{dataset.get('name', 'unknown')} ({dataset.get('validation') or 0} for validation)"


def _pairs(texts: Mapping[str, str]) -> str:
    return ", ".join(f"{text} in {name}" for name, text in texts.items())


def _value(trial: FrozenTrial | None) -> float | None:
    return attrs.metric_value(trial) if trial else None
