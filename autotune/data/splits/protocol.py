"""Splits that papers prescribe: some training images of each class, the rest for testing."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

import numpy as np

from autotune.config.fields import PER_CLASS
from autotune.data.source import Source
from autotune.data.sources.base import SubsetSource
from autotune.data.sources.names import quoted
from autotune.errors import DatasetError


def apply_protocol(source: Source, protocol: str, seed: int) -> Source:
    """Split a source as a protocol says.

    Of each class, a number of images, drawn by the seed, are for training; all others are for
    testing. A validation split is carved from the training split as usual, or folds are cut from
    it: the search uses nothing else, and the final fit trains on all of it.

    Raises:
        DatasetError: When the images have splits or groups already, or a class has too few.
    """
    count = int(protocol.removesuffix(PER_CLASS))
    random = np.random.RandomState(seed)
    rows = _class_rows(source, protocol, count)
    train = {int(row) for class_rows in rows for row in random.permutation(class_rows)[:count]}
    samples = tuple(
        replace(sample, split="train" if index in train else "test")
        for index, sample in enumerate(source.samples)
    )
    return SubsetSource(source, source.classes, samples)


def refuse_groups(source: Source, protocol: str) -> NoReturn:
    """Raise a DatasetError: single images cannot be drawn from groups."""
    raise DatasetError(
        f"data.protocol={protocol} draws single images, but those of {source.name!r} are in "
        "groups that stay together (a column of groups, data.group or data.duplicates: group); "
        "leave data.protocol out, or the groups"
    )


def _class_rows(source: Source, protocol: str, count: int) -> list[list[int]]:
    """Return the images of each class, more than are asked for."""
    splits = sorted({sample.split for sample in source.samples if sample.split})
    if splits:
        raise DatasetError(
            f"data.protocol={protocol} is for images without splits, but {source.name!r} has the "
            f"splits {', '.join(splits)}; leave data.protocol out"
        )
    if any(sample.group is not None for sample in source.samples):
        refuse_groups(source, protocol)
    rows: list[list[int]] = [[] for _ in source.classes]
    for index, sample in enumerate(source.samples):
        rows[sample.label].append(index)
    few = [
        name
        for name, class_rows in zip(source.classes, rows, strict=True)
        if len(class_rows) <= count
    ]
    if few:
        raise DatasetError(
            f"data.protocol={protocol} needs at least {count + 1} images of each class, but "
            f"{quoted(few)} {'has' if len(few) == 1 else 'have'} fewer; lower the number, or add "
            "images"
        )
    return rows
