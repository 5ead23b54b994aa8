"""Fingerprints of images: size, colors, and hashes that find duplicates.

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
#: Limits the side of images with a perceptual hash: smaller ones have no such frequencies, and
#: are compared pixel by pixel alone.
MIN_HASHED_SIDE = 4 * HASH_SIDE
#: Least side at which a JPEG is decoded; the hash of one that is decoded in full differs by 14
#: bits at most (docs/splits.md).
_DRAFT_SIDE = 128


@dataclass(frozen=True, eq=False)
class ImageFingerprint:
    """What identifies and describes an image.

    Args:
        size: Width and height of the image as it is stored.
        digest: Digest of the pixels: equal ones mean equal images.
        bits: uint64, ``(4,)``: the perceptual hash; ``None`` for an image too small for it.
        mean: float64, ``(3,)``: means of the channels, of values between 0 and 1.
        square: float64, ``(3,)``: means of the squares.
    """

    size: tuple[int, int]
    digest: bytes
    bits: np.ndarray | None
    mean: np.ndarray
    square: np.ndarray


def fingerprint_images(
    source: Source,
    indices: Sequence[int],
    on_progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> dict[int, ImageFingerprint | str]:
    """Compute the fingerprints of images, in threads.

    Args:
        source: The images.
        indices: Indices into its samples.
        on_progress: Called with the number of images done and their total.
        workers: Threads; ``None`` takes one for each core.

    Returns:
        Index -> fingerprint, or the reason why the image cannot be read.
    """
    results: dict[int, ImageFingerprint | str] = {}

    def work(index: int) -> ImageFingerprint | str:
        return retry_read(lambda: _fingerprint(source, index))

    with silence_pillow():
        for index, result in ordered_thread_map(work, indices, workers):
            results[index] = result
            if on_progress is not None:
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
    )
