"""One reading of a study, from which everything about its results is shown.

Read a study once with :meth:`StudyResults.from_study` and pass the reading on. A page that asked
the storage for each of its numbers would sort all trials dozens of times, and a trial that ends
meanwhile would be in one half of the page and not in the other.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune import optuna_private
from autotune.errors import FormatError
from autotune.optuna_private import StorageProxy
from autotune.results.values.objective import Objective
from autotune.results.values.selection import Selection, judge_selection
from autotune.results.values.verdict import Verdict
from autotune.search import ranking
from autotune.search import space as search_space
from autotune.search.space import Space
from autotune.storage.artifacts import find_artifacts
from autotune.study.state import attrs
from autotune.study.state.budget import Budget, StopReason, startable_queue
from autotune.study.state.no_result import NoResult, find_no_result
from autotune.study.state.predictions import VALIDATION_LOGITS, ValidationLogits, scores_of
from autotune.text import count_of

#: State of a queued trial of an ended study.
NEVER_STARTED = "not started"
#: Most trials that the best one is compared with.
_MAX_COMPARED = 200
_STATES = ("complete", "pruned", "infeasible", "failed", "retried", "running", "waiting")


@dataclass(frozen=True, eq=False)
class StudyResults:
    """A study at one moment.

    ``dataclasses.replace(results, trials=..., attributes=...)`` is the same study at a later one.

    Args:
        source: The study that was read.
        trials: All trials, in order.
        attributes: User attributes of the study, see :mod:`autotune.study.state.attrs`.
        objective: The metric.
        cost: The second objective, or ``None``.
        artifacts: Folder of its artifacts, where it is known.
    """

    source: Study
    trials: tuple[FrozenTrial, ...]
    attributes: Mapping[str, Any]
    objective: Objective
    cost: Objective | None
    artifacts: Path | None = None

    @staticmethod
    def from_study(study: Study, artifacts: Path | None = None) -> StudyResults:
        """Read a study; its artifacts lie in a folder."""
        trials, attributes = tuple(study.get_trials(deepcopy=False)), study.user_attrs
        names, directions = study.metric_names or ["objective"], study.directions
        images = attributes.get(attrs.DATASET, {}).get("validation") or 0
        objective = Objective(names[0], directions[0], 2 if images >= 1000 else 1)
        cost = Objective(names[1], directions[1]) if len(names) > 1 else None
        return StudyResults(study, trials, attributes, objective, cost, artifacts)

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.source.study_name

    @cached_property
    def study(self) -> Study:
        """Optuna's study, which has the trials and user attributes of this moment."""
        reading = _FixedStorage(optuna_private.storage(self.source), self.trials, self.attributes)
        return optuna_private.with_storage(self.source, reading)

    @property
    def direction(self) -> StudyDirection:
        """Direction of the metric."""
        return self.objective.direction

    @cached_property
    def best(self) -> FrozenTrial | None:
        """The best complete trial within the limits, or ``None``."""
        return ranking.best_trial(self.trials, self.direction)

    @cached_property
    def baseline(self) -> FrozenTrial | None:
        """The complete baseline, or ``None``."""
        return attrs.find_baseline(self.trials)

    @cached_property
    def baseline_failure(self) -> str:
        """Why the last attempt at the baseline failed for good; empty if it did not."""
        failed = (
            str(trial.user_attrs.get(attrs.REASON, "")) or "no reason was recorded"
            for trial in self.last_attempts
            if attrs.is_baseline(trial) and trial.state == TrialState.FAIL
        )
        return next(failed, "")

    @property
    def is_tied(self) -> bool:
        """Whether the best trial has the values of the baseline, and only a lower log loss."""
        best, baseline = self.best, self.baseline
        if best is None or baseline is None or best is baseline:
            return False
        return bool(best.values == baseline.values)

    @property
    def difference(self) -> str:
        """How far the best trial lies from the baseline; empty while one of them is missing."""
        if self.baseline is None or self.best is None:
            return ""
        if self.best is self.baseline:
            return "no trial is better"
        if self.is_tied:
            return "none; the log loss of the best is lower"
        objectives = [each for each in (self.objective, self.cost) if each is not None]
        values = zip(objectives, self.best.values, self.baseline.values, strict=True)
        return ", ".join(each.format_difference(best, base) for each, best, base in values)

    @cached_property
    def front(self) -> tuple[FrozenTrial, ...]:
        """The Pareto front from the best metric to the lowest cost; empty with one objective."""
        if self.cost is None:
            return ()
        return tuple(ranking.pareto_front(self.trials, self.direction))

    @cached_property
    def closest_to_feasible(self) -> FrozenTrial | None:
        """The trial that is beyond the limits by the least, or ``None``."""
        beyond = (
            trial
            for trial in self.trials
            if ranking.is_infeasible(trial) and trial.state.is_finished()
        )
        return min(beyond, key=lambda trial: max(trial.constraints.values()), default=None)

    @cached_property
    def no_result(self) -> NoResult | None:
        """Why the study has ended without a result; ``None`` if it has one, or goes on."""
        return find_no_result(self.trials, self.attributes)

    def explain_no_best(self) -> str:
        """Say why a study has no best trial."""
        closest = self.closest_to_feasible
        if closest is None:
            if self.no_result is not None:
                return f"no result: {self.no_result.reason}. {self.no_result.advice}"
            return "no complete trial yet"
        return (
            f"no complete trial within the limits; the nearest is trial {closest.number}, "
            f"{describe_excess(closest)}"
        )

    @cached_property
    def superseded(self) -> frozenset[int]:
        """Numbers of the attempts that have a successor."""
        return frozenset(attrs.retried_numbers(self.trials))

    @cached_property
    def last_attempts(self) -> tuple[FrozenTrial, ...]:
        """The trials without a successor; their counts include those of earlier attempts."""
        return tuple(trial for trial in self.trials if trial.number not in self.superseded)

    @cached_property
    def budget(self) -> Budget:
        """The budget of the last run."""
        return Budget.from_attributes(self.attributes)

    @cached_property
    def progress(self) -> attrs.Progress:
        """How many trials ended how."""
        return attrs.count_progress(self.trials, self.budget.trials)

    def describe_progress(self) -> str:
        """Write all counts: ``4 of 40 finished: 3 complete, 0 pruned, 1 failed, 1 running``."""
        return f"{self.finished} finished: {self.format_counts()}"

    @property
    def finished(self) -> str:
        """How many trials have finished: ``25 of 40``, or ``25`` without a budget."""
        return count_of(self.progress.finished, self.progress.budget)

    def format_counts(self, *, with_zeros: bool = True) -> str:
        """Write how many trials are in which state: ``3 complete, 0 pruned, 1 failed``.

        Args:
            with_zeros: Name complete, pruned and failed trials also where there are none.
        """
        named = ("complete", "pruned", "failed") if with_zeros else ()
        counts = {state: getattr(self.progress, state) for state in _STATES}
        counts["waiting"] -= (left := len(self.never_started))
        counts[NEVER_STARTED] = left
        return ", ".join(
            f"{count:,} {state}" for state, count in counts.items() if count or state in named
        )

    @cached_property
    def never_started(self) -> frozenset[int]:
        """Numbers of the queued trials of an ended study, which nothing will start.

        A study that was asked to stop has none: the next run goes on with its queue.
        """
        reason = self.stop_reason
        if reason is None or reason.is_request:
            return frozenset()
        queued = {trial.number for trial in self.trials if trial.state == TrialState.WAITING}
        return frozenset(queued - {t.number for t in startable_queue(self.trials, reason)})

    @property
    def stop_reason(self) -> StopReason | None:
        """Why no new trial starts; ``None`` while a trial runs or can start."""
        return None if self.progress.running else StopReason.from_attributes(self.attributes)

    def state_of(self, trial: FrozenTrial) -> str:
        """Name the state of a trial: ``complete``, ``pruned``, ``infeasible``, ``failed``, ..."""
        if trial.state == TrialState.FAIL:
            return "retried" if trial.number in self.superseded else "failed"
        return attrs.INFEASIBLE if attrs.ended_infeasible(trial) else trial.state.name.lower()

    def read_artifact(self, owner: FrozenTrial | None, name: str) -> bytes | None:
        """Return an artifact of a trial, or of the study; ``None`` where there is none."""
        if self.artifacts is None:
            return None
        if owner is not None:
            system_attrs = owner.system_attrs
        else:
            storage = optuna_private.storage(self.source)
            system_attrs = storage.get_study_system_attrs(optuna_private.study_id(self.source))
        id_ = find_artifacts(system_attrs).get(name)
        try:
            return None if id_ is None else (self.artifacts / id_).read_bytes()
        except OSError:
            return None

    def read_logits(self, trial: FrozenTrial) -> ValidationLogits | None:
        """Return what a complete trial predicted for the validation images.

        ``None`` for one of an earlier version, and where the file is lost or damaged.
        """
        with suppress(ValueError):
            content = self.read_artifact(trial, VALIDATION_LOGITS)
            return None if content is None else ValidationLogits.read(content)
        return None

    @cached_property
    def verdict(self) -> Verdict | None:
        """The verdict of ``autotune confirm``, or ``None``."""
        return Verdict.from_attributes(self.attributes)

    @cached_property
    def selection(self) -> Selection | None:
        """The choice of the best trial, judged by scores of single images.

        ``None`` for fewer than two complete trials that have them. Of many trials only the best
        are compared, and the baseline: the others are never the best.
        """
        ranked = ranking.rank_trials(self.last_attempts, self.direction)
        known = {trial.number: each for trial in ranked if (each := scores_of(trial)) is not None}
        if not ranked or ranked[0].number not in known:
            return None
        size = len(known[ranked[0].number])
        alike = [trial for trial in ranked if len(known.get(trial.number, ())) == size]
        base = next((trial for trial in alike if attrs.is_baseline(trial)), None)
        compared = alike[:_MAX_COMPARED]
        if base is not None and base not in compared:
            compared.append(base)
        if len(compared) < 2:
            return None
        return judge_selection(
            {trial.number: trial.values[0] for trial in compared},
            known,
            maximized=self.objective.is_maximized,
            images=int(self.dataset.get("validation") or 0) or None,
            baseline=None if base is None else base.number,
        )

    @cached_property
    def space(self) -> Space | None:
        """The space of the study, or ``None`` when it cannot be read."""
        try:
            return attrs.study_space(self.study)
        except FormatError:
            return None  # of another version of autotune: its trials can still be drawn

    @cached_property
    def parameter_names(self) -> tuple[str, ...]:
        """The searched parameters, in the order of the space."""
        return tuple(dict.fromkeys(name for trial in self.trials for name in trial.distributions))

    @property
    def definition(self) -> Mapping[str, Any]:
        """The study file with all defaults."""
        return attrs.definition(self.attributes)

    @property
    def image_warnings(self) -> list[str]:
        """What is odd about the images, in sentences."""
        return attrs.image_warnings(self.attributes)

    @property
    def epochs(self) -> int:
        """Epochs of a trial that is not pruned, 0 where that is not known."""
        return int(self.definition.get("training", {}).get("epochs", 0))

    @property
    def dataset(self) -> Mapping[str, Any]:
        """Facts of the images."""
        return self.attributes.get(attrs.DATASET) or {}

    @property
    def backbones(self) -> Mapping[str, Any]:
        """Facts of the backbones, by name; that of the baseline first."""
        return self.attributes.get(attrs.BACKBONES) or {}

    @property
    def has_several_backbones(self) -> bool:
        """Whether a plan has to name its backbone."""
        return len(self.backbones) > 1

    def is_active(self, trial: FrozenTrial, parameter: str) -> bool:
        """Tell whether a parameter has an effect in a trial, under the trial's other parameters.

        An inactive parameter has the same canonical form whatever its value.
        """
        return search_space.has_effect(self.space, trial.params, parameter)

    def active_params(self, trial: FrozenTrial) -> dict[str, Any]:
        """Return the parameters of a trial that have an effect under its other ones."""
        return search_space.active_params(self.space, trial.params)

    def describe_plan(self, trial: FrozenTrial) -> str:
        """Return the plan of a trial in words; empty when it never got one."""
        plan = attrs.trial_plan(trial)
        return plan.describe(self.has_several_backbones) if plan else ""

    def layers_of(self, trial: FrozenTrial) -> Sequence[Mapping[str, Any]]:
        """Return the layers of a trial's backbone, the last layer first."""
        return attrs.backbone_layers(self.attributes, attrs.trial_plan(trial))

    def format_values(self, trial: FrozenTrial) -> str:
        """Write what a trial reached: ``91.7 %``, or ``91.7 % at 1.23 ms`` of two objectives.

        Means over folds come with their standard deviation: ``91.7 ± 0.9 %``.
        """
        deviation = attrs.metric_deviation(trial, self.objective.name)
        text = self.objective.format_value(attrs.metric_value(trial), deviation)
        if self.cost is None or trial.values is None:
            return text
        return f"{text} at {self.cost.format_value(trial.values[1])}"


def describe_excess(trial: FrozenTrial) -> str:
    """Return which limit a trial's plan exceeds: ``12.3 M parameters, at most 10.0 M``."""
    reason = str(trial.user_attrs.get(attrs.REASON, attrs.INFEASIBLE))
    return reason.removeprefix(f"{attrs.INFEASIBLE}: ")


class _FixedStorage(StorageProxy):
    """A storage that answers for one study from a reading, and passes all other calls on."""

    def __init__(
        self, storage: BaseStorage, trials: tuple[FrozenTrial, ...], attributes: Mapping[str, Any]
    ) -> None:
        super().__init__(storage)
        self._trials = trials
        self._attributes = attributes

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials that were read."""
        trials = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the user attributes that were read."""
        return dict(self._attributes)
