"""A worker: claims trials of a study and trains them, one after the other, on one device.

The launcher starts workers as processes of their own (``python -m
autotune.study.engine.worker_main``): the job comes as one line of JSON on standard input, events
leave as lines of JSON on standard output, and the end of standard input means that the launcher is
gone. ``autotune worker`` runs the same :func:`work` in the foreground, on any machine that reaches
the storage.
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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.trial import Trial, TrialState

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
from autotune.study.trial.run import EventCallback, device_name, run_trial
from autotune.text import VisibleFormatter, guard_standard_error

logger = logging.getLogger(__name__)

#: So many failures in a row mean that the worker is sick, not its trials. Of passing ones it takes
#: one more than a trial may have, so that a trial that brings them is given up before the worker.
MAX_CONSECUTIVE_FAILURES = {FailureKind.UNEXPECTED: 3, FailureKind.TRANSIENT: MAX_RETRIES + 2}
#: For how long a worker waits after the first passing failure; then for four times as long.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 120.0
#: An argument of a worker's process, see :func:`main`.
CHECK_GPU = "--check-gpu"
#: How often a worker asks again while it waits for what the trials of the others bring.
POLL_S = 1.0


@dataclass(frozen=True)
class Job:
    """What a worker is told.

    Args:
        study: Name of the study.
        storage: Storage URL, with its password.
        files: Folder of the study's files.
        worker: Name of the worker, see :func:`worker_name`.
        index: Position among the workers of its launcher; it separates their random draws.
        workers: How many workers the launcher starts.
        threads: CPU threads to use, 0 for torch's default.
        log: Log file.
        gpu: The GPU that it was given, see :func:`autotune.study.devices.find_device`.
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
    """Name a worker: host, process that started it, position and a part of its own.

    That part is random: containers can share a host's name and have the same process numbers, and
    a machine gives out the number of a process that has ended again.
    """
    return f"{socket.gethostname()}/{launcher}/{index}-{secrets.token_hex(4)}"


def build_context(handle: OpenStudy, workers: int = 1, gpu: str | None = None) -> WorkerContext:
    """Lay out what a worker needs for the trials of a study.

    Beside a GPU, processes make the views that do not fit into memory; on the CPU they would
    only take the cores from the training.

    Args:
        handle: The study.
        workers: Among how many workers this machine shares its memory.
        gpu: See :func:`autotune.study.devices.find_device`.

    Raises:
        DeviceError: When there is to be a GPU, and it cannot be used.
        StudyError: When the images or the weights are not those of the study.
    """
    device = find_device(gpu)  # before anything that takes its time
    tune_malloc()
    limit_torch_threads()
    config = handle.config()
    ctx = WorkerContext(
        handle=handle,
        config=config,
        space=attrs.study_space(handle.study),
        resources=ResourceCache(handle, config, workers),
        device=device,
        loader_workers=min(8, torch.get_num_threads()) if device.type == "cuda" else 0,
    )
    if len(config.backbones) == 1:  # of several, a worker may never train some
        ctx.resources.of(config.backbones[0])
    return ctx


def check_plugins(handle: OpenStudy, config: StudyConfig) -> None:
    """Refuse a sampler or a pruner whose file is another one than the study began with.

    The space needs no look at its file: the study remembers the space itself.

    Raises:
        StudyError: When the file has changed.
        UserError: When it is not there.
    """
    remembered = handle.study.user_attrs.get(attrs.PLUGINS, {})
    for key, own in plugin_refs(config).items():
        if key != "space.custom" and own.digest() != remembered.get(key):
            raise StudyError(
                f"{key}: the file {own.path} has changed since the study {handle.name!r} was "
                "made; bring it back, or start another study with --name"
            )


