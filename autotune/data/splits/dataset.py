"""The images of a study and their split."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from autotune.config.schema import DataConfig
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.source import Source
from autotune.data.sources.registry import open_source
from autotune.data.splits.duplicates import Duplicates, find_duplicates, refuse_too_many
from autotune.data.splits.folds import Fold, folds_fingerprint, make_folds, merge_for_folds
from autotune.data.splits.groups import find_groups
from autotune.data.splits.manifest import Manifest, describe_missing
from autotune.data.splits.protocol import apply_protocol, refuse_groups
from autotune.data.splits.stratified import SplitIndices, make_split, split_fingerprint
from autotune.errors import DatasetError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their split.

    Args:
        source: The images.
        split: Which images train, validate and test.
        groups: int64, ``(N,)``: number of the group of every image; ``None`` where no two belong
            together.
        folds: The folds of the training split; empty without ``data.folds``.
        duplicates: The duplicates, where ``data.duplicates: group`` needed them for the split.
        num_added: Number of images that were added after the study was made; they are not used.
        missing: Keys of images of the study that no longer exist: the split is a new one.
    """

    source: Source
    split: SplitIndices
    groups: np.ndarray | None = None
    folds: tuple[Fold, ...] = ()
    duplicates: Duplicates | None = None
    num_added: int = 0
    missing: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        name: str,
        data: DataConfig,
        manifest: Manifest | None = None,
        progress: ProgressCallback = no_progress,
    ) -> Dataset:
        """Find images and split them; none is decoded unless duplicates are to stay together.

        A manifest of an earlier run is used as long as all its images exist.

        Raises:
            DatasetError: When there is no such data set, its layout is wrong, or it cannot be
                split.
        """
        try:
            source = open_source(name, progress, data.splits)
        except DatasetError as error:
            if manifest is None:
                raise
            raise DatasetError(
                f"{error}; the study needs its images as they were: bring them back, or start "
                "another study with --name"
            ) from error
        missing = () if manifest is None else manifest.missing(source)
        if manifest is not None and not missing:
            selected, split, groups = manifest.select(source)
            num_added = len(source.samples) - len(selected.samples)
            if num_added:
                logger.info("%s: %d images were added after the study was made", name, num_added)
            folds = make_folds(selected, split, data, groups)
            return cls(selected, split, groups, folds, num_added=num_added)
        if data.protocol is not None:
            source = apply_protocol(source, data.protocol, data.seed)
        duplicates = None
        if data.duplicates == "group":
            duplicates = find_duplicates(source, progress)
            refuse_too_many(duplicates)
        try:
            groups = find_groups(source, data.group, duplicates.pairs if duplicates else None)
            if groups is not None and data.protocol is not None:
                refuse_groups(source, data.protocol)
            split = make_split(source, data, groups)
            if data.folds is not None:
                split = merge_for_folds(source, split)
            folds = make_folds(source, split, data, groups)
        except DatasetError as error:
            if missing:
                raise DatasetError(
                    f"{describe_missing(missing)}; and without them {error}"
                ) from error
            raise
        return cls(source, split, groups, folds, duplicates, missing=missing)

    def divide_anew(self, data: DataConfig, seed: int) -> Dataset:
        """Return the same images with another division of those outside of the test split.

        Groups stay together. About as many images validate as before.

        Args:
            data: How the images were split, without folds.
            seed: Seed of the new division.

        Raises:
            DatasetError: When a class has too few images, or too few groups.
        """
        merged = merge_for_folds(self.source, self.split)
        count = max(2, round(len(merged.train) / len(self.split.validation)))
        data = data.model_copy(update={"seed": seed, "folds": count})
        fold = make_folds(self.source, merged, data, self.groups)[0]
        train, validation = (tuple(rows.tolist()) for rows in (fold.train, fold.validation))
        return replace(self, split=SplitIndices(train, validation, self.split.test))

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all images, their classes and the split."""
        digest = hashlib.blake2b(digest_size=16)
        for text in (self.source.fingerprint, split_fingerprint(self.split), *self.source.classes):
            digest.update(text.encode() + b"\0")
        if self.folds:
            digest.update(folds_fingerprint(self.folds).encode())
        return digest.hexdigest()

    @cached_property
    def test_fingerprint(self) -> str:
        """Hexadecimal digest of the test images and their classes."""
        samples = [self.source.samples[index] for index in self.split.test]
        digest = hashlib.blake2b(self.source.fingerprint_of(samples).encode(), digest_size=16)
        for sample in samples:
            digest.update(self.source.classes[sample.label].encode() + b"\0")
        return digest.hexdigest()

    @cached_property
    def manifest(self) -> Manifest:
        """The split in the form in which it is stored."""
        return Manifest.from_split(self.source, self.split, self.groups)
