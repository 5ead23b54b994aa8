"""The launcher: checks and prepares a study, runs it with workers, leaves none of them behind."""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from autotune.atomic import check_folder
from autotune.config.schema import StudyConfig
from autotune.data.cache.array_cache import ArrayCache, record_new_entries
from autotune.data.progress import ProgressCallback as DataProgress
from autotune.data.quality.checks import check_dataset
from autotune.data.views.study_data import StudyData, check_test_images
from autotune.errors import DiskFullError, UserError, disk_full_as_user_error
from autotune.loggers.background import Logger, Loggers
from autotune.loggers.opening import open_loggers
from autotune.runtime import available_cpus
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import storage_errors
from autotune.storage.url import database_path, is_sqlite
from autotune.study.devices import VISIBLE, find_device, visible_gpus
from autotune.study.engine.local_workers import local_backend
from autotune.study.engine.pool import WorkerBackend, WorkerPool
from autotune.study.engine.ray_workers import ResourceRequest, ray_backend
from autotune.study.engine.study_log import StudyLog, how_ended
from autotune.study.setup.definition import Definition, define
from autotune.study.setup.manifest_store import look_up_existing
from autotune.study.setup.opening import OpenStudy, check_existing, open_or_create
from autotune.study.state.attrs import Progress
from autotune.study.state.budget import StopReason
from autotune.study.state.race_record import RaceRecord
from autotune.study.trial.run import EventCallback

