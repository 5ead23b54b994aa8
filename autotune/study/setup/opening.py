"""Opening a study: make it, or continue it after checking that it is the same one."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.study import Study

from autotune.config.fields import is_plugin_ref
from autotune.config.loading import get_dotted
from autotune.config.schema import PRUNER, StudyConfig
from autotune.errors import StudyError, did_you_mean, join_sentences
from autotune.format_versions import STUDY, reading, stamp
from autotune.search.plugins import plugin_refs
from autotune.storage.filesystem import check_not_network
from autotune.storage.paths import StudyPaths, remembered_root
from autotune.storage.rdb.connection import allow_experimental, open_storage, storage_errors
from autotune.storage.rdb.retry import RetryingStorage
from autotune.storage.rdb.study_lock import study_lock
from autotune.storage.url import absolute_url, database_path, is_sqlite, redact
from autotune.study.setup.definition_changes import check_same
from autotune.study.setup.initial_trials import InitialTrials
from autotune.study.setup.manifest_store import find_study, write_manifest
from autotune.study.state import attrs
from autotune.study.state.budget import Budget
from autotune.study.state.trial_queue import TrialQueue
from autotune.version import COMMIT, installed_version

if TYPE_CHECKING:
    from autotune.study.setup.definition import Definition

logger = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)

#: Seconds between two looks for a study that does not exist yet.
POLL_S = 2.0
_PACKAGES = ("optuna", "torch", "torchvision", "timm", "scikit-learn", "numpy")
_VERSIONS = ("python", "autotune", COMMIT, *_PACKAGES)


class OpenStudy:
    """An open study with its storage (below Optuna's cache), absolute URL and files."""

    def __init__(
        self, study: Study, storage: RetryingStorage, url: str, files: StudyPaths
    ) -> None:
        self.study = study
        self.storage = storage
        self.url = url
        self.files = files
        #: A study that is made again under the same name has another one; older studies have none.
        self.uuid: str | None = study.user_attrs.get(attrs.UUID)
        storage.study_uuid = self.uuid

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.study.study_name

    @property
    def artifacts(self) -> FileSystemArtifactStore:
        """The store of its artifacts."""
        self.files.artifacts.mkdir(parents=True, exist_ok=True)
        return FileSystemArtifactStore(str(self.files.artifacts))

    def config(self) -> StudyConfig:
        """Return the configuration that is stored with the study."""
        attributes = self.study.user_attrs
        what = f"the definition of the study {self.name!r}"
        with reading(what, by=attrs.written_by_version(attributes)):
            config = StudyConfig.model_validate(
                {
                    **attributes[attrs.DEFINITION],
                    "refit": attributes.get(attrs.FIT, {}),
                    "cache": attributes.get(attrs.CACHE, {}),
                    "loggers": attributes.get(attrs.LOGGERS, []),
                    "storage": self.url,
                    "files": remembered_root(self.url, self.files),
                }
            )
        # Not validated: somebody may have given it another kind of name in the dashboard.
        return config.model_copy(update={"name": self.name})

    def trial_queue(self) -> TrialQueue:
        """Return the queue that hands out its trials."""
        space = attrs.study_space(self.study)
        return TrialQueue(self.study, self.storage, self.url, space, self.uuid)

    def progress(self) -> attrs.Progress:
        """Count its trials."""
        trials = self.study.get_trials(deepcopy=False)
        return attrs.count_progress(trials, attrs.trial_budget(self.study))


def open_existing(
    name: str, url: str, files: str | None = None, *, whole: bool = True
) -> OpenStudy:
    """Open a study that exists.

    Args:
        name: Its name.
        url: Its storage.
        files: The folder of its files, needed if they are not beside the database.
        whole: Refuse a study that was never made to the end, because its launcher was killed.

    Raises:
        StudyError: When the storage has no such study, or it was not made by autotune.
        StorageError: When the storage cannot be used.
    """
    storage = open_storage(url)
    with storage_errors(url):
        names = optuna.get_all_study_names(storage)
        if name not in names:
            storage.engine.dispose()  # who asks again and again would keep a connection each time
            raise StudyError(
                join_sentences(
                    f"the storage {redact(url)} has no study {name!r}; it has "
                    f"{', '.join(names) or 'none'}",
                    did_you_mean(name, names),
                )
            )
        study = attrs.load_study(name, storage)
    return _opened(study, storage, url, files, whole)


def find_existing(name: str, url: str, files: str | None = None) -> OpenStudy | None:
    """Open a study if it exists; ``None`` if it does not, or there is no database yet.

    Raises:
        StudyError: When it was not made by autotune.
        StorageError: When the storage cannot be used.
    """
    found = find_study(name, url)
    return _opened(*found, url, files) if found else None


def _opened(
    study: Study, storage: RetryingStorage, url: str, files: str | None, whole: bool = True
) -> OpenStudy:
    attributes = study.user_attrs
    is_begun = not whole and (attrs.UUID in attributes or not (attributes or study.trials))
    if attrs.DEFINITION not in attributes and not is_begun:
        raise StudyError(
            f"the study {study.study_name!r} in {redact(url)} was not made by autotune"
        )
    paths = StudyPaths.from_study(url, attributes.get(attrs.FILES), files)
    return OpenStudy(study, storage, absolute_url(url), paths)


def wait_for_existing(
    name: str, url: str, files: str | None, wait_s: float, stop: threading.Event
) -> OpenStudy | None:
    """Open a study that a launcher may be about to make; ``None`` after a stop.

    Raises:
        StudyError: When there is no such study after the time.
        StorageError: When the storage cannot be used.
    """
    deadline = time.monotonic() + wait_s
    while not stop.is_set():
        try:
            return open_existing(name, url, files)
        except StudyError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(POLL_S)  # not stop.wait(): the handler of a signal would need its lock
    return None


def open_or_create(
    definition: Definition, dataset: Mapping[str, Any], survey: Mapping[str, Any] | None = None
) -> OpenStudy:
    """Open the study of a definition for a run; make it if it does not exist.

    Args:
        definition: The checked definition.
        dataset: ``DatasetInfo.to_json()`` of its images.
        survey: Findings about the images of a new study, see
            :mod:`autotune.data.quality.checks`.

    Raises:
        StudyError: When a study of that name has another definition.
        StorageError: When the storage cannot be used.
    """
    config = definition.config
    assert config.name is not None
    storage = open_storage(config.storage, create=True)
    with (
        storage_errors(config.storage),
        # Of two launchers that start at once, one makes the study and the other continues it.
        study_lock(storage, absolute_url(config.storage), config.name),
    ):
        study = _create(config, storage)
        attrs.check_version(study)
        remembered = study.user_attrs.get(attrs.FILES)
        files = StudyPaths.for_run(config.storage, remembered, config.files)
        if attrs.DEFINITION in study.user_attrs:
            check_same(study, definition)
            before, now = (
                get_dotted(attrs.definition(study.user_attrs), PRUNER),
                config.search.pruner,
            )
            if before != now and not is_plugin_ref(now):  # whose file may have moved
                logger.warning("%s: %s so far, %s from now on", PRUNER, before, now)
            # It holds the current paths of images, weights and plugins that were moved.
            study.set_user_attr(attrs.DEFINITION, config.identity())
        elif not all(attrs.PLAN in trial.user_attrs for trial in study.get_trials(deepcopy=False)):
            raise StudyError(
                f"the storage {redact(config.storage)} has a study {config.name!r} that was not "
                "made by autotune; choose another name with --name"
            )
        else:
            initial = InitialTrials.from_config(config, definition.space, storage)
            if not initial.matches_queue(study):  # of an interrupted start with other plans
                optuna.delete_study(study_name=config.name, storage=storage)
                study = _create(config, storage)
            _clear_files(config.name, files)
            study.set_user_attr(attrs.UUID, uuid4().hex)
            _store_definition(study, definition, dataset, survey or {}, files)
            initial.queue(study)
            # Last, because a study counts as made when it has its definition.
            study.set_user_attr(attrs.DEFINITION, config.identity())
        if attrs.UUID not in study.user_attrs:  # of an older version
            study.set_user_attr(attrs.UUID, uuid4().hex)
        handle = OpenStudy(study, storage, absolute_url(config.storage), files)
        study.set_user_attr(attrs.FORMAT, stamp(STUDY))
        if remembered is None or config.files is not None or is_sqlite(config.storage):
            study.set_user_attr(attrs.FILES, remembered_root(config.storage, files))
        study.set_user_attr(attrs.FIT, config.refit.model_dump(mode="json"))
        study.set_user_attr(attrs.CACHE, config.cache.model_dump(mode="json"))
        if config.loggers or attrs.LOGGERS in study.user_attrs:
            study.set_user_attr(attrs.LOGGERS, list(config.loggers))
        handle.trial_queue().set_budget(Budget.from_config(config.search, time.time()))
    return handle


def _create(config: StudyConfig, storage: RetryingStorage) -> Study:
    return optuna.create_study(
        study_name=config.name,
        storage=storage,
        directions=list(config.directions.values()),
        load_if_exists=True,
    )


def _clear_files(name: str, files: StudyPaths) -> None:
    """Remove the checkpoints, logs and curves of a deleted study of the same name.

    Reports, refitted models and confirmations stay, because they cost time to make and name the
    study that they belong to.
    """
    for folder in (files.checkpoints(name), files.logs(name), files.tensorboard(name)):
        if folder.is_dir():
            logger.info("%s: removed, it belongs to an earlier study %r", folder, name)
            shutil.rmtree(folder, ignore_errors=True)


def check_existing(definition: Definition) -> bool:
    """Check the storage, and the study if there is one, before anything is written.

    Returns:
        Whether the study exists.

    Raises:
        StudyError: When a study of that name has another definition.
        StorageError: When the storage cannot be used.
    """
    config = definition.config
    if is_sqlite(config.storage):
        check_not_network(database_path(config.storage))
    found = find_study(config.name, config.storage)
    if found is None or attrs.DEFINITION not in found[0].user_attrs:
        return False
    check_same(found[0], definition)
    return True


def _store_definition(
    study: Study,
    definition: Definition,
    dataset: Mapping[str, Any],
    survey: Mapping[str, Any],
    files: StudyPaths,
) -> None:
    """Store what a new study is about; its images first, its trials and definition later."""
    config = definition.config
    with allow_experimental():
        study.set_metric_names(list(config.directions))
    study.set_user_attr(attrs.DATASET, dict(dataset))
    study.set_user_attr(attrs.SURVEY, dict(survey))
    write_manifest(study, definition.dataset.manifest, files)
    backbones: dict[str, dict[str, Any]] = {}
    for backbone in definition.backbones:
        backbones[backbone.name] = facts = {
            "weights_hash": backbone.weights_hash,
            "parameters": sum(layer.parameters for layer in backbone.layers),
            "layers": [layer.to_json() for layer in backbone.layers],
        }
        if len(backbone.hashes) > 1:
            sizes = map(str, config.image_sizes)
            facts["hashes_by_size"] = dict(zip(sizes, backbone.hashes, strict=True))
        if backbone.package:
            facts["package"] = backbone.package
    versions = {name: known for name in _VERSIONS if (known := installed_version(name))}
    plugins = {key: plugin.digest() for key, plugin in plugin_refs(config).items()}
    study.set_user_attr(attrs.BACKBONES, backbones)
    study.set_user_attr(attrs.SPACE, definition.space.to_json())
    study.set_user_attr(attrs.ENVIRONMENT, versions)
    study.set_user_attr(attrs.PLUGINS, plugins)
    if definition.race is not None:
        study.set_user_attr(attrs.RACE, definition.race.to_json())
