"""Workers as processes of this machine.

They are started afresh (never forked), one device each: which GPU a process may see must be
settled before it imports torch. They can be started before there is a study to work at: they
import what they need, and wait for their jobs.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from autotune.errors import NoDeviceError
from autotune.runtime import available_cpus
from autotune.study.devices import VISIBLE
from autotune.study.engine.pool import BackendPlan, environment_of, last_lines
from autotune.study.engine.worker import CHECK_GPU, Job, worker_name
from autotune.study.trial.run import EventCallback

#: For how long the first call of a GPU is waited for, the import of torch before it included.
TRIED_WITHIN_S = 300.0


class LocalWorkers:
    """Worker processes, the crew of ``--engine local``.

    Args:
        devices: What ``CUDA_VISIBLE_DEVICES`` is for each place, in turn; empty for the CPU.
    """

    restarts = False

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = devices
        self._started: dict[str, subprocess.Popen[str]] = {}
        self._waiting: dict[int, subprocess.Popen[str]] = {}

    def prepare(self, slots: int, threads: int) -> None:
        """Start a process for each place, which waits for the job of its first worker.

        Args:
            slots: How many there are.
            threads: CPU threads of each.
        """
        self._waiting = {place: self._open(place, threads) for place in range(slots)}

    def check(self) -> None:
        """Wait until the processes that wait for a job have tried their GPUs.

        Raises:
            NoDeviceError: When one cannot be used; with all that cannot, and the reasons.
        """
        if not self._devices:
            return
        until = time.monotonic() + TRIED_WITHIN_S
        refused = {
            self._device_of(place): why
            for place, popen in self._waiting.items()
            if (why := _refusal_of(popen, until))
        }
        if not refused:
            return
        by_reason: dict[str, list[str]] = {}
        for gpu, why in refused.items():
            by_reason.setdefault(why.removeprefix(f"the GPU {gpu} "), []).append(gpu)
        lines = [
            f"the GPU{'s' if len(gpus) > 1 else ''} {', '.join(gpus)} {why}"
            for why, gpus in by_reason.items()
        ]
        if left := [gpu for gpu in dict.fromkeys(self._devices) if gpu not in refused]:
            lines.append(f"{VISIBLE}={','.join(left)} uses the others alone")
        raise NoDeviceError("\n".join(lines))

    def start(self, place: int, job: Job, tell: EventCallback) -> None:
        """Start a process; see :class:`autotune.study.engine.pool.WorkerBackend`."""
        number = len(self._started)  # a replacement has a name and random draws of its own
        gpu = self._device_of(place)
        job = replace(job, worker=worker_name(os.getpid(), number), index=number, gpu=gpu)
        popen = self._waiting.pop(place, None)
        if popen is not None and popen.poll() is not None:
            _dismiss(popen)
            popen = None
        if popen is None:
            popen = self._open(place, job.threads)
        self._started[job.worker] = popen
        assert popen.stdin is not None
        with suppress(BrokenPipeError):  # it has died already; its end is told like any other
            popen.stdin.write(json.dumps(asdict(job)) + "\n")
            popen.stdin.flush()
        log = Path(job.log)
        threading.Thread(target=_read, args=(place, popen, log, tell), daemon=True).start()

    def _open(self, place: int, threads: int) -> subprocess.Popen[str]:
        environment = os.environ | environment_of(threads)
        environment[VISIBLE] = self._device_of(place)
        check = [CHECK_GPU] if self._devices else []
        return subprocess.Popen(
            [sys.executable, "-m", "autotune.study.engine.worker_main", *check],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the worker opens its own log
            env=environment,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the launcher alone
        )

    def _device_of(self, place: int) -> str:
        return self._devices[place % len(self._devices)] if self._devices else ""

    def is_gone(self, worker: str) -> bool:
        """Tell whether a worker is one of these that has ended."""
        popen = self._started.get(worker)
        return popen is not None and popen.poll() is not None

    def stop(self) -> None:
        """Ask all workers to stop."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End all workers at once."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill what is left, and wait until it is gone."""
        self.kill()
        for popen in self._started.values():
            popen.wait()
        for popen in self._waiting.values():
            _dismiss(popen)
        self._waiting = {}

    def _signal(self, number: int) -> None:
        for popen in self._started.values():
            if popen.poll() is None:
                popen.send_signal(number)


@contextmanager
def local_backend(devices: Sequence[str], slots: int) -> Iterator[BackendPlan]:
    """Have processes of this machine run workers; prepared, they import already.

    Args:
        devices: See :class:`LocalWorkers`.
        slots: How many workers there are at a time.
    """
    threads = max(1, available_cpus() // slots)
    backend = LocalWorkers(devices)
    try:
        yield BackendPlan(
            backend, slots, threads, partial(backend.prepare, slots, threads), backend.check
        )
    finally:
        backend.close()


def _refusal_of(popen: subprocess.Popen[str], until: float) -> str:
    """Read why a process cannot use its GPU, which it says first; empty if it can.

    One that dies over it says nothing, and is replaced like any other.
    """
    assert popen.stdout is not None
    ready, _, _ = select.select([popen.stdout], [], [], max(0.0, until - time.monotonic()))
    if not ready:
        return f"does not answer within {TRIED_WITHIN_S:.0f} s; see what nvidia-smi says of it"
    for line in popen.stdout:
        if (event := _event(line)) is not None:
            return str(event.get("message", ""))
    return ""


def _event(line: str) -> dict[str, Any] | None:
    """Read an event; ``None`` for half a line of a worker that was killed, or what is none."""
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _dismiss(popen: subprocess.Popen[str]) -> None:
    """End a process that has no job."""
    popen.kill()
    popen.communicate()  # closes its pipes too


def _read(place: int, popen: subprocess.Popen[str], log: Path, tell: EventCallback) -> None:
    """Pass on what a worker says, and how it ends."""
    assert popen.stdout is not None and popen.stdin is not None
    with popen.stdout:
        for line in popen.stdout:
            if (event := _event(line)) is not None:
                tell({**event, "worker": place})
    code = popen.wait()
    with suppress(BrokenPipeError):  # of a job that it did not read
        popen.stdin.close()
    lines = last_lines(log) if code else []
    tell({"event": "exit", "worker": place, "code": code, "lines": lines})
