"""What the doctor looks at: a study, its files, clocks and disks, collected without a change.

The database is read under the study's lock, as the trial queue writes under it: a trial that is
being claimed or requeued at this moment would look broken.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from autotune import optuna_private
from autotune.errors import FormatError, StorageError
from autotune.optuna_private import models
from autotune.search.space import Space
from autotune.storage.artifacts import ArtifactReference, StoredFile, list_files, read_references
from autotune.storage.rdb.connection import storage_errors
from autotune.storage.rdb.heartbeat import HeartbeatAges, read_heartbeat_ages
from autotune.storage.rdb.retry import LockLostError, RetryingStorage
from autotune.storage.rdb.study_lock import study_lock
from autotune.storage.url import database_path, is_sqlite, redact
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.budget import Budget, StopReason
from autotune.study.state.retries import is_stale, seconds_silent
from autotune.text import error_line, join_some

#: Seconds to wait for the study's lock: a claim with the GP takes seconds.
LOCK_TIMEOUT_S = 60.0
#: Errors of reading values of another version.
WRONG_JSON = (FormatError, AttributeError, KeyError, TypeError, ValueError)


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment, as its database has it.

    ``moment`` is when it was read, in seconds of the Unix epoch, by this machine's clock.
    """

    trials: tuple[FrozenTrial, ...]
    attributes: Mapping[str, Any]
    heartbeats: HeartbeatAges
    moment: float

    @cached_property
    def budget(self) -> Budget:
        """The budget of the last run."""
        return Budget.from_attributes(self.attributes)

    @cached_property
    def ended(self) -> StopReason | None:
        """Why the study has ended; ``None`` until it has."""
        return StopReason.from_attributes(self.attributes)

    @cached_property
    def progress(self) -> attrs.Progress:
        """Counts of the trials."""
        return attrs.count_progress(self.trials, self.budget.trials)

    @cached_property
    def running(self) -> tuple[FrozenTrial, ...]:
        """The trials that run."""
        return tuple(trial for trial in self.trials if trial.state == TrialState.RUNNING)

    @cached_property
    def live(self) -> tuple[FrozenTrial, ...]:
        """The trials that run and whose workers give signs of life."""
        return tuple(trial for trial in self.running if not self.is_gone(trial))

    def silent_s(self, trial: FrozenTrial) -> float | None:
        """Return the seconds since the last sign of life of a running trial's worker."""
        return seconds_silent(trial, self.heartbeats)

    def is_gone(self, trial: FrozenTrial) -> bool:
        """Tell whether the worker of a running trial counts as dead."""
        return is_stale(trial, self.heartbeats)


def take_snapshot(handle: OpenStudy) -> Snapshot:
    """Read a study.

    Optuna caches trials that have ended: another snapshot of the same ``handle`` reads the trials
    that run or are new (at most seven statements), the attributes of the study and the
    heartbeats, however many trials there are.
    """
    study = handle.study
    trials = tuple(study.get_trials(deepcopy=False))
    running = (trial for trial in trials if trial.state == TrialState.RUNNING)
    heartbeats = read_heartbeat_ages(handle.storage, map(optuna_private.trial_id, running))
    return Snapshot(trials, study.user_attrs, heartbeats, time.time())


@dataclass(frozen=True)
class Disk:
    """A disk that a study needs, with what of the study is on it."""

    what: str
    path: Path
    free_bytes: int


@dataclass(frozen=True)
class Evidence:
    """Everything that the doctor's checks use.

    Args:
        name: Name of the study.
        study_id: Optuna's id of it.
        snapshot: The study in its database.
        numbers: The number of every trial in the database; a snapshot has one trial a number.
        unreadable: What of the study this version cannot read, with the reason.
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
        return tuple(item for item in self.references if item.study_id == self.study_id)


def gather(handle: OpenStudy, lock_timeout_s: float = LOCK_TIMEOUT_S) -> Evidence:
    """Collect everything that can be wrong with a study.

    Raises:
        LockedError: When another process holds the lock of the study for longer than the timeout.
        StorageError: When the storage cannot be read.
    """
    study_id = optuna_private.study_id(handle.study)
    model = models.TrialModel
    query = sqlalchemy.select(model.number).where(model.study_id == study_id)
    try:
        with (
            storage_errors(handle.url),
            study_lock(handle.storage, handle.url, handle.name, lock_timeout_s),
        ):
            snapshot = take_snapshot(handle)
            with handle.storage.engine.connect() as connection:
                numbers = tuple(connection.execute(query).scalars())
            references = read_references(handle.storage)
            studies = optuna.get_all_study_names(handle.storage)
            size = database_bytes(handle.storage, handle.url)
    except LockLostError as error:
        raise StorageError(f"storage: {redact(handle.url)} became unavailable: {error}") from error
    # After the database: a reference is there before its file, so that no file lacks its own.
    files = handle.files
    is_here = is_sqlite(handle.url) or files.root.is_dir()
    return Evidence(
        name=handle.name,
        study_id=study_id,
        snapshot=snapshot,
        numbers=numbers,
        unreadable=_unreadable(handle, snapshot),
        references=references,
        root=files.root if is_here else None,
        artifacts=list_files(files.artifacts),
        checkpoints=list_files(files.checkpoints(handle.name)),
        foreign_studies=tuple(sorted(files.studies() - set(studies))),
        disks=_disks(handle),
        database_bytes=size,
    )


def _unreadable(handle: OpenStudy, snapshot: Snapshot) -> tuple[str, ...]:
    """Return what was written by another version, with the reason."""
    texts = []
    try:
        handle.config()
    except WRONG_JSON as error:
        texts.append(f"its definition ({_reason(error)})")
    try:
        Space.from_json(snapshot.attributes[attrs.SPACE])
    except WRONG_JSON as error:
        texts.append(f"its space ({_reason(error)})")
    unreadable = []
    for trial in snapshot.trials:
        try:
            attrs.trial_plan(trial)
        except WRONG_JSON:
            unreadable.append(trial.number)
    if unreadable:
        texts.append(f"the plans of trials {join_some(unreadable, 8)}")
    return tuple(texts)


def _reason(error: BaseException) -> str:
    return error_line((isinstance(error, FormatError) and error.__cause__) or error)


def _disks(handle: OpenStudy) -> tuple[Disk, ...]:
    folders = {"files of the study": handle.files.root}
    if is_sqlite(handle.url):
        folders["database"] = database_path(handle.url).parent
    disks: dict[int, Disk] = {}
    for what, path in folders.items():
        if path.is_dir():
            device = path.stat().st_dev
            names = f"{disks[device].what} and {what}" if device in disks else what
            disks[device] = Disk(names, path, shutil.disk_usage(path).free)
    return tuple(disks.values())


def database_bytes(storage: RetryingStorage, url: str) -> int:
    """Return the size of a database."""
    if is_sqlite(url):
        return database_path(url).stat().st_size
    with storage.engine.connect() as connection:
        query = sqlalchemy.text("SELECT pg_database_size(current_database())")
        return int(connection.execute(query).scalar_one())
