"""Folds: every image outside of the test part validates once, and trains otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import (  # type: ignore[import-untyped, unused-ignore]
    StratifiedGroupKFold,
    StratifiedKFold,
)

from autotune.config.schema import DataConfig
from autotune.data.source import Source
from autotune.data.splits.stratified import SplitIndices
from autotune.errors import DatasetError


@dataclass(frozen=True, eq=False)
class Fold:
    """What trains and what validates in one of several folds.

    Args:
        train: int64, rising: which images train.
        validation: The same of those that validate; those of all folds together are all images.
    """

    train: np.ndarray
    validation: np.ndarray


def merge_for_folds(source: Source, split: SplitIndices) -> SplitIndices:
    """Give all images but those of the test part to the folds.

    What is left out by ``train_per_class`` is among them, and so is a validation part that the
    source has.

    Args:
        source: The images.
        split: Their split without folds, whose test part stays what it is.

    Returns:
        A split whose training part is cut into folds, without a validation part.
    """
    test = set(split.test)
    rest = tuple(index for index in range(len(source.samples)) if index not in test)
    return SplitIndices(train=rest, validation=(), test=split.test)


def make_folds(
    source: Source, split: SplitIndices, config: DataConfig, groups: np.ndarray | None = None
) -> tuple[Fold, ...]:
    """Cut the training part of a split into folds, class by class, the same way for a seed.

    The images of a group validate in the same fold, and the classes are as even as that allows.
    With ``train_per_class``, each fold draws as many training images as that says.

    Args:
        source: The images.
        split: What :func:`joined` returned.
        config: Number of folds, seed and the limit of the training images.
        groups: int64, ``(N,)``: number of the group of every image of the source.

    Returns:
        The folds, of indices into the source's samples; none without ``data.folds``.

    Raises:
        DatasetError: When a class has too few images, or too few groups, for so many folds.
    """
    if config.folds is None:
        return ()
    indices = np.array(split.train)
    samples = [source.samples[index] for index in split.train]
    labels = np.array([sample.label for sample in samples])
    limit = config.train_per_class
    grouped = groups is not None
    if not grouped:
        _check_counts(source, labels, config.folds, limit)
    cutter = (StratifiedGroupKFold if grouped else StratifiedKFold)(
        config.folds, shuffle=True, random_state=config.seed
    )
    random = np.random.RandomState(config.seed)
    folds = []
    for train, validation in cutter.split(
        labels, labels, None if groups is None else groups[indices]
    ):
        if grouped:
            _check_grouped(source, labels, (train, validation), config.folds, limit)
        if limit is not None:
            by_class = [train[labels[train] == label] for label in range(len(source.classes))]
            train = np.concatenate([random.choice(one, limit, replace=False) for one in by_class])
        folds.append(Fold(indices[np.sort(train)], indices[np.sort(validation)]))
    return tuple(folds)


def folds_fingerprint(folds: Sequence[Fold]) -> str:
    """Return a hexadecimal digest of which image does what in which fold."""
    digest = hashlib.blake2b(digest_size=16)
    for fold in folds:
        for part in (fold.train, fold.validation):
            digest.update(len(part).to_bytes(8, "little") + part.astype("<i8").tobytes())
    return digest.hexdigest()


def _check_counts(source: Source, labels: np.ndarray, folds: int, limit: int | None) -> None:
    """Refuse classes that cannot validate in every fold and train beside it."""
    least = limit or 1
    needed = next(n for n in range(folds, folds * (least + 2)) if n - -(-n // folds) >= least)
    counts = np.bincount(labels, minlength=len(source.classes))
    few = [
        f"{name!r} has {count}"
        for name, count in zip(source.classes, counts, strict=True)
        if count < needed
    ]
    if few:
        raise DatasetError(
            f"every class needs at least {needed} images outside of the test part for "
            f"{_wish(folds, limit)}, but {_some(few)}; {_ways_out(limit)}"
        )


def _check_grouped(
    source: Source,
    labels: np.ndarray,
    fold: tuple[np.ndarray, np.ndarray],
    folds: int,
    limit: int | None,
) -> None:
    """Refuse folds in which a class is missing because its images belong to few groups."""
    for part, least, what in zip(fold, (limit or 1, 1), ("train", "validate"), strict=True):
        counts = np.bincount(labels[part], minlength=len(source.classes))
        few = [
            f"{name!r} has {count} that {what}"
            for name, count in zip(source.classes, counts, strict=True)
            if count < least
        ]
        if few:
            raise DatasetError(
                f"the images of a group stay together, and every class must have at least {least} "
                f"that {what} in every fold for {_wish(folds, limit)}, but in one {_some(few)}; "
                f"{_ways_out(limit)}"
            )


def _wish(folds: int, limit: int | None) -> str:
    return f"data.folds={folds}" + (f" with data.train_per_class={limit}" if limit else "")


def _some(few: Sequence[str]) -> str:
    more = f" and {len(few) - 20} more classes have too few" if len(few) > 20 else ""
    return ", ".join(few[:20]) + more


def _ways_out(limit: int | None) -> str:
    lower = "lower data.folds" + (" or data.train_per_class" if limit else "")
    return f"{lower}, add images or remove the class"
