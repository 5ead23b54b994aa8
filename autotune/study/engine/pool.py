"""The workers of a launcher: what they are told, when one is replaced, how they are stopped.

A backend runs them: :mod:`autotune.study.engine.local_workers` as processes of this machine,
:mod:`autotune.study.engine.ray_workers` as tasks of a Ray cluster.
"""

from __future__ import annotations

import queue
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from autotune.errors import DatabaseLostError, NoDeviceError, UserError, WorkerError
from autotune.storage.rdb.connection import storage_errors
from autotune.storage.url import absolute_url
from autotune.study.setup.opening import OpenStudy
from autotune.study.state.retries import INTERRUPTED, MAX_RETRIES, WORKER_LOST
from autotune.study.trial.run import EventCallback

#: Consecutive replacements of a worker that died, per slot: one more than the retries of a trial,
#: so that a trial that kills its workers is given up before the slot. The count starts again when
#: a worker has trained an epoch, because then the slot works.
MAX_RESTARTS = MAX_RETRIES + 1
#: Lines of its log that are shown of a worker that died.
LAST_LINES = 5
#: Argument of a worker's process, see
#: :func:`autotune.study.engine.worker_process.run_worker_process`.
CHECK_GPU = "--check-gpu"


@dataclass(frozen=True)
class Job:
    """What a worker is told, with the password of its storage.

    ``index`` separates its random draws from those of the other ``workers`` of its launcher;
    0 ``threads`` are torch's default; ``gpu`` is for :func:`autotune.study.devices.find_device`.
    ``trainings`` is what to train instead of trials, see
    :func:`autotune.study.engine.training_worker.run_training_worker`.
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
    trainings: dict[str, Any] | None = None


def worker_name(launcher: int, index: int) -> str:
    """Name a worker: host, process that started it, position, and random characters.

    The random part is needed because containers can share a host's name and process numbers, and
    a machine reuses the number of a process that has ended.
    """
    return f"{socket.gethostname()}/{launcher}/{index}-{secrets.token_hex(4)}"


class WorkerBackend(Protocol):
    """Runs the workers of a launcher.

    It passes on their events (see :func:`autotune.study.engine.worker.run_worker`) and adds two:
    ``exit`` when a slot is empty, with its ``code`` (``None`` if unknown) and the last ``lines``
    of its log; ``restarted`` when the backend itself has replaced a worker that died.
    """

    #: Workers at a time, and CPU threads of each.
    slots: int
    threads: int
    #: Whether it replaces workers that die, up to :data:`MAX_RESTARTS` of them.
    restarts: bool

    def prepare(self) -> None:
        """Start what can be started before there is a study."""

    def check(self) -> None:
        """Wait until the prepared workers have tried their devices; raise when one cannot."""

    def start(self, slot: int, job: Job, on_event: EventCallback) -> None:
        """Start a worker.

        Args:
            slot: Its number among those that run at the same time.
            job: What to do; the backend sets name, index and GPU.
            on_event: Called with every event of the worker, from any thread.
        """

    def is_gone(self, worker: str) -> bool:
        """Tell whether a worker was started here and has ended."""

    def stop(self) -> None:
        """Ask all workers to stop."""

    def kill(self) -> None:
        """End all workers at once."""

    def close(self) -> None:
        """Kill what is left, and wait until it is gone."""


class Work(Protocol):
    """What the workers of a pool do: the trials of a study, or trainings outside of the search."""

    def count_startable(self) -> int:
        """Count what a further worker could begin with."""

    def reclaim_stale(self, is_gone: Callable[[str], bool], reason: str) -> object:
        """Free what workers that have ended had begun; ``reason`` says why they did."""


@dataclass
class _Slot:
    """How often in a row a slot was filled again, and whether its worker trained an epoch."""

    restarts: int
    has_progressed: bool = False


class WorkerPool:
    """The workers of one launcher.

    Args:
        handle: The study.
        backend: Runs the workers.
        on_event: Called with everything that happens.
        work: What the workers do; by default the trials of the study.
        trainings: How their jobs describe it, where it is no trials.
    """

    def __init__(
        self,
        handle: OpenStudy,
        backend: WorkerBackend,
        on_event: EventCallback,
        work: Work | None = None,
        trainings: dict[str, Any] | None = None,
    ) -> None:
        self._handle = handle
        self._work = work or handle.trial_queue()
        self._trainings = trainings
        self._backend = backend
        self._on_event = on_event
        # A SimpleQueue is the one queue that a signal handler may put into.
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._slots: dict[int, _Slot] = {}
        self._stops = 0
        self._unhealthy: set[int] = set()
        self._without_device: dict[int, str] = {}  # slot -> why its GPU cannot be used
        self._error: dict[str, Any] | None = None

    def run(self) -> bool:
        """Run workers until no work is left; return whether a signal stopped them.

        Raises:
            UserError: When a worker met a problem that the user can fix.
            WorkerError: When the workers cannot continue.
        """
        slots = set(range(self._backend.slots))
        try:
            restarts = 0
            while True:
                self._start_workers()
                self._supervise()
                # Finds trials whose worker died after all others had nothing left to do.
                self._reclaim()
                if self._stops or self._error or self._count_startable() < 1:
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
            self._reclaim()
        if self._error is not None:
            kind = UserError if self._error["exit_code"] == 2 else WorkerError
            raise kind(self._error["message"])
        return self._stops > 0

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM: the first one asks the workers to stop, the second kills."""

        def count(_number: int, _frame: FrameType | None) -> None:
            self._stops += 1
            self._events.put({"event": "stopping", "now": self._stops > 1})

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, count) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _reclaim(self) -> None:
        with storage_errors(self._handle.url):
            reason = INTERRUPTED if self._stops else WORKER_LOST
            self._work.reclaim_stale(self._backend.is_gone, reason)

    def _count_startable(self) -> int:
        with storage_errors(self._handle.url):
            return self._work.count_startable()

    def _start_workers(self) -> None:
        wanted = max(1, self._count_startable())
        healthy = [slot for slot in range(self._backend.slots) if slot not in self._unhealthy]
        self._slots = {slot: self._start(slot, 0) for slot in healthy[:wanted]}

    def _start(self, slot: int, restarts: int) -> _Slot:
        job = Job(
            study=self._handle.name,
            storage=absolute_url(self._handle.url),
            files=str(self._handle.files.root),
            worker="",
            index=0,
            workers=self._backend.slots,
            threads=self._backend.threads,
            log=str(self._log(slot)),
            trainings=self._trainings,
        )
        self._backend.start(slot, job, self._events.put)
        return _Slot(restarts)

    def _supervise(self) -> None:
        running = set(self._slots)
        while running:
            try:
                event = self._events.get(timeout=0.5)
            except queue.Empty:
                self._on_event({"event": "tick"})
                lost = self._check_database()
                if lost is None:
                    continue
                event = lost
            match event["event"]:
                case "stopping":
                    (self._backend.kill if event["now"] else self._backend.stop)()
                case "error":
                    self._error = self._error or event
                    self._backend.stop()
                case "no_device":
                    self._without_device[event["worker"]] = event["message"]
                case "epoch":
                    self._slots[event["worker"]].has_progressed = True
                case "restarted":
                    self._reclaim()
                    event = {**event, "event": "exit", "replaced": True}
                case "exit":
                    if self._replace(event):
                        event = {**event, "replaced": True}
                    else:
                        running.discard(event["worker"])
            self._on_event(event)

    def _check_database(self) -> dict[str, Any] | None:
        """Return an error as an event if the file of the database is gone, the first time."""
        try:
            if self._error is None:
                self._handle.storage.check_file()
        except DatabaseLostError as error:
            return {"event": "error", "message": str(error), "exit_code": error.exit_code}
        return None

    def _replace(self, event: dict[str, Any]) -> bool:
        """Start another worker where one died, after its trial was queued again."""
        if event["code"] == 0 or self._stops or self._error:
            return False
        slot = event["worker"]
        old = self._slots[slot]
        restarts = 0 if old.has_progressed else old.restarts
        self._reclaim()
        if slot in self._without_device:  # the next worker would have no device either
            self._unhealthy.add(slot)
            return False
        most = 0 if self._backend.restarts else MAX_RESTARTS
        if not old.has_progressed and restarts >= most:
            self._unhealthy.add(slot)
            log = str(self._log(slot))
            self._on_event({"event": "worker_unhealthy", "worker": slot, "log": log})
            return False
        if self._count_startable() < 1:
            return False
        time.sleep(min(8.0, 0.5 * 2**restarts))
        self._slots[slot] = self._start(slot, restarts + 1)
        return True

    def _crash_message(self) -> str:
        log = self._log(min(self._unhealthy, default=0))
        return "\n".join(
            [f"workers keep crashing; the last lines of {log}:", *last_lines(log, 15)]
        )

    def _log(self, slot: int) -> Path:
        kind = "worker" if self._trainings is None else "training"
        return self._handle.files.log(self._handle.name, f"{kind}-{slot}")


def last_lines(log: Path, count: int = LAST_LINES) -> list[str]:
    """Return the end of a log, or nothing if it does not exist."""
    return log.read_text(errors="replace").splitlines()[-count:] if log.exists() else []


def thread_variables(threads: int) -> dict[str, str]:
    """Return the variables that limit the CPU threads of a process."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))
