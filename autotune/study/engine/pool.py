"""The workers of a launcher, wherever they run: how many, replaced, stopped.

Where and how a worker runs is a crew's affair: :mod:`autotune.study.engine.local_workers` has
processes of this machine, :mod:`autotune.study.engine.ray_workers` has tasks of a Ray cluster.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from autotune.errors import NoDeviceError, UserError, WorkerError
from autotune.runtime import set_gpu_defaults
from autotune.storage.rdb.connection import storage_errors
from autotune.storage.url import absolute_url
from autotune.study.engine.worker import Job
from autotune.study.setup.opening import OpenStudy
from autotune.study.state.trial_queue import INTERRUPTED, MAX_RETRIES, WORKER_LOST
from autotune.study.trial.run import EventCallback

#: How often in a row a worker that died is replaced, per place: once more than a trial is tried
#: again, so that one which kills its workers is given up before the place. A worker that has got a
#: trial further begins anew: what killed it was not the place.
MAX_RESTARTS = MAX_RETRIES + 1
#: So many lines of its log are shown of a worker that died.
LAST_LINES = 5


class WorkerBackend(Protocol):
    """What runs the workers of a launcher.

    It passes on their events (see :func:`autotune.study.engine.worker.run_worker`) and two of its
    own: ``exit`` when a place is empty, with its ``code`` (``None`` where nobody knows) and the
    last ``lines`` of its log; ``restarted`` when it has replaced a worker that died.
    """

    #: Whether it replaces workers that die, up to :data:`MAX_RESTARTS` of them.
    restarts: bool

    def start(self, place: int, job: Job, tell: EventCallback) -> None:
        """Start a worker.

        Args:
            place: Its place in the pool.
            job: What to work at; name and position are the crew's to give.
            tell: Told of everything that happens to it, from any thread.
        """

    def is_gone(self, worker: str) -> bool:
        """Tell whether a worker is one of this crew's that has ended."""

    def stop(self) -> None:
        """Ask all workers to stop."""

    def kill(self) -> None:
        """End all workers at once."""

    def close(self) -> None:
        """Kill what is left, and wait until it is gone."""


@dataclass(frozen=True)
class BackendPlan:
    """A crew, and what it is to run.

    Args:
        crew: What runs the workers.
        slots: How many there are at a time.
        threads: CPU threads of each.
        prepare: Has workers get ready before there is a study for them, where they can.
        check: Waits until those have tried their GPUs, and fails when one cannot be used.
    """

    backend: WorkerBackend
    slots: int
    threads: int
    prepare: Callable[[], None] = lambda: None
    check: Callable[[], None] = lambda: None


@dataclass
class _Place:
    """A place in the pool: how often in a row it was filled again, and what came of it."""

    restarts: int
    further: bool = False


