"""The launcher: checks and prepares a study, has workers run it, leaves nothing running behind."""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from autotune.config.schema import StudyConfig
from autotune.data.cache.array_cache import ArrayCache, record_new_entries
from autotune.data.progress import Progress as DataProgress
from autotune.data.quality.checks import check_dataset
from autotune.data.views.study_data import StudyData
from autotune.errors import DiskFullError, UserError, disk_full_as_user_error
from autotune.runtime import available_cpus
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import storage_errors
from autotune.storage.url import database_path, is_sqlite
from autotune.study.devices import VISIBLE, find_device, visible_gpus
from autotune.study.engine.local_workers import local_backend
from autotune.study.engine.pool import BackendPlan, WorkerPool
from autotune.study.engine.ray_workers import ResourceRequest, ray_backend
from autotune.study.setup.definition import Definition, define
from autotune.study.setup.manifest_store import look_up_existing
from autotune.study.setup.opening import OpenStudy, check_existing, open_or_create
from autotune.study.state.attrs import Progress
from autotune.study.state.budget import StopReason
from autotune.study.trial.run import EventCallback

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
        handle: The study.
        progress: Its trials.
        ended: What has ended the study; ``None`` when it can go on.
        trained: Whether a trial was started.
        interrupted: Whether it was stopped by a signal.
    """

    handle: OpenStudy
    progress: Progress
    ended: StopReason | None
    trained: bool
    interrupted: bool


def resolve_gpus(gpus: str | None) -> tuple[str, ...]:
    """Resolve ``--gpus``.

    Args:
        gpus: ``all``, ``none``, indices such as ``0,2``, or ``None`` for all there are.

    Indices count among the GPUs that are visible, see
    :func:`autotune.study.devices.visible_gpus`.

    Returns:
        The devices, as ``CUDA_VISIBLE_DEVICES`` names them; empty for the CPU.

    Raises:
        UserError: When an index is no number, or there is no such GPU; when the environment names
            GPUs that are not there, or the driver of the machine does not work.
    """
    if gpus in ("none", ""):
        return ()
    names = visible_gpus()
    if not names:
        find_device()  # fails where there are to be some
    if gpus is None or gpus == "all":
        if gpus == "all" and not names:
            raise UserError("--gpus all: this machine has no CUDA device; leave --gpus out")
        return names
    chosen = []
    for part in gpus.split(","):
        if not part.strip().isdigit() or int(part) >= len(names):
            shown = (
                f" ({VISIBLE}={','.join(names)} is what is visible)"
                if VISIBLE in os.environ
                else ""
            )
            raise UserError(
                f"--gpus: must be 'all', 'none' or indices below {len(names)}, but got "
                f"{part.strip()!r}{shown}"
            )
        chosen.append(names[int(part)])
    if len(set(chosen)) < len(chosen):
        raise UserError(f"--gpus: every GPU can be named once, but got {gpus!r}")
    return tuple(chosen)


def count_slots(gpus: int, workers: int | None, workers_per_gpu: int | None) -> int:
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
        return workers or gpus or min(2, available_cpus())
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


def choose_backend(
    url: str,
    engine: str,
    *,
    workers: int | None,
    gpus: str | None,
    workers_per_gpu: int | None,
    gpus_per_worker: float | None,
    cpus_per_worker: int | None,
) -> AbstractContextManager[BackendPlan]:
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
        return ray_backend(url, ResourceRequest(workers, gpus_per_worker, cpus_per_worker))
    devices = resolve_gpus(gpus)
    slots = count_slots(len(devices), workers, workers_per_gpu)
    return local_backend(devices, slots)


def run_study(
    config: StudyConfig,
    *,
    engine: str = "local",
    workers: int | None = None,
    gpus: str | None = None,
    workers_per_gpu: int | None = None,
    gpus_per_worker: float | None = None,
    cpus_per_worker: int | None = None,
    on_event: EventCallback = lambda event: None,
) -> RunResult:
    """Run a study until its budget is used up, or there is nothing left to try.

    Args:
        config: The checked study file.
        engine: ``local`` for worker processes of this machine, ``ray`` for tasks of a cluster.
        workers: Number of workers; by default one per GPU, or two on the CPU.
        gpus: Which GPUs of this machine, see :func:`resolve_gpus`.
        workers_per_gpu: Workers that share a GPU of this machine, in place of ``workers``.
        gpus_per_worker: GPUs that Ray gives a worker, see
        :class:`autotune.study.engine.ray_workers.ResourceRequest`.
        cpus_per_worker: CPUs that Ray gives a worker.
        on_event: Called with everything that happens, as dictionaries with an ``event``.

    Raises:
        UserError: When something is wrong that the user can put right; nothing was written.
        WorkerError: When the workers cannot go on.
    """
    backend = choose_backend(
        config.storage,
        engine,
        workers=workers,
        gpus=gpus,
        workers_per_gpu=workers_per_gpu,
        gpus_per_worker=gpus_per_worker,
        cpus_per_worker=cpus_per_worker,
    )
    known = look_up_existing(config)
    with ExitStack() as stack:
        # Processes import while the images are looked at; a cluster is not asked for nothing.
        plan = stack.enter_context(backend) if engine == "local" else None
        if plan is not None and not known.over:
            plan.prepare()
        definition = define(config, known.manifest, _told(on_event), fetch=True)
        if plan is not None:
            plan.check()
        return _run(definition, plan or stack.enter_context(backend), on_event)


def _told(on_event: EventCallback) -> DataProgress:
    """Tell of each step of fetching and opening, and of how far it is a few times a second."""
    last = ("", 0.0)

    def tell(step: str, done: int, total: int | None) -> None:
        nonlocal last
        now_s = time.monotonic()
        if step != last[0] or now_s - last[1] > TOLD_EVERY_S or done == total:
            last = (step, now_s)
            on_event({"event": "images", "step": step, "done": done, "total": total})

    return tell


def _run(definition: Definition, plan: BackendPlan, on_event: EventCallback) -> RunResult:
    handle = _open(definition, on_event)
    claims = handle.trial_queue()
    with storage_errors(handle.url):
        claims.reclaim_stale()
        before, ended = claims.progress(), claims.finalize()
    on_event({"event": "opened", "opened": handle, "workers": plan.slots, "progress": before})
    interrupted = False
    if ended is None:
        pool = WorkerPool(handle, plan, on_event)
        with pool.signals():
            interrupted = pool.run()
    with storage_errors(handle.url):
        after, ended = claims.progress(), claims.finalize()
    return RunResult(handle, after, ended, after.attempts > before.attempts, interrupted)


def _open(definition: Definition, on_event: EventCallback) -> OpenStudy:
    """Decode the images and open the study; what fails leaves no file of its own behind."""
    config = definition.config
    files = StudyPaths.from_url(config.storage, config.files)
    check_space(config, files)
    is_new = not check_existing(definition)
    if definition.dataset.num_added:
        on_event({"event": "images_skipped", "count": definition.dataset.num_added})
    made = _make_folders(files.root)
    with record_new_entries() as entries:
        try:
            return _open_with_images(definition, files, is_new, on_event)
        except (UserError, KeyboardInterrupt) as error:
            _forget_frames(error)
            _remove_made(made, entries, files, config.storage)
            raise


def _open_with_images(
    definition: Definition, files: StudyPaths, is_new: bool, on_event: EventCallback
) -> OpenStudy:
    """Decode the images and open the study, in this order: a study has images that work."""
    config, dataset = definition.config, definition.dataset

    def progress(done: int, total: int) -> None:
        on_event({"event": "decoding", "done": done, "total": total})

    with disk_full_as_user_error(files.root):
        first, *_ = [
            StudyData.open(
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
    looks = _told(on_event)
    found = check_dataset(dataset, config.data.duplicates, looks) if is_new else None
    return open_or_create(definition, first.info.to_json(), found)


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; return what was made, the outermost first.

    Of two launchers that start at once, one makes a folder.
    """
    made = []
    for path in reversed([folder, *folder.parents]):
        with suppress(OSError):  # it is there; or cannot be made, which is told when it is used
            path.mkdir()
            made.append(path)
    return made


def _forget_frames(error: BaseException | None) -> None:
    """Let go of what an error's frames hold: images that are mapped are in use."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _remove_made(
    made: Sequence[Path], entries: Sequence[Path], files: StudyPaths, storage: str
) -> None:
    """Take away what a run that could not start has made, and nothing of another one.

    Args:
        made: The folders that it made; they go if they are empty.
        entries: The entries of the cache that it made; they go if nobody uses them by now.
        files: Where it keeps its files.
        storage: Storage URL.
    """
    if is_sqlite(storage) and not database_path(storage).exists():
        lock = FileLock(f"{database_path(storage)}.lock")
        if Path(lock.lock_file).is_file():
            with suppress(Timeout), lock.acquire(timeout=0):  # else another one makes a study
                if not database_path(storage).exists():
                    Path(lock.lock_file).unlink()
    if files.root not in made:
        return
    ArrayCache(files.cache).remove(entries)
    below = [Path(folder) for folder, _, _ in os.walk(files.root, topdown=False)]
    for path in (*below, *reversed(made)):
        with suppress(OSError):  # it is gone, or has something in it
            path.rmdir()


def check_space(config: StudyConfig, files: StudyPaths) -> None:
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
