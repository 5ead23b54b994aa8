"""Decoded images on disk: made once, mapped into the memory of every worker.

Where there is no room for them, every image is decoded whenever it is needed. Which images can be
decoded is found out once in either case, before anything trains.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from autotune.data.cache.array_cache import ArrayCache
from autotune.data.cache.entry import Entry, EntryWriter
from autotune.data.cache.reading import ordered_thread_map, retry_read, silence_pillow
from autotune.data.image_formats import has_heic
from autotune.data.preprocessing import ImageSpec, draft_decode, to_store_array
from autotune.data.source import Source
from autotune.errors import DatasetError, InsufficientSpaceError
from autotune.text import join_some

logger = logging.getLogger(__name__)

#: Version of the format: raised whenever the same images would be stored otherwise.
_FORMAT = 3
#: Name of the array: uint8, ``(N, 3, T, T)``.
_IMAGES = "images"
_LIST = "-list"
#: What helps where a study exists.
_RESTORE = (
    "if they could be read when the study was made, bring them back as they were; otherwise "
    "repair them and start another study with --name"
)
#: Bytes of an image in a record, skipped images with their reasons included.
_LIST_BYTES = 64


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Images that are decoded whenever they are needed.

    Where ``fast``, large JPEGs are decoded at a part of their size.
    """

    source: Source
    indices: np.ndarray
    spec: ImageSpec
    fast: bool

    def decode(self, row: int) -> np.ndarray | str:
        """Decode an image, uint8 ``(3, T, T)``, or return the reason why it cannot be decoded."""
        sample = self.source.samples[self.indices[row]]
        shrink = partial(draft_decode, spec=self.spec) if self.fast else None
        return retry_read(lambda: to_store_array(self.source.read(sample, shrink), self.spec))

    def __getitem__(self, row: int) -> np.ndarray:
        """Return an image that could be decoded at the start, uint8 ``(3, T, T)``.

        Raises:
            DatasetError: When it cannot be read any more.
        """
        with silence_pillow():
            image = self.decode(row)
        if isinstance(image, str):
            raise DatasetError(
                f"the images of {self.source.name!r} must stay while a study runs, but "
                f"{self.source.samples[self.indices[row]].key} cannot be read any more ({image}); "
                "bring it back"
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
        keys: Key of each image; empty in a process that loads data.
    """

    entry: Entry
    images: np.ndarray | LazyImages
    labels: np.ndarray
    indices: np.ndarray
    skipped: tuple[tuple[str, str], ...]
    keys: tuple[str, ...] = ()

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
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int | None = None,
    limit_bytes: int | None = None,
    fast: bool = False,
    what: str = "images",
    is_new: bool = False,
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
        what: What the images are called in messages.
        is_new: Whether no study of them exists yet, so that they may be changed.

    Raises:
        DatasetError: When too many images, or all of a class, cannot be decoded.
        DiskFullError: When the disk is full, or fills up meanwhile.
    """
    images = LazyImages(source, np.array(indices, dtype=np.int64), spec, fast)
    size, count = spec.store_size, len(indices)
    check = partial(check_skipped, images, limit=unreadable_limit, what=what, is_new=is_new)

    def decode(is_stored: bool, writer: EntryWriter) -> dict[str, Any]:
        rows = writer.array(_IMAGES, np.uint8, (3, size, size)) if is_stored else None
        decoded, skipped = [], []
        with silence_pillow():
            for row, image in ordered_thread_map(images.decode, range(count), workers):
                if isinstance(image, str):
                    skipped.append((source.samples[indices[row]].key, image))
                else:
                    decoded.append(int(indices[row]))
                    if rows is not None:
                        rows.append(image[None])
                on_progress(row + 1, count)
        check(decoded, skipped)
        if skipped:
            reasons = "; ".join(f"{name} ({reason})" for name, reason in skipped)
            message = "%d of %d images cannot be decoded and are skipped: %s"
            logger.warning(message, len(skipped), count, reasons)
        labels = [source.samples[index].label for index in decoded]
        return {"indices": decoded, "labels": labels, "skipped": skipped}

    cache, key = ArrayCache(folder, limit_bytes), _key(images)
    try:
        needed, noun = count * 3 * size**2, f"{count} decoded images of {size}x{size}"
        store = _from_entry(cache.get_or_create(key, partial(decode, True), needed, noun))
    except InsufficientSpaceError as error:
        logger.warning("%s; until then each is decoded whenever it is needed, slower", error)
        needed, noun = count * _LIST_BYTES, f"keys and labels of {count} images"
        entry = cache.get_or_create(f"{key}{_LIST}", partial(decode, False), needed, noun)
        readable = LazyImages(source, np.array(entry.record["indices"]), spec, fast)
        store = _from_entry(entry, readable)
    check(store.indices, store.skipped)
    return replace(store, keys=tuple(source.samples[index].key for index in store.indices))


def _key(images: LazyImages) -> str:
    identity = [_FORMAT, images.source.fingerprint, images.indices.tolist(), asdict(images.spec)]
    identity += ["fast"] if images.fast else []
    identity += ["heic"] if has_heic() else []  # images that could not be read before
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest()


def _from_entry(entry: Entry, images: LazyImages | None = None) -> ImageStore:
    return ImageStore(
        entry=entry,
        images=entry.array(_IMAGES) if images is None else images,
        labels=np.array(entry.record["labels"], dtype=np.int64),
        indices=np.array(entry.record["indices"], dtype=np.int64),
        skipped=tuple((str(name), str(reason)) for name, reason in entry.record["skipped"]),
    )


def find_unreadable(
    images: LazyImages, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[tuple[str, str]]:
    """Decode images and keep none of them; return key and reason of each unreadable one."""
    source, count = images.source, len(images.indices)
    unreadable = []
    with silence_pillow():
        for row, image in ordered_thread_map(images.decode, range(count)):
            if isinstance(image, str):
                unreadable.append((source.samples[images.indices[row]].key, image))
            on_progress(row + 1, count)
    return unreadable


def check_skipped(
    images: LazyImages,
    decoded: Sequence[int] | np.ndarray,
    skipped: Sequence[tuple[str, str]],
    *,
    limit: float,
    what: str = "images",
    is_new: bool = False,
) -> None:
    """Refuse images of which too many, or all of a class, cannot be decoded.

    Args:
        images: All images.
        decoded: Indices of those that can be decoded.
        skipped: Key and reason of the others.
        limit: Largest share of the images that may be skipped.
        what: What the images are called in the message.
        is_new: Whether no study of them exists yet. The images of a study stay as they are: one
            that is repaired or removed is a change of the study, which is refused.

    Raises:
        DatasetError: With the images, and with what helps.
    """
    if not skipped:
        return
    source, count = images.source, len(images.indices)
    listed = join_some([f"{name} ({reason})" for name, reason in skipped], 5, "; ")
    labels, kept = (
        {source.samples[index].label for index in some} for some in (images.indices, decoded)
    )
    if lost := sorted(labels - kept):
        cure = "repair or replace them, or remove the class"
        raise DatasetError(
            f"every class needs {what} that can be decoded, but none can of "
            f"{', '.join(repr(source.classes[label]) for label in lost)}: {listed}; "
            f"{cure if is_new else _RESTORE}"
        )
    if len(skipped) > limit * count:
        enough = math.ceil(1000 * len(skipped) / count) / 1000
        cure = f"raise the limit: data.max_unreadable_share={enough:g}"
        raise DatasetError(
            f"at most {limit:.4g} of the {what} may be unreadable (data.max_unreadable_share), "
            f"but {len(skipped)} of {count} are: {listed}; "
            + (f"repair or remove them, or {cure}" if is_new else f"{cure}; or {_RESTORE}")
        )
