"""Trainings outside of the search on all devices: those that have no result yet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.atomic import check_folder
from autotune.config.schema import StudyConfig
from autotune.runtime import available_cpus
from autotune.storage.rdb.connection import storage_errors
from autotune.study.engine.launcher import count_slots, resolve_gpus
from autotune.study.engine.local_workers import local_backend
from autotune.study.engine.pool import WorkerPool
from autotune.study.engine.training_worker import do_trainings, is_done
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.run import EventCallback
from autotune.study.trial.trainings import Training, TrainingFiles


@dataclass(frozen=True)
class Workers:
    """How many workers there are, and on which devices, as for ``autotune run``.

    Args:
        workers: Workers; ``None`` for one per GPU, or two on the CPU.
        gpus: See :func:`autotune.study.engine.launcher.resolve_gpus`.
        workers_per_gpu: Workers that share a GPU, instead of ``workers``.
    """

    workers: int | None = None
    gpus: str | None = None
    workers_per_gpu: int | None = None


@dataclass
class _Pending:
    """The trainings that have no result yet: the work of a pool."""

    trainings: list[Training]
    files: dict[str, TrainingFiles]
    on_done: Callable[[Training, bool], None]
    _own: set[str] = field(default_factory=set)

    def update(self) -> None:
        """Report the trainings that have ended, here or in a worker of another launcher."""
        for training in list(self.trainings):
            if is_done(training, self.files[training.name]):
                self.trainings.remove(training)
                self.on_done(training, training.name in self._own)

    def on_event(self, event: dict[str, Any]) -> None:
        """Take note of an event of a worker."""
        if event["event"] == "start":
            self._own.add(event["training"])
        if event["event"] in ("end", "tick"):
            self.update()

    def count_startable(self) -> int:
        """Count the trainings that have no result."""
        self.update()
        return len(self.trainings)

    def reclaim_stale(self, *_: object) -> None:
        """Do nothing: the system has taken back the lock of a process that has ended."""


def train_all(
    handle: OpenStudy,
    trainings: Sequence[Training],
    config: StudyConfig,
    workers: Workers,
    on_event: EventCallback,
) -> None:
    """Do trainings on all devices, those that have no result yet.

    What ends is stored at once, and a training that is interrupted continues from its last epoch
    in the next call. Another call at the same time, in any process, shares the work.

    Args:
        handle: The study.
        trainings: What to train, the most urgent first.
        config: The configuration of the study, under which images are read.
        workers: How many workers, and where.
        on_event: Called with everything that happens, see :func:`announce`.

    Raises:
        KeyboardInterrupt: After a signal.
        UserError: When the user has to fix something.
        WorkerError: When the workers cannot continue.
    """
    devices = resolve_gpus(workers.gpus)
    slots = count_slots(len(devices), workers.workers, workers.workers_per_gpu)
    pending = announce(handle, trainings, config, on_event)
    if not pending.trainings:
        return
    check_folder(handle.files.logs(handle.name))
    slots = min(slots, len(pending.trainings))
    with local_backend(devices, slots, None if devices else _threads(handle)) as backend:
        backend.prepare()
        backend.check()
        on_event({"event": "opened", "workers": slots})

        def pass_on(event: dict[str, Any]) -> None:
            on_event(event)
            pending.on_event(event)

        work = {
            "trainings": [training.to_json() for training in pending.trainings],
            "max_unreadable_share": config.data.max_unreadable_share,
        }
        pool = WorkerPool(handle, backend, pass_on, pending, work)
        with pool.signals(), storage_errors(handle.url):
            is_interrupted = pool.run()
    pending.update()
    if is_interrupted and pending.trainings:
        raise KeyboardInterrupt


def train_here(trainings: Sequence[Training], ctx: WorkerContext, on_event: EventCallback) -> None:
    """Do trainings in this process, one after the other; see :func:`train_all`."""
    pending = announce(ctx.handle, trainings, ctx.config, on_event)
    on_event({"event": "opened", "workers": 1})

    def pass_on(event: dict[str, Any]) -> None:
        on_event({**event, "worker": 0})
        pending.on_event(event)

    do_trainings(list(pending.trainings), ctx, threading.Event(), pass_on)
    pending.update()


def announce(
    handle: OpenStudy,
    trainings: Sequence[Training],
    config: StudyConfig,
    on_event: EventCallback,
) -> _Pending:
    """Return the trainings without a result; report how many there are, and those that have one.

    The event ``trainings`` has their names and the number of ``epochs``, and ``result`` comes for
    each that has ended: its name as ``training``, how many are ``done``, and whether it
    ``is_cached``: an earlier call, or another process, has trained it.
    """
    names = [training.name for training in trainings]
    on_event({"event": "trainings", "names": names, "epochs": config.training.epochs})
    done = 0

    def on_done(training: Training, is_own: bool) -> None:
        nonlocal done
        done += 1
        event = {"event": "result", "training": training.name, "done": done}
        on_event({**event, "is_cached": not is_own})

    files = {each.name: TrainingFiles.of(each, handle, config) for each in trainings}
    pending = _Pending(list(trainings), files, on_done)
    pending.update()
    return pending


def _threads(handle: OpenStudy) -> int:
    """Return the CPU threads of each worker: as many as the trials of the study had.

    The number of threads changes how sums are rounded; the number of workers must not.
    """
    trials = handle.study.get_trials(deepcopy=False)
    recorded = (trial.user_attrs.get(attrs.THREADS) for trial in trials)
    cpus = available_cpus()
    default = max(1, cpus // count_slots(0, None, None))
    return min(cpus, next(filter(None, recorded), default))
