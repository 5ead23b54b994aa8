"""The split of a study, stored when the study is made."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autotune.data.source import Source
from autotune.data.sources.base import SubsetSource
from autotune.data.splits.stratified import SPLITS, SplitIndices
from autotune.text import join_some

_HEADER = ["key", "label", "class", "part", "group"]


@dataclass(frozen=True)
class ManifestRow:
    """One image of a manifest: its split is empty where it is in none.

    Images that stay together have the same number of a group.
    """

    key: str
    label: int
    split: str
    group: int


@dataclass(frozen=True)
class Manifest:
    """The images of a study, in the order of its source, those in no split included."""

    classes: tuple[str, ...]
    rows: tuple[ManifestRow, ...]

    @staticmethod
    def from_split(
        source: Source, split: SplitIndices, groups: np.ndarray | None = None
    ) -> Manifest:
        """Return the manifest of a split."""
        numbers = range(len(source.samples)) if groups is None else groups.tolist()
        split_of = split.by_index()
        rows = tuple(
            ManifestRow(sample.key, sample.label, split_of.get(index, ""), group)
            for index, (sample, group) in enumerate(zip(source.samples, numbers, strict=True))
        )
        return Manifest(source.classes, rows)

    def to_bytes(self) -> bytes:
        """Return the manifest as a compressed CSV file, the same for the same split."""
        lines = [_csv_line(_HEADER)]
        for row in self.rows:
            values = [row.key, row.label, self.classes[row.label], row.split, row.group]
            lines.append(_csv_line(values))
        return gzip.compress("".join(lines).encode(), mtime=0)

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """Read the result of :meth:`to_bytes`.

        Raises:
            ValueError: When it is something else, or damaged.
        """
        try:
            text = gzip.decompress(data).decode()
            header, *lines = csv.reader(io.StringIO(text, newline=""))
            names = {int(label): name for _, label, name, *_ in lines}
            rows = tuple(
                ManifestRow(key, int(label), split, int(group))
                for key, label, _, split, group in lines
            )
            classes = tuple(names[label] for label in range(len(names)))
        except (OSError, EOFError, KeyError, csv.Error, zlib.error) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if header != _HEADER or {row.split for row in rows} - {*SPLITS, ""}:
            raise ValueError(f"the columns are {header}")
        return Manifest(classes, rows)

    def missing(self, source: Source) -> tuple[str, ...]:
        """Return the keys of images that a source lacks, or has in another class."""
        classes = {sample.key: source.classes[sample.label] for sample in source.samples}
        return tuple(
            row.key for row in self.rows if classes.get(row.key) != self.classes[row.label]
        )

    def select(self, source: Source) -> tuple[Source, SplitIndices, np.ndarray | None]:
        """Select the images of the manifest from a source that lacks none of them.

        Returns:
            These images alone, under the classes of the manifest, their split, and the number of
            the group of each; ``None`` where no two belong together.
        """
        by_key = {sample.key: sample for sample in source.samples}
        samples = tuple(replace(by_key[row.key], label=row.label) for row in self.rows)
        splits = {
            split: tuple(index for index, row in enumerate(self.rows) if row.split == split)
            for split in SPLITS
        }
        numbers = np.array([row.group for row in self.rows], dtype=np.int64)
        groups = numbers if len(np.unique(numbers)) < len(numbers) else None
        if samples != source.samples:
            source = SubsetSource(source, self.classes, samples)
        return source, SplitIndices(**splits), groups


def _csv_line(values: Sequence[object]) -> str:
    """Return a line of CSV, which ends with a line feed alone."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow(values)  # a name with \r or \n is in quotes only under this ending
    return text.getvalue().removesuffix("\r\n") + "\n"


def describe_missing(missing: Sequence[str]) -> str:
    """Describe which images of a study are missing."""
    return (
        "images of the study are missing, or in another class: "
        f"{join_some([repr(key) for key in missing], 5)}"
    )
