"""A quick look at every image: its size, its colours, and what tells whether it is there twice.

Large JPEGs are decoded at a part of their size, which is several times faster than in full.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image

from autotune.data.cache.decoding import ordered_thread_map, retry_read, silence_pillow
from autotune.data.source import Source

#: Side of the perceptual hash (pHash): 256 bits, from the lowest frequencies of 64x64 pixels.
HASH_SIDE = 16
#: Smaller images have no such frequencies: they are compared pixel by pixel alone.
MIN_HASHED_SIDE = 4 * HASH_SIDE
#: Side at which a JPEG is decoded at least; the hash of one that is decoded in full differs by 14
#: bits at most (docs/splits.md).
_SIDE = 128


@dataclass(frozen=True, eq=False)
class ImageFingerprint:
    """What a quick look at an image shows.

    Args:
        size: Width and height of the image as it is stored.
        digest: Of the pixels: equal ones mean equal images.
        bits: uint64, ``(4,)``: the perceptual hash; ``None`` of an image too small for it.
        mean: float64, ``(3,)``: of the channels, of values between 0 and 1.
        square: float64, ``(3,)``: mean of the squares.
    """

    size: tuple[int, int]
    digest: bytes
    bits: np.ndarray | None
    mean: np.ndarray
    square: np.ndarray


def fingerprint_images(
    source: Source,
    indices: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> dict[int, ImageFingerprint | str]:
    """Look at images, in threads.

    Args:
        source: The images.
        indices: Which of its samples.
        progress: Called with the number of images done and their total.
        workers: Threads; None takes one for each core.

    Returns:
        Index -> what there is to see, or the reason why the image cannot be read.
    """
    looks: dict[int, ImageFingerprint | str] = {}

    def work(index: int) -> ImageFingerprint | str:
        return retry_read(lambda: _look(source, index))

    with silence_pillow():
        for index, look in ordered_thread_map(work, indices, workers):
            looks[index] = look
            if progress is not None:
                progress(len(looks), len(indices))
    return looks


def _look(source: Source, index: int) -> ImageFingerprint:
    size: list[tuple[int, int]] = []

    def smaller(image: Image.Image) -> Image.Image:
        size.append(image.size)
        image.draft("RGB", (_SIDE, _SIDE))
        return image

    image = source.read(source.samples[index], smaller)
    pixels = np.asarray(image)
    stored = size[0] if size else image.size
    digest = hashlib.blake2b(f"{stored} {image.size}".encode(), digest_size=16)
    digest.update(pixels.tobytes())
    values = pixels.reshape(-1, 3).astype(np.float32) / 255.0
    return ImageFingerprint(
        size=stored,
        digest=digest.digest(),
        bits=_hash(image) if min(stored) >= MIN_HASHED_SIDE else None,
        mean=values.mean(axis=0, dtype=np.float64),
        square=np.square(values).mean(axis=0, dtype=np.float64),
    )


def _hash(image: Image.Image) -> np.ndarray:
    bits = imagehash.phash(image, hash_size=HASH_SIDE).hash
    return np.packbits(bits.ravel()).view(np.uint64)
