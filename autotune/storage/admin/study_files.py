"""The files of a study, copied when the study is copied to another storage.

That is its artifacts (the dashboard shows them), checkpoints, logs, fitted models and reports.
Decoded images stay: they are made again where they are needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import StorageError, place_as_user_error
from autotune.storage.admin.study_rows import StudyRows
from autotune.storage.paths import StudyPaths


@dataclass(frozen=True)
class CopiedFiles:
    """What became of the files of a study: where they are, and how many were copied.

    ``missing`` counts artifacts that the study names and that were not there.
    """

    folder: Path | None
    count: int = 0
    size_bytes: int = 0
    missing: int = 0


def plan_copy(
    origin: StudyPaths, source: StudyPaths, target: StudyPaths, is_chosen: bool
) -> tuple[StudyPaths, StudyPaths]:
    """Decide from where and to where the files of a study are copied; equal where they stay.

    ``origin`` is the folder of the study, ``source`` the default one of its storage. If the first
    is gone, the second counts; or the target, if somebody chose it and the files are there
    already. If nobody chose the target, a study in a folder that somebody chose stays there.
    """
    if not origin.root.exists():
        if is_chosen and target.root.exists():
            return target, target
        if source.root.exists():
            origin = source
    stays = origin != source and not is_chosen
    return origin, origin if stays else target


def check_no_conflict(study: str, target: StudyPaths) -> None:
    """Refuse to mix the files of a study with those of another one of the same name."""
    existing = next((path for path in target.owned_by(study) if path.exists()), None)
    if existing is not None:
        raise StorageError(
            f"{existing} exists and is not overwritten; move it away, or name another folder for "
            "the files with --files"
        )


@contextmanager
def copied_files(
    study: StudyRows, source: StudyPaths, target: StudyPaths
) -> Iterator[CopiedFiles]:
    """Copy the files of a study; remove the copies if the context ends with an error.

    Raises:
        DiskFullError: When the disk of the target is full.
    """
    made: list[Path] = []
    try:
        with place_as_user_error(target.root):
            missing = _copy(study, source, target, made)
        yield CopiedFiles(
            target.root, len(made), sum(path.stat().st_size for path in made), missing
        )
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        _remove_empty_folders(target, study.name)
        raise


def _copy(study: StudyRows, source: StudyPaths, target: StudyPaths, made: list[Path]) -> int:
    """Copy artifacts and files, add them to ``made``, and count missing artifacts."""
    missing = 0
    for name in sorted(study.artifacts()):
        if (source.artifacts / name).is_file():
            _copy_file(source.artifacts / name, target.artifacts / name, made)
        else:
            missing += 1
    for origin, copy in zip(source.owned_by(study.name), target.owned_by(study.name), strict=True):
        for path in sorted(origin.rglob("*")) if origin.is_dir() else [origin]:
            if path.is_file():
                _copy_file(path, copy / path.relative_to(origin), made)
    return missing


def _copy_file(origin: Path, copy: Path, made: list[Path]) -> None:
    if copy.exists() and copy.stat().st_size == origin.stat().st_size:
        return  # an artifact of an earlier copy of the study; artifacts never change
    copy.parent.mkdir(parents=True, exist_ok=True)
    made.append(copy)
    try:
        shutil.copy2(origin, copy)
    except FileNotFoundError:  # a worker has just replaced or removed it
        made.remove(copy)


def _remove_empty_folders(files: StudyPaths, study: str) -> None:
    for path in files.owned_by(study):
        shutil.rmtree(path, ignore_errors=True)
    for folder in (*{path.parent for path in files.owned_by(study)}, files.artifacts, files.root):
        with suppress(OSError):  # it holds files of other studies
            folder.rmdir()
