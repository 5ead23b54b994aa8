"""Who runs which trial: claiming, giving back, sweeping. The one failure policy.

- A worker claims a trial under the study's lock, where finished, live and waiting trials can be
  counted: the budget is exact however many workers there are.
- A claimed trial has all of its parameters and its plan before the lock is released: whoever
  claims next knows what is being tried.
- A trial that was interrupted, that met a failure which may pass or whose worker is gone is failed
  and gets a successor in the queue, which goes on from its checkpoint with its curve; at most
  ``MAX_RETRIES`` times in a row without a further epoch. Both happen in one transaction, which
  reads the curve: nothing is lost between the two, and no value that the worker reported last.
- A trial that failed on its own account (it diverged, its plan does not fit) is not tried again.
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
from autotune.optuna_private import StorageProxy
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
    Budget,
    StopReason,
    count_startable,
    startable_queue,
    stop_reason,
)

logger = logging.getLogger(__name__)

#: How often a new trial is drawn without the lock before a claim takes what it has; between two
#: of them another worker has made a trial.
MAX_PROPOSALS = 3
#: How often a trial is given back to the queue after its worker was lost, without a new epoch.
MAX_RETRIES = 3
INTERRUPTED = "interrupted"
WORKER_LOST = "its worker was lost"
#: What a successor takes over from the attempt before it.
_INHERITED = (
    attrs.PLAN,
    attrs.ROLE,
    attrs.ORIGIN,
    attrs.STAGE,
    attrs.SECONDS,
    attrs.CACHES,
    attrs.COSTS,
    attrs.MICRO_BATCH,
)


@dataclass(frozen=True)
class Claim:
    """A trial that is this worker's now, with its parameters and its plan.

    Args:
        trial: The trial.
        since: When it was claimed, in seconds of the Unix epoch.
        workers: How many workers the study has now that run a trial, this one included.
    """

    trial: Trial
    since: float
    workers: int


@dataclass(frozen=True)
class Wait:
    """Nothing can start now; what a running trial brings may change that."""


@dataclass(frozen=True)
class TrialQueue:
    """Claims on the trials of one study.

    Args:
        study: The study.
        storage: Its storage.
        url: Absolute storage URL.
        space: Its static space.
        uuid: What tells it from a study that is made anew under its name; ``None`` where it was
            made before there was one.
    """

    study: Study
    storage: RetryingStorage
    url: str
    space: Space
    uuid: str | None = None

    @retrying
    def claim(self, worker: str) -> Claim | Wait | StopReason:
        """Take a waiting trial, or a new one; else say why not.

        Args:
            worker: Name of the worker, unique among all that ever worked at the study.
        """
        try:
            return self._claim(worker)
        except Exception as error:
            if is_transient(error):
                self._undo(worker)
            raise

    def _claim(self, worker: str) -> Claim | Wait | StopReason:
        sampler = self.study.sampler
        ahead = isinstance(sampler, CanonicalSampler) and sampler.proposes_ahead
        for left in reversed(range(MAX_PROPOSALS if ahead else 1)):
            found = self._try_to_claim(worker, self._propose(), last=not left)
            if found is not None:
                return found
        raise AssertionError("the last proposal is taken")

    def _propose(self) -> Proposal | None:
        """Draw the next trial without the lock, where a new one would be started now.

        A GP takes seconds; under the lock, all other workers would wait for them.
        """
        sampler = self.study.sampler
        if not isinstance(sampler, CanonicalSampler) or not sampler.proposes_ahead:
            return None
        try:  # the trials are remembered: there is less to read under the lock
            trials = self.study.get_trials(deepcopy=False)
            attributes = self.study.user_attrs
        except KeyError:  # the study was deleted, which is told under the lock
            return None
        if any(one.state == TrialState.WAITING for one in trials):
            return None
        if self._ending(trials, time.time(), Budget.from_attributes(attributes)) is not None:
            return None
        return None if self._exhausted(trials) else sampler.propose(self.study, trials)

    def _try_to_claim(
        self, worker: str, proposal: Proposal | None, *, last: bool
    ) -> Claim | Wait | StopReason | None:
        """Claim a trial under the lock; ``None`` where the proposal does not hold any more."""
        sampler = self.study.sampler
        with self._lock() as attributes:
            # A sampler of one's own may want the curves of the trials that run.
            known = isinstance(sampler, CanonicalSampler) and not sampler.writes_trials
            with self.storage.state_changes_only() if known else nullcontext():
                trials, now = self.study.get_trials(deepcopy=False), time.time()
            ended = self._ending(trials, now, Budget.from_attributes(attributes))
            queued = next(iter(startable_queue(trials, ended)), None)
            if queued is None and ended is None:
                ended = self._exhausted(trials)
            if queued is None and ended is not None:
                return self._nothing(trials, ended)
            try:
                if StopReason.from_attributes(attributes) is not None:
                    self._remember(None)
                started = self._start(queued, trials, worker, now, proposal, last=last)
            except UpdateFinishedTrialError as error:
                raise LockLostError("the trial was given back by somebody else") from error
        if started is None:
            return None
        trial = started if isinstance(started, Trial) else Trial(self.study, started)
        running = [one for one in trials if one.state == TrialState.RUNNING]
        workers = {one.user_attrs.get(attrs.WORKER) for one in running} - {None}
        return Claim(trial, now, len(workers | {worker}))

    @retrying
    def _undo(self, worker: str) -> None:
        """Give back what a claim has left behind that the storage broke off.

        Besides the worker's own trial these are any without a worker: who was claiming them has
        lost the lock as well.
        """
        with self._lock():
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if trial.user_attrs.get(attrs.WORKER) in (None, worker):
                    self._requeue(trial, INTERRUPTED)

    def _nothing(self, trials: Sequence[FrozenTrial], ended: StopReason) -> Wait | StopReason:
        """Say that nothing can start; where nothing runs either, that is the study's end."""
        running = any(one.state == TrialState.RUNNING for one in trials)
        if running and ended.is_provisional:
            return Wait()
        if not running:
            self._remember(ended)
        return ended

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
        """Start a trial: a queued one, which is returned, or a new one, whose id is.

        What only reads comes after the lock.
        """
        sampler = self.study.sampler
        # What waits without a plan is drawn as a new trial is, and ``ask`` takes it.
        new = queued is None and all(one.state != TrialState.WAITING for one in trials)
        if new and isinstance(sampler, CanonicalSampler) and not sampler.writes_trials:
            upcoming = create_trial(state=TrialState.RUNNING)
            upcoming.number = len(trials)
            drawn: Draw | None = None
            if proposal is not None:
                drawn = sampler.accept(self.study, upcoming, trials, proposal, last=last)
            elif last:
                drawn = sampler.draw(self.study, upcoming, trials)
            if drawn is None:
                return None
            return self._create(drawn, worker, since)
        if queued is not None:
            attrs.trial_plan(queued)  # one of a later version stays in the queue
        trial = self._ask() if queued is None else self._pop(queued)
        params, plan = draw_missing_params(trial, self.space)
        # Last: a trial without them broke off above, and whoever holds the lock can see that.
        attributes = {**plan, attrs.CLAIMED_AT: since, attrs.WORKER: worker}
        self.storage.fill_trial(optuna_private.trial_id(trial), params, attributes)
        optuna_private.update_user_attrs(trial, attributes)
        return trial

    def _create(self, drawn: Draw, worker: str, since: float) -> int:
        """Write a trial down whole, in one transaction, and return its id."""
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
        return optuna_private.storage(self.study).create_new_trial(
            optuna_private.study_id(self.study), trial
        )

    def _ask(self) -> Trial:
        with warnings.catch_warnings():
            # Optuna expects heartbeats from ``optimize`` only; ours come from Heartbeat.
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            return self.study.ask()

    def _pop(self, queued: FrozenTrial) -> Trial:
        """Take a certain trial out of the queue; ``Study.ask`` takes the one with least number."""
        if not self.storage.set_trial_state_values(
            optuna_private.trial_id(queued), TrialState.RUNNING
        ):
            raise LockLostError(f"trial {queued.number} was taken by somebody else")
        optuna_private.forget_trials(self.study)
        return Trial(self.study, optuna_private.trial_id(queued))

    @retrying
    def check_exists(self) -> None:
        """Refuse a study that was deleted.

        Raises:
            StudyError: When it was, whether or not it was made anew.
        """
        with self._lock():
            pass

    @contextmanager
    def _lock(self) -> Iterator[Mapping[str, Any]]:
        """Hold the study's lock, and give its user attributes.

        Raises:
            StudyError: When the study has been deleted, whether or not it was made anew.
        """
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
            yield attributes

    def _ending(
        self, trials: Sequence[FrozenTrial], now: float, budget: Budget | None = None
    ) -> StopReason | None:
        wanted = budget or self.budget()
        return stop_reason(trials, wanted, attrs.metric_direction(self.study), now)

    def _exhausted(self, trials: Sequence[FrozenTrial]) -> StopReason | None:
        """Ask the sampler whether there is a further plan (a launcher has none to ask)."""
        if not self.space.distributions:
            # To the sampler, a baseline outside of a space without parameters is its only plan.
            only = self.space.plan({})
            if all(attrs.trial_plan(one) != only for one in trials):
                return None
        sampler = self.study.sampler
        words = (
            sampler.exhausted_reason(self.study, trials)
            if isinstance(sampler, CanonicalSampler)
            else ""
        )
        return StopReason(EXHAUSTED, words) if words else None

    def _remember(self, ended: StopReason | None) -> None:
        if StopReason.from_study(self.study) != ended:
            self.study.set_user_attr(attrs.ENDED, ended.to_json() if ended else None)

    def budget(self) -> Budget:
        """Read the budget anew: another launcher may have changed it."""
        return Budget.from_study(self.study)

    def set_budget(self, budget: Budget) -> None:
        """Give the study the budget of a run that starts; what ended it before holds no more.

        The caller holds the study's lock: a worker must not meet a new study without its budget.
        """
        self.study.set_user_attr(attrs.BUDGET, budget.to_json())
        self._remember(None)

    @retrying
    def finalize(self) -> StopReason | None:
        """Return what has ended the study, and remember it; ``None`` while it can go on.

        A worker has remembered it, unless there was none that came to ask.
        """
        with self._lock():
            trials = self.study.get_trials(deepcopy=False)
            ended = StopReason.from_study(self.study) or self._ending(trials, time.time())
            running = any(one.state == TrialState.RUNNING for one in trials)
            if ended is None or running or startable_queue(trials, ended):
                return None
            self._remember(ended)
            return ended

    @retrying
    def reopen(self) -> None:
        """Forget what ended the study where the queue has trials that may start all the same."""
        with self._lock():
            ended = StopReason.from_study(self.study)
            if ended is not None and startable_queue(self.study.get_trials(deepcopy=False), ended):
                self._remember(None)

    @retrying
    def count_startable(self) -> int:
        """Count the trials that could start now, as far as it is known without a sampler."""
        trials = self.study.get_trials(deepcopy=False)
        remembered = StopReason.from_study(self.study)
        exhausted = remembered if remembered and remembered.kind == EXHAUSTED else None
        ended = self._ending(trials, time.time()) or exhausted
        return count_startable(trials, self.budget(), ended)

    @retrying
    def finish(
        self, claim: Claim, state: TrialState, values: float | Sequence[float] | None = None
    ) -> None:
        """Tell the study how a trial has ended.

        Under the lock, the time too: trials end in the order in which claims see it. A trial that
        was given back meanwhile stays as it is.

        Args:
            claim: The trial.
            state: How it has ended.
            values: Of a complete one, a value for each objective of the study.

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
        told = self._told(trial, state, values)
        optuna_private.forget_trials(self.study)
        ended = False
        try:
            view = optuna_private.filter_study(self.study, trial)
            self.study.sampler.after_trial(view, trial, state, told)
        finally:
            with study_lock(self.storage, self.url, self.study.study_name):
                held = round(max(0.0, time.time() - claim.since), 6)
                ended = self.storage.end_trial(trial_id, state, told, {attrs.DEVICE_SECONDS: held})
        if not ended:
            self.check_exists()

    def _told(
        self, trial: FrozenTrial, state: TrialState, values: float | Sequence[float] | None
    ) -> list[float] | None:
        """Return the values that a trial ends with, as :meth:`optuna.Study.tell` does.

        That of a pruned one is what it reported last.
        """
        if state == TrialState.PRUNED and trial.last_step is not None:
            last = trial.intermediate_values[trial.last_step]
            alone = len(self.study.directions) == 1
            return [last] if alone and not math.isnan(last) else None
        if state != TrialState.COMPLETE:
            return None
        told = [values] if isinstance(values, int | float) else list(values or ())
        if len(told) != len(self.study.directions) or any(math.isnan(one) for one in told):
            raise ValueError(f"trial {trial.number} cannot be complete with {values}")
        return [float(one) for one in told]

    def record_device_time(self, claim: Claim) -> None:
        """Write down for how long a trial has held its device so far."""
        held = max(0.0, time.time() - claim.since)
        with suppress(UpdateFinishedTrialError):  # it was given to another worker
            self.storage.set_trial_user_attr(
                optuna_private.trial_id(claim.trial), attrs.DEVICE_SECONDS, round(held, 6)
            )

    @retrying
    def progress(self) -> attrs.Progress:
        """Count the trials."""
        return attrs.count_progress(self.study.get_trials(deepcopy=False), self.budget().trials)

    @retrying
    def requeue_interrupted(self, claim: Claim) -> bool:
        """Give a trial back because a stop was asked for; return as :meth:`requeue` does."""
        self.record_device_time(claim)
        return self.requeue(claim.trial.number, INTERRUPTED)

    @retrying
    def requeue(self, number: int, reason: str) -> bool:
        """Fail a running trial and queue its successor.

        Args:
            number: Number of the trial.
            reason: Why, for the trial's record.

        Returns:
            Whether there is a successor; there is none after ``MAX_RETRIES``.
        """
        with self._lock():
            return self._requeue(self.study.get_trials(deepcopy=False)[number], reason)

    def _requeue(self, trial: FrozenTrial, reason: str) -> bool:
        if trial.state != TrialState.RUNNING:
            return False
        # A version that gave back in steps may have been killed between them.
        again = trial.number in attrs.retried_numbers(self.study.get_trials(deepcopy=False))

        def decide(current: FrozenTrial) -> Failure:
            nonlocal again
            upcoming = None if again else make_retry(current, counted=reason != INTERRUPTED)
            again = again or upcoming is not None
            words = reason if again else f"{reason}, too often"
            return Failure({attrs.REASON: words}, upcoming)

        failed = self.storage.fail_trial(optuna_private.trial_id(trial), decide)
        optuna_private.forget_trials(self.study)
        return failed and again

    @retrying
    def reclaim_stale(
        self, is_gone: Callable[[str], bool] = lambda worker: False, reason: str = WORKER_LOST
    ) -> int:
        """Give back the trials of workers that are gone.

        Gone are workers that have been silent for the grace period, those that ``is_gone``
        says are, and those that were lost before a trial was all theirs (nobody else can be
        there while this holds the lock).

        Returns:
            How many trials were given back.
        """
        count = 0
        with self._lock():
            trials = self.study.get_trials(deepcopy=False)
            running = [one for one in trials if one.state == TrialState.RUNNING]
            beats = None
            # While the storage was away nobody could write a heartbeat.
            if running and not was_unavailable(within_s=2 * HEARTBEAT_INTERVAL_S):
                beats = read_heartbeat_ages(
                    self.storage, [optuna_private.trial_id(one) for one in running]
                )
            for trial in running:
                worker = trial.user_attrs.get(attrs.WORKER)
                silent = beats is not None and is_stale(trial, beats)
                if worker is None or silent or is_gone(worker):
                    again = self._requeue(trial, reason)
                    count += 1
                    logger.warning(
                        "trial %d: %s, that of %s; %s",
                        trial.number,
                        reason,
                        worker or "nobody",
                        "queued again" if again else "given up after too many losses",
                    )
            for number, upcoming in lost_without_retry(trials).items():
                self.study.add_trial(upcoming)
                logger.warning("trial %d was lost without a retry; queued again", number)
        return count


def seconds_silent(trial: FrozenTrial, beats: HeartbeatAges) -> float | None:
    """Return for how many seconds the worker of a running trial has given no sign of life.

    Before the first heartbeat, its claim is one; ``None`` where there is neither.
    """
    age = beats.age_s.get(optuna_private.trial_id(trial))
    claimed = trial.user_attrs.get(attrs.CLAIMED_AT)
    if age is None and claimed is not None:
        age = max(0.0, beats.now - float(claimed))
    return age


def is_stale(trial: FrozenTrial, beats: HeartbeatAges) -> bool:
    """Tell whether the worker of a running trial must be taken for dead."""
    silent = seconds_silent(trial, beats)
    return silent is None or silent > GRACE_PERIOD_S


def lost_without_retry(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Find trials that failed because their workers fell silent, and were never tried again.

    Earlier versions failed a trial before they queued its successor, and could be killed between
    the two. Such a trial has no reason, and its last sign of life is the grace period before its
    end; who fails one by hand does it while its worker lives.

    Returns:
        The successors that they should have, by number.
    """
    replaced = attrs.retried_numbers(trials)
    found = {
        one.number: make_retry(one)
        for one in trials
        if one.state == TrialState.FAIL
        and one.number not in replaced
        and attrs.WORKER in one.user_attrs
        and not {attrs.REASON, attrs.FAILED_PLAN} & one.user_attrs.keys()
        and one.datetime_complete is not None
        and one.datetime_complete.timestamp() - attrs.last_sign_of_life(one) > GRACE_PERIOD_S / 2
    }
    return {number: upcoming for number, upcoming in found.items() if upcoming is not None}


