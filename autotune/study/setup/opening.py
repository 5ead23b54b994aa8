"""Opening a study: make it, or continue it after checking that it is the same one."""

from __future__ import annotations

import logging
import platform
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.study import Study
from pydantic import ValidationError

from autotune.config.fields import is_plugin_ref
from autotune.config.loading import apply_overrides, get_dotted
from autotune.config.schema import StudyConfig
from autotune.data.splits.manifest import describe_missing
from autotune.errors import StudyError, did_you_mean, join_sentences
from autotune.format_versions import STUDY, reading, stamp
from autotune.search.plugins import PluginRef, plugin_refs
from autotune.storage.filesystem import check_not_network
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import (
    allow_experimental,
    has_content,
    open_storage,
    storage_errors,
)
from autotune.storage.rdb.retry import RetryingStorage
from autotune.storage.rdb.study_lock import study_lock
from autotune.storage.url import absolute_url, database_path, is_sqlite, redact
from autotune.study.setup.initial_trials import (
    InitialTrials,
    choose_initial_trials,
    is_prefix_queued,
    queue_initial_trials,
)
from autotune.study.setup.manifest_store import write_manifest
from autotune.study.state import attrs
from autotune.study.state.budget import Budget
from autotune.study.state.trial_queue import TrialQueue

if TYPE_CHECKING:
    from autotune.study.setup.definition import Definition

logger = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)

#: How often one looks for a study that is to come.
POLL_S = 2.0
_PACKAGES = ("autotune", "optuna", "torch", "torchvision", "timm", "scikit-learn", "numpy")


