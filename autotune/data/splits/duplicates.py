"""Images that are there more than once: pixel by pixel, or to the eye."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from autotune.data.progress import COMPARING, Progress, no_progress
from autotune.data.source import Source
from autotune.data.splits.image_hashes import ImageFingerprint, fingerprint_images
from autotune.data.splits.stratified import SplitIndices
from autotune.errors import DatasetError

#: Images whose hashes differ by at most so many of their 256 bits are alike. Measured in
#: ``benchmarks/duplicates.py``: no two of 397 photographs differ by less than 90.
NEAR_BITS = 64
#: With more pairs for each image than these, the images are of a kind that the hash cannot tell
#: apart, and what it says means nothing.
_MOST_PAIRS = 50
#: Hashes that are compared with all others at a time: a block takes 30 MB of 100,000 images.
_BLOCK = 32
_EXAMPLES = 5


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Pairs of images that are alike.

    Args:
        images: How many images were compared.
        unreadable: How many could not be read.
        small: How many were compared pixel by pixel alone.
        exact: int64, ``(P, 2)``: indices of equal images, each with the first one like it.
        near: int64, ``(Q, 2)``: indices of images that look alike; of equal ones the first.
        too_many: Whether so many look alike that the hash means nothing; ``near`` is empty then.
    """

    images: int
    unreadable: int
    small: int
    exact: np.ndarray
    near: np.ndarray
    too_many: bool = False

    @property
    def pairs(self) -> np.ndarray:
        """All pairs, int64 ``(P + Q, 2)``."""
        return np.concatenate([self.exact, self.near])


def find_duplicates(source: Source, progress: Progress = no_progress) -> Duplicates:
    """Look at all images, those of the test part too, and compare each with all others.

    Nothing of an image is kept but its hash.

    Args:
        source: The images.
        progress: Told of the images looked at.
    """
    looks = fingerprint_images(source, range(len(source.samples)), partial(progress, COMPARING))
    return find_pairs(looks)


def find_pairs(looks: Mapping[int, ImageFingerprint | str]) -> Duplicates:
    """Compare images with each other.

    Args:
        looks: Index -> what a quick look has shown.
    """
    seen = {index: look for index, look in looks.items() if isinstance(look, ImageFingerprint)}
    first: dict[bytes, int] = {}
    exact = []
    for index, look in seen.items():
        if first.setdefault(look.digest, index) != index:
            exact.append((first[look.digest], index))
    hashed = [(index, seen[index].bits) for index in first.values()]
    known = [(index, bits) for index, bits in hashed if bits is not None]
    indices = np.array([index for index, _ in known], dtype=np.int64)
    found: list[np.ndarray] = []
    count = 0
    if known:
        for block in near_pairs(np.stack([bits for _, bits in known])):
            found.append(indices[block])
            count += len(block)
            if count > _MOST_PAIRS * len(known):
                break
    too_many = count > _MOST_PAIRS * len(known)
    return Duplicates(
        images=len(seen),
        unreadable=len(looks) - len(seen),
        small=sum(look.bits is None for look in seen.values()),
        exact=_pairs(exact),
        near=np.concatenate(found) if found and not too_many else _pairs([]),
        too_many=too_many,
    )


def near_pairs(hashes: np.ndarray, limit: int = NEAR_BITS) -> Iterator[np.ndarray]:
    """Find the hashes that differ by few bits, block by block.

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
        apart = np.zeros((min(_BLOCK, rest.shape[1]), rest.shape[1]), dtype=np.uint16)
        for word in rest:
            apart += np.bitwise_count(word[:_BLOCK, None] ^ word[None])
        rows, columns = np.nonzero(apart <= limit)
        later = columns > rows
        if later.any():
            yield np.stack([rows[later], columns[later]], axis=1).astype(np.int64) + start


def refuse_too_many(found: Duplicates) -> None:
    """Refuse to keep together what the hash cannot tell apart.

    Raises:
        DatasetError: When it cannot.
    """
    if found.too_many:
        raise DatasetError(
            "data.duplicates: group needs images that can be told apart, but of these images "
            f"each looks like more than {_MOST_PAIRS} others; take report or off, and name what "
            "belongs together with data.group"
        )


def count_duplicates(found: Duplicates, source: Source, split: SplitIndices) -> dict[str, Any]:
    """Count duplicates by what they do to a split, as plain JSON values, with a few examples.

    Returns:
        ``images``, ``unreadable`` and ``small``: how many were compared, could not be read, were
        compared pixel by pixel alone. ``exact`` and ``near``: how many images have another one
        like them. ``test``: how many test images are like one of training or validation.
        ``validation``: how many validation images are like one of training. ``classes``: how many
        pairs have two classes. ``examples``: keys, parts and kind of a few pairs, those across
        parts first. ``too_many``: whether the hash means nothing here.
    """
    part_of = {
        index: part for part in ("train", "validation", "test") for index in getattr(split, part)
    }
    labels = np.array([sample.label for sample in source.samples])
    copies, alike = _neighbours(found)
    touched = Counter[str]()
    for first, members in copies.items():
        like = [one for near in alike.get(first, ()) for one in copies[near]]
        parts = Counter(part_of.get(one) for one in (*members, *like))
        for one in members:
            others = {part for part, count in parts.items() if count > (part == part_of.get(one))}
            if part_of.get(one) == "test" and others & {"train", "validation"}:
                touched["test"] += 1
            if part_of.get(one) == "validation" and "train" in others:
                touched["validation"] += 1
    pairs = found.pairs
    exact = {(int(one), int(other)) for one, other in found.exact}
    listed = [(int(one), int(other)) for one, other in pairs]
    shown = sorted(listed, key=lambda pair: len({part_of.get(one) for one in pair} - {None}) < 2)
    keys = [sample.key for sample in source.samples]
    return {
        "images": found.images,
        "unreadable": found.unreadable,
        "small": found.small,
        "exact": len(np.unique(found.exact)),
        "near": sum(len(copies[first]) for first in alike),
        "test": touched["test"],
        "validation": touched["validation"],
        "classes": int((labels[pairs[:, 0]] != labels[pairs[:, 1]]).sum()),
        "too_many": found.too_many,
        "examples": [
            [
                *(keys[one], part_of.get(one, "")),
                *(keys[other], part_of.get(other, "")),
                "exact" if (one, other) in exact else "near",
            ]
            for one, other in shown[:_EXAMPLES]
        ],
    }


def _neighbours(found: Duplicates) -> tuple[dict[int, list[int]], dict[int, set[int]]]:
    """Return the images equal to each first one, itself included, and those that look like it."""
    copies: dict[int, list[int]] = {int(first): [int(first)] for first in found.pairs[:, 0]}
    copies |= {int(other): [int(other)] for other in found.near[:, 1]}
    for first, other in found.exact:
        copies[int(first)].append(int(other))
    alike: dict[int, set[int]] = {}
    for one, other in found.near:
        alike.setdefault(int(one), set()).add(int(other))
        alike.setdefault(int(other), set()).add(int(one))
    return copies, alike


def _pairs(pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
