"""Workers as tasks of a Ray cluster.

Ray decides where and when a worker runs, and how often it is started again. Workers pass their
events to a :class:`autotune.study.engine.ray_mailbox.Mailbox` and learn there that they are to
stop. Their job is an argument: it holds the password of the storage, and Ray shows the names and
the environments of tasks.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.errors import UserError
from autotune.runtime import available_cpus
from autotune.storage.url import is_sqlite, redact
from autotune.study.devices import VISIBLE
from autotune.study.engine.pool import (
    MAX_RESTARTS,
    BackendPlan,
    last_lines,
    threads_in_environment,
)
from autotune.study.engine.ray_mailbox import Mailbox
from autotune.study.engine.worker import Job, worker_main, worker_name, write_log
from autotune.study.trial.run import EventCallback

#: How often the launcher looks what its workers have said.
LOOK_EVERY_S = 0.5
#: After so long it is said that workers wait for room.
PATIENT_FOR_S = 60.0
#: For how long a cluster has to answer.
KNOCK_FOR_S = 10.0
#: For how long workers that were killed are waited for.
KILLED_WITHIN_S = 30.0
#: For how long the folder of a Ray of our own is tried to be removed.
REMOVED_WITHIN_S = 10.0
#: Memory of a Ray of our own for objects; a worker's events are all that it ever holds.
OBJECT_BYTES = 100 << 20
#: A GPU of which Ray alone knows which one it will be.
_OF_RAY = "that Ray gives"


@dataclass(frozen=True)
class ResourceRequest:
    """What is asked of a cluster.

    Args:
        workers: Workers at a time; ``None`` for one per GPU, or two without any.
        gpus: GPUs of a worker, a fraction where workers share one; ``None`` for one where there
            are any.
        cpus: CPUs of a worker; ``None`` for its share of those beside its GPU, or one.

    Raises:
        UserError: When a number cannot be.
    """

    workers: int | None = None
    gpus: float | None = None
    cpus: int | None = None

    def __post_init__(self) -> None:
        for option, value in (("--workers", self.workers), ("--cpus-per-worker", self.cpus)):
            if value is not None and value < 1:
                raise UserError(f"{option}: must be at least 1, but got {value}")
        if self.gpus is not None and not 0 <= self.gpus <= 1:
            raise UserError(
                "--gpus-per-worker: must be from 0 to 1 (a worker trains on one GPU, 0.5 lets two "
                f"share it), but got {self.gpus:g}"
            )


@contextmanager
def ray_backend(url: str, share: ResourceRequest) -> Iterator[BackendPlan]:
    """Connect to Ray, and have it run workers.

    ``RAY_ADDRESS`` says which cluster; else it is the one that runs on this machine, and where
    there is none, a Ray of this run's own, which ends with it.

    Args:
        url: Storage URL of the study.
        share: What is asked of the cluster.

    Raises:
        UserError: When Ray is not installed or cannot be reached, has no such GPUs, or the storage
            is not for many machines.
    """
    ray = _import_ray()
    if ray.is_initialized():  # by whoever calls this as a library
        yield _place(ray, url, share, own=False)
        return
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        own = _connect(ray, str(folder))
        yield _place(ray, url, share, own)
    finally:
        ray.shutdown()
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the folder of a Ray that has ended; its last processes may still write to it."""
    deadline = time.monotonic() + REMOVED_WITHIN_S
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


def _import_ray() -> Any:
    # Ray reads these when it is imported. What it prints about workers that died is said by us.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UserError(
            "--engine ray needs the package ray: pip install 'autotune[ray]'"
        ) from None
    return ray


def _connect(ray: Any, folder: str) -> bool:
    """Connect to a cluster, or start Ray here; return whether it is this run's own."""
    from ray._private.services import find_bootstrap_address

    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "auto"):
        address = find_bootstrap_address(None) or "local"
    own = address == "local"
    # In a folder of its own nobody else takes it for a cluster to join.
    options: dict[str, Any] = {}
    if own:
        options = {
            "_temp_dir": folder,
            "object_store_memory": OBJECT_BYTES,
            "num_cpus": available_cpus(),  # Ray itself does not heed affinity
        }
    try:
        if not own:
            _knock(address)
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **options,
        )
    except Exception as error:  # many kinds, and none that autotune could do something about
        said = " ".join(str(error).split()) or type(error).__name__
        where = "does not start" if own else f"at {address!r} cannot be reached"
        raise UserError(
            f"Ray {where}: {said}; name a cluster with RAY_ADDRESS=host:port, or give "
            "RAY_ADDRESS=local for a Ray of this run's own"
        ) from error
    return own


