"""A worker: claims trials of a study and trains them, one after the other, on one device.

The launcher starts it as a process (:mod:`autotune.study.engine.worker_process`). ``autotune
worker`` calls :func:`run_worker` in the foreground, on any machine that reaches the storage.
"""

from __future__ import annotations

import threading
import time

import torch

from autotune import optuna_private
from autotune.config.schema import StudyConfig
from autotune.errors import StudyError, WorkerError
from autotune.runtime import single_threaded
from autotune.search.plugins import plugin_refs
from autotune.search.pruners import make_pruner
from autotune.search.samplers import make_sampler
from autotune.storage.rdb.connection import storage_errors
from autotune.storage.rdb.heartbeat import Heartbeat
from autotune.storage.rdb.retry import call_with_retry
from autotune.study.devices import gpu_name
from autotune.study.engine.claimed_trial import run_claimed_trial
from autotune.study.engine.pool import Job
from autotune.study.setup.opening import OpenStudy, open_existing
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from autotune.study.state.failures import FailureKind
from autotune.study.state.retries import MAX_RETRIES
from autotune.study.state.trial_queue import Claim, TrialQueue, Wait
from autotune.study.trial.context import build_context
from autotune.study.trial.run import EventCallback, torch_device_name

#: Consecutive failures before a worker gives up. For transient ones it is one more than a trial
#: may have, so that a trial that causes them is dropped before the worker.
MAX_CONSECUTIVE_FAILURES = {FailureKind.UNEXPECTED: 3, FailureKind.TRANSIENT: MAX_RETRIES + 2}
#: Pause after the first transient failure and the longest one; each is four times the last.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 120.0
#: Seconds between two attempts of a worker that waits for the results of others.
POLL_S = 1.0


def check_plugins(handle: OpenStudy, config: StudyConfig) -> None:
    """Refuse a sampler or a pruner whose file has changed since the study was made.

    The file of a custom space is not checked, because the study stores the space itself.

    Raises:
        StudyError: When the file has changed.
        UserError: When the file does not exist.
    """
    digests = handle.study.user_attrs.get(attrs.PLUGINS, {})
    for key, plugin in plugin_refs(config).items():
        if key != "space.custom" and plugin.digest() != digests.get(key):
            raise StudyError(
                f"{key}: the file {plugin.path} has changed since the study {handle.name!r} was "
                "made; restore it, or start another study with --name"
            )


def run_worker(job: Job, stop: threading.Event, on_event: EventCallback) -> StopReason | None:
    """Run trials until no further one starts, or a stop is requested.

    Returns:
        Why no further trial starts; ``None`` after a stop.

    Raises:
        UserError: When the study cannot be run: other images, a full disk.
        WorkerError: When several trials in a row failed for reasons outside their plans.
        DeviceError: When this process cannot use its GPU, or can no longer use it.
    """
    if job.threads:
        torch.set_num_threads(job.threads)
    handle = call_with_retry(open_existing, job.study, job.storage, job.files)
    ctx = build_context(handle, job.workers, job.gpu)
    check_plugins(handle, ctx.config)
    study, search = handle.study, ctx.config.search
    # A worker that is started again must not draw the same trials again.
    draws = len(study.get_trials(deepcopy=False))
    seed = (search.seed * 1_000_003 + draws * 1009 + job.index) % 2**31
    study.sampler = make_sampler(ctx.config, ctx.space, seed, attrs.trial_budget)
    queue = handle.trial_queue()
    on_event(
        {"event": "ready", "device": torch_device_name(ctx.device), "gpu": gpu_name(ctx.device)}
    )
    failures = workers = 0
    is_waiting = False
    while not stop.is_set():
        # More threads only slow down the small matrices of the GP.
        with single_threaded(), storage_errors(handle.url):
            claim = queue.claim(job.worker)
            if isinstance(claim, Wait):
                queue.reclaim_stale()  # a trial whose worker died would be waited for forever
        if isinstance(claim, StopReason):
            return claim
        if isinstance(claim, Wait):
            if not is_waiting:
                on_event({"event": "waiting"})
            is_waiting = True
            # Not stop.wait(): the handler of a signal would need its lock in the same thread.
            time.sleep(POLL_S)
            continue
        is_waiting = False
        if max(job.workers, claim.workers) != workers:  # other launchers may have joined
            workers = max(job.workers, claim.workers)
            epochs, head_epochs = ctx.config.training.epochs, ctx.space.max_head_epochs
            study.pruner = make_pruner(search.pruner, epochs, workers, head_epochs)
        request = StopRequest(claim, queue, stop)
        with Heartbeat(handle.storage, optuna_private.trial_id(claim.trial), request.on_beat):
            kind = run_claimed_trial(claim, ctx, queue, request.is_stopped, on_event)
        if kind not in MAX_CONSECUTIVE_FAILURES:
            failures = 0
            continue
        failures += 1
        if failures >= MAX_CONSECUTIVE_FAILURES[kind]:
            raise WorkerError(f"{failures} trials in a row failed; the log says why: {job.log}")
        if kind == FailureKind.TRANSIENT:
            pause(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 4 ** (failures - 1)), stop)
    return None


class StopRequest:
    """Tells a trial to stop: by the event of its process, or by a request in the study."""

    def __init__(self, claim: Claim, queue: TrialQueue, stop: threading.Event) -> None:
        self._claim, self._queue, self._stop = claim, queue, stop
        self._is_requested = False

    def on_beat(self) -> None:
        """Record the time of the trial, and look for a request; called with every heartbeat."""
        self._queue.record_device_time(self._claim)
        self._is_requested = self._queue.is_stop_requested()

    def is_stopped(self) -> bool:
        """Tell whether the trial has to stop."""
        return self._is_requested or self._stop.is_set()


def pause(seconds: float, stop: threading.Event) -> None:
    """Wait unless a stop is requested."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop.is_set():
        time.sleep(min(POLL_S, seconds))
