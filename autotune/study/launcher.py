"""The launcher: checks and prepares a study, has workers run it, leaves nothing running behind."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from autotune.config import StudyConfig
from autotune.data.progress import Progress as DataProgress
from autotune.data.survey import survey
from autotune.data.task import Task
from autotune.errors import DiskFullError, UserError, disk_full_as_user_error
from autotune.storage.database import storage_errors
from autotune.storage.layout import Files
from autotune.storage.url import database_path, is_sqlite
from autotune.study.budget import Ending
from autotune.study.cluster import Share, ray_crew
from autotune.study.definition import Definition, define
from autotune.study.opening import OpenStudy, check_existing, open_or_create
from autotune.study.pool import Placed, WorkerPool
from autotune.study.processes import local_crew
from autotune.study.record import Progress
from autotune.study.remembered import remembered_of
from autotune.study.trial import Listener

#: Free space below which a study is not started: database, logs, checkpoints of small networks.
MIN_FREE_BYTES = 64 << 20
#: How often a listener is told how far the images are: a view takes milliseconds to draw.
TOLD_EVERY_S = 0.2
#: What workers can run on.
ENGINES = ("local", "ray")
#: What there is in place of an option of the other engine.
_WAYS_OUT = {
    "--gpus": "Ray chooses the GPUs: --workers 4 --gpus-per-worker 1",
    "--workers-per-gpu": "workers share a GPU with --gpus-per-worker 0.5",
    "--gpus-per-worker": "on this machine it is --gpus all --workers-per-gpu 1",
    "--cpus-per-worker": "on this machine workers share all CPUs",
}


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Args:
        opened: The study.
        progress: Its trials.
        ended: What has ended the study; ``None`` when it can go on.
        trained: Whether a trial was started.
        interrupted: Whether it was stopped by a signal.
    """

    opened: OpenStudy
    progress: Progress
    ended: Ending | None
    trained: bool
    interrupted: bool


def resolve_gpus(gpus: str | None) -> tuple[str, ...]:
    """Resolve ``--gpus``.

    Args:
        gpus: ``all``, ``none``, indices such as ``0,2``, or ``None`` for all there are.

    Returns:
        The devices, as ``CUDA_VISIBLE_DEVICES`` names them; empty for the CPU.

    Raises:
        UserError: When an index is no number, or there is no such GPU.
    """
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [one.strip() for one in visible.split(",")] if visible else []
    names = names[:count] if names else [str(index) for index in range(count)]
    if gpus is None or gpus == "all":
        if gpus == "all" and not count:
            raise UserError("--gpus all: this machine has no CUDA device; leave --gpus out")
        return tuple(names)
    if gpus in ("none", ""):
        return ()
    chosen = []
    for part in gpus.split(","):
        if not part.strip().isdigit() or int(part) >= count:
            raise UserError(
                f"--gpus: must be 'all', 'none' or indices below {count}, but got {part!r}"
            )
        chosen.append(names[int(part)])
    if len(set(chosen)) < len(chosen):
        raise UserError(f"--gpus: every GPU can be named once, but got {gpus!r}")
    return tuple(chosen)


def count_places(gpus: int, workers: int | None, workers_per_gpu: int | None) -> int:
    """Say how many workers there are at a time.

    Args:
        gpus: GPUs that are used.
        workers: ``--workers``, in all.
        workers_per_gpu: ``--workers-per-gpu``.

    Raises:
        UserError: When a number is less than 1, or both are given, or there is no GPU to share.
    """
    for option, value in (("--workers", workers), ("--workers-per-gpu", workers_per_gpu)):
        if value is not None and value < 1:
            raise UserError(f"{option}: must be at least 1, but got {value}")
    if workers_per_gpu is None:
        return workers or gpus or min(2, os.cpu_count() or 1)
    if workers is not None:
        raise UserError(
            f"--workers {workers} and --workers-per-gpu {workers_per_gpu} say the same thing "
            "twice; give one of them"
        )
    if not gpus:
        raise UserError(
            f"--workers-per-gpu {workers_per_gpu}: no GPU is used; give --workers for the CPU"
        )
    return gpus * workers_per_gpu


def choose_crew(
    url: str,
    engine: str,
    *,
    workers: int | None,
    gpus: str | None,
    workers_per_gpu: int | None,
    gpus_per_worker: float | None,
    cpus_per_worker: int | None,
) -> AbstractContextManager[Placed]:
    """Settle what runs the workers of a study; see :func:`run_study`.

    Raises:
        UserError: When an option cannot be, or belongs to another engine.
    """
    if engine not in ENGINES:
        raise UserError(f"--engine: must be one of {', '.join(ENGINES)}, but got {engine!r}")
    others: dict[str, object] = (
        {"--gpus": gpus, "--workers-per-gpu": workers_per_gpu}
        if engine == "ray"
        else {"--gpus-per-worker": gpus_per_worker, "--cpus-per-worker": cpus_per_worker}
    )
    for option, value in others.items():
        if value is not None:
            raise UserError(f"{option} {value}: not with --engine {engine}; {_WAYS_OUT[option]}")
    if engine == "ray":
        return ray_crew(url, Share(workers, gpus_per_worker, cpus_per_worker))
    devices = resolve_gpus(gpus)
    places = count_places(len(devices), workers, workers_per_gpu)
    return local_crew(devices, places)


