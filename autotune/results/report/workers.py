"""What the workers of a study are at, as far as its database tells: a row for each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from autotune import optuna_private
from autotune.storage.rdb.connection import GRACE_PERIOD_S, HEARTBEAT_INTERVAL_S
from autotune.study.doctor.collect import Snapshot
from autotune.study.state import attrs
from autotune.study.state.trial_queue import INTERRUPTED, WORKER_LOST

#: Two beats may go missing before a worker is called late: a database can be slow.
LATE_AFTER_S = 2.5 * HEARTBEAT_INTERVAL_S


@dataclass(frozen=True)
class WorkerRow:
    """One worker.

    Args:
        worker: Its name, see :func:`autotune.study.engine.worker.worker_name`.
        device: What it trains on, and which one of its machine; empty before it has said so.
        trial: Number of the trial that it is at; ``None`` between two trials.
        plan: The trial's plan in a few words.
        epoch: Epochs of the trial so far, those of earlier attempts included.
        epochs: Epochs of a trial that is not pruned.
        value: The last value that was reported.
        silent_s: Seconds since its last sign of life; ``None`` before the first one.
        epochs_per_s: Epochs of this attempt by the seconds that it has taken; ``None`` before the
            first epoch.
        images_per_s: Training images likewise.
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
        """Whether it must be taken for dead; its trial is given back at the next sweep."""
        return self.silent_s is not None and self.silent_s > GRACE_PERIOD_S


def worker_rows(snapshot: Snapshot) -> tuple[WorkerRow, ...]:
    """List the workers that run a trial, and those that ended one a moment ago, by name.

    Args:
        snapshot: The study.
    """
    busy = [_row(trial, snapshot) for trial in snapshot.running]
    names = {row.worker for row in busy}
    idle = () if snapshot.ended else _between_trials(snapshot)
    rows = [*busy, *(row for row in idle if row.worker not in names)]
    return tuple(sorted(rows, key=lambda row: (_sorted_as(row.worker), row.trial or 0)))


def failures_by_reason(trials: Iterable[FrozenTrial]) -> tuple[tuple[str, int], ...]:
    """Count failed attempts by the kind of their reason, the most frequent first.

    Attempts that have a successor count as well: many losses are worth a look, even where every
    trial came to its end.
    """
    trials = tuple(trials)
    replaced = attrs.retried_numbers(trials)
    return tuple(
        Counter(
            _kind_of(trial, trial.number in replaced)
            for trial in trials
            if trial.state == TrialState.FAIL
        ).most_common()
    )


def _kind_of(trial: FrozenTrial, replaced: bool) -> str:
    reason = str(trial.user_attrs.get(attrs.REASON, ""))
    if not reason:  # Optuna's sweep ends a trial before a reason can be given
        return "lost" if replaced else "unknown"
    if reason.startswith(WORKER_LOST):
        return "lost"
    if reason.startswith(INTERRUPTED):
        return INTERRUPTED
    return reason.partition(":")[0]


def _row(trial: FrozenTrial, snapshot: Snapshot) -> WorkerRow:
    attributes = trial.user_attrs
    epochs_per_s = _epochs_per_s(trial, snapshot)
    dataset = snapshot.attributes.get(attrs.DATASET, {})
    images = sum(dataset.get("folds", ())) or dataset.get("train")
    plan = attrs.trial_plan(trial)
    several = attrs.has_several_backbones(snapshot.attributes)
    last = trial.last_step
    return WorkerRow(
        worker=str(attributes.get(attrs.WORKER, "?")),
        device=attrs.device_name(trial),
        trial=trial.number,
        plan=plan.describe(several) if plan else "",
        epoch=last or 0,
        epochs=_epochs(snapshot.attributes),
        value=None if last is None else trial.intermediate_values[last],
        silent_s=snapshot.silent_s(trial),
        epochs_per_s=epochs_per_s,
        images_per_s=epochs_per_s * images if epochs_per_s and images else None,
    )


def _epochs_per_s(trial: FrozenTrial, snapshot: Snapshot) -> float | None:
    """Divide the epochs of this attempt by the seconds since its claim, its start included.

    The seconds are those up to the last heartbeat by the worker's clock, and from there on by the
    database's: the two need not agree.
    """
    # A retry has the curve of the attempt before it.
    own = (trial.last_step or 0) - int(trial.user_attrs.get(attrs.RESUMED, 0))
    age = snapshot.heartbeats.age_s.get(optuna_private.trial_id(trial))
    held = trial.user_attrs.get(attrs.DEVICE_SECONDS)
    seconds = snapshot.silent_s(trial) if held is None or age is None else float(held) + age
    return own / seconds if own > 0 and seconds else None


def _epochs(attributes: Mapping[str, Any]) -> int:
    return int(attributes.get(attrs.DEFINITION, {}).get("training", {}).get("epochs", 0))


def _between_trials(snapshot: Snapshot) -> Iterable[WorkerRow]:
    """Find the workers whose last trial ended a moment ago, the last one of each.

    Of a trial that was given back, the worker was stopped or is gone.
    """
    found: dict[str, FrozenTrial] = {}
    replaced = attrs.retried_numbers(snapshot.trials)
    for trial in snapshot.trials:
        ended = trial.state.is_finished() and attrs.CLAIMED_AT in trial.user_attrs
        if (
            ended
            and trial.number not in replaced
            and snapshot.heartbeats.now - attrs.ended_at(trial) < GRACE_PERIOD_S
        ):
            found[str(trial.user_attrs.get(attrs.WORKER))] = trial
    return [
        WorkerRow(
            worker=worker,
            device=attrs.device_name(trial),
            trial=None,
            silent_s=max(0.0, snapshot.heartbeats.now - attrs.ended_at(trial)),
        )
        for worker, trial in found.items()
    ]


def _sorted_as(worker: str) -> tuple[tuple[int, str], ...]:
    """Sort positions as numbers: worker 10 comes after worker 9."""
    host, _, place = worker.partition("/")
    parts = re.split("[/-]", place)
    return ((-1, host), *((int(one), "") if one.isdecimal() else (-1, one) for one in parts))
