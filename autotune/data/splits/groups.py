"""Images that belong together: by what the source or an expression says; kept in one part."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from autotune.data.source import Source
from autotune.errors import DatasetError

#: Orders in which groups of a size are tried; the split that is nearest to the shares is taken.
_DRAWS = 8


def find_groups(
    source: Source, expression: str | None, alike: np.ndarray | None = None
) -> np.ndarray | None:
    """Find out which images belong together.

    Args:
        source: The images.
        expression: A regular expression that is searched in the keys of images whose group the
            source does not say; its first group names it. An image that it does not match is a
            group of its own.
        alike: int64, ``(P, 2)``: pairs of images that belong together besides.

    Returns:
        int64, ``(N,)``: number of the group of every image; ``None`` when no two belong together.

    Raises:
        DatasetError: When the expression matches no key.
    """
    named: dict[str, list[int]] = {}
    matches = re.compile(expression).search if expression is not None else None
    matched = False
    for index, sample in enumerate(source.samples):
        name = sample.group
        if name is None and matches is not None and (found := matches(sample.key)):
            name, matched = found.group(1), True
        if name is not None:
            named.setdefault(name, []).append(index)
    if matches is not None and not matched:
        first = source.samples[0].key
        raise DatasetError(
            f"data.group must match the keys of images, but {expression!r} matches none of the "
            f"{len(source.samples)}, the first of which is {first!r}; change it or leave it out"
        )
    pairs = [(members[0], one) for members in named.values() for one in members[1:]]
    links = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    if alike is not None:
        links = np.concatenate([links, alike])
    if not len(links):
        return None
    size = len(source.samples)
    graph = coo_array(
        (np.ones(len(links), dtype=np.int8), (links[:, 0], links[:, 1])), (size,) * 2
    )
    numbers: np.ndarray = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers


def assign_groups(
    groups: Sequence[Sequence[int]],
    labels: np.ndarray,
    targets: Mapping[str, np.ndarray],
    singles: np.ndarray,
    random: np.random.RandomState,
) -> dict[int, str]:
    """Give every group of several images to one part, so that each class has its shares.

    The largest groups go first, each to the part that lacks most of what its classes are to have
    there. Groups of one size are drawn in several orders; the best outcome counts.

    Args:
        groups: Indices of the images of each group.
        labels: int64, ``(N,)``: the class of every image.
        targets: Part -> int64, ``(C,)``: how many images of each class it is to have.
        singles: int64, ``(C,)``: images of each class that are in no such group, and can fill
            what the groups leave.
        random: Of the orders.

    Returns:
        Image -> part.
    """
    if not groups:
        return {}
    parts = list(targets)
    wanted = np.stack([targets[part] for part in parts]).astype(np.float64)
    counted = [np.unique(labels[list(group)], return_counts=True) for group in groups]
    sizes = np.array([len(group) for group in groups])
    best: tuple[tuple[int, float], np.ndarray] | None = None
    for _ in range(_DRAWS):
        order = random.permutation(len(groups))
        order = order[np.argsort(-sizes[order], kind="stable")]
        room = wanted.copy()
        chosen = np.empty(len(groups), dtype=np.int64)
        for group in order:
            classes, counts = counted[group]
            there = room[:, classes]
            lacks = (there / np.maximum(wanted[:, classes], 1.0)) @ counts
            most = np.flatnonzero(lacks >= lacks.max() - 1e-12)
            chosen[group] = most[np.argmax(there[most].sum(axis=1))]
            room[chosen[group], classes] -= counts
        empty = int(np.maximum((room == wanted).sum(axis=0) - singles, 0).sum())
        beyond = float((np.minimum(room, 0.0) ** 2 / np.maximum(wanted, 1.0)).sum())
        if best is None or (empty, beyond) < best[0]:
            best = (empty, beyond), chosen
    assert best is not None
    return {
        index: parts[part] for group, part in zip(groups, best[1], strict=True) for index in group
    }
