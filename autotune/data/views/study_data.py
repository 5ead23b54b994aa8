"""The images of a study: opened once, used as views."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autotune.config.schema import AugmentConfig, DataConfig
from autotune.data.cache.decoded_images import (
    ImageStore,
    LazyImages,
    check_skipped,
    find_unreadable,
    open_store,
)
from autotune.data.preprocessing import ImageSpec
from autotune.data.progress import CHECKING, ProgressCallback, no_progress
from autotune.data.splits.dataset import Dataset
from autotune.data.splits.folds import Fold
from autotune.data.splits.manifest import Manifest
from autotune.data.views.views import MEMORY_BYTES, Views
from autotune.errors import DatasetError
from autotune.text import join_some


@dataclass(frozen=True)
class DatasetInfo:
    """What a study stores about its images.

    Args:
        name: The data set, as the study file names it.
        fingerprint: Digest of all images, their classes and the split.
        test_fingerprint: Digest of the test images and their classes.
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
        """Return the information as plain JSON values; ``folds`` only where there are some."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if not self.folds:
            del values["folds"]
        return values


@dataclass(frozen=True, eq=False)
class StudyData:
    """The training and validation images of a study; the test images are not in it.

    Args:
        info: What a study stores about them.
        spec: What the backbone expects.
        store: The decoded images. ``store.key`` differs between specifications,
            ``info.fingerprint`` does not.
        train_rows: Rows of the store for training; with folds, all that take turns.
        validation_rows: Rows of the store for validation; with folds, the same.
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
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        limit_bytes: int | None = None,
        manifest: Manifest | None = None,
        is_new: bool = False,
        check: Callable[[Dataset], None] = lambda dataset: None,
        split_seed: int | None = None,
    ) -> StudyData:
        """Split a data set and decode its training and validation images, if not done yet.

        Args:
            dataset: The data set, as a study file names it.
            data: How the images are split and read.
            spec: What the backbone expects.
            folder: Folder of the cache.
            on_progress: Called with the number of images decoded and their total.
            limit_bytes: Limits everything in ``folder``.
            manifest: The split of the study, where it exists.
            is_new: Whether the study is being made, so that its images may still be changed.
            check: Called with the images before any is decoded; may refuse them.
            split_seed: Divides the images outside of the test split anew, after the check.

        Raises:
            DatasetError: When the images cannot be used.
            DiskFullError: When the disk is full, or fills up meanwhile.
        """
        opened = Dataset.open(dataset, data, manifest)
        check(opened)
        if split_seed is not None:
            opened = opened.divide_anew(data, split_seed)
        source, split = opened.source, opened.split
        store = open_store(
            source,
            sorted(split.train + split.validation),
            spec,
            folder,
            unreadable_limit=data.max_unreadable_share,
            on_progress=on_progress,
            limit_bytes=limit_bytes,
            fast=data.decode == "fast",
            is_new=is_new,
        )
        train = store.rows(split.train)
        validation = train if opened.folds else store.rows(split.validation)

        def positions(indices: np.ndarray) -> np.ndarray:
            return np.searchsorted(train, store.rows(indices.tolist()))

        folds = tuple(
            Fold(positions(fold.train), positions(fold.validation)) for fold in opened.folds
        )
        _check_classes("train", store, train, source.classes)
        _check_classes("validation", store, validation, source.classes)
        for number, fold in enumerate(folds, start=1):
            for name, rows in (("training", fold.train), ("validation", fold.validation)):
                place = f"the {name} images of fold {number}"
                _check_classes(place, store, train[rows], source.classes)
        info = DatasetInfo(
            name=source.name,
            fingerprint=opened.fingerprint,
            test_fingerprint=opened.test_fingerprint,
            classes=source.classes,
            train=len(train),
            validation=len(validation),
            test=len(split.test),
            skipped=store.skipped,
            folds=tuple(len(fold.train) for fold in folds),
        )
        return cls(info, spec, store, train, validation, folds)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a label is an index into them."""
        return self.info.classes

    def train_views(
        self, augment: AugmentConfig, views: int, seed: int, memory_bytes: int = MEMORY_BYTES
    ) -> Views:
        """Return the training images, with a number of augmented views of each."""
        return Views(self.store, self.train_rows, self.spec, augment, views, seed, memory_bytes)

    def validation_views(self, memory_bytes: int = MEMORY_BYTES) -> Views:
        """Return the validation images, as the evaluation transform shows them."""
        return _plain_views(self.store, self.validation_rows, self.spec, memory_bytes)

    def train_validation_views(
        self, augment: AugmentConfig, views: int, seed: int, memory_bytes: int = MEMORY_BYTES
    ) -> Views:
        """Return training and validation images together, to fit the final model.

        An image has the same views as in :meth:`train_views`.
        """
        rows = np.union1d(self.train_rows, self.validation_rows)
        return Views(self.store, rows, self.spec, augment, views, seed, memory_bytes)


def check_test_images(
    dataset: Dataset,
    data: DataConfig,
    specs: Sequence[ImageSpec],
    on_progress: ProgressCallback = no_progress,
) -> dict[str, str]:
    """Check before a study is made that its test images can be read; nothing of them is kept.

    Args:
        dataset: The images of the study and their split.
        data: How they are read, and how many may be unreadable.
        specs: The ways in which they enter the backbones.
        on_progress: Called with the number of images read.

    Returns:
        Key -> reason of each unreadable one, of which there are few enough.

    Raises:
        DatasetError: When too many of them, or all of a class, are unreadable.
    """
    unreadable: dict[str, str] = {}
    indices = np.array(dataset.split.test, dtype=np.int64)
    for spec in specs:
        images = LazyImages(dataset.source, indices, spec, data.decode == "fast")
        unreadable |= find_unreadable(images, partial(on_progress, CHECKING))
    keys = [dataset.source.samples[index].key for index in indices]
    decoded = [index for index, key in zip(indices, keys, strict=True) if key not in unreadable]
    check_skipped(
        images,
        decoded,
        list(unreadable.items()),
        limit=data.max_unreadable_share,
        what="test images",
        is_new=True,
    )
    return unreadable


def open_test_views(
    dataset: str,
    data: DataConfig,
    spec: ImageSpec,
    folder: Path,
    limit_bytes: int | None = None,
    manifest: Manifest | None = None,
    fingerprint: str | None = None,
) -> Views:
    """Decode the test images: once, for the final fit alone.

    The arguments are those of :meth:`StudyData.open`, and the test fingerprint of the study.

    Returns:
        The test images, as the evaluation transform shows them.

    Raises:
        DatasetError: When the images cannot be used, or have changed; then none was read.
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
        what="test images",
    )
    return _plain_views(store, np.arange(len(store.indices)), spec)


def _plain_views(
    store: ImageStore, rows: np.ndarray, spec: ImageSpec, memory_bytes: int = MEMORY_BYTES
) -> Views:
    return Views(store, rows, spec, AugmentConfig(), 1, 0, memory_bytes)


def _check_classes(
    place: str, store: ImageStore, rows: np.ndarray, classes: Sequence[str]
) -> None:
    labels = store.labels[rows]
    lost = [name for label, name in enumerate(classes) if label not in labels]
    if lost:
        reasons = [f"{name} ({reason})" for name, reason in store.skipped]
        raise DatasetError(
            f"every class needs readable images in {place}, but none is left of "
            f"{', '.join(map(repr, lost))}; repair {join_some(reasons, 5, '; ')}"
        )
