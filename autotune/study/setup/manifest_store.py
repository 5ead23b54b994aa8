"""Which images a study has: written down with it when it is made, read by every later run."""

from __future__ import annotations

import logging
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.study import Study

from autotune.config.schema import StudyConfig
from autotune.errors import StorageError, disk_full_as_user_error
from autotune.storage.artifacts import add_artifact
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import has_content, open_storage, storage_errors
from autotune.storage.url import database_path, is_sqlite
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason

if TYPE_CHECKING:
    from autotune.data.splits.manifest import Manifest

logger = logging.getLogger(__name__)

#: Name of the artifact, as the dashboard shows it.
_FILE = "split.csv.gz"


def write_manifest(study: Study, manifest: Manifest, files: StudyPaths) -> None:
    """Store the split of a new study as an artifact of it; one that is there stays.

    Raises:
        DiskFullError: When there is no space left.
    """
    if attrs.SPLIT in study.user_attrs:
        return
    with (
        disk_full_as_user_error(files.artifacts),
        tempfile.TemporaryDirectory(prefix="autotune-") as folder,
    ):
        path = Path(folder) / _FILE
        path.write_bytes(manifest.to_bytes())
        files.artifacts.mkdir(parents=True, exist_ok=True)
        study.set_user_attr(attrs.SPLIT, add_artifact(study, path, files.artifacts))


def read_manifest(study: Study, files: StudyPaths) -> Manifest | None:
    """Read the split of a study.

    Returns:
        The split; ``None`` of a study made before splits were stored, and where the folder of its
        artifacts is not at hand: the images are split anew then, and their fingerprint tells
        whether they are the same.
    """
    name = study.user_attrs.get(attrs.SPLIT)
    if name is None:
        return None
    from autotune.data.splits.manifest import (
        Manifest,  # imports scikit-learn: a look at a study need not
    )

    path = files.artifacts / name
    try:
        return Manifest.from_bytes(path.read_bytes())
    except (OSError, ValueError) as error:
        logger.info("the images are split anew, because %s cannot be read: %s", path, error)
        return None


@dataclass(frozen=True)
class ExistingStudy:
    """What a study knows before it is opened for a run.

    Args:
        manifest: Its split; ``None`` where there is none to be read.
        over: Whether something has ended it (a larger budget lets it go on all the same).
    """

    manifest: Manifest | None = None
    over: bool = False


def look_up_existing(config: StudyConfig) -> ExistingStudy:
    """Look at the study that a study file names, where it has been made.

    A storage that cannot be used is a matter of whoever opens the study.
    """
    with suppress(StorageError):
        if is_sqlite(config.storage) and not has_content(database_path(config.storage)):
            return ExistingStudy()
        storage = open_storage(config.storage)
        with storage_errors(config.storage):
            if config.name not in optuna.get_all_study_names(storage):
                return ExistingStudy()
            study = attrs.load_study(config.name, storage)
            files = config.files or study.user_attrs.get(attrs.FILES)
            manifest = read_manifest(study, StudyPaths.from_url(config.storage, files))
            return ExistingStudy(manifest, StopReason.from_study(study) is not None)
    return ExistingStudy()


def stored_manifest(config: StudyConfig) -> Manifest | None:
    """Read the split of the study that a study file names, where it has been made."""
    return look_up_existing(config).manifest
