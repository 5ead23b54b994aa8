"""The images of a study: opened once, handed out as views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autotune.config.schema import AugmentConfig, DataConfig
from autotune.data.cache.decoded_images import ImageStore, open_store
from autotune.data.preprocessing import ImageSpec
from autotune.data.splits.dataset import Dataset
from autotune.data.splits.folds import Fold
from autotune.data.splits.manifest import Manifest
from autotune.data.views.views import MEMORY_BYTES, Views
from autotune.errors import DatasetError


@dataclass(frozen=True)
class DatasetInfo:
    """What a study remembers about its images.

    Args:
        name: The dataset, as the study file names it.
        fingerprint: Hexadecimal digest of all images, their classes and the split.
        test_fingerprint: Hexadecimal digest of the test images and their classes.
        classes: Names of the classes; a label is an index into them.
        train: Number of readable training images; with folds, of all that take turns.
        validation: Number of readable validation images, likewise.
        test: Number of test images, none of which has been decoded.
        skipped: Key and reason of each training or validation image that is unreadable.
        folds: Number of readable training images of each fold; empty without folds.
    """

    name: str
    fingerprint: str
    test_fingerprint: str
    classes: tuple[str, ...]
    train: int
    validation: int
    test: int
    skipped: tuple[tuple[str, str], ...]
    folds: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the information as plain JSON values; of folds only where there are some."""
        values = asdict(self)
        values["classes"] = list(self.classes)
        values["skipped"] = [list(one) for one in self.skipped]
        values["folds"] = list(self.folds)
        return values if self.folds else {key: values[key] for key in values if key != "folds"}