class _Suggested(StorageProxy):
    """The storage of a trial that suggests its parameters, which are kept and not written.

    Optuna writes one after the other, in a transaction each, and looks around in each of them:
    a hundred round trips to a server for twenty parameters, under the study's lock.
    """

    def __init__(self, storage: BaseStorage) -> None:
        super().__init__(storage)
        self.params: dict[str, StoredParam] = {}

    def set_trial_param(
        self, trial_id: int, name: str, value: float, distribution: BaseDistribution
    ) -> None:
        """Keep a parameter."""
        self.params[name] = StoredParam(value, distribution)


def draw_missing_params(
    trial: Trial, space: Space
) -> tuple[dict[str, StoredParam], dict[str, Any]]:
    """Suggest the parameters of a trial that has none yet, and work out its plan.

    Returns:
        What is to be written: its parameters, and the attribute of its plan. A trial from the
        queue may have both.
    """
    stored = trial.user_attrs.get(attrs.PLAN)
    if stored is not None:
        with reading(f"the plan of trial {trial.number}"):
            if space.params(TrialPlan.from_json(stored)) is None:
                return {}, {}
    storage = trial.storage
    suggested = _Suggested(storage)
    trial.storage = cast(BaseStorage, suggested)
    try:
        params = {
            name: suggest(trial, name, distribution)
            for name, distribution in space.distributions.items()
        }
    finally:
        trial.storage = storage
    plan = {} if stored is not None else {attrs.PLAN: space.plan(params).to_json()}
    return suggested.params, plan


