"""What trials train with: a backbone, and the images as it needs them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autotune.config.schema import ONLINE, StudyConfig
from autotune.data.memory_budget import worker_memory_budget
from autotune.data.preprocessing import ImageSpec
from autotune.data.splits.dataset import Dataset
from autotune.data.views.study_data import StudyData
from autotune.data.views.views import Views
from autotune.errors import StudyError, join_sentences
from autotune.models.backbone import Backbone, load_backbone
from autotune.models.pretrained.packages import INSTALL
from autotune.plan import Images, TrialPlan
from autotune.study.setup.manifest_store import describe_changes, read_manifest
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
        data: Training and validation images.
        train: Views of the training images; with folds, of all images that take turns.
        validation: View 0 of the validation images; with folds, of the same images, and the same
            object as ``train`` if its views, which include view 0, are cached in memory.
    """

    backbone: Backbone
    data: StudyData
    train: Views
    validation: Views

    @property
    def views(self) -> set[Views]:
        """Its views, each once."""
        return {self.train, self.validation}

    @property
    def cache_bytes(self) -> int:
        """Memory of its views once they are rendered."""
        return sum(views.cache_bytes for views in self.views)


class ResourceCache:
    """The resources of a study by backbone, each loaded when it is first used.

    Args:
        handle: The study.
        config: Its configuration.
        workers: Number of workers that share the memory of this machine.
        split_seed: Divides the images outside of the test split anew; ``None`` for the split of
            the study.

    Attributes:
        memory_bytes: Limit for the views of all backbones together.
    """

    def __init__(
        self,
        handle: OpenStudy,
        config: StudyConfig,
        workers: int = 1,
        split_seed: int | None = None,
    ) -> None:
        limit = config.cache.memory_bytes
        self.memory_bytes = worker_memory_budget(workers) if limit is None else limit
        self._handle = handle
        self._config = config
        self._workers = workers
        self.split_seed = split_seed
        self._loaded: dict[Images, BackboneResources] = {}

    def divided_anew(self, seed: int | None) -> ResourceCache:
        """Return the resources with another division of the images, nothing of them loaded."""
        return ResourceCache(self._handle, self._config, self._workers, seed)

    def of(self, plan: TrialPlan) -> BackboneResources:
        """Return what a plan trains with, see :meth:`get`."""
        return self.get(*plan.images)

    def get(
        self, backbone: str, image_size: int | None = None, augment_strength: float | None = None
    ) -> BackboneResources:
        """Return what the trials of a backbone train with, at a size and strength of the study.

        Raises:
            StudyError: When the images or the weights are not those of the study.
        """
        key = backbone, image_size, augment_strength
        if key not in self._loaded:
            views = {views for each in self._loaded.values() for views in each.views}
            left = self.memory_bytes - sum(each.cache_bytes for each in views)
            config = self._config.for_images(image_size, augment_strength)
            twin = next((self._loaded[k] for k in self._loaded if k[:2] == key[:2]), None)
            if twin is None:
                self._loaded[key] = self._load(backbone, config, left)
            else:  # only the strength of the augmentation is another
                train = _train_views(twin.data, config, left)
                self._loaded[key] = replace(twin, train=train)
        return self._loaded[key]

    def _load(self, name: str, config: StudyConfig, memory_bytes: int) -> BackboneResources:
        handle = self._handle
        attributes, size = handle.study.user_attrs, config.image_size
        facts = dict(attributes[attrs.BACKBONES][name])
        facts["weights_hash"] = facts.get("hashes_by_size", {}).get(
            str(size), facts["weights_hash"]
        )
        weights, package = config.weights_of(name), facts.get("package", "")
        backbone = load_backbone(name, weights, size, prefer_package=bool(package))
        if backbone.weights_hash != facts["weights_hash"]:
            raise StudyError(
                join_sentences(
                    f"the weights {weights!r} of {name!r} have changed since the study "
                    f"{handle.name!r} was made (hash {facts['weights_hash']} then, "
                    f"{backbone.weights_hash} now)",
                    f"those of the study are of the package {package}" if package else "",
                    INSTALL if package and not backbone.package else "",
                    *(note for note in backbone.notes if backbone.package),
                )
            )
        data = StudyData.open(
            config.dataset,
            config.data,
            ImageSpec.from_data_config(backbone.data_config, size),
            handle.files.cache,
            limit_bytes=config.cache.disk_bytes,
            manifest=read_manifest(handle.study, handle.files),
            check=self._check_unchanged,
            split_seed=self.split_seed,
        )
        return BackboneResources(backbone, data, *_make_views(data, config, memory_bytes))

    def _check_unchanged(self, dataset: Dataset) -> None:
        handle = self._handle
        if dataset.fingerprint != handle.study.user_attrs[attrs.DATASET]["fingerprint"]:
            raise StudyError(
                join_sentences(
                    f"the images of {self._config.dataset!r} have changed since the study "
                    f"{handle.name!r} was made",
                    describe_changes(handle.study, dataset),
                    "or start another study with --name",
                )
            )


def _train_views(data: StudyData, config: StudyConfig, memory_bytes: int) -> Views:
    """Return the views for training, kept in memory unless they are drawn anew in each epoch."""
    training = config.training
    limit = 0 if training.num_views == ONLINE else memory_bytes
    return data.train_views(training.augment, training.view_count, config.search.seed, limit)


def _make_views(data: StudyData, config: StudyConfig, memory_bytes: int) -> tuple[Views, Views]:
    """Return the views for training and for validation."""
    if data.folds:
        both = _train_views(data, config, memory_bytes)
        if both.cache_bytes:
            return both, both
    validation = data.validation_views(memory_bytes)
    return _train_views(data, config, memory_bytes - validation.cache_bytes), validation
