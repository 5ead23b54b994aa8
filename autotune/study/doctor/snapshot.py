"""A study at one moment, as far as its database knows it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from autotune import optuna_private
from autotune.storage.rdb.heartbeat import HeartbeatAges, read_heartbeat_ages
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.budget import Budget, StopReason
from autotune.study.state.trial_queue import is_stale, seconds_silent


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment.

    Args:
        trials: All trials, in order.
        attributes: What the study remembers, see :mod:`autotune.study.state.attrs`.
        beats: The heartbeats of the trials that run.
        moment: When it was looked at, in seconds of the Unix epoch, by this machine's clock.
    """

    trials: tuple[FrozenTrial, ...]
    attributes: Mapping[str, Any]
    heartbeats: HeartbeatAges
    moment: float

    @cached_property
    def budget(self) -> Budget:
        """The budget of the last run."""
        return Budget.from_json(self.attributes.get(attrs.BUDGET, {}))

    @cached_property
    def ended(self) -> StopReason | None:
        """What has ended the study; ``None`` while it goes on."""
        return StopReason.from_attributes(self.attributes)

    @cached_property
    def progress(self) -> attrs.Progress:
        """How many trials ended how."""
        return attrs.count_progress(self.trials, self.budget.trials)

    @cached_property
    def running(self) -> tuple[FrozenTrial, ...]:
        """The trials that workers are at."""
        return tuple(one for one in self.trials if one.state == TrialState.RUNNING)

    def silent_s(self, trial: FrozenTrial) -> float | None:
        """Return for how many seconds the worker of a trial has given no sign of life."""
        return seconds_silent(trial, self.heartbeats)

    def is_gone(self, trial: FrozenTrial) -> bool:
        """Tell whether the worker of a running trial must be taken for dead."""
        return is_stale(trial, self.heartbeats)


def take_snapshot(opened: OpenStudy) -> Snapshot:
    """Look at a study.

    Optuna keeps what it read of trials that have ended: looking again at the same ``opened``
    reads the trials that run or are new (at most seven statements), the attributes of the study
    and the heartbeats, however many trials there are.
    """
    study = opened.study
    trials = tuple(study.get_trials(deepcopy=False))
    running = [optuna_private.trial_id(one) for one in trials if one.state == TrialState.RUNNING]
    beats = read_heartbeat_ages(opened.storage, running)
    return Snapshot(trials, study.user_attrs, beats, time.time())
