"""Who runs which trial: claiming, finishing, requeueing, reclaiming. The one failure policy.

- A worker claims a trial under the study's lock, where finished, live and waiting trials can be
  counted: the budget is exact however many workers there are.
- A claimed trial has all of its parameters and its plan before the lock is released: whoever
  claims next knows what is being tried.
- A trial that was interrupted, that met a transient failure or whose worker is dead is failed and
  gets a successor in the queue, which continues from its checkpoint with its curve; at most
  ``MAX_RETRIES`` times in a row without a further epoch. Both happen in one transaction, which
  reads the curve: nothing is lost between the two, nor is a value that the worker reported last.
- A trial that failed by itself (it diverged, its plan does not fit) is not retried.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, cast

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from autotune import optuna_private
from autotune.errors import StudyError
from autotune.format_versions import reading
from autotune.plan import TrialPlan
from autotune.search.dimensions import suggest
from autotune.search.greedy import STAGE
from autotune.search.samplers import CanonicalSampler, Draw, Proposal
from autotune.search.space import Space
from autotune.storage.rdb.connection import GRACE_PERIOD_S, HEARTBEAT_INTERVAL_S
from autotune.storage.rdb.fast_rdb import Failure, StoredParam
from autotune.storage.rdb.heartbeat import HeartbeatAges, read_heartbeat_ages
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

logger = logging.getLogger(__name__)

#: Draws of a new trial without the lock before a claim takes the last one; between two of them
#: another worker has made a trial.
MAX_PROPOSALS = 3
#: Retries of a trial after its worker was lost, in a row without a new epoch.
MAX_RETRIES = 3
INTERRUPTED = "interrupted"
WORKER_LOST = "its worker was lost"
#: What a successor takes over from the attempt before it.
_INHERITED = (
    *(attrs.PLAN, attrs.ROLE, attrs.ORIGIN, attrs.STAGE),
    *(attrs.SECONDS, attrs.CACHES, attrs.COSTS, attrs.MICRO_BATCH, attrs.CURVES),
)


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

    @retrying
    def claim(self, worker: str) -> Claim | Wait | StopReason:
        """Claim a waiting trial, or a new one; if there is none, return why.

        The name of the worker is unique among all that ever worked at the study.
        """
        try:
            sampler = self._sampler(proposes=True)
            for left in reversed(range(MAX_PROPOSALS if sampler else 1)):
                claimed = self._try_claim(worker, self._propose(), last=not left)
                if claimed is not None:
                    return claimed
        except Exception as error:
            if is_transient(error):
                self._requeue_broken_claim(worker)
            raise
        raise AssertionError("the last proposal is taken")

    def _sampler(self, *, proposes: bool = False, draws: bool = False) -> CanonicalSampler | None:
        """Return the sampler if it is autotune's own, and can draw as asked; else ``None``.

        That is without the lock (``proposes``), or for a trial that is not there yet (``draws``).
        """
        sampler = self.study.sampler
        if not isinstance(sampler, CanonicalSampler):
            return None
        if (proposes and not sampler.proposes_ahead) or (draws and sampler.writes_trials):
            return None
        return sampler

    def _propose(self) -> Proposal | None:
        """Draw the next trial without the lock, if a new one would be started now.

        A GP takes seconds; under the lock, all other workers would wait for them.
        """
        sampler = self._sampler(proposes=True)
        if sampler is None:
            return None
        try:  # the trials are cached: there is less to read under the lock
            trials = self.study.get_trials(deepcopy=False)
            attributes = self.study.user_attrs
        except KeyError:  # the study was deleted, which is reported under the lock
            return None
        if any(trial.state == TrialState.WAITING for trial in trials):
            return None
        if self._stop_reason(trials, attributes) is not None:
            return None
        return None if self._exhausted(trials) else sampler.propose(self.study, trials)

    def _try_claim(
        self, worker: str, proposal: Proposal | None, *, last: bool
    ) -> Claim | Wait | StopReason | None:
        """Claim a trial under the lock; ``None`` where the proposal does not hold any more."""
        with self._lock() as attributes:
            # A plugin may want the curves of the trials that run.
            is_ours = self._sampler(draws=True) is not None
            with self.storage.state_changes_only() if is_ours else nullcontext():
                trials, now = self.study.get_trials(deepcopy=False), time.time()
            reason = self._stop_reason(trials, attributes)
            queued = next(iter(startable_queue(trials, reason)), None)
            if queued is None and reason is None:
                reason = self._exhausted(trials)
            if queued is None and reason is not None:
                return self._wait_or_stop(trials, reason)
            try:
                if StopReason.from_attributes(attributes) is not None:
                    self._store_stop_reason(None)
                started = self._start(queued, trials, worker, now, proposal, last=last)
            except UpdateFinishedTrialError as error:
                raise LockLostError("another process has requeued the trial") from error
        if started is None:
            return None
        trial = started if isinstance(started, Trial) else Trial(self.study, started)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        workers = {trial.user_attrs.get(attrs.WORKER) for trial in running} - {None}
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
        running = any(trial.state == TrialState.RUNNING for trial in trials)
        if running and reason.is_provisional:
            return Wait()
        if not running:
            self._store_stop_reason(reason)
        return reason

    def _start(
        self,
        queued: FrozenTrial | None,
        trials: Sequence[FrozenTrial],
        worker: str,
        since: float,
        proposal: Proposal | None,
        *,
        last: bool,
    ) -> Trial | int | None:
        """Start a trial: a queued one, which is returned, or a new one, whose id is returned.

        What only reads comes after the lock.
        """
        sampler = self._sampler(draws=True)
        # A trial that waits without a plan is drawn like a new one, and ``ask`` takes it.
        new = queued is None and all(trial.state != TrialState.WAITING for trial in trials)
        if new and sampler is not None:
            upcoming = create_trial(state=TrialState.RUNNING)
            upcoming.number = len(trials)
            drawn: Draw | None = None
            if proposal is not None:
                drawn = sampler.accept(self.study, upcoming, trials, proposal, last=last)
            elif last:
                drawn = sampler.draw(self.study, upcoming, trials)
            return None if drawn is None else self._create(drawn, worker, since)
        if queued is not None:
            attrs.trial_plan(queued)  # one of a later version stays in the queue
        trial = self._ask() if queued is None else self._pop(queued)
        params, plan = draw_missing_params(trial, self.space)
        # Last: a trial without them was interrupted above, and who holds the lock can see that.
        attributes = {**plan, attrs.CLAIMED_AT: since, attrs.WORKER: worker}
        self.storage.fill_trial(optuna_private.trial_id(trial), params, attributes)
        optuna_private.update_user_attrs(trial, attributes)
        return trial

    def _create(self, drawn: Draw, worker: str, since: float) -> int:
        """Write a whole trial in one transaction, and return its id."""
        stage = {} if drawn.stage is None else {STAGE: drawn.stage}
        trial = create_trial(
            state=TrialState.RUNNING,
            params=drawn.params,
            distributions=dict(self.space.distributions),
            user_attrs={
                **stage,
                attrs.PLAN: self.space.plan(drawn.params).to_json(),
                attrs.CLAIMED_AT: since,
                attrs.WORKER: worker,
            },
        )
        storage = optuna_private.storage(self.study)
        return storage.create_new_trial(optuna_private.study_id(self.study), trial)

    def _ask(self) -> Trial:
        with warnings.catch_warnings():
            # Optuna expects heartbeats from ``optimize`` only; ours come from Heartbeat.
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            return self.study.ask()

    def _pop(self, queued: FrozenTrial) -> Trial:
        """Take a certain trial out of the queue; ``Study.ask`` takes the lowest number."""
        trial_id = optuna_private.trial_id(queued)
        if not self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
            raise LockLostError(f"another process has taken trial {queued.number}")
        optuna_private.forget_trials(self.study)
        return Trial(self.study, trial_id)

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
        if request and any(trial.state == TrialState.RUNNING for trial in trials):
            return request  # they will be queued
        direction = attrs.metric_direction(self.study)
        budget = Budget.from_attributes(attributes)
        return stop_reason(trials, budget, direction, time.time()) or request

    def _exhausted(self, trials: Sequence[FrozenTrial]) -> StopReason | None:
        """Ask the sampler whether there is a further plan (a launcher has none to ask)."""
        if not self.space.distributions:
            # To the sampler, a baseline outside of a space without parameters is its only plan.
            only = self.space.plan({})
            if all(attrs.trial_plan(trial) != only for trial in trials):
                return None
        sampler = self._sampler()
        text = sampler.exhausted_reason(self.study, trials) if sampler else ""
        return StopReason(EXHAUSTED, text) if text else None

    def _store_stop_reason(self, reason: StopReason | None) -> None:
        if StopReason.from_study(self.study) != reason:
            self.study.set_user_attr(attrs.ENDED, reason.to_json() if reason else None)

    def budget(self) -> Budget:
        """Read the budget again: another launcher may have changed it."""
        return Budget.from_study(self.study)

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
            running = any(trial.state == TrialState.RUNNING for trial in trials)
            if reason is None or running or startable_queue(trials, reason):
                return None
            self._store_stop_reason(reason)
            return reason

    @retrying
    def request_stop(self, text: str) -> StopReason:
        """Ask the workers of a study to stop, and return why no trial starts from now on.

        A worker that trains sees it at its next heartbeat, any other one at its next claim. A
        study whose budget is used up keeps that reason. The next run forgets the request.

        Args:
            text: Who asks, for the user.
        """
        with self._lock() as attributes:
            trials = self.study.get_trials(deepcopy=False)
            reason = StopReason.from_attributes(attributes) or self._stop_reason(
                trials, attributes
            )
            if reason is None or any(trial.state == TrialState.RUNNING for trial in trials):
                reason = StopReason(STOPPED, text)
            self._store_stop_reason(reason)
            return reason

    @retrying
    def is_stop_requested(self) -> bool:
        """Tell whether somebody has asked the workers to stop."""
        reason = StopReason.from_study(self.study)
        return reason is not None and reason.is_request

    @retrying
    def reopen(self) -> None:
        """Delete the reason to stop if the queue has trials that may start all the same."""
        with self._lock():
            reason = StopReason.from_study(self.study)
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
        trial: FrozenTrial | None = None
        with suppress(KeyError):
            trial = self.storage.get_trial(trial_id)
        if trial is None or trial.state != TrialState.RUNNING:
            self.check_exists()
            return
        final = self._final_values(trial, state, values)
        optuna_private.forget_trials(self.study)
        ended = False
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
            running = [trial for trial in trials if trial.state == TrialState.RUNNING]
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


def seconds_silent(trial: FrozenTrial, heartbeats: HeartbeatAges) -> float | None:
    """Return the seconds since the last sign of life of a running trial's worker.

    Before the first heartbeat, that is its claim; ``None`` where there is neither.
    """
    age = heartbeats.age_s.get(optuna_private.trial_id(trial))
    claimed_at = trial.user_attrs.get(attrs.CLAIMED_AT)
    if age is None and claimed_at is not None:
        age = max(0.0, heartbeats.now - float(claimed_at))
    return age


def is_stale(trial: FrozenTrial, heartbeats: HeartbeatAges) -> bool:
    """Tell whether the worker of a running trial counts as dead."""
    silent = seconds_silent(trial, heartbeats)
    return silent is None or silent > GRACE_PERIOD_S


def lost_without_retry(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the missing successors of trials that were lost and never retried, by their number.

    Earlier versions failed a trial whose worker fell silent before they queued its successor, and
    could be killed between the two. Such a trial has no reason, and its last sign of life is the
    grace period before its end; who fails a trial by hand does it while its worker lives.
    """
    retried = attrs.retried_numbers(trials)
    successors = {
        trial.number: make_retry(trial)
        for trial in trials
        if trial.state == TrialState.FAIL
        and trial.number not in retried
        and attrs.WORKER in trial.user_attrs
        and not {attrs.REASON, attrs.FAILED_PLAN} & trial.user_attrs.keys()
        and trial.datetime_complete is not None
        and trial.datetime_complete.timestamp() - attrs.last_sign_of_life(trial)
        > GRACE_PERIOD_S / 2
    }
    return {number: trial for number, trial in successors.items() if trial is not None}


