"""Which images train, which choose the trial, and which are looked at once, at the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped, unused-ignore]

from autotune.config import DataConfig
from autotune.data.sources import Source
from autotune.errors import DatasetError

#: The rest is for training; a smaller rest would ask for thousands of images of every class.
_MAX_CARVED = 0.999


@dataclass(frozen=True)
class Split:
    """Three disjoint parts of a source.

    Args:
        train: Sorted indices into the source's samples.
        validation: The same, for choosing among trials.
        test: The same, for the final fit alone.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def make_split(source: Source, config: DataConfig) -> Split:
    """Split a source, class by class, the same way whenever the seed is the same.

    Every class gives each part its share, rounded, but at least one image: a class that a part
    lacks cannot be learned or measured. A part that the source already has is taken as it is;
    the others are carved from its training part, by their shares of that part.

    Args:
        source: The images.
        config: Shares, seed and the limit of the training part.

    Returns:
        The three parts. Images beyond ``train_per_class`` are in none of them.

    Raises:
        DatasetError: When a class has too few images, or the shares leave nothing to train on.
    """
    given = {sample.part for sample in source.samples}
    shares = {
        part: share
        for part, share in (("validation", config.validation), ("test", config.test))
        if part not in given
    }
    if sum(shares.values()) > _MAX_CARVED:
        raise DatasetError(
            f"the shares of the parts may be {_MAX_CARVED} together, to leave images to train on, "
            f"but {' + '.join(f'data.{part}={share:g}' for part, share in shares.items())} is "
            "more; lower them"
        )
    pools = _pools(source)
    _check_counts(source, pools, shares, config.train_per_class)
    random = np.random.RandomState(config.seed)
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for train in pools:
        for part, count in _counts(len(train), shares).items():
            train, carved = train_test_split(train, test_size=count, random_state=random)
            parts[part] += carved
        limit = config.train_per_class
        if limit is not None and limit < len(train):
            train, _ = train_test_split(train, train_size=limit, random_state=random)
        parts["train"] += train
    for index, sample in enumerate(source.samples):
        if sample.part in ("validation", "test"):
            parts[sample.part].append(index)
    return Split(**{part: tuple(sorted(indices)) for part, indices in parts.items()})


def split_fingerprint(split: Split) -> str:
    """Return a hexadecimal digest of which image is in which part."""
    text = json.dumps(asdict(split), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _pools(source: Source) -> list[list[int]]:
    """Return, for each class, the images to be split: all that no other part has."""
    pools: list[list[int]] = [[] for _ in source.classes]
    for index, sample in enumerate(source.samples):
        if sample.part in (None, "train"):
            pools[sample.label].append(index)
    return pools


def _counts(size: int, shares: dict[str, float]) -> dict[str, int]:
    """Return how many of a class's images each carved part gets; at least one is left."""
    counts = {part: max(1, round(share * size)) for part, share in shares.items()}
    while counts and sum(counts.values()) >= size:  # rounding up twice can take all of a few
        counts[max(counts, key=lambda part: counts[part])] -= 1
    return counts


def _check_counts(
    source: Source,
    pools: Sequence[Sequence[int]],
    shares: dict[str, float],
    train_per_class: int | None,
) -> None:
    least = train_per_class or 1

    def enough(size: int) -> bool:
        return size > len(shares) and size - sum(_counts(size, shares).values()) >= least

    few = {label: len(pool) for label, pool in enumerate(pools) if not enough(len(pool))}
    if not few:
        return
    # rounding makes the training part shrink by one now and then while the class grows
    sizes = range(int((least + 4) / (1.0 - sum(shares.values()))) + 4)
    needed = 1 + max(size for size in sizes if not enough(size))
    limit = "" if train_per_class is None else f" with data.train_per_class={train_per_class}"
    *others, last = ["train", *shares]
    parts = f"{', '.join(others)} and {last}" if others else last
    way_out = ["add images", "remove the class"] + ["lower data.train_per_class"] * bool(limit)
    raise DatasetError(
        f"every class needs at least {needed} image{'s' if needed > 1 else ''} for "
        f"{parts}{limit}, but {_class_counts(source, few)}; {' or '.join(way_out)}"
    )


def _class_counts(source: Source, counts: dict[int, int]) -> str:
    shown = [f"'{source.classes[label]}' has {count}" for label, count in counts.items()]
    more = f" and {len(shown) - 20} more classes have too few" if len(shown) > 20 else ""
    return ", ".join(shown[:20]) + more
