"""Statistics of a data set: images, classes, sizes, colors, duplicates, unreadable files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autotune.data.quality.checks import check_dataset
from autotune.data.splits.dataset import Dataset
from autotune.data.splits.duplicates import (
    ImageFingerprint,
    count_duplicates,
    find_pairs,
    fingerprint_images,
)
from autotune.data.splits.stratified import SPLITS


@dataclass(frozen=True)
class DatasetStatistics:
    """What was counted in a data set.

    Args:
        name: The data set, as the user named it.
        fingerprint: Digest of all images, their classes and the split.
        classes: Class -> split -> number of images; images in no split are ``unused``.
        num_decoded: How many images were decoded.
        splits: The splits whose images were decoded.
        widths: Smallest, median and largest width of these images.
        heights: Smallest, median and largest height.
        mean: Means of the channels red, green and blue, of values between 0 and 1.
        std: Standard deviations of the channels.
        unreadable: Key and reason of each image that cannot be decoded, test images included.
        num_unreadable_test: How many of these are test images.
        blank: Keys of images that have one color all over, or are nearly black.
        passed_over: Kind and ending of the files that are no images -> their number.
        checks: What :func:`autotune.data.quality.checks.check_dataset` counted.
    """

    name: str
    fingerprint: str
    classes: dict[str, dict[str, int]]
    num_decoded: int
    splits: tuple[str, ...]
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unreadable: tuple[tuple[str, str], ...]
    num_unreadable_test: int
    blank: tuple[str, ...]
    passed_over: dict[str, dict[str, int]]
    checks: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as plain JSON values."""
        names = {"num_decoded": "looked_at", "splits": "parts", "checks": "survey"}
        return {names.get(name, name): value for name, value in asdict(self).items()}


def compute_statistics(
    dataset: Dataset,
    duplicates: str = "report",
    test: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetStatistics:
    """Compute the statistics of a data set; ``duplicates`` is the setting ``data.duplicates``.

    Test images are counted, the unreadable ones too; with ``test`` they are part of all else.
    """
    source, split = dataset.source, dataset.split
    splits = ("train", "validation", *(("test",) if test else ()))
    indices = sorted(index for name in SPLITS for index in getattr(split, name))
    everything = fingerprint_images(source, indices, on_progress)
    unreadable = {index: reason for index, reason in everything.items() if isinstance(reason, str)}
    counted = {index for name in splits for index in getattr(split, name)}
    results = {index: result for index, result in everything.items() if index in counted}
    readable = [result for result in results.values() if isinstance(result, ImageFingerprint)]
    checks = check_dataset(dataset, "off")
    if duplicates != "off":
        pairs = dataset.duplicates or find_pairs(results)
        checks["duplicates"] = {"mode": duplicates, **count_duplicates(pairs, source, split)}
    mean = np.mean([image.mean for image in readable] or [np.zeros(3)], axis=0)
    square = np.mean([image.square for image in readable] or [np.zeros(3)], axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    return DatasetStatistics(
        name=source.name,
        fingerprint=dataset.fingerprint,
        classes=_class_counts(dataset),
        num_decoded=len(results),
        splits=splits,
        widths=_range([image.size[0] for image in readable]),
        heights=_range([image.size[1] for image in readable]),
        mean=tuple(round(float(value), 4) for value in mean),
        std=tuple(round(float(value), 4) for value in std),
        unreadable=tuple((source.samples[index].key, text) for index, text in unreadable.items()),
        num_unreadable_test=len(unreadable.keys() & set(split.test)),
        blank=tuple(
            source.samples[index].key
            for index, result in results.items()
            if isinstance(result, ImageFingerprint) and result.is_blank
        ),
        passed_over=checks.pop("passed_over", {}),
        checks=checks,
    )


def _class_counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    split_of = dataset.split.by_index()
    counts = Counter(
        (sample.label, split_of.get(index, "unused"))
        for index, sample in enumerate(dataset.source.samples)
    )
    return {
        name: {split: counts[label, split] for split in (*SPLITS, "unused")}
        for label, name in enumerate(dataset.source.classes)
    }


def _range(values: list[int]) -> tuple[int, int, int]:
    return (min(values), round(float(np.median(values))), max(values)) if values else (0, 0, 0)
