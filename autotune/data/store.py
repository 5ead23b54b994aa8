"""Decoded images on disk: made once, mapped into the memory of every worker."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from autotune.data.building import IMAGES, build, check_skipped
from autotune.data.images import ImageSpec
from autotune.data.shelf import Entry, Shelf
from autotune.data.sources import Source

#: Raised whenever the same images would be stored otherwise.
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class ImageStore:
    """Decoded images, read-only and shared.

    Args:
        entry: Where they lie on the shelf.
        images: uint8, ``(N, 3, T, T)``, mapped from disk.
        labels: int64, ``(N,)``.
        indices: int64, ``(N,)``: indices into the source's samples.
        skipped: Key and reason of each image that could not be decoded.
    """

    entry: Entry
    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    skipped: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """Digest of the source's content, the indices and the specification."""
        return self.entry.folder.name

    def rows(self, indices: Sequence[int]) -> np.ndarray:
        """Find the rows of source indices.

        Args:
            indices: Indices into the source's samples.

        Returns:
            int64 rows in the same order; indices without a row are left out.
        """
        known = self._rows
        return np.array([known[index] for index in indices if index in known], dtype=np.int64)

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {int(index): row for row, index in enumerate(self.indices)}

    def __reduce__(self) -> tuple[Callable[[Entry], ImageStore], tuple[Entry]]:
        # pickling the mapped array would copy every image into each data-loading process
        return _of, (self.entry,)


def open_store(
    source: Source,
    indices: Sequence[int],
    spec: ImageSpec,
    folder: Path,
    *,
    unreadable_limit: float,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    limit_bytes: int | None = None,
    fast: bool = False,
) -> ImageStore:
    """Open the decoded images of a source, and decode them first if nobody has.

    Processes that ask for the same images at once wait for the one that decodes them.

    Args:
        source: The images.
        indices: Which of its samples.
        spec: What the backbone wants.
        folder: Where all stores lie.
        unreadable_limit: Largest share of ``indices`` that may fail to decode.
        progress: Called with the number of images done and their total.
        workers: Decoding threads; None takes one for each core.
        limit_bytes: What everything in ``folder`` may take, see :class:`Shelf`.
        fast: Whether large JPEGs are decoded at a part of their size, see
            :func:`autotune.data.images.shrink`.

    Returns:
        The images that could be decoded.

    Raises:
        DatasetError: When too many images, or all of a class, cannot be decoded.
        DiskFullError: When the decoded images do not fit on the disk.
    """
    size = spec.store_size
    entry = Shelf(folder, limit_bytes).open(
        _key(source, indices, spec, fast),
        partial(
            build,
            source=source,
            indices=indices,
            spec=spec,
            unreadable_limit=unreadable_limit,
            progress=progress,
            workers=workers,
            fast=fast,
        ),
        len(indices) * 3 * size**2,
        f"{len(indices)} decoded images of {size}x{size}",
    )
    store = _of(entry)
    check_skipped(source, indices, store.indices, store.skipped, unreadable_limit)
    return store


def _key(source: Source, indices: Sequence[int], spec: ImageSpec, fast: bool) -> str:
    identity = [_FORMAT, source.fingerprint, [int(index) for index in indices], asdict(spec)]
    identity += ["fast"] if fast else []
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest()


def _of(entry: Entry) -> ImageStore:
    return ImageStore(
        entry=entry,
        images=entry.array(IMAGES),
        labels=np.array(entry.record["labels"], dtype=np.int64),
        indices=np.array(entry.record["indices"], dtype=np.int64),
        skipped=tuple((str(name), str(reason)) for name, reason in entry.record["skipped"]),
    )
