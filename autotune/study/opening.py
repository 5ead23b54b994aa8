"""Opening a study: make it, or continue it after checking that it is the same one."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import RDBStorage
from optuna.study import Study

from autotune.config import OBJECTIVES, StudyConfig
from autotune.errors import StudyError, join_sentences, nearest
from autotune.search.space import Space
from autotune.storage.database import (
    absolute_url,
    database_path,
    experimental,
    is_sqlite,
    open_storage,
    redact,
    storage_errors,
)
from autotune.storage.layout import Files
from autotune.study import record
from autotune.study.budget import Budget
from autotune.study.claims import Claims, sweep_stale
from autotune.study.definition import Definition

logger = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)

_PACKAGES = ("autotune", "optuna", "torch", "torchvision", "timm", "scikit-learn", "numpy")


class OpenStudy:
    """An open study with everything that belongs to it.

    Args:
        study: Optuna's study.
        storage: Its database storage (the one below Optuna's cache).
        url: Absolute storage URL.
        files: Where its files lie.
    """

    def __init__(self, study: Study, storage: RDBStorage, url: str, files: Files) -> None:
        self.study = study
        self.storage = storage
        self.url = url
        self.files = files

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.study.study_name

    @property
    def artifacts(self) -> FileSystemArtifactStore:
        """Where artifacts go."""
        self.files.artifacts.mkdir(parents=True, exist_ok=True)
        return FileSystemArtifactStore(str(self.files.artifacts))

    def config(self) -> StudyConfig:
        """Return the study's configuration as the study remembers it."""
        return StudyConfig.model_validate(
            {
                **self.study.user_attrs[record.DEFINITION],
                "name": self.name,
                "storage": self.url,
                "files": str(self.files.root),
            }
        )

    def claims(self) -> Claims:
        """Return what gives out its trials."""
        space = Space.from_json(self.study.user_attrs[record.SPACE])
        return Claims(self.study, self.storage, self.url, space)

    def progress(self) -> record.Progress:
        """Count the trials."""
        return record.progress_of(
            self.study.get_trials(deepcopy=False), record.budget_of(self.study)
        )


def open_existing(name: str, url: str, files: str | None = None) -> OpenStudy:
    """Open a study that is already there.

    Args:
        name: Name of the study.
        url: Storage URL.
        files: Folder of its files, where it is not beside the database.

    Raises:
        StudyError: When the storage has no such study.
        StorageError: When the storage cannot be used.
    """
    storage = open_storage(url, on_stale_trial=sweep_stale)
    with storage_errors(url):
        names = optuna.get_all_study_names(storage)
        if name not in names:
            raise StudyError(
                join_sentences(
                    f"the storage {redact(url)} has no study {name!r}; it has "
                    f"{', '.join(names) or 'none'}",
                    nearest(name, names),
                )
            )
        study = optuna.load_study(study_name=name, storage=storage)
    if record.DEFINITION not in study.user_attrs:
        raise StudyError(f"the study {name!r} in {redact(url)} was not made by autotune")
    root = files or study.user_attrs.get(record.FILES)
    return OpenStudy(study, storage, absolute_url(url), Files.of(url, root))


def open_or_create(definition: Definition, dataset: Mapping[str, Any]) -> OpenStudy:
    """Open the study of a definition for a run, making it where there is none.

    Args:
        definition: The checked definition.
        dataset: Facts of the images, as ``TaskInfo.to_json`` gives them.

    Raises:
        StudyError: When there is a study of that name with another definition.
        StorageError: When the storage cannot be used.
    """
    config = definition.config
    assert config.name is not None
    storage = open_storage(config.storage, create=True, on_stale_trial=sweep_stale)
    files = Files.of(config.storage, config.files)
    with storage_errors(config.storage):
        study = optuna.create_study(
            study_name=config.name,
            storage=storage,
            direction=OBJECTIVES[config.training.objective],
            load_if_exists=True,
        )
        if record.DEFINITION in study.user_attrs:
            check_same(study, definition)
        elif not all(record.is_baseline(one) for one in study.get_trials(deepcopy=False)):
            raise StudyError(
                f"the storage {redact(config.storage)} has a study {config.name!r} that was not "
                "made by autotune; choose another name with --name"
            )
        else:
            _remember(study, definition, dataset, files)
        opened = OpenStudy(study, storage, absolute_url(config.storage), files)
        opened.claims().begin(Budget.of_run(config.search, time.time()))
    return opened


def check_existing(definition: Definition) -> None:
    """Check the storage, and the study where there is one, before anything is written.

    Raises:
        StudyError: When there is a study of that name with another definition.
        StorageError: When the storage cannot be used.
    """
    config = definition.config
    if is_sqlite(config.storage) and not database_path(config.storage).exists():
        return
    storage = open_storage(config.storage)
    with storage_errors(config.storage):
        if config.name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=config.name, storage=storage)
            if record.DEFINITION in study.user_attrs:
                check_same(study, definition)