def run_study(
    config: StudyConfig,
    *,
    engine: str = "local",
    workers: int | None = None,
    gpus: str | None = None,
    workers_per_gpu: int | None = None,
    gpus_per_worker: float | None = None,
    cpus_per_worker: int | None = None,
    listener: Listener = lambda event: None,
) -> RunResult:
    """Run a study until its budget is used up, or there is nothing left to try.

    Args:
        config: The checked study file.
        engine: ``local`` for worker processes of this machine, ``ray`` for tasks of a cluster.
        workers: Number of workers; by default one per GPU, or two on the CPU.
        gpus: Which GPUs of this machine, see :func:`resolve_gpus`.
        workers_per_gpu: Workers that share a GPU of this machine, in place of ``workers``.
        gpus_per_worker: GPUs that Ray gives a worker, see :class:`autotune.study.cluster.Share`.
        cpus_per_worker: CPUs that Ray gives a worker.
        listener: Told of everything that happens, as dictionaries with an ``event``.

    Raises:
        UserError: When something is wrong that the user can put right; nothing was written.
        WorkerError: When the workers cannot go on.
    """
    crew = choose_crew(
        config.storage,
        engine,
        workers=workers,
        gpus=gpus,
        workers_per_gpu=workers_per_gpu,
        gpus_per_worker=gpus_per_worker,
        cpus_per_worker=cpus_per_worker,
    )
    known = remembered_of(config)
    with ExitStack() as stack:
        # Processes import while the images are looked at; a cluster is not asked for nothing.
        placed = stack.enter_context(crew) if engine == "local" else None
        if placed is not None and not known.over:
            placed.prepare()
        definition = define(config, known.manifest, _told(listener), fetch=True)
        return _run(definition, placed or stack.enter_context(crew), listener)


def _told(listener: Listener) -> DataProgress:
    """Tell of each step of fetching and opening, and of how far it is a few times a second."""
    last = ("", 0.0)

    def tell(step: str, done: int, total: int | None) -> None:
        nonlocal last
        now_s = time.monotonic()
        if step != last[0] or now_s - last[1] > TOLD_EVERY_S or done == total:
            last = (step, now_s)
            listener({"event": "images", "step": step, "done": done, "total": total})

    return tell


def _run(definition: Definition, placed: Placed, listener: Listener) -> RunResult:
    opened = _open(definition, listener)
    claims = opened.claims()
    with storage_errors(opened.url):
        claims.sweep()
        before, ended = claims.progress(), claims.conclude()
    listener({"event": "opened", "opened": opened, "workers": placed.places, "progress": before})
    interrupted = False
    if ended is None:
        pool = WorkerPool(opened, placed, listener)
        with pool.signals():
            interrupted = pool.run()
    with storage_errors(opened.url):
        after, ended = claims.progress(), claims.conclude()
    return RunResult(opened, after, ended, after.attempts > before.attempts, interrupted)


def _open(definition: Definition, listener: Listener) -> OpenStudy:
    """Decode the images and open the study, in this order: a study has images that work."""
    config = definition.config
    files = Files.of(config.storage, config.files)
    check_space(config, files)
    is_new = not check_existing(definition)
    dataset = definition.dataset
    if dataset.left_out:
        listener({"event": "left out", "count": dataset.left_out})

    def progress(done: int, total: int) -> None:
        listener({"event": "decoding", "done": done, "total": total})

    made = [path for path in (files.root, *files.root.parents) if not path.exists()]
    try:
        with disk_full_as_user_error(files.root):
            first, *_ = [
                Task.open(
                    config.dataset,
                    config.data,
                    spec,
                    files.cache,
                    progress,
                    config.cache.disk_bytes,
                    dataset.manifest,
                )
                for spec in definition.specs
            ]
        looks = _told(listener)
        found = survey(dataset, config.data.duplicates, looks) if is_new else None
        return open_or_create(definition, first.info.to_json(), found)
    except (UserError, KeyboardInterrupt):
        _remove_made(made, config.storage)
        raise


def _remove_made(made: Sequence[Path], storage: str) -> None:
    """Take away the folders that a run which could not start has made."""
    if is_sqlite(storage) and not database_path(storage).exists():
        lock = Path(f"{database_path(storage)}.lock")
        if lock.is_file():
            lock.unlink()
    if made and made[0].exists():
        shutil.rmtree(made[0])
    for path in made[1:]:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def check_space(config: StudyConfig, files: Files) -> None:
    """Refuse to start on a full disk.

    Raises:
        DiskFullError: With the folder and what is free.
    """
    folders = [files.root]
    if is_sqlite(config.storage):
        folders.append(database_path(config.storage))
    for folder in folders:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if free < MIN_FREE_BYTES:
            raise DiskFullError(
                f"no space left: {existing} has {free / 2**20:.0f} MiB free and a study needs at "
                f"least {MIN_FREE_BYTES / 2**20:.0f} MiB; free some space, or move the study "
                "with 'storage=' and 'files='"
            )
