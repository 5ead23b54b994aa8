"""Images that belong together, and must be in one split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from autotune.data.source import Source
from autotune.errors import DatasetError

#: Orders in which groups of one size are tried; the split nearest to the shares is taken.
_DRAWS = 8


def find_groups(
    source: Source, expression: str | None, similar: np.ndarray | None = None
) -> np.ndarray | None:
    """Return which images belong together.

    Args:
        source: The images.
        expression: A regular expression that is searched in the keys of images without a group;
            its first group is the group's name. An image that it does not match stays alone.
        similar: int64, ``(P, 2)``: further pairs of images that belong together.

    Returns:
        int64, ``(N,)``: number of the group of every image; ``None`` when no two belong together.

    Raises:
        DatasetError: When the expression matches no key, or every image has a group.
    """
    members: dict[str, list[int]] = {}
    pattern = re.compile(expression) if expression is not None else None
    has_matched = False
    for index, sample in enumerate(source.samples):
        name = sample.group
        if name is None and pattern is not None and (match := pattern.search(sample.key)):
            name, has_matched = match.group(1), True
        if name is not None:
            members.setdefault(name, []).append(index)
    if pattern is not None and all(sample.group is not None for sample in source.samples):
        raise DatasetError(
            "data.group is for images without a group, but each has one already, such as "
            f"{source.samples[0].group!r} of {source.samples[0].key!r}; leave data.group out"
        )
    if pattern is not None and not has_matched:
        raise DatasetError(
            f"data.group must match the keys of images, but {expression!r} matches none of the "
            f"{len(source.samples)}, the first of which is {source.samples[0].key!r}; change it "
            "or leave it out"
        )
    pairs = [(indices[0], index) for indices in members.values() for index in indices[1:]]
    links = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    if similar is not None:
        links = np.concatenate([links, similar])
    if not len(links):
        return None
    size = len(source.samples)
    graph = coo_array((np.ones(len(links), dtype=np.int8), tuple(links.T)), (size, size))
    numbers: np.ndarray = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers


def assign_groups(
    groups: Sequence[Sequence[int]],
    labels: np.ndarray,
    targets: Mapping[str, np.ndarray],
    singles: np.ndarray,
    random: np.random.RandomState,
) -> dict[int, str]:
    """Assign every group of several images to a split, so that each class has its shares.

    The largest groups go first, each to the split that lacks most of what its classes are to have
    there. Groups of one size are drawn in several orders; the best outcome counts.

    Args:
        groups: Indices of the images of each group.
        labels: int64, ``(N,)``: the class of every image.
        targets: Split -> int64, ``(C,)``: how many images of each class it is to have.
        singles: int64, ``(C,)``: images of each class that are in no such group, and can fill
            what the groups leave.
        random: Draws the orders.

    Returns:
        Image -> split.
    """
    if not groups:
        return {}
    splits = list(targets)
    wanted = np.stack([targets[split] for split in splits]).astype(np.float64)
    counted = [np.unique(labels[list(group)], return_counts=True) for group in groups]
    sizes = np.array([len(group) for group in groups])
    outcomes = []
    for draw in range(_DRAWS):
        order = random.permutation(len(groups))
        order = order[np.argsort(-sizes[order], kind="stable")]
        room = wanted.copy()
        chosen = np.empty(len(groups), dtype=np.int64)
        for group in order:
            classes, counts = counted[group]
            free = room[:, classes]
            lacks = (free / np.maximum(wanted[:, classes], 1.0)) @ counts
            most = np.flatnonzero(lacks >= lacks.max() - 1e-12)
            chosen[group] = most[np.argmax(free[most].sum(axis=1))]
            room[chosen[group], classes] -= counts
        empty = int(np.maximum((room == wanted).sum(axis=0) - singles, 0).sum())
        excess = float((np.minimum(room, 0.0) ** 2 / np.maximum(wanted, 1.0)).sum())
        outcomes.append((empty, excess, draw, chosen))
    *_, best = min(outcomes, key=lambda outcome: outcome[:3])
    return {
        index: splits[split] for group, split in zip(groups, best, strict=True) for index in group
    }
