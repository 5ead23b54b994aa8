"""Facts of a data set, counted: images, classes, sizes, colours, duplicates, unreadable files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autotune.data.quality.checks import survey
from autotune.data.splits.dataset import Dataset
from autotune.data.splits.duplicates import compare, summary
from autotune.data.splits.image_hashes import Look, look_at


@dataclass(frozen=True)
class Census:
    """Facts of a data set.

    Args:
        name: The data set, as it was named.
        fingerprint: Of all images, their classes and the split.
        classes: Name of each class -> part -> number of images; images in no part are ``unused``.
        looked_at: How many images were decoded.
        parts: The parts of which images were decoded.
        widths: Smallest, median and largest width of those.
        heights: The same of their heights.
        mean: Mean of the channels red, green and blue, of values between 0 and 1.
        std: Their standard deviations.
        unreadable: Key and reason of each image that cannot be decoded.
        survey: What is odd, see :mod:`autotune.data.quality.checks`.
    """

    name: str
    fingerprint: str
    classes: dict[str, dict[str, int]]
    looked_at: int
    parts: tuple[str, ...]
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unreadable: tuple[tuple[str, str], ...]
    survey: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain JSON values."""
        return asdict(self)


def take_census(
    dataset: Dataset,
    duplicates: str = "report",
    test: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Census:
    """Count what there is to count.

    Args:
        dataset: Images and their split.
        duplicates: What ``data.duplicates`` says.
        test: Whether test images are decoded too; otherwise they are in the counts alone.
        progress: Called with the number of images decoded and their total.
    """
    source, split = dataset.source, dataset.split
    parts = ("train", "validation", *(("test",) if test else ()))
    looks = look_at(source, sorted(i for part in parts for i in getattr(split, part)), progress)
    seen = [look for look in looks.values() if isinstance(look, Look)]
    found = survey(dataset, "off")
    if duplicates != "off":
        known = dataset.duplicates or compare(looks)
        found["duplicates"] = {"mode": duplicates, **summary(known, source, split)}
    mean = np.mean([look.mean for look in seen] or [np.zeros(3)], axis=0)
    square = np.mean([look.square for look in seen] or [np.zeros(3)], axis=0)
    return Census(
        name=source.name,
        fingerprint=dataset.fingerprint,
        classes=_counts(dataset),
        looked_at=len(looks),
        parts=parts,
        widths=_range([look.size[0] for look in seen]),
        heights=_range([look.size[1] for look in seen]),
        mean=tuple(round(float(one), 4) for one in mean),
        std=tuple(round(float(one), 4) for one in np.sqrt(np.maximum(square - mean**2, 0.0))),
        unreadable=tuple(
            (source.samples[index].key, look)
            for index, look in looks.items()
            if isinstance(look, str)
        ),
        survey=found,
    )


def _counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    samples, split = dataset.source.samples, dataset.split
    part_of = {
        index: part for part in ("train", "validation", "test") for index in getattr(split, part)
    }
    counts = Counter(
        (sample.label, part_of.get(index, "unused")) for index, sample in enumerate(samples)
    )
    return {
        name: {part: counts[label, part] for part in ("train", "validation", "test", "unused")}
        for label, name in enumerate(dataset.source.classes)
    }


def _range(values: list[int]) -> tuple[int, int, int]:
    if not values:
        return 0, 0, 0
    return min(values), round(float(np.median(values))), max(values)
