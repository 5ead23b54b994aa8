"""Exact and near-duplicate images, found by fingerprints.

Large JPEGs are decoded at a part of their size, which is several times faster than in full.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import imagehash
import numpy as np
from PIL import Image

from autotune.data.cache.reading import ordered_thread_map, retry_read, silence_pillow
from autotune.data.progress import COMPARING, ProgressCallback, no_progress
from autotune.data.source import Source
from autotune.data.splits.stratified import SplitIndices
from autotune.errors import DatasetError

#: Side of the perceptual hash (pHash): 256 bits, from the lowest frequencies of 64x64 pixels.
HASH_SIDE = 16
#: Limits the side of images with a perceptual hash: smaller ones have no such frequencies, and
#: are compared pixel by pixel alone.
MIN_HASHED_SIDE = 4 * HASH_SIDE
#: Least side at which a JPEG is decoded; the hash of one that is decoded in full differs by 14
#: bits at most (docs/splits.md).
_DRAFT_SIDE = 128
#: Limits the bits, of 256, by which the hashes of near duplicates differ. Measured in
#: ``benchmarks/duplicates.py``: no two of 397 photographs differ by less than 90.
NEAR_BITS = 64
#: Limits the near duplicates of each image on average: with more, the images are of a kind that
#: the hash cannot tell apart.
_MAX_PAIRS = 50
#: Hashes that are compared with all others at a time: a block takes 30 MB of 100,000 images.
_BLOCK = 32
#: Limits the values of an image that is nearly black: 12 bits in a file of 16 come so far.
_NEARLY_BLACK = 16
#: Limits the pairs that a result lists.
_EXAMPLES = 5


@dataclass(frozen=True, eq=False)
class ImageFingerprint:
    """What identifies and describes an image.

    Args:
        size: Width and height of the image as it is stored.
        digest: Digest of the pixels: equal ones mean equal images.
        bits: uint64, ``(4,)``: the perceptual hash; ``None`` for an image too small for it.
        mean: float64, ``(3,)``: means of the channels, of values between 0 and 1.
        square: float64, ``(3,)``: means of the squares.
        is_blank: Whether all pixels have the same color, or are nearly black.
    """

    size: tuple[int, int]
    digest: bytes
    bits: np.ndarray | None
    mean: np.ndarray
    square: np.ndarray
    is_blank: bool


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Pairs of duplicate images.

    Args:
        images: How many images were compared.
        unreadable: How many could not be read.
        small: How many were compared pixel by pixel alone.
        exact: int64, ``(P, 2)``: indices of equal images, each with the first one equal to it.
        near: int64, ``(Q, 2)``: indices of images that look alike; of equal ones the first.
        blank: Indices of images that have one color.
        too_many: Whether too many look alike for the hash to tell; ``near`` is empty then.
    """

    images: int
    unreadable: int
    small: int
    exact: np.ndarray
    near: np.ndarray
    blank: tuple[int, ...] = ()
    too_many: bool = False

    @property
    def pairs(self) -> np.ndarray:
        """All pairs, int64 ``(P + Q, 2)``."""
        return np.concatenate([self.exact, self.near])


def find_duplicates(source: Source, progress: ProgressCallback = no_progress) -> Duplicates:
    """Compare each image with all others, those of the test split too; only hashes are kept."""
    indices = range(len(source.samples))
    return find_pairs(fingerprint_images(source, indices, partial(progress, COMPARING)))


def fingerprint_images(
    source: Source,
    indices: Sequence[int],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int | None = None,
) -> dict[int, ImageFingerprint | str]:
    """Compute the fingerprints of images, in threads; by default one for each core.

    Returns:
        Index -> fingerprint, or the reason why the image cannot be read.
    """
    results: dict[int, ImageFingerprint | str] = {}

    def work(index: int) -> ImageFingerprint | str:
        return retry_read(lambda: _fingerprint(source, index))

    with silence_pillow():
        for index, result in ordered_thread_map(work, indices, workers):
            results[index] = result
            on_progress(len(results), len(indices))
    return results


def _fingerprint(source: Source, index: int) -> ImageFingerprint:
    sizes: list[tuple[int, int]] = []

    def shrink(image: Image.Image) -> Image.Image:
        sizes.append(image.size)
        image.draft("RGB", (_DRAFT_SIDE, _DRAFT_SIDE))
        return image

    image = source.read(source.samples[index], shrink)
    stored = sizes[0] if sizes else image.size
    pixels = np.asarray(image)
    digest = hashlib.blake2b(f"{stored} {image.size}".encode(), digest_size=16)
    digest.update(pixels.tobytes())
    values = pixels.reshape(-1, 3).astype(np.float32) / 255.0
    bits = None
    if min(stored) >= MIN_HASHED_SIDE:
        hashed = imagehash.phash(image, hash_size=HASH_SIDE).hash
        bits = np.packbits(hashed.ravel()).view(np.uint64)
    return ImageFingerprint(
        size=stored,
        digest=digest.digest(),
        bits=bits,
        mean=values.mean(axis=0, dtype=np.float64),
        square=np.square(values).mean(axis=0, dtype=np.float64),
        is_blank=int(pixels.max()) <= _NEARLY_BLACK or not np.ptp(pixels, axis=(0, 1)).any(),
    )