class _ParamRecorder(optuna_private.StorageProxy):
    """The storage of a trial that suggests its parameters, which are collected and not written.

    Optuna writes one after the other, in a transaction each, and looks around in each of them:
    a hundred round trips to a server for twenty parameters, under the study's lock.
    """

    def __init__(self, storage: BaseStorage) -> None:
        super().__init__(storage)
        self.params: dict[str, StoredParam] = {}

    def set_trial_param(
        self, trial_id: int, name: str, value: float, distribution: BaseDistribution
    ) -> None:
        """Collect a parameter."""
        self.params[name] = StoredParam(value, distribution)


def draw_missing_params(
    trial: Trial, space: Space
) -> tuple[dict[str, StoredParam], dict[str, Any]]:
    """Suggest the parameters of a trial that has none yet, and work out its plan.

    Returns:
        What to write: its parameters, and the attribute of its plan. A trial from the queue may
        have both.
    """
    stored = trial.user_attrs.get(attrs.PLAN)
    if stored is not None:
        with reading(f"the plan of trial {trial.number}"):
            if space.params(TrialPlan.from_json(stored)) is None:
                return {}, {}
    storage = trial.storage
    recorder = _ParamRecorder(storage)
    trial.storage = cast(BaseStorage, recorder)
    try:
        params = {
            name: suggest(trial, name, distribution)
            for name, distribution in space.distributions.items()
        }
    finally:
        trial.storage = storage
    plan = {} if stored is not None else {attrs.PLAN: space.plan(params).to_json()}
    return recorder.params, plan


