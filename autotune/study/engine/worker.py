"""A worker: claims trials of a study and trains them, one after the other, on one device.

The launcher starts a worker as a process (``python -m autotune.study.engine.worker_main``): the
job is a line of JSON on standard input, events are lines of JSON on standard output, and the end
of standard input means that the launcher is gone. ``autotune worker`` calls :func:`run_worker` in
the foreground, on any machine that reaches the storage.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from autotune import optuna_private
from autotune.config.schema import StudyConfig
from autotune.errors import (
    AutotuneError,
    DeviceError,
    DiskFullError,
    NoDeviceError,
    StudyError,
    UserError,
    WorkerError,
)
from autotune.runtime import limit_torch_threads, single_threaded, tune_malloc
from autotune.search.plugins import plugin_refs
from autotune.search.pruners import make_pruner
from autotune.search.samplers import make_sampler
from autotune.storage.rdb.connection import storage_errors
from autotune.storage.rdb.heartbeat import Heartbeat
from autotune.storage.rdb.retry import call_with_retry
from autotune.study.devices import VISIBLE, find_device, gpu_name
from autotune.study.setup.opening import OpenStudy, open_existing
from autotune.study.setup.resources import ResourceCache
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from autotune.study.state.failures import FailureKind, classify, first_line
from autotune.study.state.trial_queue import MAX_RETRIES, WORKER_LOST, Claim, TrialQueue, Wait
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.run import EventCallback, run_trial, torch_device_name
from autotune.text import VisibleFormatter, guard_standard_error

logger = logging.getLogger(__name__)

#: Consecutive failures before a worker gives up. For transient ones it is one more than a trial
#: may have, so that a trial that causes them is dropped before the worker.
MAX_CONSECUTIVE_FAILURES = {FailureKind.UNEXPECTED: 3, FailureKind.TRANSIENT: MAX_RETRIES + 2}
#: Pause after the first transient failure and the longest one; each is four times the last.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 120.0
#: Argument of a worker's process, see :func:`main`.
CHECK_GPU = "--check-gpu"
#: Seconds between two attempts of a worker that waits for the results of others.
POLL_S = 1.0


@dataclass(frozen=True)
class Job:
    """What a worker is told, with the password of its storage.

    ``index`` separates its random draws from those of the other ``workers`` of its launcher;
    0 ``threads`` are torch's default; ``gpu`` is for :func:`autotune.study.devices.find_device`.
    """

    study: str
    storage: str
    files: str | None
    worker: str
    index: int
    workers: int
    threads: int
    log: str
    gpu: str | None = None


def worker_name(launcher: int, index: int) -> str:
    """Name a worker: host, process that started it, position, and random characters.

    The random part is needed because containers can share a host's name and process numbers, and
    a machine reuses the number of a process that has ended.
    """
    return f"{socket.gethostname()}/{launcher}/{index}-{secrets.token_hex(4)}"


def build_context(
    handle: OpenStudy,
    workers: int = 1,
    gpu: str | None = None,
    config: StudyConfig | None = None,
) -> WorkerContext:
    """Prepare what a worker needs for the trials of a study.

    Args:
        handle: The study.
        workers: Number of workers that share the memory of this machine.
        gpu: See :func:`autotune.study.devices.find_device`.
        config: Its configuration with other limits; default: as it is stored.

    Raises:
        DeviceError: When a GPU is required and cannot be used.
        StudyError: When the images or the weights are not those of the study.
    """
    device = find_device(gpu)  # first: it fails fast
    tune_malloc()
    limit_torch_threads()
    config = config or handle.config()
    # Processes render views that do not fit into memory beside a GPU; on the CPU they would only
    # take the cores from the training.
    loader_workers = min(8, torch.get_num_threads()) if device.type == "cuda" else 0
    resources = ResourceCache(handle, config, workers)
    if len(config.backbones) == 1:  # of several, a worker may never train some
        resources.get(config.backbones[0])
    space = attrs.study_space(handle.study)
    return WorkerContext(handle, config, space, resources, device, loader_workers)


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

    Args:
        job: What to do.
        stop: Set to interrupt; the running trial is queued again.
        on_event: Called with every event.

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
            _pause(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 4 ** (failures - 1)), stop)
    return None


class StopRequest:
    """Tells a trial to stop: by the event of its process, or by a request in the study.

    Args:
        claim: The claim of the trial.
        queue: The queue of the study.
        stop: Set to interrupt the whole process.
    """

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


def _pause(seconds: float, stop: threading.Event) -> None:
    """Wait unless a stop is requested."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop.is_set():
        time.sleep(min(POLL_S, seconds))


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


