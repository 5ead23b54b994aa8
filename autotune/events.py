"""What happens in a study, as typed events: the stream that loggers receive.

The process that starts workers tells it, each event of its own workers once and in order:
:class:`StudyStarted`, then for every attempt at a trial :class:`TrialStarted`,
:class:`EpochEnded` ... and :class:`TrialEnded`, at last :class:`StudyEnded`. Events of several
trials alternate where several workers run. Further fields and further events may come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

#: How a trial ended. Another attempt continues one that is ``requeued``.
TrialState = Literal["complete", "pruned", "infeasible", "failed", "requeued"]
#: How a run of a study ended. ``unfinished``: other workers go on with it.
StudyState = Literal["finished", "interrupted", "failed", "unfinished"]


@dataclass(frozen=True)
class StudyStarted:
    """A run of a study starts, or continues.

    Args:
        study: Name of the study.
        uuid: Stays the same when the study is continued or renamed.
        files: Folder of the files of all studies of its storage.
        objective: The metric of a trial, on the validation split, such as ``accuracy``.
        direction: ``maximize`` or ``minimize``.
        definition: The study file with all defaults; it holds no password.
    """

    study: str
    uuid: str
    files: Path
    objective: str
    direction: str
    definition: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class TrialStarted:
    """A worker starts an attempt at a trial.

    Args:
        trial: Number of the trial.
        first: Number of its first attempt; differs from ``trial`` where this one continues it.
        epoch: Number of epochs that earlier attempts have finished.
        plan: The plan in words.
        backbone: Name of the backbone.
        params: Searched parameters that have an effect in this plan, by name.
        is_baseline: Whether it is the baseline.
        worker: Number of the worker among those of its launcher.
    """

    trial: int
    first: int
    epoch: int
    plan: str
    backbone: str
    params: Mapping[str, Any]
    is_baseline: bool
    worker: int


@dataclass(frozen=True)
class EpochEnded:
    """A trial has trained an epoch.

    Args:
        trial: Number of the trial.
        first: Number of its first attempt.
        epoch: The epoch, counted from 1; an attempt may repeat the last one before it.
        epochs: Epochs of a whole training.
        value: The objective on the validation split.
        training_loss: Mean loss of the training images, ``None`` if unknown.
        validation_loss: Mean loss of the validation images, ``None`` if unknown.
        learning_rate: Learning rate of the head, ``None`` if unknown.
        seconds: Wall time of the epoch, ``None`` if unknown.
    """

    trial: int
    first: int
    epoch: int
    epochs: int
    value: float
    training_loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    seconds: float | None = None

    def metrics(self, objective: str) -> dict[str, float]:
        """Return the known values of the epoch by name; the objective has its own."""
        names = ("training_loss", "validation_loss", "learning_rate", "seconds")
        values = {objective: self.value, **{name: getattr(self, name) for name in names}}
        return {name: float(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class TrialEnded:
    """An attempt at a trial has ended.

    Args:
        trial: Number of the trial.
        first: Number of its first attempt.
        state: ``complete``, ``pruned``, ``infeasible``, ``failed`` or ``requeued``.
        value: The objective after its last epoch; ``None`` without a result.
        reason: Why it failed, was requeued or was not trained; empty otherwise.
    """

    trial: int
    first: int
    state: TrialState
    value: float | None
    reason: str = ""


@dataclass(frozen=True)
class TrialResult:
    """A complete trial: its number, its value and its plan in words."""

    trial: int
    value: float
    plan: str


@dataclass(frozen=True)
class StudyEnded:
    """A run of a study has ended.

    Args:
        study: Name of the study.
        state: ``finished``, ``interrupted``, ``failed``, or ``unfinished`` if other workers go on.
        reason: Why, in a sentence without a full stop.
        best: The best complete trial within the limits, ``None`` without one.
        baseline: The baseline, ``None`` without a result.
        trials: Number of trials by how they ended: ``complete``, ``pruned``, ``infeasible``,
            ``failed``.
    """

    study: str
    state: StudyState
    reason: str
    best: TrialResult | None
    baseline: TrialResult | None
    trials: Mapping[str, int]


Event = StudyStarted | TrialStarted | EpochEnded | TrialEnded | StudyEnded
