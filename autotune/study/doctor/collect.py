"""What the doctor looks at: a study, its files, clocks and disks, gathered without a change.

The database is read under the study's lock, as claims and sweeps write under it: a trial that is
being claimed or given back at this moment would look broken.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import sqlalchemy
from sqlalchemy import select

from autotune import optuna_private
from autotune.errors import FormatError, StorageError
from autotune.optuna_private import models
from autotune.search.space import Space
from autotune.storage.artifacts import ArtifactReference, StoredFile, list_files, read_references
from autotune.storage.rdb.connection import storage_errors
from autotune.storage.rdb.retry import LockLostError
from autotune.storage.rdb.study_lock import study_lock
from autotune.storage.url import database_path, is_sqlite, redact
from autotune.study.doctor.snapshot import Snapshot, take_snapshot
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs

#: For how long the doctor waits for the study's lock: a claim with the GP takes seconds.
LOCK_TIMEOUT_S = 60.0
#: What reading values of another version may end in.
_WRONG_JSON = (FormatError, AttributeError, KeyError, TypeError, ValueError)


@dataclass(frozen=True)
class Disk:
    """A disk that a study needs.

    Args:
        what: What of the study lies on it.
        path: Where.
        free_bytes: What is left of it.
    """

    what: str
    path: Path
    free_bytes: int


@dataclass(frozen=True)
class Evidence:
    """All that the doctor judges by.

    Args:
        name: Name of the study.
        study_id: Optuna's id of it.
        snapshot: The study in its database.
        numbers: The number of every trial, as the database has them; a snapshot has one trial a
            number.
        unreadable: What of it this version cannot read, with the reason; empty when all is.
        references: The artifacts that trials and studies of the storage refer to.
        root: The folder of the study's files; ``None`` when it is not on this machine.
        artifacts: The files in its folder of artifacts.
        checkpoints: The checkpoints of the study.
        foreign_studies: Studies that have files there and are not in this storage.
        disks: The disks of this machine that the study needs.
        database_bytes: Size of the database.
    """

    name: str
    study_id: int
    snapshot: Snapshot
    numbers: tuple[int, ...]
    unreadable: tuple[str, ...]
    references: tuple[ArtifactReference, ...]
    root: Path | None
    artifacts: tuple[StoredFile, ...]
    checkpoints: tuple[StoredFile, ...]
    foreign_studies: tuple[str, ...]
    disks: tuple[Disk, ...]
    database_bytes: int

    @property
    def own_references(self) -> tuple[ArtifactReference, ...]:
        """The references of this study and its trials."""
        return tuple(one for one in self.references if one.study_id == self.study_id)


def gather(opened: OpenStudy, lock_timeout_s: float = LOCK_TIMEOUT_S) -> Evidence:
    """Look at everything that can be wrong with a study.

    Args:
        opened: The study.
        lock_timeout_s: For how long to wait for its lock.

    Raises:
        LockedError: When another process holds the lock of the study for longer.
        StorageError: When the storage cannot be read.
    """
    try:
        snapshot, numbers, references, known, size = _read_database(opened, lock_timeout_s)
    except LockLostError as error:
        raise StorageError(f"storage: {redact(opened.url)} went away: {error}") from error
    # After the database: a reference is there before its file, so that no file lacks its own.
    files = opened.files
    here = is_sqlite(opened.url) or files.root.is_dir()
    return Evidence(
        name=opened.name,
        study_id=optuna_private.study_id(opened.study),
        snapshot=snapshot,
        numbers=numbers,
        unreadable=_unreadable(opened, snapshot),
        references=references,
        root=files.root if here else None,
        artifacts=list_files(files.artifacts),
        checkpoints=list_files(files.checkpoints(opened.name)),
        foreign_studies=tuple(sorted(files.studies() - set(known))),
        disks=_disks(opened),
        database_bytes=size,
    )


def _read_database(
    opened: OpenStudy, lock_timeout_s: float
) -> tuple[Snapshot, tuple[int, ...], tuple[ArtifactReference, ...], list[str], int]:
    with (
        storage_errors(opened.url),
        study_lock(opened.storage, opened.url, opened.name, lock_timeout_s),
    ):
        return (
            take_snapshot(opened),
            _numbers(opened),
            read_references(opened.storage),
            optuna.get_all_study_names(opened.storage),
            _database_bytes(opened),
        )


def _numbers(opened: OpenStudy) -> tuple[int, ...]:
    query = select(models.TrialModel.number).where(
        models.TrialModel.study_id == optuna_private.study_id(opened.study)
    )
    with opened.storage.engine.connect() as connection:
        return tuple(connection.execute(query).scalars())


def _unreadable(opened: OpenStudy, snapshot: Snapshot) -> tuple[str, ...]:
    found = []
    try:
        opened.config()
    except _WRONG_JSON as error:
        found.append(f"its definition ({_in_a_line(error)})")
    try:
        Space.from_json(snapshot.attributes[attrs.SPACE])
    except _WRONG_JSON as error:
        found.append(f"its space ({_in_a_line(error)})")
    strange = []
    for trial in snapshot.trials:
        try:
            attrs.trial_plan(trial)
        except _WRONG_JSON:
            strange.append(trial.number)
    if strange:
        found.append(f"the plans of trials {in_words(strange)}")
    return tuple(found)


def _in_a_line(error: BaseException) -> str:
    error = error.__cause__ if isinstance(error, FormatError) and error.__cause__ else error
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def in_words(numbers: Sequence[int], most: int = 8) -> str:
    """List numbers, the first of them where there are many: ``1, 2, 3 and 20 more``."""
    shown = ", ".join(str(one) for one in numbers[:most])
    return shown + (f" and {len(numbers) - most} more" if len(numbers) > most else "")


def _disks(opened: OpenStudy) -> tuple[Disk, ...]:
    places = {"files of the study": opened.files.root}
    if is_sqlite(opened.url):
        places["database"] = database_path(opened.url).parent
    found: dict[int, Disk] = {}
    for what, path in places.items():
        if not path.is_dir():
            continue
        device = path.stat().st_dev
        names = f"{found[device].what} and {what}" if device in found else what
        found[device] = Disk(names, path, shutil.disk_usage(path).free)
    return tuple(found.values())


def _database_bytes(opened: OpenStudy) -> int:
    if is_sqlite(opened.url):
        return database_path(opened.url).stat().st_size
    with opened.storage.engine.connect() as connection:
        query = sqlalchemy.text("SELECT pg_database_size(current_database())")
        return int(connection.execute(query).scalar_one())
