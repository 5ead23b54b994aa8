"""The events of a small study, as a launcher tells them to loggers."""

from __future__ import annotations

from pathlib import Path

from autotune.events import (
    EpochEnded,
    Event,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialResult,
    TrialStarted,
)

#: A name that somebody may have given in the dashboard.
ODD = "蝴蝶 照片/a 'b' #1"


def study_started(files: Path, study: str = ODD) -> StudyStarted:
    definition = {"training": {"objective": "accuracy"}}
    return StudyStarted(study, "c0ffee", files, "accuracy", "maximize", definition)


def started(trial: int, first: int | None = None, epoch: int = 0, **params: object) -> Event:
    first = trial if first is None else first
    values = {"depth": 2, "training.lr": 0.01, "head.pool": "max", **params}
    return TrialStarted(trial, first, epoch, "last 2 layers", "resnet", values, not trial, 0)


def epoch(trial: int, epoch: int, value: float, first: int | None = None) -> Event:
    first = trial if first is None else first
    return EpochEnded(trial, first, epoch, 3, value, 1 / epoch, None, 0.1, 0.5)


def first_run(files: Path, study: str = ODD) -> list[Event]:
    """Trial 0 is complete, trial 1 is interrupted after an epoch."""
    return [
        study_started(files, study),
        started(0),
        epoch(0, 1, 0.5),
        started(1, layer=3),
        epoch(0, 2, 0.7),
        epoch(1, 1, 0.4),
        TrialEnded(0, 0, "complete", 0.7),
        TrialEnded(1, 1, "requeued", None, "interrupted"),
        ended("interrupted"),
    ]


def second_run(files: Path, study: str = ODD) -> list[Event]:
    """Trial 2 continues trial 1, trial 3 costs too much."""
    return [
        study_started(files, study),
        started(2, first=1, epoch=1, layer=3),
        epoch(2, 2, 0.8, first=1),
        TrialEnded(2, 1, "pruned", 0.8),
        started(3),
        TrialEnded(3, 3, "infeasible", None, "infeasible: 12 M parameters, at most 10 M"),
        ended("finished"),
    ]


def ended(state: str = "finished") -> StudyEnded:
    best, baseline = TrialResult(2, 0.8, "last 2 layers"), TrialResult(0, 0.7, "linear head")
    counts = {"complete": 1, "pruned": 1, "infeasible": 1, "failed": 0}
    return StudyEnded("digits", state, "3 finished trials", best, baseline, counts)  # type: ignore[arg-type]