def make_retry(trial: FrozenTrial, counted: bool = True) -> FrozenTrial | None:
    """Make the successor of a trial that is about to fail, or has.

    It has the trial's parameters, plan and curve, and resumes from its checkpoint. Of a trial
    that was lost before it had a plan, it has what the queue gave it, and draws the rest.

    Args:
        trial: The trial.
        counted: Whether this is one of the ``MAX_RETRIES``; a stop that was asked for is not.

    Returns:
        The successor; ``None`` where the trial was lost too often.
    """
    # A trial that got further before it was lost is not what its workers die of.
    further = (trial.last_step or 0) > trial.user_attrs.get(attrs.RESUMED, 0)
    before = 0 if further else trial.user_attrs.get(attrs.LOST_ATTEMPTS, 0)
    lost = before + int(counted)
    if lost > MAX_RETRIES:
        return None
    planned = attrs.PLAN in trial.user_attrs
    attributes = {
        key: value
        for key, value in trial.user_attrs.items()
        # Without a plan it is drawn anew, in the stage of then.
        if key in _INHERITED and (planned or key != attrs.STAGE)
    }
    attributes[attrs.RETRIES] = [*attrs.earlier_attempts(trial), trial.number]
    attributes[attrs.LOST_ATTEMPTS] = lost
    attributes[attrs.RESUMED] = trial.last_step or 0
    system = {key: value for key, value in trial.system_attrs.items() if key == "fixed_params"}
    return create_trial(
        state=TrialState.WAITING,
        params=trial.params if planned else {},
        distributions=trial.distributions if planned else {},
        user_attrs=attributes,
        system_attrs=system,
        intermediate_values=trial.intermediate_values,
    )
