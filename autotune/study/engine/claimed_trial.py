"""One claimed trial of a worker: run it, and record how it ended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from autotune import optuna_private
from autotune.errors import DeviceError, DiskFullError, UserError
from autotune.storage.rdb.connection import storage_errors
from autotune.study.state import attrs
from autotune.study.state.failures import FailureKind, classify, first_line
from autotune.study.state.retries import WORKER_LOST
from autotune.study.state.trial_queue import Claim, TrialQueue
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.run import EventCallback, run_trial

logger = logging.getLogger(__name__)


def run_claimed_trial(
    claim: Claim,
    ctx: WorkerContext,
    queue: TrialQueue,
    is_stopped: Callable[[], bool],
    on_event: EventCallback,
) -> FailureKind | None:
    """Run one trial, until it ends or has to stop, and record how it ended.

    Returns:
        The kind of failure that ended it, or ``None``.

    Raises:
        UserError: When no trial can run; this one is queued again. Also when the study was
            deleted.
        DeviceError: When this process can no longer use its GPU; the trial is queued again.
    """
    ending = _TrialOutcomeRecorder(claim, ctx, queue, on_event)
    try:
        outcome = run_trial(claim.trial, ctx, is_stopped, on_event)
        queue.finish(claim, outcome.state, outcome.values)
        ending.report(outcome.state_name, outcome.value)
    except Exception as error:
        kind = classify(error, ctx.device)
        if kind in (FailureKind.REASSIGNED, FailureKind.UNEXPECTED):
            queue.check_exists()  # a study that was deleted fails in these two ways
        ending.handle(error, kind)
        return kind
    return None


@dataclass(frozen=True)
class _TrialOutcomeRecorder:
    """Records how a claimed trial ended."""

    claim: Claim
    ctx: WorkerContext
    queue: TrialQueue
    on_event: EventCallback

    def report(self, state: str, value: float | None = None) -> None:
        number = self.claim.trial.number
        self.on_event({"event": "end", "trial": number, "state": state, "value": value})

    def handle(self, error: Exception, kind: FailureKind) -> None:
        """Queue, fail or drop the trial; raise what ends the worker."""
        number, message = self.claim.trial.number, first_line(error)
        reason = f"{type(error).__name__}: {message}"
        match kind:
            case FailureKind.INTERRUPTED:
                self.queue.requeue_interrupted(self.claim)
                self.report("interrupted")
            case FailureKind.REASSIGNED:
                self.drop()
            case FailureKind.USER:
                self.queue.requeue_interrupted(self.claim)
                logger.error("trial %d: %s", number, error)
                raise error
            case FailureKind.DISK_FULL:
                self.queue.requeue_interrupted(self.claim)
                raise DiskFullError(f"{message}; free some space") from error
            case FailureKind.DENIED:
                self.queue.requeue_interrupted(self.claim)
                raise UserError(
                    f"a trial cannot use its files or folders: {message}; fix that, or move the "
                    "files of the study with 'files='"
                ) from error
            case FailureKind.STORAGE:
                with storage_errors(self.ctx.handle.url):
                    raise error
            case FailureKind.TRANSIENT:
                logger.warning("trial %d is queued again", number, exc_info=True)
                self.requeue(reason)
            case FailureKind.DEVICE_LOST:
                logger.exception("trial %d is queued again", number)
                self.requeue(f"{WORKER_LOST}: {reason}")
                raise DeviceError(
                    f"this process can no longer use the GPU ({reason}); its trial was queued "
                    "again; start the worker again"
                ) from error
            case FailureKind.BAD_PLAN:
                name = type(error).__name__.removesuffix("Error").lower()
                self.fail(f"{name}: {message}", {attrs.FAILED_PLAN: True})
            case _:
                logger.exception("trial %d", number)
                self.fail(reason, {})

    def requeue(self, reason: str) -> None:
        self.queue.record_device_time(self.claim)
        is_queued = self.queue.requeue(self.claim.trial.number, reason)
        self.report("queued again" if is_queued else "failed")

    def fail(self, reason: str, attributes: dict[str, Any]) -> None:
        """Record that the trial has failed for good."""
        trial = self.claim.trial
        logger.warning("trial %d failed: %s", trial.number, reason)
        try:
            # Before the state is set: a sampler must never see a failure without its reason.
            self.queue.storage.set_trial_user_attrs(
                optuna_private.trial_id(trial), {attrs.REASON: reason, **attributes}
            )
        except UpdateFinishedTrialError:
            self.drop()
            return
        self.queue.finish(self.claim, TrialState.FAIL)
        self.remove_checkpoint()
        self.report("failed")

    def drop(self) -> None:
        """Leave the trial to the worker that has it now.

        The checkpoint belongs to its successor. Once that has ended, a checkpoint that this
        worker wrote since is removed.
        """
        number, first = self.claim.trial.number, attrs.first_attempt(self.claim.trial)
        logger.warning("trial %d was given to another worker; dropped here", number)
        trials = self.ctx.handle.study.get_trials(deepcopy=False)
        if all(t.state.is_finished() for t in trials if attrs.first_attempt(t) == first):
            self.remove_checkpoint()
        self.report("lost")

    def remove_checkpoint(self) -> None:
        handle, first = self.ctx.handle, attrs.first_attempt(self.claim.trial)
        handle.files.checkpoint(handle.name, first).unlink(missing_ok=True)