class OpenStudy:
    """An open study with everything that belongs to it.

    Args:
        study: Optuna's study.
        storage: Its storage (of a database the one below Optuna's cache).
        url: Absolute storage URL.
        files: Where its files lie.
    """

    def __init__(
        self, study: Study, storage: RetryingStorage, url: str, files: StudyPaths
    ) -> None:
        self.study = study
        self.storage = storage
        self.url = url
        self.files = files
        #: What tells the study from one that is made anew under its name, if it has it.
        self.uuid: str | None = study.user_attrs.get(attrs.UUID)
        storage.study_uuid = self.uuid

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
        attributes = self.study.user_attrs
        what = f"the definition of the study {self.name!r}"
        with reading(what, by=attrs.written_by_version(attributes)):
            return StudyConfig.model_validate(
                {
                    **attributes[attrs.DEFINITION],
                    "name": self.name,
                    "refit": attributes.get(attrs.FIT, {}),
                    "cache": attributes.get(attrs.CACHE, {}),
                    "storage": self.url,
                    "files": str(self.files.root),
                }
            )

    def trial_queue(self) -> TrialQueue:
        """Return what gives out its trials."""
        space = attrs.study_space(self.study)
        return TrialQueue(self.study, self.storage, self.url, space, self.uuid)

    def progress(self) -> attrs.Progress:
        """Count the trials."""
        return attrs.count_progress(
            self.study.get_trials(deepcopy=False), attrs.trial_budget(self.study)
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
    storage = open_storage(url)
    with storage_errors(url):
        names = optuna.get_all_study_names(storage)
        if name not in names:
            raise StudyError(
                join_sentences(
                    f"the storage {redact(url)} has no study {name!r}; it has "
                    f"{', '.join(names) or 'none'}",
                    did_you_mean(name, names),
                )
            )
    return _load(name, storage, url, files)


def find_existing(name: str, url: str, files: str | None = None) -> OpenStudy | None:
    """Open a study if it has been made; see :func:`open_existing`.

    Returns:
        The study; ``None`` where there is no such study, or no database yet.

    Raises:
        StudyError: When it was not made by autotune.
        StorageError: When the storage cannot be used.
    """
    if is_sqlite(url) and not has_content(database_path(url)):
        return None
    storage = open_storage(url)
    with storage_errors(url):
        if name not in optuna.get_all_study_names(storage):
            return None
    return _load(name, storage, url, files)


def _load(name: str, storage: RetryingStorage, url: str, files: str | None) -> OpenStudy:
    with storage_errors(url):
        study = attrs.load_study(name, storage)
    if attrs.DEFINITION not in study.user_attrs:
        raise StudyError(f"the study {name!r} in {redact(url)} was not made by autotune")
    root = files or study.user_attrs.get(attrs.FILES)
    return OpenStudy(study, storage, absolute_url(url), StudyPaths.from_url(url, root))


def wait_for_existing(
    name: str, url: str, files: str | None, wait_s: float, stop: threading.Event
) -> OpenStudy | None:
    """Open a study that a launcher may be about to make.

    Args:
        name: Name of the study.
        url: Storage URL.
        files: Folder of its files, where it is not beside the database.
        wait_s: For how long it may be missing.
        stop: Set to end the waiting.

    Returns:
        The study; ``None`` after a stop.

    Raises:
        StudyError: When there is still no such study.
        StorageError: When the storage cannot be used.
    """
    deadline = time.monotonic() + wait_s
    while not stop.is_set():
        try:
            return open_existing(name, url, files)
        except StudyError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(POLL_S)  # not stop.wait(): the handler of a signal would meet it
    return None


def open_or_create(
    definition: Definition, dataset: Mapping[str, Any], survey: Mapping[str, Any] | None = None
) -> OpenStudy:
    """Open the study of a definition for a run, making it where there is none.

    Args:
        definition: The checked definition.
        dataset: Facts of the images, as ``DatasetInfo.to_json`` gives them.
        survey: What is odd about them, for a new study, see :mod:`autotune.data.quality.checks`.

    Raises:
        StudyError: When there is a study of that name with another definition.
        StorageError: When the storage cannot be used.
    """
    config = definition.config
    assert config.name is not None
    storage = open_storage(config.storage, create=True)
    files = StudyPaths.from_url(config.storage, config.files)
    with (
        storage_errors(config.storage),
        # Of two launchers that start at once, one makes the study and the other continues it.
        study_lock(storage, absolute_url(config.storage), config.name),
    ):
        study = _create(config, storage)
        attrs.check_version(study)
        if attrs.DEFINITION in study.user_attrs:
            check_same(study, definition)
            # Images, weights and files of one's own that were moved are found where they are now.
            study.set_user_attr(attrs.DEFINITION, config.identity())
        elif not all(attrs.PLAN in one.user_attrs for one in study.get_trials(deepcopy=False)):
            raise StudyError(
                f"the storage {redact(config.storage)} has a study {config.name!r} that was not "
                "made by autotune; choose another name with --name"
            )
        else:
            starts = choose_initial_trials(config, definition.space, storage)
            if not is_prefix_queued(
                study, starts
            ):  # an earlier start broke off and had other plans
                optuna.delete_study(study_name=config.name, storage=storage)
                study = _create(config, storage)
            _clear_files(config.name, files)
            study.set_user_attr(attrs.UUID, uuid4().hex)
            _remember(study, definition, dataset, survey or {}, files, starts)
        if attrs.UUID not in study.user_attrs:  # made before there was one
            study.set_user_attr(attrs.UUID, uuid4().hex)
        handle = OpenStudy(study, storage, absolute_url(config.storage), files)
        study.set_user_attr(attrs.FORMAT, stamp(STUDY))
        study.set_user_attr(attrs.FIT, config.refit.model_dump(mode="json"))
        study.set_user_attr(attrs.CACHE, config.cache.model_dump(mode="json"))
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
    """Remove what a deleted study of the same name has left and nobody wants any more.

    What somebody paid for or may still read stays: reports, fitted models, what was confirmed.
    The last two say whose they are.
    """
    for folder in (files.checkpoints(name), files.logs(name)):
        if folder.is_dir():
            logger.info("%s: removed, it is that of an earlier study %r", folder, name)
            shutil.rmtree(folder, ignore_errors=True)


def check_existing(definition: Definition) -> bool:
    """Check the storage, and the study where there is one, before anything is written.

    Returns:
        Whether the study is there.

    Raises:
        StudyError: When there is a study of that name with another definition.
        StorageError: When the storage cannot be used.
    """
    config = definition.config
    if is_sqlite(config.storage):
        check_not_network(database_path(config.storage))
        if not has_content(database_path(config.storage)):
            return False
    storage = open_storage(config.storage)
    with storage_errors(config.storage):
        if config.name in optuna.get_all_study_names(storage):
            study = attrs.load_study(config.name, storage)
            if attrs.DEFINITION in study.user_attrs:
                check_same(study, definition)
                return True
    return False


def _remember(
    study: Study,
    definition: Definition,
    dataset: Mapping[str, Any],
    survey: Mapping[str, Any],
    files: StudyPaths,
    starts: InitialTrials,
) -> None:
    """Store the definition with a new study and queue the trials that it starts with."""
    config = definition.config
    with allow_experimental():
        study.set_metric_names(list(config.directions))
    study.set_user_attr(attrs.DATASET, dict(dataset))
    study.set_user_attr(attrs.SURVEY, dict(survey))
    write_manifest(study, definition.dataset.manifest, files)
    study.set_user_attr(
        attrs.BACKBONES,
        {
            one.name: {
                "weights_hash": one.weights_hash,
                "parameters": sum(layer.parameters for layer in one.layers),
                "layers": [layer.to_json() for layer in one.layers],
            }
            for one in definition.backbones
        },
    )
    study.set_user_attr(attrs.SPACE, definition.space.to_json())
    study.set_user_attr(attrs.FILES, str(files.root))
    versions = {package: version(package) for package in _PACKAGES}
    study.set_user_attr(attrs.ENVIRONMENT, {"python": platform.python_version(), **versions})
    study.set_user_attr(
        attrs.PLUGINS, {key: one.digest() for key, one in plugin_refs(config).items()}
    )
    queue_initial_trials(study, starts)
    # Last, because a study counts as made when it has its definition.
    study.set_user_attr(attrs.DEFINITION, config.identity())


def check_same(study: Study, definition: Definition) -> None:
    """Refuse a study that was defined differently.

    The same images at another path, and the same weights in another file, are no difference. Nor
    is a key that the study does not know, made before there was one, with its default.

    Raises:
        StudyError: With every difference and the way out.
    """
    stored = _filled_in(study.user_attrs[attrs.DEFINITION])
    wanted = definition.config.identity()
    changes, stored = _own_changes(study, stored, definition.config)
    # These two are what they hold, not where it lies.
    before, now = (
        {key: one.pop(key) for key in ("dataset", "weights")} for one in (stored, wanted)
    )
    for key, name, old, new in _contents(study, definition):
        if old != new:
            changes.append(
                (key, f"{before[key]}{name} (hash {old})", f"{now[key]}{name} (hash {new})")
            )
    changes += differences(stored, wanted)
    if changes:
        lines = [f"  {key}: {old!r} in the study, {new!r} now" for key, old, new in changes]
        if missing := definition.dataset.missing:
            lines.append(f"  dataset: {describe_missing(missing)}")
        raise StudyError(
            f"the study {study.study_name!r} exists with another definition:\n"
            + "\n".join(lines)
            + "\ncontinue it with its own definition, or start another one with --name "
            f"{study.study_name}-2 (make: NAME={study.study_name}-2)"
        )


def _filled_in(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Give a stored definition the defaults of the keys that it was made without."""
    try:
        return StudyConfig.model_validate(dict(stored)).identity()
    except ValidationError:  # of a later version: its differences are shown as they are
        return dict(stored)


def _contents(study: Study, definition: Definition) -> Iterator[tuple[str, str, str, str]]:
    """Yield the key, the backbone where there are several, the old and the new hash."""
    dataset = study.user_attrs[attrs.DATASET]
    yield "dataset", "", dataset["fingerprint"], definition.dataset.fingerprint
    remembered = study.user_attrs[attrs.BACKBONES]
    for one in definition.backbones:
        if one.name in remembered:  # else the backbones differ, which their names say
            name = f" of {one.name}" if len(definition.backbones) > 1 else ""
            yield "weights", name, remembered[one.name]["weights_hash"], one.weights_hash


def _own_changes(
    study: Study, stored: dict[str, Any], config: StudyConfig
) -> tuple[list[tuple[str, Any, Any]], dict[str, Any]]:
    """Compare files of one's own: they are what they say, not where they lie.

    Returns:
        The differences, and the stored definition with the paths of now for what was compared.
    """
    changes: list[tuple[str, Any, Any]] = []
    for key, now in plugin_refs(config).items():
        before = get_dotted(stored, key)
        if is_plugin_ref(before):
            old, new = study.user_attrs[attrs.PLUGINS][key], now.digest()
            if (PluginRef.from_text(before).name, old) != (now.name, new):
                changes.append((key, f"{before} (hash {old[:16]})", f"{now} (hash {new[:16]})"))
            stored = apply_overrides(stored, {key: get_dotted(config.model_dump(), key)})
    return changes, stored


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
