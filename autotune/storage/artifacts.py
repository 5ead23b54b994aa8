"""Artifacts of trials and studies: the references to them in a storage, and their files.

A reference is a system attribute, whose name ends with the artifact's id; the dashboard writes
``null`` to it where somebody has deleted the artifact. The file has the id as its name. Optuna
writes the reference first, and a full disk leaves it with half a file; here the file comes first.
"""

from __future__ import annotations

import json
import mimetypes
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.artifacts import ArtifactMeta
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import Trial
from sqlalchemy import null, or_, select

from autotune import optuna_private
from autotune.optuna_private import models

#: Beginnings of the keys: Optuna's, and that of dashboards before Optuna had artifacts.
_PREFIXES = ("artifacts:", "dashboard:artifacts:")


def add_artifact(
    owner: Trial | Study, path: Path, folder: Path, file_name: str | None = None
) -> str:
    """Add an artifact to a running trial or a study: first the file, then the reference to it.

    Args:
        owner: The trial or the study.
        path: The file.
        folder: Folder of the artifacts.
        file_name: Its name for readers; by default that of the file.

    Returns:
        The id of the artifact, which is the name of its file in the folder.

    Raises:
        OSError: When the file cannot be written; then nothing refers to it, and nothing is left.
    """
    file_name = file_name or path.name
    kind, encoding = mimetypes.guess_type(file_name)
    name = str(uuid.uuid4())
    temporary = folder / f".{name}"
    try:
        shutil.copyfile(path, temporary)
        os.replace(temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)
    meta = ArtifactMeta(name, file_name, kind or "application/octet-stream", encoding)
    key, value = f"{_PREFIXES[0]}{name}", json.dumps(asdict(meta))
    if isinstance(owner, Trial):
        owner.storage.set_trial_system_attr(optuna_private.trial_id(owner), key, value)
    else:
        storage = optuna_private.storage(owner)
        storage.set_study_system_attr(optuna_private.study_id(owner), key, value)
    return name


@dataclass(frozen=True)
class ArtifactReference:
    """An artifact that a trial, by its number, or a study refers to.

    ``artifact`` is its id, and ``name`` that of the file that was uploaded.
    """

    study_id: int
    trial: int | None
    artifact: str
    name: str


@dataclass(frozen=True)
class StoredFile:
    """A file in one of the folders of a study, with the seconds since it was written."""

    path: Path
    size_bytes: int
    age_s: float


def read_references(storage: RDBStorage) -> tuple[ArtifactReference, ...]:
    """Read the references of every study of a storage, in two statements."""
    trial, row = models.TrialModel, models.TrialSystemAttributeModel
    trials = select(trial.study_id, trial.number, row.key, row.value_json)
    trials = trials.join(trial, trial.trial_id == row.trial_id)
    own = models.StudySystemAttributeModel
    studies = select(own.study_id, null(), own.key, own.value_json)
    rows: list[Any] = []
    with storage.engine.connect() as connection:
        for statement, key in ((trials, row.key), (studies, own.key)):
            is_artifact = or_(*(key.startswith(prefix) for prefix in _PREFIXES))
            rows += connection.execute(statement.where(is_artifact))
    return tuple(
        ArtifactReference(study_id, number, *reference)
        for study_id, number, key, value in rows
        if (reference := read_reference(key, value)) is not None
    )


def read_reference(key: str, value_json: str) -> tuple[str, str] | None:
    """Return id and file name of the artifact that a system attribute refers to.

    ``None`` for any other attribute, and for an artifact that was deleted.
    """
    if not key.startswith(_PREFIXES):
        return None
    meta = json.loads(value_json)
    if isinstance(meta, str):  # Optuna stores the JSON text of a JSON text
        meta = json.loads(meta)
    if meta is None:
        return None
    return meta.get("artifact_id", key.rpartition(":")[2]), meta.get("filename", "")


def find_artifacts(system_attrs: Mapping[str, Any]) -> dict[str, str]:
    """Return the ids of the artifacts of a trial or a study, by the names of their files."""
    references = (read_reference(key, json.dumps(value)) for key, value in system_attrs.items())
    return {name: id_ for id_, name in filter(None, references)}


def list_files(folder: Path) -> tuple[StoredFile, ...]:
    """Return the files in a folder, without those in folders of it; none if there is no folder."""
    if not folder.is_dir():
        return ()
    now, files = time.time(), []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # its worker has removed it meanwhile
                if entry.is_file(follow_symlinks=False):
                    stat = entry.stat(follow_symlinks=False)
                    files.append(StoredFile(Path(entry.path), stat.st_size, now - stat.st_mtime))
    return tuple(sorted(files, key=lambda file: file.path))
