"""The workers of a study as rows, from what its database records."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from autotune import optuna_private
from autotune.results.study_results import StudyResults
from autotune.storage.rdb.connection import GRACE_PERIOD_S, HEARTBEAT_INTERVAL_S
from autotune.study.doctor.collect import Snapshot
from autotune.study.state import attrs
from autotune.study.state.retries import INTERRUPTED, WORKER_LOST

#: Seconds until a worker counts as late. Two heartbeats may be missing: a database can be slow.
LATE_AFTER_S = 2.5 * HEARTBEAT_INTERVAL_S


@dataclass(frozen=True)
class WorkerRow:
    """One worker.

    Args:
        worker: Its name, see :func:`autotune.study.engine.pool.worker_name`.
        device: What it trains on, and which one of its machine; empty before that is recorded.
        trial: Number of the trial that it runs; ``None`` between two trials.
        plan: The trial's plan in a few words.
        epoch: Epochs of the trial so far, those of earlier attempts included.
        epochs: Epochs of a trial that is not pruned.
        value: The last value that was reported.
        silent_s: Seconds since its last sign of life; ``None`` before the first one.
        epochs_per_s: Epochs of this attempt per second; ``None`` before the first epoch.
        images_per_s: Training images per second, likewise.
    """

    worker: str
    device: str
    trial: int | None
    plan: str = ""
    epoch: int = 0
    epochs: int = 0
    value: float | None = None
    silent_s: float | None = None
    epochs_per_s: float | None = None
    images_per_s: float | None = None

    @property
    def host(self) -> str:
        """The machine."""
        return self.worker.split("/", 1)[0]

    @property
    def place(self) -> str:
        """The process that started the worker, and its position among those it started."""
        return self.worker.partition("/")[2]

    @property
    def is_late(self) -> bool:
        """Whether heartbeats are overdue."""
        return self.silent_s is not None and self.silent_s > LATE_AFTER_S

    @property
    def is_silent(self) -> bool:
        """Whether it must be taken for dead; its trial is requeued at the next sweep."""
        return self.silent_s is not None and self.silent_s > GRACE_PERIOD_S


def worker_rows(results: StudyResults, snapshot: Snapshot) -> tuple[WorkerRow, ...]:
    """List the workers that run a trial, and those that ended one a moment ago, by name."""
    busy = [_busy_row(trial, results, snapshot) for trial in snapshot.running]
    names = {row.worker for row in busy}
    idle = () if snapshot.ended else _idle_rows(results, snapshot.heartbeats.now)
    rows = [*busy, *(row for row in idle if row.worker not in names)]
    return tuple(sorted(rows, key=lambda row: (_sort_key(row.worker), row.trial or 0)))


def _busy_row(trial: FrozenTrial, results: StudyResults, snapshot: Snapshot) -> WorkerRow:
    images = sum(results.dataset.get("folds", ())) or results.dataset.get("train")
    last, speed = trial.last_step, _epochs_per_s(trial, snapshot)
    return WorkerRow(
        worker=str(trial.user_attrs.get(attrs.WORKER, "?")),
        device=attrs.device_name(trial),
        trial=trial.number,
        plan=results.describe_plan(trial),
        epoch=last or 0,
        epochs=results.epochs,
        value=None if last is None else trial.intermediate_values[last],
        silent_s=snapshot.silent_s(trial),
        epochs_per_s=speed,
        images_per_s=speed * images if speed and images else None,
    )


def _epochs_per_s(trial: FrozenTrial, snapshot: Snapshot) -> float | None:
    """Divide the epochs of this attempt by the seconds since its claim, its start included.

    The seconds up to the last heartbeat are those of the worker's clock, the later ones those of
    the database's: the two need not agree.
    """
    # A retry has the curve of the attempt before it.
    epochs = (trial.last_step or 0) - int(trial.user_attrs.get(attrs.RESUMED, 0))
    age = snapshot.heartbeats.age_s.get(optuna_private.trial_id(trial))
    held = trial.user_attrs.get(attrs.DEVICE_SECONDS)
    seconds = snapshot.silent_s(trial) if held is None or age is None else float(held) + age
    return epochs / seconds if epochs > 0 and seconds else None


def _idle_rows(results: StudyResults, now: float) -> list[WorkerRow]:
    """Find the workers whose last trial ended a moment ago, by that trial.

    The worker of an attempt that was requeued was stopped or lost, so it is not listed.
    """
    last = {
        str(trial.user_attrs.get(attrs.WORKER)): trial
        for trial in results.last_attempts
        if trial.state.is_finished()
        and attrs.CLAIMED_AT in trial.user_attrs
        and now - attrs.ended_at(trial) < GRACE_PERIOD_S
    }
    return [
        WorkerRow(
            worker, attrs.device_name(trial), None, silent_s=max(0.0, now - attrs.ended_at(trial))
        )
        for worker, trial in last.items()
    ]


def _sort_key(worker: str) -> tuple[tuple[int, str], ...]:
    """Sort positions as numbers: worker 10 comes after worker 9."""
    host, _, place = worker.partition("/")
    parts = re.split("[/-]", place)
    return ((-1, host), *((int(part), "") if part.isdecimal() else (-1, part) for part in parts))


def failures_by_reason(results: StudyResults) -> tuple[tuple[str, int], ...]:
    """Count failed attempts by the kind of their reason, the most frequent first.

    Attempts that have a successor count as well: many lost workers should be noticed, even where
    every trial came to its end.
    """
    failed = (trial for trial in results.trials if trial.state == TrialState.FAIL)
    return tuple(Counter(_kind(trial, results) for trial in failed).most_common())


def _kind(trial: FrozenTrial, results: StudyResults) -> str:
    reason = str(trial.user_attrs.get(attrs.REASON, ""))
    if not reason:  # Optuna's sweep ends a trial before a reason can be given
        return "lost" if trial.number in results.superseded else "unknown"
    if reason.startswith(WORKER_LOST):
        return "lost"
    return INTERRUPTED if reason.startswith(INTERRUPTED) else reason.partition(":")[0]
