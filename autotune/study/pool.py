"""The worker processes of a launcher: started, watched, replaced, stopped.

Workers are processes started afresh (never forked), one device each: which GPU a process may see
must be settled before it imports torch.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from autotune.errors import UserError, WorkerError
from autotune.storage.database import absolute_url, storage_errors
from autotune.study.claims import INTERRUPTED, LOST, MAX_RETRIES
from autotune.study.opening import OpenStudy
from autotune.study.trial import Listener
from autotune.study.worker import Job, worker_name

#: How often in a row a worker that died is replaced, per place: once more than a trial is tried
#: again, so that one which kills its workers is given up before the place. A worker that has got a
#: trial further begins anew: what killed it was not the place.
MAX_RESTARTS = MAX_RETRIES + 1
#: So many lines of its log are shown of a worker that died.
LAST_LINES = 5
#: glibc keeps freed memory up to this size. It would hand every activation map back to the system
#: and fetch it again, zeroed, in the next layer: half of the time of a training on the CPU
#: (benchmarks/allocator.py).
KEPT_BYTES = str(4 << 30)


@dataclass
class _Process:
    """A worker process, and how often in a row its place was filled again."""

    index: int
    popen: subprocess.Popen[str]
    restarts: int


class WorkerPool:
    """The worker processes of one launcher.

    Args:
        opened: The study.
        places: How many workers there are at a time.
        devices: What ``CUDA_VISIBLE_DEVICES`` is for each place, in turn; empty for the CPU.
        listener: Told of everything that happens.
    """

    def __init__(
        self,
        opened: OpenStudy,
        places: int,
        devices: tuple[str, ...],
        listener: Listener,
    ) -> None:
        self._opened = opened
        self._claims = opened.claims()
        self._places = places
        self._devices = devices
        self._listener = listener
        self._events: queue.SimpleQueue[dict[str, Any]] = (
            queue.SimpleQueue()  # the one queue that a signal handler may put into
        )
        self._processes: dict[int, _Process] = {}
        self._started: dict[str, subprocess.Popen[str]] = {}
        self._stops = 0
        self._sick: set[int] = set()
        self._error: dict[str, Any] | None = None

    def run(self) -> bool:
        """Run workers until no trial is left; return whether a signal stopped them."""
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
                if restarts > MAX_RESTARTS or len(self._sick) == self._places:
                    self._error = {"message": self._obituary(), "exit_code": 1}
                    break
        finally:
            self._kill()
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

    def _is_ours(self, worker: str) -> bool:
        """Tell whether a worker is one of this launcher's that has ended."""
        popen = self._started.get(worker)
        return popen is not None and popen.poll() is not None

    def _sweep(self) -> None:
        with storage_errors(self._opened.url):
            self._claims.sweep(self._is_ours, INTERRUPTED if self._stops else LOST)

    def _could_start(self) -> int:
        with storage_errors(self._opened.url):
            return self._claims.could_start()

    def _start_workers(self) -> None:
        wanted = max(1, self._could_start())
        healthy = [index for index in range(self._places) if index not in self._sick]
        self._processes = {index: self._start(index, 0) for index in healthy[:wanted]}

    def _start(self, index: int, restarts: int) -> _Process:
        environment = dict(os.environ)
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[index % len(self._devices)]
        else:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        threads = max(1, (os.cpu_count() or 1) // self._places)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = str(threads)
        for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
            environment.setdefault(name, KEPT_BYTES)
        number = len(self._started)  # a replacement has a name and random draws of its own
        job = Job(
            study=self._opened.name,
            storage=absolute_url(self._opened.url),
            files=str(self._opened.files.root),
            worker=worker_name(os.getpid(), number),
            index=number,
            workers=self._places,
            threads=threads,
            log=str(self._log(index)),
        )
        popen = subprocess.Popen(
            [sys.executable, "-m", "autotune.study.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the worker opens its own log
            env=environment,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the launcher alone
        )
        assert popen.stdin is not None
        popen.stdin.write(json.dumps(asdict(job)) + "\n")
        popen.stdin.flush()
        self._started[job.worker] = popen
        threading.Thread(target=self._read, args=(index, popen), daemon=True).start()
        return _Process(index, popen, restarts)

    def _read(self, index: int, popen: subprocess.Popen[str]) -> None:
        assert popen.stdout is not None and popen.stdin is not None
        with popen.stdout:
            for line in popen.stdout:
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:  # half a line of a worker that was killed
                    continue
                self._events.put({**event, "worker": index})
        code = popen.wait()
        popen.stdin.close()
        lines = self._last_lines(index) if code else []
        self._events.put({"event": "exit", "worker": index, "code": code, "lines": lines})

    def _supervise(self) -> None:
        alive = set(self._processes)
        while alive:
            try:
                event = self._events.get(timeout=0.5)
            except queue.Empty:
                self._listener({"event": "tick"})
                continue
            if event["event"] == "stopping":
                self._signal(signal.SIGKILL if event["now"] else signal.SIGTERM)
            elif event["event"] == "error":
                if self._error is None:
                    self._error = event
                self._signal(signal.SIGTERM)
            elif event["event"] == "epoch":
                self._processes[event["worker"]].restarts = 0
            elif event["event"] == "exit" and self._replace(event):
                self._listener({**event, "replaced": True})
                continue
            elif event["event"] == "exit":
                alive.discard(event["worker"])
            self._listener(event)

    def _replace(self, event: dict[str, Any]) -> bool:
        """Fill the place of a worker that died; give its trial back first."""
        if event["code"] == 0 or self._stops or self._error:
            return False
        old = self._processes[event["worker"]]
        self._sweep()
        if old.restarts >= MAX_RESTARTS:
            self._sick.add(old.index)
            self._listener(
                {"event": "sick", "worker": old.index, "log": str(self._log(old.index))}
            )
            return False
        if self._could_start() < 1:
            return False
        time.sleep(min(8.0, 0.5 * 2**old.restarts))
        self._processes[old.index] = self._start(old.index, old.restarts + 1)
        return True

    def _obituary(self) -> str:
        """Say that the workers die, with the last lines of a log."""
        index = min(self._sick, default=0)
        log = str(self._log(index))
        lines = self._last_lines(index, 15)
        return "\n".join(["the workers die again and again; the end of " + log, *lines])

    def _log(self, index: int) -> Path:
        return self._opened.files.log(self._opened.name, f"worker-{index}")

    def _last_lines(self, index: int, count: int = LAST_LINES) -> list[str]:
        log = self._log(index)
        return log.read_text(errors="replace").splitlines()[-count:] if log.exists() else []

    def _signal(self, number: int) -> None:
        for process in self._processes.values():
            if process.popen.poll() is None:
                process.popen.send_signal(number)

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)
        for process in self._processes.values():
            process.popen.wait()