def find_pairs(results: Mapping[int, ImageFingerprint | str]) -> Duplicates:
    """Return the pairs of duplicates in a result of :func:`fingerprint_images`."""
    readable = {
        index: result for index, result in results.items() if isinstance(result, ImageFingerprint)
    }
    first: dict[bytes, int] = {}
    exact = [
        (original, index)
        for index, image in readable.items()
        if (original := first.setdefault(image.digest, index)) != index
    ]
    hashes = {
        index: bits for index in first.values() if (bits := readable[index].bits) is not None
    }
    indices = np.array(list(hashes), dtype=np.int64)
    near = [_pairs([])]
    count, too_many = 0, False
    for block in near_pairs(np.stack(list(hashes.values()))) if hashes else ():
        near.append(indices[block])
        count += len(block)
        too_many = count > _MAX_PAIRS * len(hashes)
        if too_many:
            break
    return Duplicates(
        images=len(readable),
        unreadable=len(results) - len(readable),
        small=sum(image.bits is None for image in readable.values()),
        exact=_pairs(exact),
        near=near[0] if too_many else np.concatenate(near),
        blank=tuple(index for index, image in readable.items() if image.is_blank),
        too_many=too_many,
    )


def near_pairs(hashes: np.ndarray, limit: int = NEAR_BITS) -> Iterator[np.ndarray]:
    """Yield the pairs of hashes that differ by few bits, block by block.

    Every hash is compared with every other: within a quarter of the bits an index leaves out
    little, and a processor counts differing bits of eight bytes in one instruction.

    Args:
        hashes: uint64, ``(N, W)``.
        limit: Most bits by which two differ.

    Yields:
        int64, ``(P, 2)``: positions, the smaller one first.
    """
    words = np.ascontiguousarray(hashes.T)
    for start in range(0, len(hashes), _BLOCK):
        rest = words[:, start:]
        distances = np.zeros((min(_BLOCK, rest.shape[1]), rest.shape[1]), dtype=np.uint16)
        for word in rest:
            distances += np.bitwise_count(word[:_BLOCK, None] ^ word[None])
        rows, columns = np.nonzero(distances <= limit)
        is_later = columns > rows
        if is_later.any():
            yield np.stack([rows[is_later], columns[is_later]], axis=1).astype(np.int64) + start


def refuse_too_many(duplicates: Duplicates) -> None:
    """Raise a DatasetError when the hash cannot tell the images apart."""
    if duplicates.too_many:
        raise DatasetError(
            "data.duplicates: group needs images that can be told apart, but of these images "
            f"each looks like more than {_MAX_PAIRS} others; take report or off, and name what "
            "belongs together with data.group"
        )


def count_duplicates(
    duplicates: Duplicates, source: Source, split: SplitIndices
) -> dict[str, Any]:
    """Count duplicates by their effect on a split, as plain JSON values, with a few examples.

    Returns:
        ``images``, ``unreadable`` and ``small``: how many were compared, could not be read, were
        compared pixel by pixel alone. ``blank``: how many have one color, and keys of a few.
        ``exact`` and ``near``: how many images have a duplicate of
        that kind. ``test``: how many test images have one in training or validation.
        ``validation``: how many validation images have one in training. ``classes``: how many
        pairs have two classes. ``examples``: keys, splits and kind of a few pairs, those across
        splits first. ``too_many``: whether the hash means nothing here.
    """
    split_of = split.by_index()
    labels = np.array([sample.label for sample in source.samples])
    copies, similar = _neighbors(duplicates)
    leaks = Counter[str]()
    for first, members in copies.items():
        others = [index for near in similar.get(first, ()) for index in copies[near]]
        counts = Counter(split_of.get(index) for index in (*members, *others))
        for index in members:
            own = split_of.get(index)
            elsewhere = {name for name, count in counts.items() if count > (name == own)}
            leaks["test"] += own == "test" and bool(elsewhere & {"train", "validation"})
            leaks["validation"] += own == "validation" and "train" in elsewhere
    pairs = duplicates.pairs
    kinds = ["exact"] * len(duplicates.exact) + ["near"] * len(duplicates.near)
    listed = sorted(
        zip(pairs.tolist(), kinds, strict=True),
        key=lambda pair: len({split_of.get(index) for index in pair[0]} - {None}) < 2,
    )
    keys = [sample.key for sample in source.samples]
    return {
        "images": duplicates.images,
        "unreadable": duplicates.unreadable,
        "small": duplicates.small,
        "blank": [len(duplicates.blank), *(keys[index] for index in duplicates.blank[:_EXAMPLES])],
        "exact": len(np.unique(duplicates.exact)),
        "near": sum(len(copies[first]) for first in similar),
        "test": leaks["test"],
        "validation": leaks["validation"],
        "classes": int((labels[pairs[:, 0]] != labels[pairs[:, 1]]).sum()),
        "too_many": duplicates.too_many,
        "examples": [
            [keys[first], split_of.get(first, ""), keys[second], split_of.get(second, ""), kind]
            for (first, second), kind in listed[:_EXAMPLES]
        ],
    }


def _neighbors(duplicates: Duplicates) -> tuple[dict[int, list[int]], dict[int, set[int]]]:
    """Return the images equal to each first one, itself included, and those that look like it."""
    copies: dict[int, list[int]] = {}
    similar: dict[int, set[int]] = {}
    for first, second in duplicates.exact.tolist():
        copies.setdefault(first, [first]).append(second)
    for first, second in duplicates.near.tolist():
        for index, other in ((first, second), (second, first)):
            copies.setdefault(index, [index])
            similar.setdefault(index, set()).add(other)
    return copies, similar


def _pairs(pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
