"""Splits that papers prescribe: so many images of each class to learn from, the rest to test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

import numpy as np
from PIL import Image

from autotune.config.fields import PER_CLASS
from autotune.data.source import Sample, Shrink, Source
from autotune.errors import DatasetError


class ProtocolSource:
    """A source whose images are in the parts of a protocol.

    Of each class, so many images, drawn by the seed, are the training part; all others are the
    test part. A validation part is carved from the training part like any other, or folds are cut
    from it: the search looks at nothing else, and the final fit trains on all of it.

    Args:
        source: The images, in no parts and no groups.
        protocol: Such as ``30-per-class``.
        seed: Of the draw.

    Raises:
        DatasetError: When the images have parts or groups already, or a class has too few.
    """

    def __init__(self, source: Source, protocol: str, seed: int) -> None:
        self.name = source.name
        self.classes = source.classes
        self._source = source
        count = int(protocol.removesuffix(PER_CLASS))
        rows = _rows(source, protocol, count)
        random = np.random.RandomState(seed)
        train = {int(row) for found in rows for row in random.permutation(found)[:count]}
        self.samples = tuple(
            replace(sample, split="train" if index in train else "test")
            for index, sample in enumerate(source.samples)
        )

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all keys and contents; the split has one of its own."""
        return self._source.fingerprint

    def fingerprint_of(self, samples: Sequence[Sample]) -> str:
        """Return a hexadecimal digest of the keys and contents of some images."""
        return self._source.fingerprint_of(samples)

    def read(self, sample: Sample, shrink: Shrink | None = None) -> Image.Image:
        """Return the image of a sample, upright, in mode RGB.

        Raises:
            OSError: When the image cannot be decoded.
        """
        return self._source.read(sample, shrink)


def refuse_groups(source: Source, protocol: str) -> NoReturn:
    """Refuse to draw single images where some belong together.

    Raises:
        DatasetError: Always.
    """
    raise DatasetError(
        f"data.protocol={protocol} draws single images, but those of {source.name!r} are in "
        "groups that stay together; leave data.protocol out, or the groups"
    )


def _rows(source: Source, protocol: str, count: int) -> list[list[int]]:
    """Return the images of each class, more than are asked for."""
    given = sorted({sample.split for sample in source.samples if sample.split})
    if given:
        raise DatasetError(
            f"data.protocol={protocol} is for images in no parts, but {source.name!r} has the "
            f"parts {', '.join(given)}; leave data.protocol out"
        )
    if any(sample.group is not None for sample in source.samples):
        refuse_groups(source, protocol)
    rows: list[list[int]] = [[] for _ in source.classes]
    for index, sample in enumerate(source.samples):
        rows[sample.label].append(index)
    few = [source.classes[label] for label, found in enumerate(rows) if len(found) <= count]
    if few:
        more = f" and {len(few) - 20} more" if len(few) > 20 else ""
        raise DatasetError(
            f"data.protocol={protocol} needs at least {count + 1} images of each class, but "
            f"{', '.join(map(repr, few[:20]))}{more} {'has' if len(few) == 1 else 'have'} fewer; "
            "lower the number, or add images"
        )
    return rows
