"""The split of a study: stored with it when it is made, read by every later run."""

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
from autotune.storage.paths import StudyPaths, remembered_root
from autotune.storage.rdb.connection import has_content, open_storage, storage_errors
from autotune.storage.rdb.retry import RetryingStorage
from autotune.storage.url import database_path, is_sqlite
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from autotune.text import join_some

if TYPE_CHECKING:
    from autotune.data.splits.dataset import Dataset
    from autotune.data.splits.manifest import Manifest

logger = logging.getLogger(__name__)

#: Name of the artifact, as the dashboard shows it.
_FILE = "split.csv.gz"


def write_manifest(study: Study, manifest: Manifest, files: StudyPaths) -> None:
    """Store the split of a new study as its artifact, unless it has one.

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
    """Return the split of a study.

    It is ``None`` in a study made before splits were stored, and where the artifacts cannot be
    read: the images are split again then, and their fingerprint tells whether they are the same.
    """
    name = study.user_attrs.get(attrs.SPLIT)
    if name is None:
        return None
    from autotune.data.splits.manifest import Manifest  # imports scikit-learn

    path = files.artifacts / name
    try:
        return Manifest.from_bytes(path.read_bytes())
    except (OSError, ValueError) as error:
        logger.info("the images are split again, because %s cannot be read: %s", path, error)
        return None


def describe_changes(study: Study, dataset: Dataset) -> str:
    """Name the images of a study that are missing, or were changed since it was made.

    Empty where none is known: a file may have been replaced by an older one.
    """
    from autotune.data.splits.manifest import describe_missing  # imports scikit-learn

    if dataset.missing:
        return f"{describe_missing(dataset.missing)}; bring them back"
    starts = [trial.datetime_start for trial in study.get_trials(deepcopy=False)]
    began = min((start.timestamp() for start in starts if start is not None), default=None)
    changed = dataset.source.changed_since(began) if began is not None else ()
    if not changed:
        return ""
    names = join_some([repr(key) for key in changed], 5)
    return f"changed since the study began, or unreadable: {names}; bring back what was there"


def find_study(name: str | None, url: str) -> tuple[Study, RetryingStorage] | None:
    """Load a study and its storage; ``None`` if there is no such study, or no database yet.

    Raises:
        StorageError: When the storage cannot be used.
        FormatError: When a later version of autotune has written the study.
    """
    if is_sqlite(url) and not has_content(database_path(url)):
        return None
    storage = open_storage(url)
    with storage_errors(url):
        if name is None or name not in optuna.get_all_study_names(storage):
            storage.engine.dispose()  # who asks again and again would keep a connection each time
            return None
        return attrs.load_study(name, storage), storage


@dataclass(frozen=True)
class ExistingStudy:
    """The split of a study, if it can be read, its folder, and whether the study has ended.

    A larger budget lets it continue all the same. ``files`` is the folder that somebody chose,
    ``packaged`` the backbones whose weights are of packages.
    """

    manifest: Manifest | None = None
    has_ended: bool = False
    files: str | None = None
    packaged: tuple[str, ...] = ()


def look_up_existing(config: StudyConfig) -> ExistingStudy:
    """Read what is known of the study of a study file.

    A storage that cannot be used is reported later, when the study is opened.
    """
    with suppress(StorageError):
        if stored := find_study(config.name, config.storage):
            study, _ = stored
            remembered = study.user_attrs.get(attrs.FILES)
            files = StudyPaths.for_run(config.storage, remembered, config.files)
            reason = StopReason.from_attributes(study.user_attrs)
            return ExistingStudy(
                read_manifest(study, files),
                reason is not None and not reason.is_request,
                remembered_root(config.storage, files),
                tuple(
                    name
                    for name, facts in study.user_attrs.get(attrs.BACKBONES, {}).items()
                    if facts.get("package")
                ),
            )
    return ExistingStudy()
