"""The job of a worker's process, and its name."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass
from typing import Any

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