def run_worker(job: Job, stop: threading.Event, on_event: EventCallback) -> StopReason | None:
    """Run trials until no further one starts, or a stop is asked for.

    Args:
        job: What to work at.
        stop: Set to interrupt; the trial at hand goes back to the queue.
        on_event: Called with what happens.

    Returns:
        Why no further trial starts; ``None`` after a stop.

    Raises:
        UserError: When the study cannot be worked at: other images, a full disk.
        WorkerError: When several trials in a row failed for no reason of their own.
        DeviceError: When this process cannot use its GPU, or not any more.
    """
    if job.threads:
        torch.set_num_threads(job.threads)
    handle = call_with_retry(open_existing, job.study, job.storage, job.files)
    ctx = build_context(handle, job.workers, job.gpu)
    check_plugins(handle, ctx.config)
    study = handle.study
    # A worker that is started again must not draw the same trials again.
    draws = len(study.get_trials(deepcopy=False))
    seed = (ctx.config.search.seed * 1_000_003 + draws * 1009 + job.index) % 2**31
    study.sampler = make_sampler(ctx.config, ctx.space, seed, attrs.trial_budget)
    claims = handle.trial_queue()
    on_event({"event": "ready", "device": device_name(ctx.device), "gpu": gpu_name(ctx.device)})
    failures = workers = 0
    waiting = False
    while not stop.is_set():
        # One thread: the small matrices of the GP only lose by more.
        with single_threaded(), storage_errors(handle.url):
            claim = claims.claim(job.worker)
            if isinstance(claim, Wait):
                claims.reclaim_stale()  # for a trial whose worker is gone one would wait for ever
        if isinstance(claim, StopReason):
            return claim
        if isinstance(claim, Wait):
            if not waiting:
                on_event({"event": "waiting"})
            waiting = True
            # Not stop.wait(): the handler of a signal would meet it in the same thread.
            time.sleep(POLL_S)
            continue
        waiting = False
        if max(job.workers, claim.workers) != workers:  # other launchers may have joined
            workers = max(job.workers, claim.workers)
            study.pruner = _pruner(ctx, workers)
        beat = partial(claims.record_device_time, claim)
        with Heartbeat(handle.storage, optuna_private.trial_id(claim.trial), beat):
            kind = run_claimed_trial(claim, ctx, claims, stop, on_event)
        failures = failures + 1 if kind in MAX_CONSECUTIVE_FAILURES else 0
        if kind in MAX_CONSECUTIVE_FAILURES and failures >= MAX_CONSECUTIVE_FAILURES[kind]:
            raise WorkerError(f"{failures} trials in a row failed; the log says why: {job.log}")
        if kind == FailureKind.TRANSIENT:
            _pause(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 4 ** (failures - 1)), stop)
    return None


