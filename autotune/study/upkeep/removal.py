"""Removing a study, its rows first, then its files; and files that are of no more use."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import optuna

from autotune.data.cache.array_cache import ArrayCache
from autotune.data.cache.entry import RECORD
from autotune.errors import StudyError
from autotune.storage.artifacts import list_files, read_references
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import storage_errors
from autotune.storage.rdb.retry import RetryingStorage
from autotune.study.doctor.collect import Snapshot
from autotune.study.doctor.file_checks import superfluous_checkpoints, unreferenced
from autotune.study.setup.opening import OpenStudy
from autotune.study.trial.trainings import idle_files
from autotune.study.upkeep.stored_studies import (
    StoredStudy,
    locked_at_rest,
    open_stored,
    size_of,
    stored_studies,
)

#: Folders whose files took time to make and are of use without the study.
RESULTS = ("models", "predictions", "reports")
CACHE = "cache"
#: Age from which a training of ``confirm`` or ``refit`` is not expected to be continued, or its
#: result to be read again.
TRAININGS_AFTER_S = 7 * 86400.0


@dataclass(frozen=True)
class Removal:
    """What of a study would be removed, and what would be kept, by the folder."""

    study: StoredStudy
    removed: Mapping[str, Sequence[Path]]
    kept: Mapping[str, Sequence[Path]]


def plan_removal(handle: OpenStudy, *, results: bool) -> Removal:
    """Return what :func:`remove_study` would remove.

    Args:
        handle: The study.
        results: Also its fitted model and its reports.
    """
    studies = stored_studies(handle.storage, handle.url)
    study = next((study for study in studies if study.name == handle.name), None)
    if study is None:
        raise StudyError(f"the study {handle.name!r} was deleted meanwhile")
    others = {name for other in studies if other is not study for name in other.artifacts}
    is_here = study.is_here or handle.files.root.is_dir()
    artifacts = study.artifacts - others
    study = replace(study, files=handle.files, is_here=is_here, artifacts=artifacts)
    paths = study.paths()
    kept = {} if results else {folder: paths.pop(folder) for folder in RESULTS if folder in paths}
    return Removal(study, paths, kept)


def remove_study(handle: OpenStudy, *, results: bool) -> list[str]:
    """Remove a study that does not run, and its files; return which of them stay, with the reason.

    Raises:
        StudyError: When it runs, or was deleted meanwhile.
        StorageError: When the storage cannot be used.
    """
    with locked_at_rest(handle):
        removal = plan_removal(handle, results=results)
        optuna.delete_study(study_name=handle.name, storage=handle.storage)
        return remove_paths(path for paths in removal.removed.values() for path in paths)


def remove_paths(paths: Iterable[Path]) -> list[str]:
    """Remove files and folders; return those that stay, with the reason."""
    problems = []
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            problems.append(f"{error.filename or path} stays: {error.strerror}")
    return problems


@dataclass(frozen=True)
class Garbage:
    """Files of one kind.

    Args:
        kind: What they are, in a few words.
        folder: Where they are.
        paths: The files, or folders.
        why_kept: Why they are left alone; empty where they can go.
    """

    kind: str
    folder: Path
    paths: tuple[Path, ...]
    why_kept: str = ""

    @cached_property
    def size_bytes(self) -> int:
        """What they take on disk."""
        return size_of(self.paths)


def find_garbage(
    storage: RetryingStorage, url: str, *, models: bool = False, deleted: bool = False
) -> list[Garbage]:
    """Find what can be removed from the folders of the studies of a storage.

    That is the cache, whose content is computed again where it is needed, artifacts of no study,
    checkpoints of trials that have ended, trainings of ``confirm`` and ``refit`` that are a week
    old, and logs of studies that have ended.

    Args:
        storage: The open storage.
        url: Its URL.
        models: Also the fitted models of studies that do not run.
        deleted: Also what was left by studies that the storage does not have. They may be those
            of another storage that shares the folder.
    """
    studies = stored_studies(storage, url)
    with storage_errors(url):
        referred = {item.artifact for item in read_references(storage)}
    garbage: list[Garbage] = []
    roots = {StudyPaths.from_url(url), *(study.files for study in studies if study.is_here)}
    for files in sorted(roots, key=lambda files: files.root):
        is_running = False
        for study in studies:
            if study.files == files:
                _, snapshot = open_stored(study, storage, url)
                is_running = is_running or bool(snapshot.live)
                garbage += _of_study(study, snapshot, models=models)
        foreign = sorted(files.studies() - {study.name for study in studies})
        for name in foreign:
            garbage += _of_deleted(name, files, models=models, deleted=deleted)
        orphans = unreferenced(list_files(files.artifacts), referred)
        why_kept = "" if deleted or not foreign else f"may be those of {', '.join(foreign)}"
        paths = tuple(file.path for file in orphans)
        garbage.append(Garbage("artifacts of no study", files.artifacts, paths, why_kept))
        entries = {record.parent for record in files.cache.rglob(RECORD)}
        paths = tuple(sorted(entry for entry in entries if "." not in entry.name))  # unfinished
        why_kept = "a study runs" if is_running else ""
        garbage.append(Garbage(CACHE, files.cache, paths, why_kept))
    return [found for found in garbage if found.paths]


def _of_study(study: StoredStudy, snapshot: Snapshot, *, models: bool) -> Iterator[Garbage]:
    if snapshot.live:
        return
    files, name = study.files, study.name
    checkpoints = superfluous_checkpoints(list_files(files.checkpoints(name)), snapshot.trials)
    if checkpoints:
        paths = tuple(file.path for file in checkpoints)
        yield Garbage("checkpoints of ended trials", files.checkpoints(name), paths)
    if snapshot.ended is not None and not snapshot.ended.is_request:
        # The empty folder stays: it tells other storages that the study has files here.
        logs = tuple(file.path for file in list_files(files.logs(name)))
        yield Garbage("logs of an ended study", files.logs(name), logs)
    if paths := idle_files(files.trainings(name), TRAININGS_AFTER_S):
        yield Garbage("old trainings of confirm and refit", files.trainings(name), paths)
    if files.model(name).is_dir():
        why_kept = "" if models else "--models removes it"
        yield Garbage("fitted model", files.model(name), (files.model(name),), why_kept)


def _of_deleted(name: str, files: StudyPaths, *, models: bool, deleted: bool) -> Iterator[Garbage]:
    folders = [files.checkpoints(name), files.confirmed(name), files.trainings(name)]
    folders += [files.logs(name), files.tensorboard(name)]
    folders += [files.model(name)] if models else []
    why_kept = "" if deleted else "not a study of this storage; --deleted removes them"
    for folder in folders:
        if folder.exists():
            yield Garbage(f"{folder.parent.name} of {name!r}", folder, (folder,), why_kept)


def remove_garbage(garbage: Iterable[Garbage]) -> list[str]:
    """Remove what is not to be kept; return what stays all the same, with the reason.

    An entry of the cache that a process uses stays.
    """
    problems = []
    for found in garbage:
        if found.why_kept:
            continue
        if found.kind == CACHE:
            ArrayCache(found.folder).remove(found.paths)
            if left := [path for path in found.paths if path.exists()]:
                problems.append(f"{len(left)} entries of {found.folder} stay: they are in use")
        else:
            problems += remove_paths(found.paths)
    return problems
