"""The queue of a study's trials, which its workers share: claim, finish, requeue, stop.

- A worker claims a trial under the study's lock, where finished, live and waiting trials can be
  counted: the budget is exact however many workers there are.
- A trial that was interrupted, that met a transient failure or whose worker is dead is failed and
  gets a successor in the queue. Both happen in one transaction, which reads the curve: nothing is
  lost between the two, nor is a value that the worker reported last.
- A trial that failed by itself (it diverged, its plan does not fit) is not retried.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from autotune import optuna_private
from autotune.errors import StudyError
from autotune.search.samplers import CanonicalSampler, Proposal
from autotune.search.space import Params, Space
from autotune.storage.rdb.connection import HEARTBEAT_INTERVAL_S
from autotune.storage.rdb.fast_rdb import Failure
from autotune.storage.rdb.heartbeat import read_heartbeat_ages
from autotune.storage.rdb.retry import (
    LockLostError,
    RetryingStorage,
    is_transient,
    retrying,
    was_unavailable,
)
from autotune.storage.rdb.study_lock import study_lock
from autotune.study.state import attrs
from autotune.study.state.budget import (
    EXHAUSTED,
    STOPPED,
    Budget,
    StopReason,
    count_startable,
    startable_queue,
    stop_reason,
)
from autotune.study.state.retries import (
    INTERRUPTED,
    WORKER_LOST,
    is_stale,
    lost_without_retry,
    make_retry,
)
from autotune.study.state.starting import TrialStarter, refuse_repeated

logger = logging.getLogger(__name__)

#: Draws of a new trial without the lock before a claim takes the last one; between two of them
#: another worker has made a trial.
MAX_PROPOSALS = 3


@dataclass(frozen=True)
class Claim:
    """A trial that this worker has claimed, with its parameters and its plan.

    ``since`` is when, in seconds of the Unix epoch; ``workers`` counts the workers of the study
    that run a trial now, this one included.
    """

    trial: Trial
    since: float
    workers: int

    @property
    def device_seconds(self) -> float:
        """Seconds since the claim."""
        return round(max(0.0, time.time() - self.since), 6)


@dataclass(frozen=True)
class Wait:
    """Nothing can start now; the result of a running trial may change that."""


@dataclass(frozen=True)
class TrialQueue:
    """The trials of one study, shared by its workers.

    ``uuid`` tells it from a study that is made anew under its name; ``None`` where it was made
    before there was one.
    """

    study: Study
    storage: RetryingStorage
    url: str
    space: Space
    uuid: str | None = None

    @property
    def _starter(self) -> TrialStarter:
        return TrialStarter(self.study, self.storage, self.space)

    @retrying
    def claim(self, worker: str) -> Claim | Wait | StopReason:
        """Claim a waiting trial, or a new one; if there is none, return why.

        The name of the worker is unique among all that ever worked at the study.
        """
        try:
            sampler = self._starter.drawing_sampler
            ahead = sampler if sampler and sampler.proposes_ahead else None
            for left in reversed(range(MAX_PROPOSALS if ahead else 1)):
                proposal = self._propose(ahead) if ahead else None
                claimed = self._try_claim(worker, proposal, last=not left)
                if claimed is not None:
                    return claimed
        except Exception as error:
            if is_transient(error):
                self._requeue_broken_claim(worker)
            raise
        raise AssertionError("the last proposal is taken")

    def _propose(self, sampler: CanonicalSampler) -> Proposal | None:
        """Draw the next trial without the lock, if a new one would be started now.

        A GP takes seconds; under the lock, all other workers would wait for them.
        """
        try:  # the trials are cached: there is less to read under the lock
            trials = self.study.get_trials(deepcopy=False)
            attributes = self.study.user_attrs
        except KeyError:  # the study was deleted, which is reported under the lock
            return None
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if waiting or self._stop_reason(trials, attributes) or self._starter.exhausted(trials):
            return None
        return sampler.propose(self.study, trials)

    def _try_claim(
        self, worker: str, proposal: Proposal | None, *, last: bool
    ) -> Claim | Wait | StopReason | None:
        """Claim a trial under the lock; ``None`` where the proposal does not hold any more."""
        with self._lock() as attributes:
            # A plugin may want the curves of the trials that run.
            is_ours = self._starter.drawing_sampler is not None
            with self.storage.state_changes_only() if is_ours else nullcontext():
                trials, now = self.study.get_trials(deepcopy=False), time.time()
            reason = self._stop_reason(trials, attributes)
            queued = next(iter(startable_queue(trials, reason)), None)
            if queued is None and reason is None:
                reason = self._starter.exhausted(trials)
            if queued is None and reason is not None:
                return self._wait_or_stop(trials, reason)
            try:
                if StopReason.from_attributes(attributes) is not None:
                    self._store_stop_reason(None)
                started = self._starter.start(queued, trials, worker, now, proposal, last=last)
            except UpdateFinishedTrialError as error:
                raise LockLostError("another process has requeued the trial") from error
        if started is None:
            return None
        trial = started if isinstance(started, Trial) else Trial(self.study, started)
        workers = {trial.user_attrs.get(attrs.WORKER) for trial in _running(trials)} - {None}
        return Claim(trial, now, len(workers | {worker}))

    @retrying
    def _requeue_broken_claim(self, worker: str) -> None:
        """Requeue what an interrupted claim has left behind.

        Besides the worker's own trial these are any without a worker: who was claiming them has
        lost the lock as well.
        """
        with self._lock():
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if trial.user_attrs.get(attrs.WORKER) in (None, worker):
                    self._requeue(trial, INTERRUPTED)

    def _wait_or_stop(
        self, trials: Sequence[FrozenTrial], reason: StopReason
    ) -> Wait | StopReason:
        """Return why nothing can start; where nothing runs either, the study has ended."""
        if not _running(trials):
            self._store_stop_reason(reason)
        elif reason.is_provisional:
            return Wait()
        return reason

    @retrying
    def check_exists(self) -> None:
        """Raise a StudyError if the study was deleted, whether or not it was made anew."""
        with self._lock():
            pass

    @contextmanager
    def _lock(self) -> Iterator[Mapping[str, Any]]:
        """Hold the study's lock, and yield its user attributes; refuse a deleted study."""
        with study_lock(self.storage, self.url, self.study.study_name):
            try:
                attributes = self.study.user_attrs
            except KeyError:
                attributes = None
            if attributes is None or self.uuid not in (None, attributes.get(attrs.UUID)):
                raise StudyError(
                    f"the study {self.study.study_name!r} was deleted while it ran, and its "
                    "trials with it; 'autotune run' makes another one"
                )
            self.storage.check_rows(optuna_private.study_id(self.study))
            yield attributes

    def _stop_reason(
        self, trials: Sequence[FrozenTrial], attributes: Mapping[str, Any]
    ) -> StopReason | None:
        """Return why no new trial may start: a budget that is used up, or a request to stop."""
        stored = StopReason.from_attributes(attributes)
        request = stored if stored is not None and stored.is_request else None
        if request and _running(trials):
            return request  # they will be queued
        direction = attrs.metric_direction(self.study)
        budget = Budget.from_attributes(attributes)
        return stop_reason(trials, budget, direction, time.time()) or request

    def _store_stop_reason(self, reason: StopReason | None) -> None:
        if StopReason.from_attributes(self.study.user_attrs) != reason:
            self.study.set_user_attr(attrs.ENDED, reason.to_json() if reason else None)

    def budget(self) -> Budget:
        """Read the budget again: another launcher may have changed it."""
        return Budget.from_attributes(self.study.user_attrs)

    def set_budget(self, budget: Budget) -> None:
        """Set the budget of a run that starts; an earlier reason to stop no longer counts.

        The caller holds the study's lock: a worker must not meet a new study without its budget.
        """
        self.study.set_user_attr(attrs.BUDGET, budget.to_json())
        self._store_stop_reason(None)

    @retrying
    def finalize(self) -> StopReason | None:
        """Store and return the reason why the study has ended; ``None`` while it can continue.

        A worker has stored it, unless none came to ask.
        """
        with self._lock() as attributes:
            trials = self.study.get_trials(deepcopy=False)
            reason = StopReason.from_attributes(attributes)
            if reason is None or reason.is_request:
                reason = self._stop_reason(trials, attributes)
            if reason is None or _running(trials) or startable_queue(trials, reason):
                return None
            self._store_stop_reason(reason)
            return reason

    @retrying
    def enqueue(self, params: Params, origin: str) -> tuple[int, StopReason | None]:
        """Queue a plan that no trial has; return its number, and why it cannot start yet."""
        with self._lock() as stored:
            trials = self.study.get_trials(deepcopy=False)
            refuse_repeated(self.space, trials, params)
            plan = self.space.plan(params).to_json()
            self.study.enqueue_trial(params, user_attrs={attrs.ORIGIN: origin, attrs.PLAN: plan})
            return len(trials), self._stop_reason(trials, stored)

    @retrying
    def request_stop(self, text: str) -> StopReason:
        """Ask the workers of a study to stop, and return why no trial starts from now on.

        A worker that trains sees it at its next heartbeat, any other one at its next claim. A
        study whose budget is used up keeps that reason. The next run forgets the request.
        """
        with self._lock() as attributes:
            trials = self.study.get_trials(deepcopy=False)
            reason = StopReason.from_attributes(attributes) or self._stop_reason(
                trials, attributes
            )
            if reason is None or _running(trials):
                reason = StopReason(STOPPED, text)
            self._store_stop_reason(reason)
            return reason

    @retrying
    def is_stop_requested(self) -> bool:
        """Tell whether somebody has asked the workers to stop."""
        reason = StopReason.from_attributes(self.study.user_attrs)
        return reason is not None and reason.is_request

    @retrying
    def reopen(self) -> None:
        """Delete the reason to stop if the queue has trials that may start all the same."""
        with self._lock():
            reason = StopReason.from_attributes(self.study.user_attrs)
            if reason and startable_queue(self.study.get_trials(deepcopy=False), reason):
                self._store_stop_reason(None)

    @retrying
    def count_startable(self) -> int:
        """Count the trials that could start now, as far as is known without a sampler."""
        trials, attributes = self.study.get_trials(deepcopy=False), self.study.user_attrs
        stored = StopReason.from_attributes(attributes)
        exhausted = stored if stored and stored.kind == EXHAUSTED else None
        reason = self._stop_reason(trials, attributes) or exhausted
        return count_startable(trials, self.budget(), reason)

    @retrying
    def finish(
        self, claim: Claim, state: TrialState, values: float | Sequence[float] | None = None
    ) -> None:
        """Write how a trial has ended, with its values, one for each objective.

        Under the lock, with its time: trials end in the order in which claims see it. A trial that
        was requeued meanwhile stays as it is.

        Raises:
            StudyError: When the study has been deleted.
        """
        trial_id = optuna_private.trial_id(claim.trial)
        try:
            trial = self.storage.get_trial(trial_id)
        except KeyError:
            trial = None
        if trial is None or trial.state != TrialState.RUNNING:
            self.check_exists()
            return
        final = self._final_values(trial, state, values)
        optuna_private.forget_trials(self.study)
        try:
            view = optuna_private.filter_study(self.study, trial)
            self.study.sampler.after_trial(view, trial, state, final)
        finally:
            with study_lock(self.storage, self.url, self.study.study_name):
                attributes = {attrs.DEVICE_SECONDS: claim.device_seconds}
                ended = self.storage.end_trial(trial_id, state, final, attributes)
        if not ended:
            self.check_exists()

    def _final_values(
        self, trial: FrozenTrial, state: TrialState, values: float | Sequence[float] | None
    ) -> list[float] | None:
        """Return the values that a trial ends with, as :meth:`optuna.Study.tell` does.

        The value of a pruned trial is the last one that it reported.
        """
        if state == TrialState.PRUNED and trial.last_step is not None:
            last = trial.intermediate_values[trial.last_step]
            is_single = len(self.study.directions) == 1
            return [last] if is_single and not math.isnan(last) else None
        if state != TrialState.COMPLETE:
            return None
        final = [values] if isinstance(values, int | float) else list(values or ())
        if len(final) != len(self.study.directions) or any(math.isnan(value) for value in final):
            raise ValueError(f"trial {trial.number} cannot be complete with {values}")
        return [float(value) for value in final]

    def record_device_time(self, claim: Claim) -> None:
        """Write for how long a trial has held its device so far."""
        trial_id = optuna_private.trial_id(claim.trial)
        with suppress(UpdateFinishedTrialError):  # another worker has it
            self.storage.set_trial_user_attr(trial_id, attrs.DEVICE_SECONDS, claim.device_seconds)

    @retrying
    def progress(self) -> attrs.Progress:
        """Count the trials."""
        return attrs.count_progress(self.study.get_trials(deepcopy=False), self.budget().trials)

    @retrying
    def requeue_interrupted(self, claim: Claim) -> bool:
        """Requeue a trial because a stop was requested; return as :meth:`requeue` does."""
        self.record_device_time(claim)
        return self.requeue(claim.trial.number, INTERRUPTED)

    @retrying
    def requeue(self, number: int, reason: str) -> bool:
        """Fail a running trial for a reason, and queue its successor.

        Returns:
            Whether there is a successor; there is none after ``MAX_RETRIES``.
        """
        with self._lock():
            return self._requeue(self.study.get_trials(deepcopy=False)[number], reason)

    def _requeue(self, trial: FrozenTrial, reason: str) -> bool:
        if trial.state != TrialState.RUNNING:
            return False
        # A version that requeued in steps may have been killed between them.
        trials = self.study.get_trials(deepcopy=False)
        has_successor = trial.number in attrs.retried_numbers(trials)

        def decide(current: FrozenTrial) -> Failure:
            nonlocal has_successor
            counted = reason != INTERRUPTED
            successor = None if has_successor else make_retry(current, counted=counted)
            has_successor = has_successor or successor is not None
            text = reason if has_successor else f"{reason}, too often"
            return Failure({attrs.REASON: text}, successor)

        failed = self.storage.fail_trial(optuna_private.trial_id(trial), decide)
        optuna_private.forget_trials(self.study)
        return failed and has_successor

    @retrying
    def reclaim_stale(
        self, is_gone: Callable[[str], bool] = lambda worker: False, reason: str = WORKER_LOST
    ) -> int:
        """Requeue the trials of dead workers, and return how many there were.

        Dead are workers that have been silent for the grace period, those that ``is_gone`` names,
        and those that were lost before their claim was complete (nobody else can be in a claim
        while this holds the lock).
        """
        count = 0
        with self._lock():
            trials = self.study.get_trials(deepcopy=False)
            running = _running(trials)
            heartbeats = None
            # While the storage was unavailable nobody could write a heartbeat.
            if running and not was_unavailable(within_s=2 * HEARTBEAT_INTERVAL_S):
                ids = map(optuna_private.trial_id, running)
                heartbeats = read_heartbeat_ages(self.storage, ids)
            for trial in running:
                worker = trial.user_attrs.get(attrs.WORKER)
                stale = heartbeats is not None and is_stale(trial, heartbeats)
                if worker is None or stale or is_gone(worker):
                    requeued = self._requeue(trial, reason)
                    count += 1
                    logger.warning(
                        "trial %d of %s: %s; %s",
                        trial.number,
                        worker or "no worker",
                        reason,
                        "requeued" if requeued else "given up after too many losses",
                    )
            for number, successor in lost_without_retry(trials).items():
                self.study.add_trial(successor)
                logger.warning("trial %d was lost without a retry; requeued", number)
        return count


def _running(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.RUNNING]
