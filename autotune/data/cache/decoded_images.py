"""Decoded images on disk: made once, mapped into the memory of every worker.

Where there is no room for them, every image is decoded whenever it is needed. Which images can be
decoded is found out once in either case, before anything trains.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from autotune.data.cache.array_cache import ArrayCache
from autotune.data.cache.decoding import (
    IMAGES,
    check_skipped,
    decode_all,
    decode_sample,
    silence_pillow,
)
from autotune.data.cache.entry import Entry
from autotune.data.preprocessing import ImageSpec
from autotune.data.source import Source
from autotune.errors import DatasetError, InsufficientSpaceError

logger = logging.getLogger(__name__)

#: Version of the format: raised whenever the same images would be stored otherwise.
_FORMAT = 2
_LIST = "-list"
#: Bytes of an image in a record, skipped images with their reasons included.
_LIST_BYTES = 64


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Images that are decoded whenever they are needed, to the same pixels as stored ones.

    Args:
        source: The images.
        indices: int64, ``(N,)``: indices into its samples.
        spec: What the backbone expects.
        fast: Whether large JPEGs are decoded at a part of their size.
    """

    source: Source
    indices: np.ndarray
    spec: ImageSpec
    fast: bool

    def __getitem__(self, row: int) -> np.ndarray:
        """Return an image, uint8 ``(3, T, T)``.

        Raises:
            DatasetError: When it could be read at the start, and cannot now.
        """
        sample = self.source.samples[self.indices[row]]
        with silence_pillow():
            image = decode_sample(self.source, sample, self.spec, self.fast)
        if isinstance(image, str):
            raise DatasetError(
                f"the images of {self.source.name!r} must stay while a study runs, but "
                f"{sample.key} cannot be read any more ({image}); bring it back"
            )
        return image


@dataclass(frozen=True, eq=False)
class ImageStore:
    """Decoded images, read-only and shared.

    Args:
        entry: Their cache entry, or that of their list alone.
        images: uint8, ``(N, 3, T, T)``, mapped from disk; or decoded when a row is needed.
        labels: int64, ``(N,)``.
        indices: int64, ``(N,)``: indices into the source's samples.
        skipped: Key and reason of each image that could not be decoded.
    """

    entry: Entry
    images: np.ndarray | LazyImages
    labels: np.ndarray
    indices: np.ndarray
    skipped: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """Digest of the source's content, the indices and the specification."""
        return self.entry.folder.name.removesuffix(_LIST)

    @property
    def is_cached(self) -> bool:
        """Whether the decoded images are stored; otherwise each is decoded when it is needed."""
        return not isinstance(self.images, LazyImages)

    def rows(self, indices: Sequence[int]) -> np.ndarray:
        """Return the rows of source indices, int64, in the same order; skipped ones have none."""
        rows = self._row_of
        return np.array([rows[index] for index in indices if index in rows], dtype=np.int64)

    @cached_property
    def _row_of(self) -> dict[int, int]:
        return {int(index): row for row, index in enumerate(self.indices)}

    def __reduce__(self) -> tuple[Callable[..., ImageStore], tuple[Any, ...]]:
        # pickling the mapped array would copy every image into each data-loading process
        return _from_entry, (self.entry, None if self.is_cached else self.images)


def open_store(
    source: Source,
    indices: Sequence[int],
    spec: ImageSpec,
    folder: Path,
    *,
    unreadable_limit: float,
    on_progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    limit_bytes: int | None = None,
    fast: bool = False,
) -> ImageStore:
    """Open the decoded images of a source, and decode them first if that is not done yet.

    Processes that need the same images at once wait for the one that decodes them. Where the
    decoded images are larger than the limit or the disk, they are decoded when they are needed.

    Args:
        source: The images.
        indices: Indices into its samples.
        spec: What the backbone expects.
        folder: Folder of the cache.
        unreadable_limit: Largest share of ``indices`` that may fail to decode.
        on_progress: Called with the number of images done and their total.
        workers: Decoding threads; ``None`` takes one for each core.
        limit_bytes: Limits everything in ``folder``, see :class:`ArrayCache`.
        fast: Whether large JPEGs are decoded at a part of their size.

    Raises:
        DatasetError: When too many images, or all of a class, cannot be decoded.
        DiskFullError: When the disk is full, or fills up meanwhile.
    """
    cache = ArrayCache(folder, limit_bytes)
    key = _key(source, indices, spec, fast)
    size, count = spec.store_size, len(indices)
    make = partial(
        decode_all,
        source=source,
        indices=indices,
        spec=spec,
        unreadable_limit=unreadable_limit,
        on_progress=on_progress,
        workers=workers,
        fast=fast,
    )
    try:
        needed, noun = count * 3 * size**2, f"{count} decoded images of {size}x{size}"
        store = _from_entry(cache.get_or_create(key, partial(make, is_stored=True), needed, noun))
    except InsufficientSpaceError as error:
        logger.warning("%s; until then each is decoded whenever it is needed, slower", error)
        needed, noun = count * _LIST_BYTES, f"keys and labels of {count} images"
        make_list = partial(make, is_stored=False)
        entry = cache.get_or_create(f"{key}{_LIST}", make_list, needed, noun)
        images = LazyImages(source, np.array(entry.record["indices"]), spec, fast)
        store = _from_entry(entry, images)
    check_skipped(source, indices, store.indices, store.skipped, unreadable_limit)
    return store


def _key(source: Source, indices: Sequence[int], spec: ImageSpec, fast: bool) -> str:
    identity = [_FORMAT, source.fingerprint, [int(index) for index in indices], asdict(spec)]
    identity += ["fast"] if fast else []
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest()


def _from_entry(entry: Entry, images: LazyImages | None = None) -> ImageStore:
    return ImageStore(
        entry=entry,
        images=entry.array(IMAGES) if images is None else images,
        labels=np.array(entry.record["labels"], dtype=np.int64),
        indices=np.array(entry.record["indices"], dtype=np.int64),
        skipped=tuple((str(name), str(reason)) for name, reason in entry.record["skipped"]),
    )
