"""Stratified split of images into training, validation and test images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped, unused-ignore]

from autotune.config.schema import DataConfig
from autotune.data.source import Source
from autotune.data.splits.groups import assign_groups
from autotune.errors import DatasetError
from autotune.text import join_some, plural

#: All splits, in the order of their use.
SPLITS = ("train", "validation", "test")
#: Limits the shares of validation and test together: a smaller rest for training would ask for
#: thousands of images of every class.
_MAX_CARVED = 0.999


@dataclass(frozen=True)
class SplitIndices:
    """Three disjoint splits of a source: sorted indices into its samples."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]

    def by_index(self) -> dict[int, str]:
        """Return index -> split, of the images that are in a split."""
        return {index: split for split in SPLITS for index in getattr(self, split)}


def make_split(
    source: Source, config: DataConfig, groups: np.ndarray | None = None
) -> SplitIndices:
    """Split a source, class by class, the same way whenever the seed is the same.

    Every class gives each split its share, rounded, but at least one image: a class that a split
    lacks cannot be learned or measured. A split that the source already has stays as it is; the
    others are carved from its training split, by their shares of that split. All images of a
    group that are carved go to the same split, which comes first: the shares then hold as well as
    the groups allow.

    Args:
        source: The images.
        config: Shares, seed and the limit of the training split.
        groups: int64, ``(N,)``: number of the group of every image.

    Returns:
        The three splits. Images beyond ``train_per_class`` are in none of them.

    Raises:
        DatasetError: When a class has too few images or groups, or the shares leave nothing to
            train on.
    """
    given = {sample.split for sample in source.samples}
    shares = {
        split: share
        for split, share in (("validation", config.validation), ("test", config.test))
        if split not in given
    }
    if sum(shares.values()) > _MAX_CARVED:
        raise DatasetError(
            f"the shares of the splits may be {_MAX_CARVED} together, to leave images to train "
            f"on, but {' + '.join(f'data.{name}={share:g}' for name, share in shares.items())} is "
            "more; lower them"
        )
    pools: list[list[int]] = [[] for _ in source.classes]
    for index, sample in enumerate(source.samples):
        if sample.split in (None, "train"):
            pools[sample.label].append(index)
    limit = config.train_per_class
    _check_counts(source, pools, shares, limit)
    random = np.random.RandomState(config.seed)
    assigned = _assigned(source, pools, shares, groups, random)
    splits: dict[str, list[int]] = {split: [] for split in SPLITS}
    for label, pool in enumerate(pools):
        carved = _carve(pool, shares, assigned, random)
        if groups is not None:
            _check_groups(source.classes[label], groups[pool], carved, limit)
        if limit is not None and limit < len(carved["train"]):
            carved["train"], _ = train_test_split(
                carved["train"], train_size=limit, random_state=random
            )
        for split, indices in carved.items():
            splits[split] += indices
    for index, sample in enumerate(source.samples):
        if sample.split in ("validation", "test"):
            splits[sample.split].append(index)
    return SplitIndices(**{split: tuple(sorted(indices)) for split, indices in splits.items()})


def split_fingerprint(split: SplitIndices) -> str:
    """Return a hexadecimal digest of the images of all splits."""
    text = json.dumps(vars(split), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _carve(
    pool: Sequence[int],
    shares: dict[str, float],
    assigned: dict[int, str],
    random: np.random.RandomState,
) -> dict[str, list[int]]:
    """Split the images of a class: those in groups as assigned, the others by a draw."""
    carved: dict[str, list[int]] = {"train": [], **{split: [] for split in shares}}
    for index in pool:
        if index in assigned:
            carved[assigned[index]].append(index)
    singles = [index for index in pool if index not in assigned]
    for split, count in _counts(len(pool), shares).items():
        available = len(singles) - (not carved["train"])  # one stays where no group trains
        missing = min(count - len(carved[split]), available)
        if missing == len(singles) > 0:
            carved[split] += singles
            singles = []
        elif missing > 0:
            singles, drawn = train_test_split(singles, test_size=missing, random_state=random)
            carved[split] += drawn
    carved["train"] = singles + carved["train"]
    return carved


def _assigned(
    source: Source,
    pools: Sequence[Sequence[int]],
    shares: dict[str, float],
    groups: np.ndarray | None,
    random: np.random.RandomState,
) -> dict[int, str]:
    """Assign the groups of several images to splits; without groups, nothing is drawn."""
    if groups is None or not shares:
        return {}
    members: dict[int, list[int]] = {}
    for index in sorted(index for pool in pools for index in pool):
        members.setdefault(int(groups[index]), []).append(index)
    several = [indices for indices in members.values() if len(indices) > 1]
    counts = [_counts(len(pool), shares) for pool in pools]
    targets = {split: np.array([count[split] for count in counts]) for split in shares}
    sizes = np.array([len(pool) for pool in pools])
    targets = {"train": sizes - sum(targets.values()), **targets}
    labels = np.array([sample.label for sample in source.samples])
    classes = labels[[index for indices in several for index in indices]].astype(np.int64)
    singles = sizes - np.bincount(classes, minlength=len(sizes))
    return assign_groups(several, labels, targets, singles, random)


def _check_groups(
    name: str, groups: np.ndarray, splits: dict[str, list[int]], train_per_class: int | None
) -> None:
    """Refuse a split in which a class has too few images because groups stay together."""
    count = len(np.unique(groups))
    empty = [split for split, indices in splits.items() if not indices]
    way_out = "add images of other groups, remove the class, or change data.group"
    if empty:
        raise DatasetError(
            f"every class needs images in {_and([*splits])}, and all images of a group stay in "
            f"one split, but the {plural(count, 'group')} of {name!r} "
            f"leave{'' if count > 1 else 's'} {_and(empty)} without; {way_out} or data.duplicates"
        )
    if train_per_class is not None and len(splits["train"]) < train_per_class:
        raise DatasetError(
            f"every class needs {train_per_class} images to train on (data.train_per_class), and "
            f"all images of a group stay in one split, but the groups of {name!r} leave "
            f"{len(splits['train'])}; lower data.train_per_class, or {way_out}"
        )


def _and(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _counts(size: int, shares: dict[str, float]) -> dict[str, int]:
    """Return how many images of a class each carved split gets; at least one is left."""
    counts = {split: max(1, round(share * size)) for split, share in shares.items()}
    while counts and sum(counts.values()) >= size:  # rounding up twice can take all of a few
        counts[max(counts, key=lambda split: counts[split])] -= 1
    return counts


def _check_counts(
    source: Source,
    pools: Sequence[Sequence[int]],
    shares: dict[str, float],
    train_per_class: int | None,
) -> None:
    least = train_per_class or 1

    def is_enough(size: int) -> bool:
        return size > len(shares) and size - sum(_counts(size, shares).values()) >= least

    few = [
        f"'{name}' has {len(pool)}"
        for name, pool in zip(source.classes, pools, strict=True)
        if not is_enough(len(pool))
    ]
    if not few:
        return
    # rounding makes the training split shrink by one now and then while the class grows
    sizes = range(int((least + 4) / (1.0 - sum(shares.values()))) + 4)
    needed = 1 + max(size for size in sizes if not is_enough(size))
    limit = "" if train_per_class is None else f" with data.train_per_class={train_per_class}"
    way_out = ["add images", "remove the class"] + ["lower data.train_per_class"] * bool(limit)
    raise DatasetError(
        f"every class needs at least {plural(needed, 'image')} for {_and(['train', *shares])}"
        f"{limit}, but {join_some(few)}; {' or '.join(way_out)}"
    )
