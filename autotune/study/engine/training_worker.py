"""A worker that does trainings outside of the search, each of which any worker can have.

All workers walk through the same list. Which of them has a training is settled by a lock of its
file: workers of another launcher take part, and a training whose worker was killed is free again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from autotune.config.schema import StudyConfig
from autotune.data.views.views import Views
from autotune.errors import DeviceError, TrialInterruptedError, place_as_user_error
from autotune.plan import Images
from autotune.storage.rdb.retry import call_with_retry
from autotune.study.devices import gpu_name
from autotune.study.engine.pool import Job
from autotune.study.engine.worker import FIRST_PAUSE_S, LONGEST_PAUSE_S, POLL_S, pause
from autotune.study.setup.opening import open_existing
from autotune.study.state.failures import FailureKind, classify, first_line
from autotune.study.state.oom import DoesNotFitError
from autotune.study.state.retries import MAX_RETRIES
from autotune.study.trial.context import WorkerContext, build_context
from autotune.study.trial.refit import (
    open_refit_tests,
    read_result,
    refit_views,
    store_refit,
)
from autotune.study.trial.retrain import read_scores, retrain_and_store
from autotune.study.trial.run import EventCallback, torch_device_name
from autotune.study.trial.trainings import Training, TrainingFiles

logger = logging.getLogger(__name__)


def is_done(training: Training, files: TrainingFiles) -> bool:
    """Tell whether a training has a result; a file that is none is removed.

    Raises:
        FormatError: When a later version has written it.
    """
    if not files.result.exists():
        return False
    if training.keeps_weights:
        return read_result(files) is not None
    if read_scores(files.result, training) is not None:
        return True
    with suppress(OSError):
        files.result.unlink(missing_ok=True)
    return False


def run_training_worker(job: Job, stop: threading.Event, on_event: EventCallback) -> None:
    """Do the trainings of a job that nobody else does, until all are done or a stop is requested.

    Args:
        job: What to do.
        stop: Set to interrupt; the state of a training after its last epoch stays.
        on_event: Called with every event.

    Raises:
        UserError: When a training cannot be done: other images, a full disk, no memory.
        DeviceError: When this process cannot use its GPU, or can no longer use it.
    """
    assert job.trainings is not None
    if job.threads:
        torch.set_num_threads(job.threads)
    handle = call_with_retry(open_existing, job.study, job.storage, job.files)
    config = with_unreadable_share(handle.config(), job.trainings["max_unreadable_share"])
    trainings = [Training.from_json(values) for values in job.trainings["trainings"]]
    ctx = build_context(handle, job.workers, job.gpu, config)
    on_event(
        {"event": "ready", "device": torch_device_name(ctx.device), "gpu": gpu_name(ctx.device)}
    )
    do_trainings(trainings, ctx, stop, on_event)


def with_unreadable_share(config: StudyConfig, share: float) -> StudyConfig:
    """Return a configuration under which that share of images may be unreadable."""
    share = max(share, config.data.max_unreadable_share)
    return config.model_copy(
        update={"data": config.data.model_copy(update={"max_unreadable_share": share})}
    )


def do_trainings(
    trainings: Iterable[Training],
    ctx: WorkerContext,
    stop: threading.Event,
    on_event: EventCallback,
) -> None:
    """Do trainings, see :func:`run_training_worker`; in the order given."""
    work = _Work(ctx, stop, on_event)
    pending = list(trainings)
    is_waiting = False
    while pending and not stop.is_set():
        left = [training for training in pending if not work.try_to_do(training)]
        if len(left) == len(pending):  # all are those of other workers, which may be killed
            if not is_waiting:
                on_event({"event": "waiting"})
            time.sleep(POLL_S)  # not stop.wait(): the handler of a signal would need its lock
        is_waiting = len(left) == len(pending)
        pending = left


@dataclass
class _Work:
    """Does trainings one by one, and keeps the images that refits share."""

    ctx: WorkerContext
    stop: threading.Event
    on_event: EventCallback
    _views: dict[Images, tuple[Views, Views]] = field(default_factory=dict)
    _divided: WorkerContext | None = None

    def _context_of(self, training: Training) -> WorkerContext:
        """Return the context of a training; that of the last other division is kept."""
        seed = training.split_seed
        if seed is None:
            return self.ctx
        if self._divided is None or self._divided.resources.split_seed != seed:
            resources = self.ctx.resources.divided_anew(seed)
            self._divided = replace(self.ctx, resources=resources)
        return self._divided

    def try_to_do(self, training: Training) -> bool:
        """Do a training unless another worker has it; tell whether nothing is left to do of it."""
        files = TrainingFiles.of(training, self.ctx.handle, self.ctx.config)
        if self.stop.is_set():
            return False
        if is_done(training, files):
            return True
        with files.claim() as is_mine:
            if not is_mine:
                return False
            if not is_done(training, files):  # by the worker that had it until now
                self._do(training, files)
        return not self.stop.is_set()

    def _do(self, training: Training, files: TrainingFiles) -> None:
        """Do a training, again after failures that may pass."""
        event = {"training": training.name}
        plan = training.plan.describe(named=len(self.ctx.space.backbones) > 1)
        for attempt in range(MAX_RETRIES + 2):
            self.on_event({**event, "event": "start", "plan": plan})
            try:
                with place_as_user_error(files.folder):
                    self._train(training, files)
                self.on_event({**event, "event": "end", "state": "trained"})
                return
            except TrialInterruptedError:
                self.on_event({**event, "event": "end", "state": "interrupted"})
                return
            except Exception as error:
                self.on_event({**event, "event": "end", "state": "failed"})
                if attempt > MAX_RETRIES or not self._may_pass(training, error):
                    raise
                logger.warning("%s is tried again", training.name, exc_info=True)
            pause(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 4**attempt), self.stop)
            if self.stop.is_set():
                return

    def _may_pass(self, training: Training, error: Exception) -> bool:
        """Tell whether another attempt in this process may succeed.

        Raises:
            DeviceError: When another process may succeed.
        """
        cause = error.__cause__
        if isinstance(cause, DoesNotFitError) and cause.shortage.is_shared_device:
            return True
        kind = classify(error, self.ctx.device)
        if kind == FailureKind.DEVICE_LOST:
            raise DeviceError(
                f"this process can no longer use the GPU ({first_line(error)}); {training.name} "
                "continues from its last epoch in another one"
            ) from error
        return kind == FailureKind.TRANSIENT

    def _train(self, training: Training, files: TrainingFiles) -> None:
        epochs = self.ctx.config.training.epochs

        def on_epoch(epoch: int, value: float | None = None) -> None:
            event: dict[str, Any] = {"event": "epoch", "training": training.name, "epoch": epoch}
            self.on_event({**event, "epochs": epochs, "value": value})

        stopped: Callable[[], bool] = self.stop.is_set
        if training.refit is None:
            retrain_and_store(training, files, self._context_of(training), on_epoch, stopped)
            return
        images, test = self._refit_views(training)
        store_refit(training, files, self.ctx, images, test, on_epoch, stopped)

    def _refit_views(self, training: Training) -> tuple[Views, Views]:
        """Return the images that a plan is refitted and tested on."""
        ctx, plan = self.ctx, training.plan
        if plan.images not in self._views:
            assert training.refit is not None
            data = ctx.resources.of(plan).data
            # Two plans are refitted, the best one and the baseline.
            parts = 2 if ctx.config.image_dimensions else len(ctx.config.backbones)
            memory_bytes = ctx.resources.memory_bytes // parts
            config = ctx.config.for_images(*plan.images[1:])
            train = refit_views(data, config, training.refit, memory_bytes)
            self._views[plan.images] = train, open_refit_tests(ctx.handle, ctx.config, data.spec)
        return self._views[plan.images]