@dataclass(frozen=True, eq=False)
class StudyData:
    """The training and validation images of a study; the test images are not in it.

    Args:
        info: What a study remembers about them.
        spec: What the backbone wants.
        store: The decoded images. ``store.key`` also tells apart the specifications, which
            ``info.fingerprint`` does not.
        train_rows: Rows of the store that train; with folds, all that take turns.
        validation_rows: Rows of the store that choose among trials; with folds, the same.
        folds: Positions in both of what trains and validates in each fold; empty without folds.
    """

    info: DatasetInfo
    spec: ImageSpec
    store: ImageStore
    train_rows: np.ndarray
    validation_rows: np.ndarray
    folds: tuple[Fold, ...] = ()

    @classmethod
    def open(
        cls,
        dataset: str,
        data: DataConfig,
        spec: ImageSpec,
        folder: Path,
        progress: Callable[[int, int], None] | None = None,
        limit_bytes: int | None = None,
        manifest: Manifest | None = None,
    ) -> StudyData:
        """Split a dataset and decode its training and validation images, if nobody has yet.

        Args:
            dataset: A known name, or what :func:`autotune.data.sources.registry.open_local` takes.
            data: How the images are split and read.
            spec: What the backbone wants.
            folder: Where decoded images are kept.
            progress: Called with the number of images decoded and their total.
            limit_bytes: What everything in ``folder`` may take, see
                :class:`autotune.data.cache.array_cache.ArrayCache`.
            manifest: The split of the study, where it is known.

        Returns:
            The task.

        Raises:
            DatasetError: When the images cannot be used.
            DiskFullError: When the disk is full, or fills up meanwhile.
        """
        opened = Dataset.open(dataset, data, manifest)
        source, split = opened.source, opened.split
        store = open_store(
            source,
            sorted(split.train + split.validation),
            spec,
            folder,
            unreadable_limit=data.max_unreadable_share,
            progress=progress,
            limit_bytes=limit_bytes,
            fast=data.decode == "fast",
        )
        train = store.rows(split.train)
        validation = train if opened.folds else store.rows(split.validation)

        def positions(part: np.ndarray) -> np.ndarray:
            return np.searchsorted(train, store.rows(part.tolist()))

        folds = tuple(
            Fold(positions(one.train), positions(one.validation)) for one in opened.folds
        )
        parts = {"train": train, "validation": validation}
        for number, one in enumerate(folds, start=1):
            parts[f"the training images of fold {number}"] = train[one.train]
            parts[f"the validation images of fold {number}"] = train[one.validation]
        for part, rows in parts.items():
            _check_part(part, store.labels[rows], source.classes, store.skipped)
        info = DatasetInfo(
            name=source.name,
            fingerprint=opened.fingerprint,
            test_fingerprint=opened.test_fingerprint,
            classes=source.classes,
            train=len(train),
            validation=len(validation),
            test=len(split.test),
            skipped=store.skipped,
            folds=tuple(len(one.train) for one in folds),
        )
        return cls(info, spec, store, train, validation, folds)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a label is an index into them."""
        return self.info.classes

    def train_views(
        self, augment: AugmentConfig, views: int, seed: int, memory_bytes: int = MEMORY_BYTES
    ) -> Views:
        """Return the training images.

        Args:
            augment: What differs between views.
            views: Number of views of each image.
            seed: Seed of the views.
            memory_bytes: Most memory that kept views may take.
        """
        return Views(self.store, self.train_rows, self.spec, augment, views, seed, memory_bytes)

    def validation_views(self, memory_bytes: int = MEMORY_BYTES) -> Views:
        """Return the validation images, as the evaluation transform shows them.

        Args:
            memory_bytes: Most memory that kept views may take.
        """
        return _plain(self.store, self.validation_rows, self.spec, memory_bytes)

    def train_validation_views(
        self, augment: AugmentConfig, views: int, seed: int, memory_bytes: int = MEMORY_BYTES
    ) -> Views:
        """Return training and validation images together, to fit the final model.

        Args:
            augment: What differs between views.
            views: Number of views of each image.
            seed: Seed of the views. An image has the same views as in :meth:`train_views`.
            memory_bytes: Most memory that kept views may take.
        """
        rows = np.union1d(self.train_rows, self.validation_rows)
        return Views(self.store, rows, self.spec, augment, views, seed, memory_bytes)


def open_test_views(
    dataset: str,
    data: DataConfig,
    spec: ImageSpec,
    folder: Path,
    limit_bytes: int | None = None,
    manifest: Manifest | None = None,
    fingerprint: str | None = None,
) -> Views:
    """Decode the test images: for the final fit alone, once.

    Args:
        dataset: A known name, or what :func:`autotune.data.sources.registry.open_local` takes.
        data: How the images are split and read.
        spec: What the backbone wants.
        folder: Where decoded images are kept.
        limit_bytes: What everything in ``folder`` may take.
        manifest: The split of the study, where it is known.
        fingerprint: What the test part had when the study was made, where that is known.

    Returns:
        The test images, as the evaluation transform shows them.

    Raises:
        DatasetError: When the images cannot be used, or are others; then none was read.
        DiskFullError: When the disk is full, or fills up meanwhile.
    """
    opened = Dataset.open(dataset, data, manifest)
    if fingerprint is not None and opened.test_fingerprint != fingerprint:
        raise DatasetError(
            f"the test images of {dataset!r} must be those with which the study was made "
            f"(fingerprint {fingerprint}), but they have the fingerprint "
            f"{opened.test_fingerprint}; bring them back"
        )
    store = open_store(
        opened.source,
        opened.split.test,
        spec,
        folder,
        unreadable_limit=data.max_unreadable_share,
        limit_bytes=limit_bytes,
        fast=data.decode == "fast",
    )
    return _plain(store, np.arange(len(store.indices)), spec)


def _plain(
    store: ImageStore, rows: np.ndarray, spec: ImageSpec, memory_bytes: int = MEMORY_BYTES
) -> Views:
    return Views(store, rows, spec, AugmentConfig(), 1, 0, memory_bytes)


def _check_part(
    part: str,
    labels: np.ndarray,
    classes: Sequence[str],
    skipped: Sequence[tuple[str, str]],
) -> None:
    lost = [name for label, name in enumerate(classes) if label not in labels]
    if lost:
        raise DatasetError(
            f"every class needs readable images in {part}, but none is left of "
            f"{', '.join(map(repr, lost))}; repair "
            f"{'; '.join(f'{name} ({reason})' for name, reason in skipped[:5])}"
        )
