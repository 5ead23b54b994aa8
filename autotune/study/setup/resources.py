"""What trials train with: a backbone, and the images as it wants them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.config.schema import ONLINE, StudyConfig
from autotune.data.memory_budget import worker_memory_budget
from autotune.data.preprocessing import ImageSpec
from autotune.data.views.study_data import StudyData
from autotune.data.views.views import Views
from autotune.errors import StudyError
from autotune.models.backbone import Backbone, load_backbone
from autotune.study.setup.manifest_store import read_manifest
from autotune.study.state import attrs

if TYPE_CHECKING:
    from autotune.study.setup.opening import OpenStudy


@dataclass(frozen=True)
class BackboneResources:
    """What the trials of one backbone train with.

    Backbones differ in the size, the interpolation and the crop of their images; which images
    there are, their labels and their split are the same for all.

    Args:
        backbone: The pretrained backbone.
        task: Training and validation images.
        train: Views of the training images; with folds, of all that take turns.
        validation: View 0 of the validation images; with folds, of the same, and ``train`` itself
            where its views are kept in memory, view 0 among them.
    """

    backbone: Backbone
    task: StudyData
    train: Views
    validation: Views

    @property
    def cache_bytes(self) -> int:
        """Memory that its views take once they are made."""
        return sum(one.cache_bytes for one in {self.train, self.validation})


class ResourceCache:
    """The materials of a study by backbone, each made when it is first asked for, and kept.

    Args:
        handle: The study.
        config: Its configuration.
        workers: Among how many workers this machine shares its memory.

    Attributes:
        memory_bytes: What the views of all materials together may take.
    """

    def __init__(self, handle: OpenStudy, config: StudyConfig, workers: int = 1) -> None:
        given = config.cache.memory_bytes
        self.memory_bytes = worker_memory_budget(workers) if given is None else given
        self._opened = handle
        self._config = config
        self._made: dict[str, BackboneResources] = {}

    def of(self, backbone: str) -> BackboneResources:
        """Return what the trials of a backbone train with.

        Raises:
            StudyError: When the images or the weights are not those of the study.
        """
        if backbone not in self._made:
            taken = sum(one.cache_bytes for one in self._made.values())
            left = self.memory_bytes - taken
            self._made[backbone] = _make(self._opened, self._config, backbone, left)
        return self._made[backbone]


def _make(
    handle: OpenStudy, config: StudyConfig, name: str, memory_bytes: int
) -> BackboneResources:
    attributes = handle.study.user_attrs
    size = config.data.image_size
    backbone = load_backbone(name, config.weights, size)
    remembered = attributes[attrs.BACKBONES][name]["weights_hash"]
    if backbone.weights_hash != remembered:
        raise StudyError(
            f"the weights {config.weights!r} of {name!r} have changed since the study "
            f"{handle.name!r} was made (hash {remembered} then, {backbone.weights_hash} now)"
        )
    spec = ImageSpec.from_data_config(backbone.data_config, size)
    cache = handle.files.cache
    limit = config.cache.disk_bytes
    manifest = read_manifest(handle.study, handle.files)
    task = StudyData.open(
        config.dataset, config.data, spec, cache, limit_bytes=limit, manifest=manifest
    )
    if task.info.fingerprint != attributes[attrs.DATASET]["fingerprint"]:
        raise StudyError(
            f"the images of {config.dataset!r} have changed since the study {handle.name!r} was "
            "made"
        )
    return BackboneResources(backbone, task, *_views(task, config, memory_bytes))


def _views(task: StudyData, config: StudyConfig, memory_bytes: int) -> tuple[Views, Views]:
    """Return the views that train and those that are judged."""
    augment, count = config.training.augment, config.training.view_count
    online = config.training.num_views == ONLINE
    if task.folds and not online:
        both = task.train_views(augment, count, config.search.seed, memory_bytes)
        if both.cache_bytes:
            return both, both
    validation = task.validation_views(memory_bytes)
    left = 0 if online else memory_bytes - validation.cache_bytes
    return task.train_views(augment, count, config.search.seed, left), validation
