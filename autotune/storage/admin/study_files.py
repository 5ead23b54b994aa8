"""The files of a study taken along when the study is copied to another storage.

What goes along: its artifacts (the dashboard shows them), checkpoints, logs, fitted models and its
report. Decoded images stay: they are made again where they are needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import StorageError, disk_full_as_user_error
from autotune.storage.admin.study_rows import StudyRows
from autotune.storage.paths import StudyPaths


@dataclass(frozen=True)
class CopiedFiles:
    """What became of the files of a study.

    Args:
        folder: Where they are now; None for a study that knows no files.
        count: How many were copied; 0 where they stay in place.
        size_bytes: The size of those.
        missing: Artifacts that the study names and that were not there.
    """

    folder: Path | None
    count: int = 0
    size_bytes: int = 0
    missing: int = 0


@dataclass(frozen=True)
class CopyPlan:
    """Where the files of a study are, and where they are to go.

    Args:
        origin: Where they are; None for a study that knows no files.
        goal: Where they are to go; None where they stay.
    """

    origin: StudyPaths | None
    goal: StudyPaths | None = None

    @staticmethod
    def decide(
        remembered: str | None, source: StudyPaths, target: StudyPaths, chosen: bool
    ) -> CopyPlan:
        """Decide it.

        Args:
            remembered: The folder that the study remembers.
            source: The folder that its storage has by default. It counts where the other one is
                gone, as it is after both were moved.
            target: The folder that is meant for the files.
            chosen: Whether somebody named the target. If not, a study in a folder that somebody
                chose for it stays there.
        """
        if remembered is None:
            return CopyPlan(None)
        origin = StudyPaths(Path(remembered))
        if not origin.root.exists() and source.root.exists():
            origin = source
        stays = origin == target or (origin != source and not chosen)
        return CopyPlan(origin, None if stays else target)


def check_no_conflict(study: str, target: StudyPaths) -> None:
    """Refuse to mix the files of a study with those of another one of the same name.

    Raises:
        StorageError: With what is in the way.
    """
    there = next((path for path in target.owned_by(study) if path.exists()), None)
    if there is not None:
        raise StorageError(
            f"{there} exists and is not overwritten; move it away, or name another folder for the "
            "files with --files"
        )


@contextmanager
def copied_files(
    study: StudyRows, source: StudyPaths, target: StudyPaths
) -> Iterator[CopiedFiles]:
    """Copy the files of a study; they go again where the context ends with an error.

    Args:
        study: The study.
        source: Where its files are.
        target: Where they are to be; nothing of the study is there yet.

    Raises:
        DiskFullError: When the disk of the target is full.
    """
    made: list[Path] = []
    try:
        with disk_full_as_user_error(target.root):
            missing = _copy(study, source, target, made)
        yield CopiedFiles(target.root, len(made), sum(one.stat().st_size for one in made), missing)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        _remove_empty(target, study.name)
        raise


def _copy(study: StudyRows, source: StudyPaths, target: StudyPaths, made: list[Path]) -> int:
    """Copy artifacts and files; ``made`` says what was, also after an error."""
    missing = 0
    for name in sorted(study.artifacts()):
        origin = source.artifacts / name
        if origin.is_file():
            _copy_file(origin, target.artifacts / name, made)
        else:
            missing += 1
    for origin, copy in zip(source.owned_by(study.name), target.owned_by(study.name), strict=True):
        inside = sorted(origin.rglob("*")) if origin.is_dir() else [origin]
        for path in inside:
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


def _remove_empty(files: StudyPaths, study: str) -> None:
    """Remove the folders that were made for the files of a study and hold nothing now."""
    for path in files.owned_by(study):
        shutil.rmtree(path, ignore_errors=True)
    above = {path.parent for path in files.owned_by(study)}
    for folder in (*above, files.artifacts, files.root):
        with suppress(OSError):  # it holds files of other studies
            folder.rmdir()
