"""Workers as tasks of a Ray cluster.

Ray decides where and when a worker runs, and restarts it. Workers pass their events to a
:class:`autotune.study.engine.ray_mailbox.Mailbox` and learn there that they are to stop. A job is
an argument of its task: it holds the password of the storage, and Ray shows the names and the
environments of tasks.
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
from autotune.study.engine.pool import MAX_RESTARTS, Job, last_lines, thread_variables, worker_name
from autotune.study.engine.ray_mailbox import Mailbox
from autotune.study.engine.worker_process import (
    redirect_output_to_log,
    run_worker_reporting_errors,
)
from autotune.study.trial.run import EventCallback

#: Seconds between two looks at the events of the workers.
POLL_S = 0.5
#: Waiting time of a worker after which the user is told that it waits for resources.
PENDING_AFTER_S = 60.0
#: Time limits of connecting to a cluster, of ending killed workers, and of removing the folder of
#: a Ray that this run started.
CONNECT_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 30.0
REMOVE_TIMEOUT_S = 10.0
#: Memory for the objects of a Ray that this run starts; it holds nothing but events.
OBJECT_BYTES = 100 << 20
#: Stands for a GPU that Ray will choose.
_CHOSEN_BY_RAY = "chosen by Ray"


@dataclass(frozen=True)
class ResourceRequest:
    """What is asked of a cluster.

    Args:
        workers: Workers at a time; ``None`` for one per GPU, or two without any.
        gpus: GPUs of a worker, a fraction to share one; ``None`` for one where there are any.
        cpus: CPUs of a worker; ``None`` for its share of those beside its GPU, or one.

    Raises:
        UserError: When a number is out of range.
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
def ray_backend(url: str, request: ResourceRequest) -> Iterator[RayWorkers]:
    """Connect to Ray and yield a backend of its tasks.

    ``RAY_ADDRESS`` names the cluster; else it is the one that runs on this machine, or a Ray that
    this run starts and ends.

    Raises:
        UserError: When Ray is not installed or cannot be reached, has no such GPUs, or the storage
            serves one machine alone.
    """
    ray = _import_ray()
    if ray.is_initialized():  # by a program that uses autotune as a library
        yield _make_backend(ray, url, request, own=False)
        return
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        yield _make_backend(ray, url, request, _connect(ray, str(folder)))
    finally:
        ray.shutdown()
        deadline = time.monotonic() + REMOVE_TIMEOUT_S
        while folder.exists() and time.monotonic() < deadline:  # its last processes still write
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.1)


def _import_ray() -> Any:
    # Ray reads these when it is imported. autotune itself reports workers that died.
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
    """Connect to a cluster, or start Ray here; return whether this run started it."""
    from ray._private.services import find_bootstrap_address

    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "auto"):
        address = find_bootstrap_address(None) or "local"
    own = address == "local"
    options: dict[str, Any] = {}
    if own:
        options = {
            "_temp_dir": folder,  # so that nobody else finds it and joins
            "object_store_memory": OBJECT_BYTES,
            "num_cpus": available_cpus(),  # Ray itself ignores affinity
        }
    try:
        if not own:
            _check_reachable(address)
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **options,
        )
    except Exception as error:  # of many types; the user can act on all of them alike
        reason = " ".join(str(error).split()) or type(error).__name__
        what = "does not start" if own else f"at {address!r} cannot be reached"
        raise UserError(
            f"Ray {what}: {reason}; name a cluster with RAY_ADDRESS=host:port, or give "
            "RAY_ADDRESS=local for a Ray of this run's own"
        ) from error
    return own