def _knock(address: str) -> None:
    """Fail where nobody listens: Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ValueError("it must be host:port of a cluster that this machine belongs to")
    with socket.create_connection((host.strip("[]"), int(port)), KNOCK_FOR_S):
        pass


def _place(ray: Any, url: str, share: ResourceRequest, own: bool) -> BackendPlan:
    """Settle how many workers there are, and what each takes."""
    if is_sqlite(url) and not own:
        raise UserError(
            f"storage: {redact(url)} serves one machine, and workers of a Ray cluster may run on "
            "any; give a Postgres URL with --storage, or RAY_ADDRESS=local for a Ray of this "
            "run's own"
        )
    nodes = [one["Resources"] for one in ray.nodes() if one["Alive"]]
    there = sum(one.get("GPU", 0) for one in nodes)
    gpus = share.gpus if share.gpus is not None else float(there > 0)
    if gpus > there and (own or share.workers is None):
        raise UserError(
            f"--gpus-per-worker {gpus:g}: Ray has no GPU here"
            + ("" if own else "; give --workers if the cluster will grow")
            + "; --gpus-per-worker 0 is for the CPU"
        )
    cpus = share.cpus or _cpus_beside(nodes, gpus)
    most = sum(one.get("CPU", 0) for one in nodes)
    slots = share.workers or (int(there) * int(1 / gpus) if gpus else max(1, min(2, int(most))))
    return BackendPlan(RayWorkers(ray, gpus, cpus), slots, cpus)


def _cpus_beside(nodes: list[Mapping[str, float]], gpus: float) -> int:
    """Return a worker's share of the CPUs on the machine that has fewest for its GPUs."""
    shares = [one.get("CPU", 0) / one["GPU"] for one in nodes if one.get("GPU")]
    return max(1, math.floor(min(shares) * gpus)) if shares and gpus else 1


