"""The studies of a storage with their files, whoever made them, and what these take on disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from autotune import optuna_private
from autotune.errors import StudyError
from autotune.storage.artifacts import read_references
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import storage_errors
from autotune.storage.rdb.retry import RetryingStorage
from autotune.storage.rdb.study_lock import study_lock
from autotune.storage.url import absolute_url, is_sqlite
from autotune.study.doctor.collect import LOCK_TIMEOUT_S, Snapshot, take_snapshot
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.text import join_some, plural


@dataclass(frozen=True)
class StoredStudy:
    """A study of a storage.

    Args:
        attributes: Its user attributes.
        files: Where its files are.
        is_here: Whether that folder is on this machine.
        artifacts: Names of the files in the folder of artifacts that it refers to.
    """

    name: str
    attributes: Mapping[str, Any]
    files: StudyPaths
    is_here: bool
    artifacts: frozenset[str]

    def paths(self) -> dict[str, list[Path]]:
        """Return what is there of its files, by the folder: ``artifacts``, ``logs`` ..."""
        files_in: dict[str, list[Path]] = {"artifacts": []}
        if self.is_here:
            stored = (self.files.artifacts / name for name in sorted(self.artifacts))
            files_in["artifacts"] = [path for path in stored if path.is_file()]
            for path in self.files.owned_by(self.name):
                if path.exists():
                    folder = path.relative_to(self.files.root).parts[0]
                    files_in.setdefault(folder, []).append(path)
        return {folder: paths for folder, paths in files_in.items() if paths}

    def sizes(self) -> dict[str, int]:
        """Return the bytes of its files, by the folder."""
        return {folder: size_of(paths) for folder, paths in self.paths().items()}


def stored_studies(storage: RetryingStorage, url: str) -> list[StoredStudy]:
    """List the studies of a storage, the oldest first, those of other programs too."""
    with storage_errors(url):
        references = read_references(storage)
        studies = storage.get_all_studies()
    artifacts: dict[int, set[str]] = defaultdict(set)
    for reference in references:
        artifacts[reference.study_id].add(reference.artifact)
    stored: list[StoredStudy] = []
    for study in studies:
        files = StudyPaths.from_study(url, study.user_attrs.get(attrs.FILES))
        own = frozenset(artifacts[optuna_private.study_id(study)])
        is_here = is_sqlite(url) or files.root.is_dir()
        stored.append(StoredStudy(study.study_name, study.user_attrs, files, is_here, own))
    return stored


def open_stored(
    study: StoredStudy, storage: RetryingStorage, url: str
) -> tuple[OpenStudy, Snapshot]:
    """Open a study to read it, whoever made it, and read it.

    Raises:
        StudyError: When it was deleted meanwhile.
    """
    with storage_errors(url):
        try:
            optuna_study = optuna.load_study(study_name=study.name, storage=storage)
            handle = OpenStudy(optuna_study, storage, absolute_url(url), study.files)
            return handle, take_snapshot(handle)
        except KeyError:
            raise StudyError(f"the study {study.name!r} was deleted meanwhile") from None


@contextmanager
def locked_at_rest(handle: OpenStudy) -> Iterator[None]:
    """Hold the lock of a study that does not run.

    Raises:
        StudyError: When a live worker runs a trial of it, or it was deleted.
        LockedError: When another process holds the lock for too long.
    """
    with (
        storage_errors(handle.url),
        study_lock(handle.storage, handle.url, handle.name, LOCK_TIMEOUT_S),
    ):
        try:
            live = take_snapshot(handle).live
        except KeyError:
            raise StudyError(f"the study {handle.name!r} was deleted meanwhile") from None
        if live:
            workers = join_some(sorted({str(trial.user_attrs[attrs.WORKER]) for trial in live}))
            raise StudyError(
                f"the study {handle.name!r} runs ({plural(len(live), 'trial')}, by {workers}); "
                "'autotune stop' stops it, and then it can be removed or renamed"
            )
        yield


def check_at_rest(handle: OpenStudy) -> None:
    """Raise as :func:`locked_at_rest` does, where a study runs."""
    with locked_at_rest(handle):
        pass


def size_of(paths: Iterable[Path]) -> int:
    """Return the bytes of files and of everything in folders; links are not followed."""
    total = 0
    for path in paths:
        inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
        for file in inside:
            try:
                stat = file.lstat()
            except OSError:  # removed meanwhile
                continue
            total += 0 if file.is_dir() and not file.is_symlink() else stat.st_size
    return total
