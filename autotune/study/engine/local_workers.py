"""Workers as processes of this machine.

Each is a fresh interpreter (never forked) with one device: which GPU a process may see must be
settled before it imports torch. Processes can be started before there is a study: they import
what they need and wait for their jobs.
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
from pathlib import Path
from typing import Any

from autotune.errors import NoDeviceError
from autotune.runtime import available_cpus, set_gpu_defaults
from autotune.study.devices import VISIBLE
from autotune.study.engine.pool import CHECK_GPU, Job, last_lines, thread_variables, worker_name
from autotune.study.trial.run import EventCallback

#: Time limit of the first call of a GPU, which includes the import of torch.
GPU_CHECK_TIMEOUT_S = 300.0

Process = subprocess.Popen[str]


class LocalWorkers:
    """Worker processes, the backend of ``--engine local``.

    The slots get the devices in turn; without any they use the CPU.

    Args:
        devices: GPUs, as ``CUDA_VISIBLE_DEVICES`` names them.
        slots: Workers at a time.
        threads: CPU threads of each; by default they share the cores.
    """

    restarts = False

    def __init__(self, devices: Sequence[str], slots: int, threads: int | None = None) -> None:
        self.slots = slots
        self.threads = threads or max(1, available_cpus() // slots)
        self._devices = devices
        self._started: dict[str, Process] = {}
        self._idle: dict[int, Process] = {}

    def prepare(self) -> None:
        """Start a process for each slot, which waits for the job of its first worker."""
        self._idle = {slot: self._open(slot, self.threads) for slot in range(self.slots)}

    def check(self) -> None:
        """Wait until the idle processes have tried their GPUs.

        Raises:
            NoDeviceError: With every GPU that cannot be used, and the reasons.
        """
        if not self._devices:
            return
        until = time.monotonic() + GPU_CHECK_TIMEOUT_S
        refused = {
            self._device(slot): reason
            for slot, process in self._idle.items()
            if (reason := _refusal(process, until))
        }
        if not refused:
            return
        by_reason: dict[str, list[str]] = {}
        for gpu, reason in refused.items():
            by_reason.setdefault(reason.removeprefix(f"the GPU {gpu} "), []).append(gpu)
        lines = [
            f"the GPU{'s' if len(gpus) > 1 else ''} {', '.join(gpus)} {reason}"
            for reason, gpus in by_reason.items()
        ]
        if usable := [gpu for gpu in dict.fromkeys(self._devices) if gpu not in refused]:
            lines.append(f"{VISIBLE}={','.join(usable)} uses the others alone")
        raise NoDeviceError("\n".join(lines))

    def start(self, slot: int, job: Job, on_event: EventCallback) -> None:
        """Start a process; see :class:`autotune.study.engine.pool.WorkerBackend`."""
        index = len(self._started)  # a replacement has its own name and random draws
        name = worker_name(os.getpid(), index)
        job = replace(job, worker=name, index=index, gpu=self._device(slot))
        process = self._idle.pop(slot, None)
        if process is not None and process.poll() is not None:
            _discard(process)
            process = None
        process = process or self._open(slot, job.threads)
        self._started[name] = process
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has died; its exit is reported like any other
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
        arguments = (slot, process, Path(job.log), on_event)
        threading.Thread(target=_read, args=arguments, daemon=True).start()

    def _open(self, slot: int, threads: int) -> Process:
        check = [CHECK_GPU] if self._devices else []
        return subprocess.Popen(
            [sys.executable, "-m", "autotune.study.engine.worker_main", *check],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the worker opens its own log
            env=self._environment(slot, threads),
            text=True,
            start_new_session=True,  # a Ctrl-C reaches the launcher alone
        )

    def _environment(self, slot: int, threads: int) -> dict[str, str]:
        environment = os.environ | thread_variables(threads) | {VISIBLE: self._device(slot)}
        set_gpu_defaults(environment)
        if self.slots * threads > available_cpus():
            # Threads that spin while they wait would take the cores from those that work.
            environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        return environment

    def _device(self, slot: int) -> str:
        return self._devices[slot % len(self._devices)] if self._devices else ""

    def is_gone(self, worker: str) -> bool:
        """Tell whether a worker was started here and has ended."""
        process = self._started.get(worker)
        return process is not None and process.poll() is not None

    def stop(self) -> None:
        """Ask all workers to stop."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End all workers at once."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill what is left, and wait until it is gone."""
        self.kill()
        for process in self._started.values():
            process.wait()
        for process in self._idle.values():
            _discard(process)
        self._idle = {}

    def _signal(self, number: int) -> None:
        for process in self._started.values():
            if process.poll() is None:
                process.send_signal(number)


@contextmanager
def local_backend(
    devices: Sequence[str], slots: int, threads: int | None = None
) -> Iterator[LocalWorkers]:
    """Yield a backend of processes; none of them outlives the block."""
    backend = LocalWorkers(devices, slots, threads)
    try:
        yield backend
    finally:
        backend.close()


def _refusal(process: Process, until: float) -> str:
    """Read why a process cannot use its GPU; empty if it can.

    A process that dies during the check reports nothing, and is replaced like any other.
    """
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))
    if not ready:
        return (
            f"does not answer within {GPU_CHECK_TIMEOUT_S:.0f} s; see what nvidia-smi says of it"
        )
    for line in process.stdout:
        if (event := _parse(line)) is not None:
            return str(event.get("message", ""))
    return ""


def _parse(line: str) -> dict[str, Any] | None:
    """Return an event; ``None`` for other output and for half a line of a killed worker."""
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _discard(process: Process) -> None:
    """End a process that has no job."""
    process.kill()
    process.communicate()  # closes its pipes too


def _read(slot: int, process: Process, log: Path, on_event: EventCallback) -> None:
    """Pass on the events of a worker, then its exit."""
    assert process.stdout is not None and process.stdin is not None
    with process.stdout:
        for line in process.stdout:
            if (event := _parse(line)) is not None:
                on_event({**event, "worker": slot})
    code = process.wait()
    with suppress(BrokenPipeError):  # it did not read its job
        process.stdin.close()
    lines = last_lines(log) if code else []
    on_event({"event": "exit", "worker": slot, "code": code, "lines": lines})