class RayWorkers:
    """Workers as tasks of a cluster, the crew of ``--engine ray``.

    Args:
        ray: The package, connected.
        gpus: GPUs of a worker.
        cpus: CPUs of a worker.
    """

    restarts = True

    def __init__(self, ray: Any, gpus: float, cpus: int) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray = ray
        self._gpus = gpus
        self._cpus = cpus
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._desk = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
        self._slots: dict[Any, int] = {}  # by the task's result to come
        self._logs: dict[int, Path] = {}
        self._names: dict[int, str] = {}
        self._waiting: dict[int, float] = {}  # since when Ray is to find room for it
        self._gone: set[str] = set()
        self._closed = threading.Event()
        self._tell: EventCallback = lambda event: None
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def start(self, place: int, job: Job, tell: EventCallback) -> None:
        """Hand a worker to Ray; see :class:`autotune.study.engine.pool.WorkerBackend`."""
        self._tell = tell
        # What GPUs are used with is the affair of the machine that has them: see find_device.
        environment = threads_in_environment(job.threads) | ({} if self._gpus else {VISIBLE: ""})
        job = replace(job, gpu=_OF_RAY if self._gpus else "")
        task = self._ray.remote(
            num_gpus=self._gpus,
            num_cpus=self._cpus,
            max_retries=MAX_RESTARTS,
            max_calls=1,  # a fresh process for each
            name=f"autotune {job.study} {place}",
            runtime_env={"env_vars": environment},
        )(_work)
        self._logs[place] = Path(job.log)
        self._names.pop(place, None)
        self._waiting[place] = time.monotonic()
        self._slots[task.remote(job, place, self._desk)] = place
        if not self._listener.is_alive():
            self._listener.start()

    def is_gone(self, worker: str) -> bool:
        """Tell whether Ray has ended a worker of this crew, or has another in its place."""
        return worker in self._gone

    def stop(self) -> None:
        """Ask all workers to stop; those that wait for room never start."""
        self._desk.stop.remote()
        self._dismiss()

    def kill(self) -> None:
        """End all workers at once."""
        for task in list(self._slots):
            self._ray.cancel(task, force=True)

    def close(self) -> None:
        """Kill what is left, and wait until it is gone."""
        self.kill()
        tasks = list(self._slots)
        if tasks:
            self._ray.wait(tasks, num_returns=len(tasks), timeout=KILLED_WITHIN_S)
        self._closed.set()
        if self._listener.is_alive():
            self._listener.join()
        self._gone.update(self._names.values())
        self._ray.kill(self._desk)

    def _dismiss(self) -> None:
        """Take back the workers that Ray has not found room for."""
        for task, place in list(self._slots.items()):
            if place in self._waiting:
                self._ray.cancel(task)

    def _listen(self) -> None:
        try:
            while not self._closed.is_set():
                self._look()
        except Exception as error:  # the pool must hear of it, or would wait for ever
            said = " ".join(str(error).split())
            message = f"the line to Ray is cut: {type(error).__name__}: {said}"
            self._tell({"event": "error", "message": message, "exit_code": 1})
            for place in list(self._slots.values()):
                self._tell({"event": "exit", "worker": place, "code": None, "lines": []})

    def _look(self) -> None:
        """Pass on what the workers have said since the last look, then who of them has ended."""
        ended = []
        if self._slots:
            ended, _ = self._ray.wait(list(self._slots), timeout=LOOK_EVERY_S)
        else:
            self._closed.wait(LOOK_EVERY_S)
        for event in self._ray.get(self._desk.drain.remote()):
            if event["event"] == "entered":
                self._enter(event["worker"], event["name"])
            else:
                self._tell(event)
        for task in ended:
            self._end(task, self._slots.pop(task))
        self._say_who_waits()

    def _enter(self, place: int, name: str) -> None:
        before = self._names.get(place)
        self._names[place] = name
        self._waiting.pop(place, None)
        if before is not None:
            self._gone.add(before)
            lines = last_lines(self._logs[place])
            self._tell({"event": "restarted", "worker": place, "code": None, "lines": lines})

    def _end(self, task: Any, place: int) -> None:
        errors = self._ray.exceptions
        code: int | None = None
        lines: list[str] = []
        try:
            code = self._ray.get(task)
            if code == 0:  # it has found nothing to do, nor would those that are still to come
                self._dismiss()
        except errors.TaskCancelledError:
            code = 0
        except errors.RayTaskError as error:
            message = f"Ray cannot run a worker: {type(error.cause).__name__}: {error.cause}"
            self._tell({"event": "error", "message": message, "exit_code": 1})
            code = 1
        except errors.RayError as error:
            lines = [*str(error).strip().splitlines()[:1], *last_lines(self._logs[place])]
        self._waiting.pop(place, None)
        if place in self._names:
            self._gone.add(self._names[place])
        self._tell({"event": "exit", "worker": place, "code": code, "lines": lines})

    def _say_who_waits(self) -> None:
        now = time.monotonic()
        long = [
            place for place, since in list(self._waiting.items()) if now - since > PATIENT_FOR_S
        ]
        if not long:
            return
        self._waiting.update(dict.fromkeys(long, math.inf))  # said once
        self._tell(
            {"event": "pending", "count": len(long), "gpus": self._gpus, "cpus": self._cpus}
        )


def _work(job: Job, place: int, desk: Any) -> int:
    """Work as a task of Ray; return the exit code of the worker."""
    stop, asked = threading.Event(), threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to handle
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def ask(_future: object) -> None:
        asked.set()
        stop.set()

    # Not ray.get: Ray would give the CPUs of a task that waits in it to another.
    number = desk.enter.remote().future().result()
    gpu = os.environ.get(VISIBLE) or job.gpu if job.gpu else ""
    job = replace(job, worker=worker_name(os.getpid(), number), index=number, gpu=gpu)
    said: list[Any] = []

    def on_event(event: dict[str, Any]) -> None:
        said[:] = [desk.tell.remote({**event, "worker": place})]

    on_event({"event": "entered", "name": job.worker})
    desk.stopped.remote().future().add_done_callback(ask)
    write_log(job.log)
    code = worker_main(job, stop, on_event)
    with suppress(Exception):  # the launcher may be gone
        said[0].future().result(timeout=KILLED_WITHIN_S)
    if stop.is_set() and not asked.is_set():
        os._exit(128 + signal.SIGTERM)  # its machine goes: Ray starts it elsewhere
    return code
