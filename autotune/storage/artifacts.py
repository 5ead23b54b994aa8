"""Which artifacts the trials and studies of a storage refer to, and which files there are.

A reference is a system attribute, whose name ends with the artifact's id; the dashboard leaves
``null`` in it where somebody has deleted the artifact. The file bears the id as its name. Optuna
writes the reference first, and a full disk leaves it with half a file; here the file comes first.
"""

from __future__ import annotations

import json
import mimetypes
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from optuna.artifacts import ArtifactMeta
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import Trial
from sqlalchemy import or_, select

from autotune import optuna_private
from autotune.optuna_private import models

#: Optuna's, and that of dashboards before Optuna had artifacts.
_PREFIXES = ("artifacts:", "dashboard:artifacts:")


def add_artifact(owner: Trial | Study, path: Path, folder: Path) -> str:
    """Give a trial or a study an artifact: first the file, whole, then the reference to it.

    Args:
        owner: A trial that runs, or a study.
        path: The file to copy.
        folder: Where the artifacts of its study are.

    Returns:
        The id of the artifact, which is the name of the file there.

    Raises:
        OSError: When it cannot be written; then nothing refers to it, and nothing is left of it.
    """
    kind, encoding = mimetypes.guess_type(path.name)
    name = str(uuid.uuid4())
    temporary = folder / f".{name}"
    try:
        shutil.copyfile(path, temporary)
        os.replace(temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)
    about = ArtifactMeta(name, path.name, kind or "application/octet-stream", encoding)
    key, value = f"{_PREFIXES[0]}{name}", json.dumps(asdict(about))
    if isinstance(owner, Trial):
        owner.storage.set_trial_system_attr(optuna_private.trial_id(owner), key, value)
    else:
        optuna_private.storage(owner).set_study_system_attr(
            optuna_private.study_id(owner), key, value
        )
    return name


@dataclass(frozen=True)
class ArtifactReference:
    """An artifact that a trial or a study refers to.

    Args:
        study_id: Optuna's id of the study.
        trial: Number of the trial; ``None`` for an artifact of the study itself.
        artifact: Id of the artifact.
        name: Name of the file that was uploaded.
    """

    study_id: int
    trial: int | None
    artifact: str
    name: str


@dataclass(frozen=True)
class StoredFile:
    """A file in one of the folders of a study.

    Args:
        path: Where it lies.
        size_bytes: How large it is.
        age_s: Seconds since it was written.
    """

    path: Path
    size_bytes: int
    age_s: float


def read_references(storage: RDBStorage) -> tuple[ArtifactReference, ...]:
    """Read the references of every study of a storage: two statements."""
    of_trial, of_study = models.TrialSystemAttributeModel, models.StudySystemAttributeModel
    trials = (
        select(
            models.TrialModel.study_id, models.TrialModel.number, of_trial.key, of_trial.value_json
        )
        .join(models.TrialModel, models.TrialModel.trial_id == of_trial.trial_id)
        .where(or_(*(of_trial.key.startswith(one) for one in _PREFIXES)))
    )
    studies = select(of_study.study_id, of_study.key, of_study.value_json).where(
        or_(*(of_study.key.startswith(one) for one in _PREFIXES))
    )
    with storage.engine.connect() as connection:
        rows = [
            *connection.execute(trials).all(),
            *((study, None, key, value) for study, key, value in connection.execute(studies)),
        ]
    found = []
    for study_id, trial, key, value in rows:
        known = read_reference(key, value)
        if known is not None:
            found.append(ArtifactReference(study_id, trial, *known))
    return tuple(found)


def read_reference(key: str, value_json: str) -> tuple[str, str] | None:
    """Read a system attribute.

    Args:
        key: Its name.
        value_json: Its value as the database has it.

    Returns:
        Id of the artifact that it refers to, and name of the file that was uploaded; ``None`` of
        any other attribute, and of an artifact that was deleted.
    """
    if not key.startswith(_PREFIXES):
        return None
    known = json.loads(value_json)
    if isinstance(known, str):  # Optuna stores the JSON text of a JSON text
        known = json.loads(known)
    if known is None:
        return None
    return known.get("artifact_id", key.rpartition(":")[2]), known.get("filename", "")


def list_files(folder: Path) -> tuple[StoredFile, ...]:
    """List the files of a folder, not those of folders in it; none where there is no folder."""
    return tuple(sorted(_scan(folder), key=lambda one: one.path)) if folder.is_dir() else ()


def _scan(folder: Path) -> Iterator[StoredFile]:
    now = time.time()
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_file(follow_symlinks=False):
                    facts = entry.stat(follow_symlinks=False)
                    yield StoredFile(Path(entry.path), facts.st_size, now - facts.st_mtime)
            except FileNotFoundError:  # its worker has removed it meanwhile
                continue