def _check_reachable(address: str) -> None:
    """Fail when nobody listens at an address; Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ValueError("it must be host:port of a cluster that this machine belongs to")
    with socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S):
        pass


def _make_backend(ray: Any, url: str, request: ResourceRequest, own: bool) -> RayWorkers:
    """Decide how many workers run, and which resources each has."""
    if is_sqlite(url) and not own:
        raise UserError(
            f"storage: {redact(url)} serves one machine, and workers of a Ray cluster may run on "
            "any; give a Postgres URL with --storage, or RAY_ADDRESS=local for a Ray of this "
            "run's own"
        )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    all_gpus = sum(node.get("GPU", 0) for node in nodes)
    gpus = request.gpus if request.gpus is not None else float(all_gpus > 0)
    if gpus > all_gpus and (own or request.workers is None):
        raise UserError(
            f"--gpus-per-worker {gpus:g}: Ray has no GPU here"
            + ("" if own else "; give --workers if the cluster will grow")
            + "; --gpus-per-worker 0 is for the CPU"
        )
    cpus = request.cpus or _cpus_per_worker(nodes, gpus)
    all_cpus = int(sum(node.get("CPU", 0) for node in nodes))
    slots = int(all_gpus) * int(1 / gpus) if gpus else max(1, min(2, all_cpus))
    return RayWorkers(ray, gpus, cpus, request.workers or slots)


def _cpus_per_worker(nodes: list[Mapping[str, float]], gpus: float) -> int:
    """Return a worker's share of the CPUs on the machine that has fewest for its GPUs."""
    shares = [node.get("CPU", 0) / node["GPU"] for node in nodes if node.get("GPU")]
    return max(1, math.floor(min(shares) * gpus)) if shares and gpus else 1