def _remember(
    study: Study, definition: Definition, dataset: Mapping[str, Any], files: Files
) -> None:
    """Store the definition with a new study and queue its baseline."""
    config = definition.config
    with experimental():
        study.set_metric_names([config.training.objective])
    study.set_user_attr(record.DATASET, dict(dataset))
    study.set_user_attr(
        record.BACKBONE,
        {
            "name": definition.backbone.name,
            "weights_hash": definition.backbone.weights_hash,
            "parameters": sum(layer.parameters for layer in definition.layers),
            "layers": [layer.to_json() for layer in definition.layers],
        },
    )
    study.set_user_attr(record.SPACE, definition.space.to_json())
    study.set_user_attr(record.FILES, str(files.root))
    versions = {package: version(package) for package in _PACKAGES}
    study.set_user_attr(record.ENVIRONMENT, {"python": platform.python_version(), **versions})
    baseline = definition.space.baseline(config.baseline)
    params = definition.space.params(baseline)
    if params is None:
        logger.info("the baseline lies outside the space and is not shown to the sampler")
    attributes = {record.ROLE: record.BASELINE, record.PLAN: baseline.to_json()}
    if not study.get_trials(deepcopy=False):  # else an earlier start broke off below
        study.enqueue_trial(params or {}, user_attrs=attributes)
    # Last, because a study counts as made when it has its definition.
    study.set_user_attr(record.DEFINITION, config.definition())


def check_same(study: Study, definition: Definition) -> None:
    """Refuse a study that was defined differently.

    The same images at another path, and the same weights in another file, are no difference.

    Raises:
        StudyError: With every difference and the way out.
    """
    stored = dict(study.user_attrs[record.DEFINITION])
    wanted = definition.config.definition()
    # These two are what they hold, not where it lies.
    contents = {
        "dataset": (study.user_attrs[record.DATASET]["fingerprint"], definition.fingerprint),
        "weights": (
            study.user_attrs[record.BACKBONE]["weights_hash"],
            definition.backbone.weights_hash,
        ),
    }
    changes = []
    for key, (old, new) in contents.items():
        before, now = stored.pop(key), wanted.pop(key)
        if old != new:
            changes.append((key, f"{before} (hash {old})", f"{now} (hash {new})"))
    changes += differences(stored, wanted)
    if changes:
        lines = [f"  {key}: {old!r} in the study, {new!r} now" for key, old, new in changes]
        raise StudyError(
            f"the study {study.study_name!r} exists with another definition:\n"
            + "\n".join(lines)
            + "\ncontinue it with its own definition, or start another one with --name "
            f"{study.study_name}-2 (make: NAME={study.study_name}-2)"
        )


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """List the dotted keys whose values differ, with both values."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted(old.keys() | new.keys()):
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping) and "low" not in one:
            found += differences(one, other, f"{prefix}{key}.")
        elif one != other:
            found.append((f"{prefix}{key}", one, other))
    return found