#: Free space below which no study starts: database, logs, checkpoints of small networks.
MIN_FREE_BYTES = 64 << 20
#: Seconds between two events about the progress of the images: drawing one takes milliseconds.
PROGRESS_INTERVAL_S = 0.2
#: What workers can run on.
ENGINES = ("local", "ray")
#: What to give instead of an option of the other engine.
_ALTERNATIVES = {
    "--gpus": "Ray chooses the GPUs: --workers 4 --gpus-per-worker 1",
    "--workers-per-gpu": "workers share a GPU with --gpus-per-worker 0.5",
    "--gpus-per-worker": "on this machine it is --gpus all --workers-per-gpu 1",
    "--cpus-per-worker": "on this machine workers share all CPUs",
}


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    ``ended`` says why the study has ended and is ``None`` if it can continue; ``trained`` is
    whether a trial was started, ``interrupted`` whether a signal or ``autotune stop`` stopped it.
    """

    handle: OpenStudy
    progress: Progress
    ended: StopReason | None
    trained: bool
    interrupted: bool


def resolve_gpus(gpus: str | None) -> tuple[str, ...]:
    """Return the devices that ``--gpus`` selects, as ``CUDA_VISIBLE_DEVICES`` names them.

    Args:
        gpus: ``all``, ``none``, indices such as ``0,2`` among the visible GPUs (see
            :func:`autotune.study.devices.visible_gpus`), or ``None`` for all there are.

    Raises:
        UserError: When an index is no number or there is no such GPU; when the environment names
            GPUs that do not exist, or the driver of the machine does not work.
    """
    if gpus in ("none", ""):
        return ()
    names = visible_gpus()
    if not names:
        find_device()  # raises where the environment or the driver says that there are GPUs
    if gpus is None or gpus == "all":
        if gpus == "all" and not names:
            raise UserError("--gpus all: this machine has no CUDA device; leave --gpus out")
        return names
    chosen = []
    for part in gpus.split(","):
        if not part.strip().isdecimal() or int(part) >= len(names):
            visible = f"; visible are {VISIBLE}={','.join(names)}" if VISIBLE in os.environ else ""
            raise UserError(
                f"--gpus: must be 'all', 'none' or indices below {len(names)}, but got "
                f"{part.strip()!r}{visible}"
            )
        chosen.append(names[int(part)])
    if len(set(chosen)) < len(chosen):
        raise UserError(f"--gpus: every GPU can be named once, but got {gpus!r}")
    return tuple(chosen)


def count_slots(gpus: int, workers: int | None, workers_per_gpu: int | None) -> int:
    """Return how many workers run at a time.

    Raises:
        UserError: When a number is below 1, both are given, or there is no GPU to share.
    """
    for option, value in (("--workers", workers), ("--workers-per-gpu", workers_per_gpu)):
        if value is not None and value < 1:
            raise UserError(f"{option}: must be at least 1, but got {value}")
    if workers_per_gpu is None:
        return workers or gpus or min(2, available_cpus())
    if workers is not None:
        raise UserError(
            f"--workers {workers} and --workers-per-gpu {workers_per_gpu} contradict each other; "
            "give one of them"
        )
    if not gpus:
        raise UserError(
            f"--workers-per-gpu {workers_per_gpu}: no GPU is used; give --workers for the CPU"
        )
    return gpus * workers_per_gpu


def _choose_backend(
    url: str,
    engine: str,
    workers: int | None,
    gpus: str | None,
    workers_per_gpu: int | None,
    gpus_per_worker: float | None,
    cpus_per_worker: int | None,
) -> AbstractContextManager[WorkerBackend]:
    if engine not in ENGINES:
        raise UserError(f"--engine: must be one of {', '.join(ENGINES)}, but got {engine!r}")
    others: dict[str, object] = (
        {"--gpus": gpus, "--workers-per-gpu": workers_per_gpu}
        if engine == "ray"
        else {"--gpus-per-worker": gpus_per_worker, "--cpus-per-worker": cpus_per_worker}
    )
    for option, value in others.items():
        if value is not None:
            raise UserError(
                f"{option} {value}: not with --engine {engine}; {_ALTERNATIVES[option]}"
            )
    if engine == "ray":
        return ray_backend(url, ResourceRequest(workers, gpus_per_worker, cpus_per_worker))
    devices = resolve_gpus(gpus)
    return local_backend(devices, count_slots(len(devices), workers, workers_per_gpu))


def run_study(
    config: StudyConfig,
    *,
    engine: str = "local",
    workers: int | None = None,
    gpus: str | None = None,
    workers_per_gpu: int | None = None,
    gpus_per_worker: float | None = None,
    cpus_per_worker: int | None = None,
    loggers: Sequence[Logger] = (),
    race: RaceRecord | None = None,
    on_event: EventCallback = lambda event: None,
) -> RunResult:
    """Run a study until its budget is used up, or no plan is left to try.

    Args:
        config: The checked study file.
        engine: ``local`` for worker processes of this machine, ``ray`` for tasks of a cluster.
        workers: Number of workers; by default one per GPU, or two on the CPU.
        gpus: GPUs of this machine, see :func:`resolve_gpus`.
        workers_per_gpu: Workers that share a GPU of this machine, instead of ``workers``.
        gpus_per_worker: GPUs that Ray gives a worker, see
            :class:`autotune.study.engine.ray_workers.ResourceRequest`.
        cpus_per_worker: CPUs that Ray gives a worker.
        loggers: Loggers besides those of the study file, see :mod:`autotune.loggers`.
        race: The race that has chosen its backbones, to be stored with the study.
        on_event: Called with everything that happens: dictionaries with an ``event``.

    Raises:
        UserError: When the user has to fix something; nothing was written.
        WorkerError: When the workers cannot continue.
    """
    opened = open_loggers([*config.loggers, *loggers], config.notify)
    chosen = _choose_backend(
        config.storage, engine, workers, gpus, workers_per_gpu, gpus_per_worker, cpus_per_worker
    )
    existing = look_up_existing(config)
    packaged = existing.packaged if race is None else (*existing.packaged, *race.packaged)
    config = config.model_copy(update={"files": existing.files or config.files})
    with ExitStack() as stack:
        # Local workers import while the images are checked; a cluster is asked only when needed.
        backend = stack.enter_context(chosen) if engine == "local" else None
        if backend is not None and not existing.has_ended:
            backend.prepare()
        progress = _throttled(on_event)
        definition = define(config, existing.manifest, progress, fetch=True, packaged=packaged)
        definition = replace(definition, race=race)
        if definition.notes:
            on_event({"event": "notes", "notes": definition.notes})
        if backend is not None:
            backend.check()
        return _run(definition, backend or stack.enter_context(chosen), opened, on_event)


def _throttled(on_event: EventCallback) -> DataProgress:
    """Return a callback that passes on each new step, and its progress a few times a second."""
    last = ("", 0.0)

    def on_progress(step: str, done: int, total: int | None) -> None:
        nonlocal last
        now_s = time.monotonic()
        if step != last[0] or now_s - last[1] > PROGRESS_INTERVAL_S or done == total:
            last = (step, now_s)
            on_event({"event": "images", "step": step, "done": done, "total": total})

    return on_progress


def _run(
    definition: Definition, backend: WorkerBackend, loggers: Loggers, on_event: EventCallback
) -> RunResult:
    handle = _open(definition, on_event)
    trials = handle.trial_queue()
    with storage_errors(handle.url):
        trials.reclaim_stale()
        before, ended = trials.progress(), trials.finalize()
    on_event({"event": "opened", "opened": handle, "workers": backend.slots, "progress": before})
    interrupted = False
    log = StudyLog(handle, loggers, on_event)
    with log.run() as tell_end:
        if ended is None:
            pool = WorkerPool(handle, backend, log)
            with pool.signals():
                interrupted = pool.run()
        with storage_errors(handle.url):
            after, ended = trials.progress(), trials.finalize()
        tell_end(*how_ended(ended, interrupted))
    interrupted = interrupted or (ended is not None and ended.is_request)
    return RunResult(handle, after, ended, after.attempts > before.attempts, interrupted)


def _open(definition: Definition, on_event: EventCallback) -> OpenStudy:
    """Decode the images and open the study; a failure leaves no file of this run behind."""
    config = definition.config
    files = StudyPaths.from_url(config.storage, config.files)
    _check_free_space(config, files)
    is_new = not check_existing(definition)
    if definition.dataset.num_added:
        on_event({"event": "images_skipped", "count": definition.dataset.num_added})
    assert config.name is not None
    _check_places(config.name, files)
    # with a folder that tells whose it is: the root may lie among the folders of classes
    folders = _make_folders(files.cache)
    with record_new_entries() as entries:
        try:
            return _open_with_images(definition, files, is_new, on_event)
        except (UserError, KeyboardInterrupt) as error:
            _release_frames(error)
            _remove_created(folders, entries, files, config.storage)
            raise


def _open_with_images(
    definition: Definition, files: StudyPaths, is_new: bool, on_event: EventCallback
) -> OpenStudy:
    """Decode the images first: a study is made only when its images can be read."""
    config, dataset = definition.config, definition.dataset

    def on_decoded(done: int, total: int) -> None:
        on_event({"event": "decoding", "done": done, "total": total})

    with disk_full_as_user_error(files.root):
        first, *_ = [
            StudyData.open(
                config.dataset,
                config.data,
                spec,
                files.cache,
                on_decoded,
                config.cache.disk_bytes,
                dataset.manifest,
                is_new,
            )
            for spec in definition.specs
        ]
    survey = None
    if is_new:
        progress = _throttled(on_event)
        unreadable = check_test_images(dataset, config.data, definition.specs, progress)
        survey = check_dataset(dataset, config.data.duplicates, progress, unreadable)
    return open_or_create(definition, first.info.to_json(), survey)


def _check_places(study: str, files: StudyPaths) -> None:
    """Refuse to start where a file of the study could not be written in the end.

    Raises:
        UserError: With the path that prevents it.
    """
    report = files.report(study)
    own = (files.checkpoints(study), files.logs(study), report.parent)
    for folder in (files.root, files.artifacts, files.cache, *own):
        check_folder(folder)
    if report.is_dir():
        raise UserError(f"{report} must be a file to write, but it is a folder")


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; return those that did not exist, the outermost first."""
    made = []
    for path in reversed([folder, *folder.parents]):
        with suppress(OSError):  # it exists, or cannot be made, which shows when it is used
            path.mkdir()
            made.append(path)
    return made


def _release_frames(error: BaseException | None) -> None:
    """Clear the frames of an error: images that they map count as in use."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _remove_created(
    folders: Sequence[Path], entries: Sequence[Path], files: StudyPaths, storage: str
) -> None:
    """Remove what a run that could not start has made, and nothing that others use.

    It removes empty folders, unused entries of the cache, and the lock of a missing database.
    """
    if is_sqlite(storage) and not database_path(storage).exists():
        lock = FileLock(f"{database_path(storage)}.lock")
        if Path(lock.lock_file).is_file():
            with suppress(Timeout), lock.acquire(timeout=0):  # else another run makes a study
                if not database_path(storage).exists():
                    Path(lock.lock_file).unlink()
    if files.root not in folders:
        return
    ArrayCache(files.cache).remove(entries)
    below = [Path(folder) for folder, _, _ in os.walk(files.root, topdown=False)]
    for path in (*below, *reversed(folders)):
        with suppress(OSError):  # it is gone or not empty
            path.rmdir()


def _check_free_space(config: StudyConfig, files: StudyPaths) -> None:
    """Refuse to start on a full disk.

    Raises:
        DiskFullError: With the folder and its free space.
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