def run_worker_process(arguments: Sequence[str] = ()) -> int:
    """Run the worker that a launcher has started; see the module's docstring.

    Args:
        arguments: ``--check-gpu`` to report whether the GPU can be used before the job arrives.
    """
    if CHECK_GPU in arguments and not _check_gpu():
        return NoDeviceError.exit_code
    line = sys.stdin.readline()
    if not line:  # the launcher ended without a job for this process
        return 0
    job = Job(**json.loads(line))
    launcher = _take_stdin()
    events = _take_stdout(job.log)
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher handles Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_watch_launcher, args=(launcher, stop), daemon=True).start()

    def on_event(event: dict[str, Any]) -> None:
        try:
            print(json.dumps(event), file=events, flush=True)
        except BrokenPipeError:  # the launcher is gone; _watch_launcher notices too
            stop.set()

    return run_worker_reporting_errors(job, stop, on_event)


def _check_gpu() -> bool:
    """Tell the launcher whether this process can use its GPU.

    A GPU without free memory passes, because others may leave before the job arrives. If they do
    not, this process ends then, and another one replaces it.
    """
    try:
        event = {"event": "gpu", "gpu": gpu_name(find_device(os.environ[VISIBLE]))}
    except NoDeviceError as error:
        event = _no_device(error)
    except DeviceError as error:
        event = {"event": "crowded", "message": str(error)}
    print(json.dumps(event), flush=True)
    return event["event"] != "no_device"


def _no_device(error: NoDeviceError) -> dict[str, Any]:
    return {"event": "no_device", "message": str(error)}


def run_worker_reporting_errors(job: Job, stop: threading.Event, on_event: EventCallback) -> int:
    """Run a worker and turn what ends it into an event and an exit code.

    Args:
        job: What to do.
        stop: Set to interrupt.
        on_event: Called with every event; the last one is ``error`` if there was one.
    """
    try:
        run_worker(job, stop, on_event)
    except NoDeviceError as error:
        logger.error("%s", error)
        on_event(_no_device(error))  # the GPUs of the other workers may be usable
        return error.exit_code
    except DeviceError as error:
        logger.error("%s", error)
        return error.exit_code  # without an event: the launcher replaces this process
    except AutotuneError as error:
        logger.error("%s", error)
        on_event({"event": "error", "message": str(error), "exit_code": error.exit_code})
        return error.exit_code
    except Exception as error:
        logger.exception("the worker stops")
        on_event({"event": "error", "message": f"{type(error).__name__}: {error}", "exit_code": 1})
        return 1
    return 0


def _take_stdout(log: str) -> TextIO:
    """Keep standard output for events; what libraries print goes to the log file."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    redirect_output_to_log(log)
    return events


def redirect_output_to_log(log: str) -> None:
    """Redirect the output of this process to a log file."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    guard_standard_error()  # logs are read in terminals
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _take_stdin() -> int:
    """Keep the pipe to the launcher; processes forked from here get an empty standard input.

    A thread that waited in ``sys.stdin`` would hold its lock, and a forked child that closes its
    standard input would wait for that lock forever.
    """
    pipe = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return pipe


def _watch_launcher(pipe: int, stop: threading.Event) -> None:
    while os.read(pipe, 1024):
        pass
    stop.set()
