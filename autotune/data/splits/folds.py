"""Cross-validation folds over all images outside of the test split."""

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
from autotune.text import join_some


@dataclass(frozen=True, eq=False)
class Fold:
    """The training and validation images of one fold, int64, ascending.

    The validation images of all folds together are all images.
    """

    train: np.ndarray
    validation: np.ndarray


def merge_for_folds(source: Source, split: SplitIndices) -> SplitIndices:
    """Move all images outside of the test split into the training split, to cut folds from it.

    Those that ``train_per_class`` left out are among them, and those of a validation split that
    the source has.
    """
    test = set(split.test)
    others = tuple(index for index in range(len(source.samples)) if index not in test)
    return SplitIndices(train=others, validation=(), test=split.test)


def make_folds(
    source: Source, split: SplitIndices, config: DataConfig, groups: np.ndarray | None = None
) -> tuple[Fold, ...]:
    """Cut the training split into folds, class by class, the same way for the same seed.

    The images of a group validate in the same fold, and the classes are as even as that allows.
    With ``train_per_class``, each fold draws as many training images as that says.

    Args:
        source: The images.
        split: The result of :func:`merge_for_folds`.
        config: Number of folds, seed and the limit of the training images.
        groups: int64, ``(N,)``: number of the group of every image of the source.

    Raises:
        DatasetError: When a class has too few images, or too few groups, for the folds.
    """
    if config.folds is None:
        return ()
    indices = np.array(split.train)
    labels = np.array([source.samples[index].label for index in split.train])
    limit = config.train_per_class
    if groups is None:
        _check_counts(source, labels, config.folds, limit)
    splitter = (StratifiedKFold if groups is None else StratifiedGroupKFold)(
        config.folds, shuffle=True, random_state=config.seed
    )
    random = np.random.RandomState(config.seed)
    folds = []
    for train, validation in splitter.split(
        labels, labels, None if groups is None else groups[indices]
    ):
        if groups is not None:
            _check_grouped(source, labels, (train, validation), config.folds, limit)
        if limit is not None:
            by_class = [train[labels[train] == label] for label in range(len(source.classes))]
            train = np.concatenate(
                [random.choice(rows, limit, replace=False) for rows in by_class]
            )
        folds.append(Fold(indices[np.sort(train)], indices[np.sort(validation)]))
    return tuple(folds)


def folds_fingerprint(folds: Sequence[Fold]) -> str:
    """Return a hexadecimal digest of the images of all folds."""
    digest = hashlib.blake2b(digest_size=16)
    for fold in folds:
        for rows in (fold.train, fold.validation):
            digest.update(len(rows).to_bytes(8, "little") + rows.astype("<i8").tobytes())
    return digest.hexdigest()


def _check_counts(source: Source, labels: np.ndarray, folds: int, limit: int | None) -> None:
    """Refuse classes that cannot validate in every fold and train beside it."""
    least = limit or 1
    needed = next(n for n in range(folds, folds * (least + 2)) if n - -(-n // folds) >= least)
    if few := _few(source, labels, needed):
        raise DatasetError(
            f"every class needs at least {needed} images outside of the test split for "
            f"{_settings(folds, limit)}, but {join_some(few)}; {_ways_out(limit)}"
        )


def _check_grouped(
    source: Source,
    labels: np.ndarray,
    fold: tuple[np.ndarray, np.ndarray],
    folds: int,
    limit: int | None,
) -> None:
    """Refuse folds in which a class is missing because its images belong to few groups."""
    for rows, least, use in zip(fold, (limit or 1, 1), ("train", "validate"), strict=True):
        if few := _few(source, labels[rows], least, f" that {use}"):
            raise DatasetError(
                f"the images of a group stay together, and every class must have at least {least} "
                f"that {use} in every fold for {_settings(folds, limit)}, but in one "
                f"{join_some(few)}; {_ways_out(limit)}"
            )


def _few(source: Source, labels: np.ndarray, least: int, use: str = "") -> list[str]:
    counts = np.bincount(labels, minlength=len(source.classes))
    return [
        f"{name!r} has {count}{use}"
        for name, count in zip(source.classes, counts, strict=True)
        if count < least
    ]


def _settings(folds: int, limit: int | None) -> str:
    return f"data.folds={folds}" + (f" with data.train_per_class={limit}" if limit else "")


def _ways_out(limit: int | None) -> str:
    lower = "lower data.folds" + (" or data.train_per_class" if limit else "")
    return f"{lower}, add images or remove the class"
