"""The studies of a storage, each in a few values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from autotune.errors import FormatError
from autotune.results.study_results import StudyResults
from autotune.storage.rdb.retry import RetryingStorage
from autotune.study.doctor.collect import WRONG_JSON, Snapshot
from autotune.study.state import attrs
from autotune.study.upkeep.stored_studies import StoredStudy, open_stored, stored_studies
from autotune.text import error_line


@dataclass(frozen=True)
class StudyOverview:
    """A study in a few values.

    Args:
        state: ``running``, ``stopping``, ``stopped``, ``ended``, ``no result`` (ended, and no
            trial is complete), ``unfinished`` (nothing runs, and its budget is not used up),
            ``lost workers``, ``other program`` or ``unreadable``.
        workers: How many live workers run a trial.
        finished: How many trials are finished: ``25 of 40``.
        results: Its results; ``None`` where they cannot be read.
        size_bytes: What its files take; ``None`` where they are not on this machine.
        last: When something happened last, in seconds of the Unix epoch; 0 before anything has.
        problem: Why it cannot be read, or has no result.
    """

    name: str
    state: str
    workers: int = 0
    finished: str = ""
    results: StudyResults | None = None
    size_bytes: int | None = None
    last: float = 0.0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the values for programs."""
        results = self.results
        best, baseline = (results.best, results.baseline) if results else (None, None)
        return {
            "name": self.name,
            "state": self.state,
            "workers": self.workers,
            "finished": results.progress.finished if results else None,
            "budget": results.progress.budget if results else None,
            "objective": results.objective.name if results else None,
            "baseline": attrs.metric_value(baseline) if baseline else None,
            "best": attrs.metric_value(best) if best else None,
            "best_trial": best.number if best else None,
            "size_bytes": self.size_bytes,
            "last": datetime.fromtimestamp(self.last, UTC).isoformat() if self.last else None,
            "problem": self.problem,
        }


def list_overviews(storage: RetryingStorage, url: str) -> list[StudyOverview]:
    """Read the studies of a storage, the one in which something happened last first."""
    studies = [_overview(study, storage, url) for study in stored_studies(storage, url)]
    return sorted(studies, key=lambda study: -study.last)


def _overview(stored: StoredStudy, storage: RetryingStorage, url: str) -> StudyOverview:
    size = sum(stored.sizes().values()) if stored.is_here else None
    try:
        handle, snapshot = open_stored(stored, storage, url)
        attrs.check_version(handle.study)
        results = StudyResults.from_study(handle.study)
        no_result, finished = results.no_result, results.finished
        state = "no result" if no_result else _state(stored, snapshot)
    except WRONG_JSON as error:
        reason = str(error) if isinstance(error, FormatError) else error_line(error)
        return StudyOverview(stored.name, "unreadable", size_bytes=size, problem=reason)
    moments = (max(attrs.started_at(t), attrs.ended_at(t)) for t in snapshot.trials)
    last = max(moments, default=0.0)
    return StudyOverview(
        stored.name,
        state,
        len(snapshot.live),
        finished,
        results,
        size,
        last,
        no_result.describe() if no_result else "",
    )


def _state(stored: StoredStudy, snapshot: Snapshot) -> str:
    if attrs.DEFINITION not in stored.attributes:
        return "other program"
    is_request = snapshot.ended is not None and snapshot.ended.is_request
    if snapshot.live:
        return "stopping" if is_request else "running"
    if snapshot.running:
        return "lost workers"
    if snapshot.ended is None:
        return "unfinished"
    return "stopped" if is_request else "ended"
