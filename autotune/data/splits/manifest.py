"""Which image is in which part of a study, written down for good when the study is made."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autotune.data.source import Source
from autotune.data.sources.base import SubsetSource
from autotune.data.splits.stratified import SplitIndices

_HEAD = ["key", "label", "class", "part", "group"]
_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class ManifestRow:
    """One image of a manifest.

    Args:
        key: Its key in the source.
        label: Index into the classes.
        part: ``train``, ``validation``, ``test``, or empty where it is in none.
        group: Number of the images that it belongs to; its own where it belongs to none.
    """

    key: str
    label: int
    split: str
    group: int


@dataclass(frozen=True)
class Manifest:
    """The images of a study, in the order of its source, those in no part included.

    Args:
        classes: Names of the classes.
        lines: One for every image.
    """

    classes: tuple[str, ...]
    rows: tuple[ManifestRow, ...]

    @staticmethod
    def from_split(
        source: Source, split: SplitIndices, groups: np.ndarray | None = None
    ) -> Manifest:
        """Write down a split, and the groups where there are some."""
        numbers = range(len(source.samples)) if groups is None else groups.tolist()
        parts = {index: part for part in _PARTS for index in getattr(split, part)}
        lines = tuple(
            ManifestRow(sample.key, sample.label, parts.get(index, ""), group)
            for index, (sample, group) in enumerate(zip(source.samples, numbers, strict=True))
        )
        return Manifest(source.classes, lines)

    def to_bytes(self) -> bytes:
        """Return the manifest as a compressed CSV file, the same for the same split."""
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(_HEAD)
        for line in self.rows:
            named = self.classes[line.label]
            table.writerow([line.key, line.label, named, line.split, line.group])
        return gzip.compress(text.getvalue().encode(), mtime=0)

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """Read what :meth:`to_bytes` has written.

        Raises:
            ValueError: When it is something else, or damaged.
        """
        try:
            text = gzip.decompress(data).decode()
            head, *rows = csv.reader(io.StringIO(text, newline=""))
            names = {int(label): name for _, label, name, *_ in rows}
            lines = tuple(
                ManifestRow(key, int(label), part, int(group))
                for key, label, _, part, group in rows
            )
            classes = tuple(names[label] for label in range(len(names)))
        except (OSError, EOFError, KeyError, csv.Error) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if head != _HEAD or {line.split for line in lines} - {*_PARTS, ""}:
            raise ValueError(f"the columns are {head}")
        return Manifest(classes, lines)

    def missing(self, source: Source) -> tuple[str, ...]:
        """Return the keys of the images that are not there any more, or in another class."""
        now = {sample.key: source.classes[sample.label] for sample in source.samples}
        return tuple(
            line.key for line in self.rows if now.get(line.key) != self.classes[line.label]
        )

    def select(self, source: Source) -> tuple[Source, SplitIndices, np.ndarray | None]:
        """Find the images again.

        Args:
            source: The images as they are now, of which none is missing.

        Returns:
            The images of the manifest alone, under their classes of then, their split, and the
            number of the group of each; ``None`` where no two belong together.
        """
        now = {sample.key: sample for sample in source.samples}
        picked = tuple(replace(now[line.key], label=line.label) for line in self.rows)
        parts = {
            part: tuple(index for index, line in enumerate(self.rows) if line.split == part)
            for part in _PARTS
        }
        numbers = np.array([line.group for line in self.rows], dtype=np.int64)
        groups = numbers if len(set(numbers.tolist())) < len(numbers) else None
        same = picked == source.samples
        chosen = source if same else SubsetSource(source, self.classes, picked)
        return chosen, SplitIndices(**parts), groups


def describe_missing(missing: Sequence[str]) -> str:
    """Say which images of a study are missing."""
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return (
        "images of the study are missing, or in another class: "
        f"{', '.join(map(repr, missing[:5]))}{more}"
    )
