"""Removing a study: its rows first, then its files."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import optuna

from autotune.errors import StudyError
from autotune.study.setup.opening import OpenStudy
from autotune.study.upkeep.stored_studies import StoredStudy, locked_at_rest, stored_studies

#: Folders whose files took time to make and are of use without the study.
RESULTS = ("models", "predictions", "reports")


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