class RayWorkers:
    """Workers as tasks of a cluster, the backend of ``--engine ray``."""

    restarts = True

    def __init__(self, ray: Any, gpus: float, cpus: int, slots: int) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.slots, self.threads = slots, cpus
        self._ray, self._gpus = ray, gpus
        node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox = ray.remote(num_cpus=0, scheduling_strategy=node)(Mailbox).remote()
        self._tasks: dict[Any, int] = {}  # future result of a task -> slot
        self._logs: dict[int, Path] = {}
        self._names: dict[int, str] = {}
        self._pending: dict[int, float] = {}  # slot -> since when it waits for resources
        self._gone: set[str] = set()
        self._closed = threading.Event()
        self._on_event: EventCallback = lambda event: None
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def prepare(self) -> None:
        """Do nothing: a cluster is not asked for resources before there is a study."""

    def check(self) -> None:
        """Do nothing: Ray chooses the GPUs when the workers start."""

    def start(self, slot: int, job: Job, on_event: EventCallback) -> None:
        """Hand a worker to Ray; see :class:`autotune.study.engine.pool.WorkerBackend`."""
        self._on_event = on_event
        # The machine that has the GPUs sets how they are used, see find_device.
        environment = thread_variables(job.threads) | ({} if self._gpus else {VISIBLE: ""})
        job = replace(job, gpu=_CHOSEN_BY_RAY if self._gpus else "")
        task = self._ray.remote(
            num_gpus=self._gpus,
            num_cpus=self.threads,
            max_retries=MAX_RESTARTS,
            max_calls=1,  # a fresh process for each
            name=f"autotune {job.study} {slot}",
            runtime_env={"env_vars": environment},
        )(_work)
        self._logs[slot] = Path(job.log)
        self._names.pop(slot, None)
        self._pending[slot] = time.monotonic()
        self._tasks[task.remote(job, slot, self._mailbox)] = slot
        if not self._listener.is_alive():
            self._listener.start()

    def is_gone(self, worker: str) -> bool:
        """Tell whether Ray has ended a worker that was started here, or replaced it."""
        return worker in self._gone

    def stop(self) -> None:
        """Ask all workers to stop; those that wait for resources never start."""
        self._mailbox.stop.remote()
        self._cancel_pending()

    def kill(self) -> None:
        """End all workers at once."""
        for task in list(self._tasks):
            self._ray.cancel(task, force=True)

    def close(self) -> None:
        """Kill what is left, and wait until it is gone."""
        self.kill()
        if tasks := list(self._tasks):
            self._ray.wait(tasks, num_returns=len(tasks), timeout=KILL_TIMEOUT_S)
        self._closed.set()
        if self._listener.is_alive():
            self._listener.join()
        self._gone.update(self._names.values())
        self._ray.kill(self._mailbox)

    def _cancel_pending(self) -> None:
        for task, slot in list(self._tasks.items()):
            if slot in self._pending:
                self._ray.cancel(task)

    def _listen(self) -> None:
        try:
            while not self._closed.is_set():
                self._poll()
        except Exception as error:  # without an event the pool would wait forever
            reason = " ".join(str(error).split())
            message = f"the connection to Ray failed: {type(error).__name__}: {reason}"
            self._on_event({"event": "error", "message": message, "exit_code": 1})
            for slot in list(self._tasks.values()):
                self._on_event({"event": "exit", "worker": slot, "code": None, "lines": []})

    def _poll(self) -> None:
        """Pass on the events since the last call, then which workers have ended."""
        ended = []
        if self._tasks:
            ended, _ = self._ray.wait(list(self._tasks), timeout=POLL_S)
        else:
            self._closed.wait(POLL_S)
        for event in self._ray.get(self._mailbox.drain.remote()):
            if event["event"] == "registered":
                self._register(event["worker"], event["name"])
            else:
                self._on_event(event)
        for task in ended:
            self._end(task, self._tasks.pop(task))
        self._report_pending()

    def _register(self, slot: int, name: str) -> None:
        before = self._names.get(slot)
        self._names[slot] = name
        self._pending.pop(slot, None)
        if before is not None:
            self._gone.add(before)
            lines = last_lines(self._logs[slot])
            self._on_event({"event": "restarted", "worker": slot, "code": None, "lines": lines})

    def _end(self, task: Any, slot: int) -> None:
        errors = self._ray.exceptions
        code: int | None = None
        lines: list[str] = []
        try:
            code = self._ray.get(task)
            if (
                code == 0
            ):  # it found nothing to do; workers that are still pending would not either
                self._cancel_pending()
        except errors.TaskCancelledError:
            code = 0
        except errors.RayTaskError as error:
            message = f"Ray cannot run a worker: {type(error.cause).__name__}: {error.cause}"
            self._on_event({"event": "error", "message": message, "exit_code": 1})
            code = 1
        except errors.RayError as error:
            lines = [*str(error).strip().splitlines()[:1], *last_lines(self._logs[slot])]
        self._pending.pop(slot, None)
        if slot in self._names:
            self._gone.add(self._names[slot])
        self._on_event({"event": "exit", "worker": slot, "code": code, "lines": lines})

    def _report_pending(self) -> None:
        now = time.monotonic()
        slots = [s for s, since in list(self._pending.items()) if now - since > PENDING_AFTER_S]
        if slots:
            self._pending.update(dict.fromkeys(slots, math.inf))  # reported once
            resources = {"gpus": self._gpus, "cpus": self.threads}
            self._on_event({"event": "pending", "count": len(slots), **resources})


def _work(job: Job, slot: int, mailbox: Any) -> int:
    """Run a worker as a task of Ray; return its exit code."""
    stop, is_asked = threading.Event(), threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher handles Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def ask_to_stop(_future: object) -> None:
        is_asked.set()
        stop.set()

    # Not ray.get: Ray would give the CPUs of a task that waits in it to another one.
    number = mailbox.register.remote().future().result()
    gpu = os.environ.get(VISIBLE) or job.gpu if job.gpu else ""
    job = replace(job, worker=worker_name(os.getpid(), number), index=number, gpu=gpu)
    last: list[Any] = []

    def on_event(event: dict[str, Any]) -> None:
        last[:] = [mailbox.put.remote({**event, "worker": slot})]

    on_event({"event": "registered", "name": job.worker})
    mailbox.wait_for_stop.remote().future().add_done_callback(ask_to_stop)
    redirect_output_to_log(job.log)
    code = run_worker_reporting_errors(job, stop, on_event)
    with suppress(Exception):  # the launcher may be gone
        last[0].future().result(timeout=KILL_TIMEOUT_S)
    if stop.is_set() and not is_asked.is_set():
        os._exit(128 + signal.SIGTERM)  # its machine shuts down: Ray starts it elsewhere
    return code