def make_retry(trial: FrozenTrial, counted: bool = True) -> FrozenTrial | None:
    """Make the successor of a trial that is about to fail, or has; ``None`` after too many losses.

    It has the trial's parameters, plan and curve, and resumes from its checkpoint. If the trial
    was lost before it had a plan, it has what the queue gave it, and draws the rest. It is
    ``counted`` as one of the ``MAX_RETRIES``, unless a stop was requested.
    """
    # A trial that got further before it was lost is not what its workers die of.
    further = (trial.last_step or 0) > trial.user_attrs.get(attrs.RESUMED, 0)
    lost = (0 if further else trial.user_attrs.get(attrs.LOST_ATTEMPTS, 0)) + int(counted)
    if lost > MAX_RETRIES:
        return None
    planned = attrs.PLAN in trial.user_attrs
    attributes = {
        key: value
        for key, value in trial.user_attrs.items()
        # Without a plan it is drawn again, in the stage of then.
        if key in _INHERITED and (planned or key != attrs.STAGE)
    }
    attributes[attrs.RETRIES] = [*attrs.earlier_attempts(trial), trial.number]
    attributes[attrs.LOST_ATTEMPTS] = lost
    attributes[attrs.RESUMED] = trial.last_step or 0
    return create_trial(
        state=TrialState.WAITING,
        params=trial.params if planned else {},
        distributions=trial.distributions if planned else {},
        user_attrs=attributes,
        system_attrs={k: v for k, v in trial.system_attrs.items() if k == "fixed_params"},
        intermediate_values=trial.intermediate_values,
    )
