"""The studies of a storage, each in a few values: for ``autotune ls`` and the first page.

A study is read when it has changed since it was read last, which a few statements tell for all
studies together. So a page that is refreshed all day reads what happens, and not what has ended.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState

from autotune.errors import FormatError
from autotune.results.diagnosis.answer import Evidence, find_answer
from autotune.results.study_results import StudyResults
from autotune.storage.rdb.connection import storage_errors
from autotune.storage.rdb.heartbeat import HeartbeatAges, read_heartbeat_ages
from autotune.storage.rdb.retry import RetryingStorage
from autotune.storage.rdb.study_index import IndexedStudy, read_study_index
from autotune.study.doctor.collect import WRONG_JSON
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from autotune.study.state.retries import is_stale
from autotune.text import count_of, error_line, plural

#: Attributes of a study that change what is known of it.
_KEYS = (
    *(attrs.DEFINITION, attrs.BUDGET, attrs.ENDED, attrs.CONFIRMED, attrs.TEST_READS),
    *(attrs.UUID, attrs.FORMAT),
)
#: Errors of reading a study that is damaged, or of another version: the others are shown.
BROKEN = (*WRONG_JSON, LookupError, ArithmeticError, AssertionError)
OTHER_PROGRAM, UNREADABLE = "other program", "unreadable"


@dataclass(frozen=True)
class StudyOutcome:
    """What the trials of a study say, as long as it does not change.

    Args:
        text: Its answer with the numbers.
        plain: The same without the words of the field.
        evidence: What the answer rests on.
        is_better: Whether a plan is better than the baseline; ``None`` where that is not known.
        objective: Name of the metric.
        best: What the best trial reached, in words; empty where there is none.
        baseline: The same of the baseline.
        best_trial: Number of the best trial.
        values: The metrics of best and baseline.
        finished: How many trials are finished.
        budget: How many it is to have; 0 without a budget.
        no_result: Why it ended without a result.
        problem: Why it cannot be read.
    """

    text: str = ""
    plain: str = ""
    evidence: Evidence = "none"
    is_better: bool | None = None
    objective: str | None = None
    best: str = ""
    baseline: str = ""
    best_trial: int | None = None
    values: tuple[float | None, float | None] = (None, None)
    finished: int = 0
    budget: int = 0
    no_result: str = ""
    problem: str = ""


@dataclass(frozen=True)
class StudyOverview:
    """A study in a few values.

    Args:
        study_id: Optuna's id of it.
        name: Its name.
        state: ``running``, ``stopping``, ``stopped``, ``ended``, ``no result`` (ended, and no
            trial is complete), ``unfinished`` (nothing runs, and its budget is not used up),
            ``lost workers``, ``not made`` (its start was interrupted), ``other program`` or
            ``unreadable``.
        reason: Why it is in that state, where there is a reason.
        workers: How many live workers run a trial.
        outcome: What its trials say; ``None`` until they are read.
        last: When a trial started or ended last, in seconds of the Unix epoch; 0 before that.
    """

    study_id: int
    name: str
    state: str
    reason: str = ""
    workers: int = 0
    outcome: StudyOutcome | None = None
    last: float = 0.0

    @property
    def finished(self) -> str:
        """How many trials are finished: ``25 of 40``; empty until that is known."""
        if self.outcome is None or self.state == UNREADABLE:
            return ""
        return count_of(self.outcome.finished, self.outcome.budget)

    def to_json(self) -> dict[str, Any]:
        """Return the values for programs."""
        outcome = self.outcome or StudyOutcome()
        is_known = outcome.objective is not None
        best, baseline = outcome.values
        return {
            "name": self.name,
            "state": self.state,
            "reason": self.reason,
            "workers": self.workers,
            "finished": outcome.finished if is_known else None,
            "budget": outcome.budget if is_known else None,
            "objective": outcome.objective,
            "baseline": baseline,
            "best": best,
            "best_trial": outcome.best_trial,
            "answer": outcome.text,
            "evidence": outcome.evidence,
            "is_better": outcome.is_better,
            "last": datetime.fromtimestamp(self.last, UTC).isoformat() if self.last else None,
            "problem": outcome.problem or outcome.no_result,
        }


class StudyOverviews:
    """The studies of a storage, of which those are read that have changed.

    Args:
        storage: The storage, without a cache of trials.
        url: Its URL, for messages.
    """

    def __init__(self, storage: RetryingStorage, url: str) -> None:
        self._storage = storage
        self._url = url
        self._lock = threading.Lock()
        self._outcomes: dict[int, tuple[IndexedStudy, StudyOutcome]] = {}

    def read(self, limit_s: float = math.inf) -> list[StudyOverview]:
        """Return the studies, the one in which something happened last first.

        Args:
            limit_s: Seconds after which no further study is read; those that are left have no
                outcome yet, and the next call goes on with them.

        Raises:
            StorageError: When the storage cannot be read.
        """
        deadline = time.monotonic() + limit_s
        with self._lock, storage_errors(self._url):
            if self._storage.sqlite_file is not None:  # open connections outlive a deleted file
                self._storage.sqlite_file.check(None)
            index = sorted(read_study_index(self._storage, _KEYS), key=_last_moment, reverse=True)
            heartbeats = read_heartbeat_ages(
                self._storage, [trial for study in index for trial in study.running]
            )
            known = self._outcomes
            self._outcomes = {
                study.study_id: known[study.study_id]
                for study in index
                if study.study_id in known and known[study.study_id][0] == study
            }
            for study in index:
                if study.study_id not in self._outcomes:
                    self._outcomes[study.study_id] = (study, _read_outcome(study, self._storage))
                    if time.monotonic() >= deadline:
                        break
            return [self._overview(study, heartbeats) for study in index]

    def _overview(self, study: IndexedStudy, heartbeats: HeartbeatAges) -> StudyOverview:
        _, outcome = self._outcomes.get(study.study_id, (study, None))
        live = [trial for trial in study.running if self._is_live(trial, heartbeats)]
        try:
            state, reason = _state(study, len(live), outcome)
        except BROKEN as error:
            state, reason = UNREADABLE, _describe(error)
        workers = 0 if state == OTHER_PROGRAM else len(live)
        last = _last_moment(study)
        return StudyOverview(study.study_id, study.name, state, reason, workers, outcome, last)

    def _is_live(self, trial_id: int, heartbeats: HeartbeatAges) -> bool:
        try:
            return not is_stale(self._storage.get_trial(trial_id), heartbeats)
        except BROKEN:  # deleted meanwhile, or damaged
            return False


def _last_moment(study: IndexedStudy) -> float:
    """Return when a trial started or ended last; Optuna stores these times in UTC."""
    moments = [moment for _, _, *both in study.changes.values() for moment in both if moment]
    return max((moment.replace(tzinfo=UTC).timestamp() for moment in moments), default=0.0)


def _state(study: IndexedStudy, live: int, outcome: StudyOutcome | None) -> tuple[str, str]:
    """Return the state of a study, and the reason for it."""
    if outcome is not None and outcome.problem:
        return UNREADABLE, outcome.problem
    if attrs.DEFINITION not in study.stored:
        if attrs.UUID in study.stored:
            return "not made", "its start was interrupted; 'autotune run' makes it"
        return OTHER_PROGRAM, ""
    ended = StopReason.from_attributes({attrs.ENDED: study.attribute(attrs.ENDED)})
    is_request = ended is not None and ended.is_request
    if live:
        return "stopping" if is_request else "running", ""
    if study.running:
        return "lost workers", "'autotune run' continues it"
    if outcome is not None and outcome.no_result:
        return "no result", outcome.no_result
    if ended is None:
        return "unfinished", "'autotune run' continues it" if study.changes else ""
    return "stopped" if is_request else "ended", ended.text


def _read_outcome(indexed: IndexedStudy, storage: RetryingStorage) -> StudyOutcome:
    try:
        study = optuna.load_study(study_name=indexed.name, storage=storage)
        if attrs.DEFINITION not in indexed.stored:
            return _foreign_outcome(study)
        attrs.check_version(study)
        return _outcome(StudyResults.from_study(study))
    except BROKEN as error:
        return StudyOutcome(problem=_describe(error))


def _outcome(results: StudyResults) -> StudyOutcome:
    answer, best, baseline = find_answer(results), results.best, results.baseline
    return StudyOutcome(
        text=answer.text,
        plain=answer.plain,
        evidence=answer.evidence,
        is_better=answer.is_better,
        objective=results.objective.name,
        best=results.format_values(best) if best else "",
        baseline=results.format_values(baseline) if baseline else "",
        best_trial=best.number if best else None,
        values=(best.values[0] if best else None, baseline.values[0] if baseline else None),
        finished=results.progress.finished,
        budget=results.progress.budget,
        no_result=results.no_result.describe() if results.no_result else "",
    )


def _foreign_outcome(study: Study) -> StudyOutcome:
    """Describe a study of another program by its own values."""
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    finished = sum(trial.state.is_finished() for trial in trials)
    names = study.metric_names or ["value"]
    if len(study.directions) > 1 or not complete:
        text = f"{plural(len(complete), 'complete trial')}"
        if len(study.directions) > 1:
            text += f" with {len(study.directions)} objectives"
        return StudyOutcome(text, objective=names[0], finished=finished)
    is_maximized = study.direction == StudyDirection.MAXIMIZE
    best = (max if is_maximized else min)(complete, key=lambda trial: trial.values[0])
    value = best.values[0]
    return StudyOutcome(
        text=f"best {names[0]} {value:.6g} (trial {best.number})",
        objective=names[0],
        best=f"{value:.6g}",
        best_trial=best.number,
        values=(value, None),
        finished=finished,
    )


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, FormatError) else error_line(error)