def _pause(seconds: float, stop: threading.Event) -> None:
    """Wait, unless a stop is asked for; not in ``stop.wait``, see above."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop.is_set():
        time.sleep(min(POLL_S, seconds))


def _pruner(ctx: WorkerContext, workers: int) -> BasePruner:
    config = ctx.config
    return make_pruner(
        config.search.pruner, config.training.epochs, workers, ctx.space.max_head_epochs
    )


def run_claimed_trial(
    claim: Claim,
    ctx: WorkerContext,
    claims: TrialQueue,
    stop: threading.Event,
    on_event: EventCallback,
) -> FailureKind | None:
    """Run one trial and tell the study how it ended.

    Returns:
        What kind of failure has ended it, ``None`` if none.

    Raises:
        UserError: When no trial can go on; this one goes back to the queue. Or when the study
            was deleted.
        DeviceError: When this process cannot use its GPU any more; likewise.
    """
    trial = claim.trial
    try:
        outcome = run_trial(trial, ctx, stop.is_set, on_event)
        claims.finish(claim, outcome.state, outcome.values)
        _tell_end(trial, outcome.word, on_event, outcome.value)
        return None
    except Exception as error:
        kind = classify(error, ctx.device)
        reason = f"{type(error).__name__}: {first_line(error)}"
        if kind in (
            FailureKind.REASSIGNED,
            FailureKind.UNEXPECTED,
        ):  # what a study that was deleted looks like
            claims.check_exists()
        match kind:
            case FailureKind.INTERRUPTED:
                claims.requeue_interrupted(claim)
                _tell_end(trial, "interrupted", on_event)
            case FailureKind.REASSIGNED:
                _drop(trial, ctx, on_event)
            case FailureKind.USER:
                claims.requeue_interrupted(claim)
                logger.error("trial %d: %s", trial.number, error)
                raise
            case FailureKind.DISK_FULL:
                claims.requeue_interrupted(claim)
                raise DiskFullError(f"{first_line(error)}; free some space") from error
            case FailureKind.DENIED:
                claims.requeue_interrupted(claim)
                raise UserError(
                    f"a trial needs its files and folders, but {first_line(error)}; put that "
                    "right, or move the files of the study with 'files='"
                ) from error
            case FailureKind.STORAGE:
                with storage_errors(ctx.handle.url):
                    raise
            case FailureKind.TRANSIENT:
                logger.warning("trial %d goes back", trial.number, exc_info=True)
                _give_back(claim, claims, reason, on_event)
            case FailureKind.DEVICE_LOST:
                logger.exception("trial %d goes back", trial.number)
                _give_back(claim, claims, f"{WORKER_LOST}: {reason}", on_event)
                raise DeviceError(
                    f"the GPU does not answer this process any more ({reason}); the trial went "
                    "back to the queue; start the worker again"
                ) from error
            case FailureKind.BAD_PLAN:
                kind_of_plan = type(error).__name__.removesuffix("Error").lower()
                _fail(
                    claim, ctx, claims, f"{kind_of_plan}: {first_line(error)}", on_event, own=True
                )
            case _:
                logger.exception("trial %d", trial.number)
                _fail(claim, ctx, claims, reason, on_event, own=False)
        return kind


def _give_back(claim: Claim, claims: TrialQueue, reason: str, on_event: EventCallback) -> None:
    claims.record_device_time(claim)
    again = claims.requeue(claim.trial.number, reason)
    _tell_end(claim.trial, "queued again" if again else "failed", on_event)


def _fail(
    claim: Claim,
    ctx: WorkerContext,
    claims: TrialQueue,
    reason: str,
    on_event: EventCallback,
    own: bool,
) -> None:
    """Record that a trial has failed for good."""
    trial = claim.trial
    logger.warning("trial %d failed: %s", trial.number, reason)
    try:
        # Before the trial is told: a sampler must never see it without.
        plan_failed = {attrs.FAILED_PLAN: True} if own else {}
        claims.storage.set_trial_user_attrs(
            optuna_private.trial_id(trial), {attrs.REASON: reason, **plan_failed}
        )
    except UpdateFinishedTrialError:
        _drop(trial, ctx, on_event)
        return
    claims.finish(claim, TrialState.FAIL)
    checkpoint = ctx.handle.files.checkpoint(ctx.handle.name, attrs.first_attempt(trial))
    checkpoint.unlink(missing_ok=True)
    _tell_end(trial, "failed", on_event)


def _tell_end(
    trial: Trial, state: str, on_event: EventCallback, value: float | None = None
) -> None:
    on_event({"event": "end", "trial": trial.number, "state": state, "value": value})


def _drop(trial: Trial, ctx: WorkerContext, on_event: EventCallback) -> None:
    """Leave a trial to the worker that it was given to.

    The checkpoint is its successor's. Where that has ended, what was written since is nobody's.
    """
    logger.warning("trial %d was given to another worker; dropped here", trial.number)
    first = attrs.first_attempt(trial)
    trials = ctx.handle.study.get_trials(deepcopy=False)
    if all(one.state.is_finished() for one in trials if attrs.first_attempt(one) == first):
        ctx.handle.files.checkpoint(ctx.handle.name, first).unlink(missing_ok=True)
    _tell_end(trial, "lost", on_event)


def main(arguments: Sequence[str] = ()) -> int:
    """Run the worker that a launcher has started; see the module's docstring.

    Args:
        arguments: ``--check-gpu`` to find out, before there is a job, whether the GPU can be used.
    """
    if CHECK_GPU in arguments and not _check_gpu():
        return NoDeviceError.exit_code
    given = sys.stdin.readline()
    if not given:  # the launcher has ended without a job for it
        return 0
    job = Job(**json.loads(given))
    launcher = _take_stdin()
    events = _take_stdout(job.log)
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to handle
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_watch_launcher, args=(launcher, stop), daemon=True).start()

    def on_event(event: dict[str, Any]) -> None:
        try:
            print(json.dumps(event), file=events, flush=True)
        except BrokenPipeError:  # the launcher is gone, and the watch has seen it or will
            stop.set()

    return worker_main(job, stop, on_event)


def _check_gpu() -> bool:
    """Tell the launcher whether this process can use the GPU that it was given.

    A GPU without memory is none that cannot be used: others may have left when the job comes. If
    not, this process ends then, and another one is started in its place.
    """
    try:
        device = find_device(os.environ[VISIBLE])
    except NoDeviceError as error:
        print(json.dumps(_no_device(error)), flush=True)
        return False
    except DeviceError as error:
        print(json.dumps({"event": "crowded", "message": str(error)}), flush=True)
        return True
    print(json.dumps({"event": "gpu", "gpu": gpu_name(device)}), flush=True)
    return True


def _no_device(error: NoDeviceError) -> dict[str, Any]:
    return {"event": "no_device", "message": str(error)}


def worker_main(job: Job, stop: threading.Event, on_event: EventCallback) -> int:
    """Do the work of a launcher's worker, and tell the launcher why it cannot be done.

    Args:
        job: What to work at.
        stop: Set to interrupt.
        on_event: Called with what happens, the last of it an ``error`` where there is one.

    Returns:
        The exit code.
    """
    try:
        run_worker(job, stop, on_event)
    except NoDeviceError as error:
        logger.error("%s", error)
        on_event(_no_device(error))  # the other workers may have GPUs that can be used
        return error.exit_code
    except DeviceError as error:
        logger.error("%s", error)
        return error.exit_code  # and no event: the launcher starts another process in this place
    except AutotuneError as error:
        logger.error("%s", error)
        on_event({"event": "error", "message": str(error), "exit_code": error.exit_code})
        return error.exit_code
    except Exception as error:
        logger.exception("the worker cannot go on")
        on_event({"event": "error", "message": f"{type(error).__name__}: {error}", "exit_code": 1})
        return 1
    return 0


def _take_stdout(log: str) -> TextIO:
    """Keep standard output for events; what libraries print goes to the log file."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    write_log(log)
    return events


def write_log(log: str) -> None:
    """Let all that this process says from now on go to a log file."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    guard_standard_error()  # whoever looks at the log does it in a terminal
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _take_stdin() -> int:
    """Keep the line to the launcher; processes forked from here get an empty standard input.

    A thread that waited in ``sys.stdin`` would hold its lock, and a forked child that closes its
    standard input would wait for that lock for ever.
    """
    line = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return line


def _watch_launcher(line: int, stop: threading.Event) -> None:
    while os.read(line, 1024):
        pass
    stop.set()
