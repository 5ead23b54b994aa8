"""Which images train, which choose the trial, and which are looked at once, at the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped, unused-ignore]

from autotune.config.schema import DataConfig
from autotune.data.source import Source
from autotune.data.splits.groups import assign_groups
from autotune.errors import DatasetError

#: The splits of a study, in the order of their use.
SPLITS = ("train", "validation", "test")
#: The rest is for training; a smaller rest would ask for thousands of images of every class.
_MAX_CARVED = 0.999


@dataclass(frozen=True)
class SplitIndices:
    """Three disjoint parts of a source.

    Args:
        train: Sorted indices into the source's samples.
        validation: The same, for choosing among trials.
        test: The same, for the final fit alone.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]

    def by_index(self) -> dict[int, str]:
        """Return index -> split, of the images that are in one."""
        return {index: split for split in SPLITS for index in getattr(self, split)}


def make_split(
    source: Source, config: DataConfig, groups: np.ndarray | None = None
) -> SplitIndices:
    """Split a source, class by class, the same way whenever the seed is the same.

    Every class gives each part its share, rounded, but at least one image: a class that a part
    lacks cannot be learned or measured. A part that the source already has is taken as it is;
    the others are carved from its training part, by their shares of that part. All images of a
    group that are carved go to the same part, which comes first: the shares then hold as well as
    the groups allow.

    Args:
        source: The images.
        config: Shares, seed and the limit of the training part.
        groups: int64, ``(N,)``: number of the group of every image.

    Returns:
        The three parts. Images beyond ``train_per_class`` are in none of them.

    Raises:
        DatasetError: When a class has too few images or groups, or the shares leave nothing to
            train on.
    """
    given = {sample.split for sample in source.samples}
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
    placed = _placed(source, pools, shares, groups, random)
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for label, pool in enumerate(pools):
        there: dict[str, list[int]] = {"train": [], **{part: [] for part in shares}}
        for index in pool:
            if index in placed:
                there[placed[index]].append(index)
        train = [index for index in pool if index not in placed]
        for part, count in _counts(len(pool), shares).items():
            left = len(train) - (not there["train"])  # one stays where no group trains
            missing = min(count - len(there[part]), left)
            if missing == len(train) > 0:
                there[part] += train
                train = []
            elif missing > 0:
                train, carved = train_test_split(train, test_size=missing, random_state=random)
                there[part] += carved
        train += there.pop("train")
        for part, indices in there.items():
            parts[part] += indices
        limit = config.train_per_class
        if groups is not None:
            _check_groups(source.classes[label], groups[pool], {"train": train, **there}, limit)
        if limit is not None and limit < len(train):
            train, _ = train_test_split(train, train_size=limit, random_state=random)
        parts["train"] += train
    for index, sample in enumerate(source.samples):
        if sample.split in ("validation", "test"):
            parts[sample.split].append(index)
    return SplitIndices(**{part: tuple(sorted(indices)) for part, indices in parts.items()})


def split_fingerprint(split: SplitIndices) -> str:
    """Return a hexadecimal digest of which image is in which part."""
    text = json.dumps(asdict(split), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _placed(
    source: Source,
    pools: Sequence[Sequence[int]],
    shares: dict[str, float],
    groups: np.ndarray | None,
    random: np.random.RandomState,
) -> dict[int, str]:
    """Place the groups of several images; where there are none, nothing is drawn."""
    if groups is None or not shares:
        return {}
    members: dict[int, list[int]] = {}
    for index in sorted(index for pool in pools for index in pool):
        members.setdefault(int(groups[index]), []).append(index)
    several = [indices for indices in members.values() if len(indices) > 1]
    counts = [_counts(len(pool), shares) for pool in pools]
    targets = {part: np.array([one[part] for one in counts]) for part in shares}
    sizes = np.array([len(pool) for pool in pools])
    targets = {"train": sizes - sum(targets.values()), **targets}
    labels = np.array([sample.label for sample in source.samples])
    classes = labels[[index for indices in several for index in indices]].astype(np.int64)
    singles = sizes - np.bincount(classes, minlength=len(sizes))
    return assign_groups(several, labels, targets, singles, random)


def _check_groups(
    name: str, groups: np.ndarray, parts: dict[str, list[int]], train_per_class: int | None
) -> None:
    """Refuse a split in which a class has too little of a part because groups stay together."""
    count = len(np.unique(groups))
    empty = [part for part, indices in parts.items() if not indices]
    way_out = "add images of other groups, remove the class, or change data.group"
    if empty:
        raise DatasetError(
            f"every class needs images in {_and([*parts])}, and all images of a group stay in one "
            f"part, but the {count} group{'s' if count > 1 else ''} of {name!r} "
            f"leave{'' if count > 1 else 's'} {_and(empty)} without; {way_out} or data.duplicates"
        )
    if train_per_class is not None and len(parts["train"]) < train_per_class:
        raise DatasetError(
            f"every class needs {train_per_class} images to train on (data.train_per_class), and "
            f"all images of a group stay in one part, but the groups of {name!r} leave "
            f"{len(parts['train'])}; lower data.train_per_class, or {way_out}"
        )


def _and(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _pools(source: Source) -> list[list[int]]:
    """Return, for each class, the images to be split: all that no other part has."""
    pools: list[list[int]] = [[] for _ in source.classes]
    for index, sample in enumerate(source.samples):
        if sample.split in (None, "train"):
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
    parts = _and(["train", *shares])
    way_out = ["add images", "remove the class"] + ["lower data.train_per_class"] * bool(limit)
    raise DatasetError(
        f"every class needs at least {needed} image{'s' if needed > 1 else ''} for "
        f"{parts}{limit}, but {_class_counts(source, few)}; {' or '.join(way_out)}"
    )


def _class_counts(source: Source, counts: dict[int, int]) -> str:
    shown = [f"'{source.classes[label]}' has {count}" for label, count in counts.items()]
    more = f" and {len(shown) - 20} more classes have too few" if len(shown) > 20 else ""
    return ", ".join(shown[:20]) + more