class WorkerPool:
    """The workers of one launcher.

    Args:
        handle: The study.
        placed: What runs them, and how many.
        on_event: Called with everything that happens.
    """

    def __init__(self, handle: OpenStudy, plan: BackendPlan, on_event: EventCallback) -> None:
        self._opened = handle
        self._claims = handle.trial_queue()
        self._count = plan.slots
        self._threads = plan.threads
        self._backend = plan.backend
        self._on_event = on_event
        self._events: queue.SimpleQueue[dict[str, Any]] = (
            queue.SimpleQueue()  # the one queue that a signal handler may put into
        )
        self._slots: dict[int, _Place] = {}
        self._stops = 0
        self._unhealthy: set[int] = set()
        self._without_device: dict[int, str] = {}  # why places have no GPU that can be used
        self._error: dict[str, Any] | None = None

    def run(self) -> bool:
        """Run workers until no trial is left; return whether a signal stopped them."""
        slots = set(range(self._count))
        try:
            restarts = 0
            while True:
                self._start_workers()
                self._supervise()
                # Trials whose worker died after all others had found nothing left to do.
                self._sweep()
                if self._stops or self._error or self._could_start() < 1:
                    break
                restarts += 1
                if self._without_device.keys() == slots:
                    message = "\n".join(dict.fromkeys(self._without_device.values()))
                    self._error = {"message": message, "exit_code": NoDeviceError.exit_code}
                    break
                if restarts > MAX_RESTARTS or self._unhealthy == slots:
                    self._error = {"message": self._crash_message(), "exit_code": 1}
                    break
        finally:
            self._backend.close()
            self._sweep()
        if self._error is not None:
            kind = UserError if self._error["exit_code"] == 2 else WorkerError
            raise kind(self._error["message"])
        return self._stops > 0

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM: the first one asks the workers to stop, the second kills."""

        def handle(_number: int, _frame: FrameType | None) -> None:
            self._stops += 1
            self._events.put({"event": "stopping", "now": self._stops > 1})

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {
            number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, old in previous.items():
                signal.signal(number, old)

    def _sweep(self) -> None:
        with storage_errors(self._opened.url):
            self._claims.reclaim_stale(
                self._backend.is_gone, INTERRUPTED if self._stops else WORKER_LOST
            )

    def _could_start(self) -> int:
        with storage_errors(self._opened.url):
            return self._claims.count_startable()

    def _start_workers(self) -> None:
        wanted = max(1, self._could_start())
        healthy = [index for index in range(self._count) if index not in self._unhealthy]
        self._slots = {index: self._start(index, 0) for index in healthy[:wanted]}

    def _start(self, index: int, restarts: int) -> _Place:
        job = Job(
            study=self._opened.name,
            storage=absolute_url(self._opened.url),
            files=str(self._opened.files.root),
            worker="",
            index=0,
            workers=self._count,
            threads=self._threads,
            log=str(self._log(index)),
        )
        self._backend.start(index, job, self._events.put)
        return _Place(restarts)

    def _supervise(self) -> None:
        alive = set(self._slots)
        while alive:
            try:
                event = self._events.get(timeout=0.5)
            except queue.Empty:
                self._on_event({"event": "tick"})
                continue
            if event["event"] == "stopping":
                (self._backend.kill if event["now"] else self._backend.stop)()
            elif event["event"] == "error":
                if self._error is None:
                    self._error = event
                self._backend.stop()
            elif event["event"] == "no_device":
                self._without_device[event["worker"]] = event["message"]
            elif event["event"] == "epoch":
                self._slots[event["worker"]].further = True
            elif event["event"] == "restarted":
                self._sweep()
                event = {**event, "event": "exit", "replaced": True}
            elif event["event"] == "exit" and self._replace(event):
                event = {**event, "replaced": True}
            elif event["event"] == "exit":
                alive.discard(event["worker"])
            self._on_event(event)

    def _replace(self, event: dict[str, Any]) -> bool:
        """Fill the place of a worker that died; give its trial back first."""
        if event["code"] == 0 or self._stops or self._error:
            return False
        index = event["worker"]
        old = self._slots[index]
        restarts = 0 if old.further else old.restarts
        self._sweep()
        if index in self._without_device:  # so would be the next one
            self._unhealthy.add(index)
            return False
        if not old.further and restarts >= (0 if self._backend.restarts else MAX_RESTARTS):
            self._unhealthy.add(index)
            self._on_event(
                {"event": "worker_unhealthy", "worker": index, "log": str(self._log(index))}
            )
            return False
        if self._could_start() < 1:
            return False
        time.sleep(min(8.0, 0.5 * 2**restarts))
        self._slots[index] = self._start(index, restarts + 1)
        return True

    def _crash_message(self) -> str:
        """Say that the workers die, with the last lines of a log."""
        log = self._log(min(self._unhealthy, default=0))
        lines = last_lines(log, 15)
        return "\n".join([f"the workers die again and again; the end of {log}", *lines])

    def _log(self, index: int) -> Path:
        return self._opened.files.log(self._opened.name, f"worker-{index}")


def last_lines(log: Path, count: int = LAST_LINES) -> list[str]:
    """Return the end of a log, nothing where there is none."""
    return log.read_text(errors="replace").splitlines()[-count:] if log.exists() else []


def environment_of(count: int) -> dict[str, str]:
    """Return what the environment of a worker must say before its first line of Python.

    Args:
        count: CPU threads that it may use.
    """
    environment = dict(os.environ)
    set_gpu_defaults(environment)
    settings = {name: value for name, value in environment.items() if name not in os.environ}
    return settings | threads_in_environment(count)


def threads_in_environment(count: int) -> dict[str, str]:
    """Return how an environment says how many CPU threads a process may use."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(count))
