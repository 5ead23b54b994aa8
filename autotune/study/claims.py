"""Who runs which trial: claiming, giving back, sweeping. The one failure policy.

- A worker claims a trial under the study's lock, where finished, live and waiting trials can be
  counted: the budget is exact however many workers there are.
- A trial that was interrupted or whose worker is gone is failed and gets a successor in the
  queue, which goes on from its checkpoint with its curve; at most ``MAX_RETRIES`` times.
- A trial that failed on its own account (it diverged, its plan does not fit) is not tried again.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from autotune.storage.database import experimental
from autotune.storage.lock import study_lock
from autotune.study import record

logger = logging.getLogger(__name__)

#: How often a trial is given back to the queue after its worker was lost.
MAX_RETRIES = 3
INTERRUPTED = "interrupted"
LOST = "its worker was lost"
#: What a successor takes over from the attempt before it.
_INHERITED = (
    record.PLAN,
    record.ROLE,
    record.ORIGIN,
    record.STAGE,
    record.SECONDS,
    record.COSTS,
)


@dataclass(frozen=True)
class Claims:
    """Claims on the trials of one study.

    Args:
        study: The study.
        storage: Its database storage.
        url: Absolute storage URL.
    """

    study: Study
    storage: RDBStorage
    url: str

    def claim(self, worker: str) -> Trial | None:
        """Take a waiting trial, or a new one where the budget allows; else ``None``.

        Args:
            worker: Name of the worker, unique among all that ever worked at the study.
        """
        with study_lock(self.storage, self.url, self.study.study_name):
            progress = self.progress()
            if progress.finished + progress.running >= progress.budget:
                return None
            with warnings.catch_warnings():
                # Optuna expects heartbeats from ``optimize`` only; ours come from Heartbeat.
                warnings.filterwarnings("ignore", message="Heartbeat of storage")
                trial = self.study.ask()
            trial.set_user_attr(record.WORKER, worker)
            return trial

    def progress(self) -> record.Progress:
        """Count the trials, reading the budget anew: another launcher may have raised it."""
        budget = self.storage.get_study_user_attrs(self.study._study_id)[record.BUDGET]
        return record.progress_of(self.study.get_trials(deepcopy=False), budget["trials"])

    def give_back(self, number: int, reason: str) -> bool:
        """Fail a running trial and queue its successor.

        Args:
            number: Number of the trial.
            reason: Why, for the trial's record.

        Returns:
            Whether there is a successor; there is none after ``MAX_RETRIES``.
        """
        with study_lock(self.storage, self.url, self.study.study_name):
            return self._give_back(self.study.get_trials(deepcopy=False)[number], reason)

    def _give_back(self, trial: FrozenTrial, reason: str) -> bool:
        if trial.state != TrialState.RUNNING:
            return False
        queued = requeue(self.study, trial, counted=reason != INTERRUPTED)
        self.storage.set_trial_user_attr(
            trial._trial_id, record.REASON, reason if queued else f"{reason}, too often"
        )
        self.study.tell(trial.number, state=TrialState.FAIL)
        return queued

    def sweep(
        self, is_gone: Callable[[str], bool] = lambda worker: False, reason: str = LOST
    ) -> int:
        """Give back the trials of workers that are gone.

        Gone are workers that have been silent for the grace period, those that ``is_gone``
        says are, and those that were lost between claiming a trial and signing it (nobody else
        can be there while this holds the lock).

        Returns:
            How many trials were given back.
        """
        with study_lock(self.storage, self.url, self.study.study_name):
            before = self.progress().running
            with experimental():
                optuna.storages.fail_stale_trials(self.study)
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                worker = trial.user_attrs.get(record.WORKER)
                if worker is None or is_gone(worker):
                    self._give_back(trial, reason)
            return before - self.progress().running


def requeue(study: Study, trial: FrozenTrial, counted: bool = True) -> bool:
    """Queue the successor of a trial that is about to fail, or has.

    The successor has its parameters, plan and curve, and resumes from its checkpoint.

    Args:
        study: The study.
        trial: The trial.
        counted: Whether this is one of the ``MAX_RETRIES``; a stop that was asked for is not.

    Returns:
        Whether there is a successor (an earlier call may have queued it already).
    """
    for other in study.get_trials(deepcopy=False):
        if trial.number in record.retries(other):
            return True
    lost = trial.user_attrs.get(record.LOSSES, 0) + int(counted)
    if lost > MAX_RETRIES:
        return False
    attributes = {key: value for key, value in trial.user_attrs.items() if key in _INHERITED}
    attributes[record.RETRIES] = [*record.retries(trial), trial.number]
    attributes[record.LOSSES] = lost
    system = {key: value for key, value in trial.system_attrs.items() if key == "fixed_params"}
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attributes,
            system_attrs=system,
            intermediate_values=trial.intermediate_values,
        )
    )
    return True


def sweep_stale(study: Study, trial: FrozenTrial) -> None:
    """Give a trial whose heartbeat has stopped a successor (called by Optuna's sweep)."""
    queued = requeue(study, trial)
    logger.warning(
        "trial %d: its worker %s is silent; %s",
        trial.number,
        trial.user_attrs.get(record.WORKER, "(unknown)"),
        "queued again" if queued else "given up after too many losses",
    )
