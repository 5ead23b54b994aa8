"""What is odd about the images of a study, counted when it is made, and said in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autotune.data.progress import Progress, no_progress

if TYPE_CHECKING:
    from autotune.data.splits.dataset import Dataset

#: From so many times as many images in the largest class as in the smallest, something is said.
IMBALANCE = 3.0
_EXAMPLES = 5


def check_dataset(
    dataset: Dataset, duplicates: str, progress: Progress = no_progress
) -> dict[str, Any]:
    """Count what is odd about the images of a new study.

    Args:
        dataset: Images and their split.
        duplicates: What ``data.duplicates`` says; ``off`` looks at no image.
        progress: Told of the images compared.

    Returns:
        Plain JSON values: ``largest`` and ``smallest``, names and training images of two classes;
        ``groups``, how many groups of images there are, how many lie in several parts, and a few
        of those; ``duplicates``, see :func:`autotune.data.splits.duplicates.count_duplicates`.
    """
    source, split = dataset.source, dataset.split
    counts = Counter(source.samples[index].label for index in split.train)
    ranked = sorted(range(len(source.classes)), key=lambda label: counts[label])
    values: dict[str, Any] = {
        "largest": [source.classes[ranked[-1]], counts[ranked[-1]]],
        "smallest": [source.classes[ranked[0]], counts[ranked[0]]],
    }
    if dataset.groups is not None:
        values["groups"] = _groups(dataset)
    if duplicates != "off":
        from autotune.data.splits.duplicates import count_duplicates, find_duplicates

        found = dataset.duplicates or find_duplicates(source, progress)
        values["duplicates"] = {"mode": duplicates, **count_duplicates(found, source, split)}
    return values


def _groups(dataset: Dataset) -> dict[str, Any]:
    assert dataset.groups is not None
    keys = [sample.key for sample in dataset.source.samples]
    parts: dict[int, dict[str, str]] = {}
    for part in ("train", "validation", "test"):
        for index in getattr(dataset.split, part):
            parts.setdefault(int(dataset.groups[index]), {}).setdefault(part, keys[index])
    across = [list(one.items()) for one in parts.values() if len(one) > 1]
    return {
        "count": len(set(dataset.groups.tolist())),
        "across": len(across),
        "examples": [[part, key] for one in across[:_EXAMPLES] for part, key in one],
    }


def dataset_warnings(values: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    """Say what should be known of the images of a study.

    Args:
        values: What :func:`survey` has counted; nothing of a study made before it did.
        training: The section ``training`` of the study.
    """
    return [
        one
        for one in (_imbalance(values, training), _crossing(values), *_duplicates(values))
        if one
    ]


def duplicate_summary(values: Mapping[str, Any]) -> str:
    """Say what the search for duplicates has found; empty where nobody looked."""
    found = values.get("duplicates")
    if not found:
        return ""
    near = "not counted" if found["too_many"] else f"{found['near']:,} look alike"
    small = f" ({found['small']:,} too small to look alike)" if found["small"] else ""
    return (
        f"{found['exact']:,} of {_many(found['images'], 'image')} are there more than once, "
        f"{near}{small}; data.duplicates: {found['mode']}"
    )


def _imbalance(values: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    if "largest" not in values:
        return ""
    (large, most), (small, fewest) = values["largest"], values["smallest"]
    ways = {
        "training.objective": ("balanced_accuracy", ("balanced_accuracy", "macro_f1")),
        "training.sampling": ("balanced", ("balanced",)),
    }
    open_ways = [
        f"{key}: {value}"
        for key, (value, those) in ways.items()
        if training.get(key.partition(".")[2]) not in those
    ]
    if most <= IMBALANCE * fewest or not open_ways:
        return ""
    what = {
        2: "the first counts every class alike, the second shows them equally often",
        1: "it counts every class alike"
        if "objective" in open_ways[0]
        else "it shows them equally often",
    }
    return (
        f"The classes are uneven: {large!r} has {most:,} training images, {small!r} {fewest:,}. "
        f"See {' and '.join(open_ways)}: {what[len(open_ways)]}."
    )


def _crossing(values: Mapping[str, Any]) -> str:
    groups = values.get("groups")
    if not groups or not groups["across"]:
        return ""
    shown = ", ".join(f"{key} ({part})" for part, key in groups["examples"][:2])
    return (
        f"{_many(groups['across'], 'group')} of images {_lie(groups['across'])} in several parts, "
        f"because the data set comes in parts: {shown}."
    )


def _duplicates(values: Mapping[str, Any]) -> list[str]:
    found = values.get("duplicates")
    if not found:
        return []
    said = []
    if found["too_many"]:
        said.append(
            "The images look so much alike that near duplicates cannot be told from others; only "
            "equal ones were counted."
        )
    leaks = [
        f"{_many(found[part], f'{part} image')} {_are(found[part])} like one of {others}"
        for part, others in (("test", "training or validation"), ("validation", "training"))
        if found[part]
    ]
    shown = "; ".join(
        f"{one} ({part or 'unused'}) and {other} ({there or 'unused'}), {kind}"
        for one, part, other, there, kind in found["examples"][:3]
    )
    if leaks:
        way_out = (
            "The data set comes in parts, which are kept"
            if found["mode"] in ("group", "together")  # the latter before version 0.2
            else "They stay in one part with data.duplicates: group"
        )
        said.append(
            f"Duplicates across parts flatter what is measured: {' and '.join(leaks)} "
            f"({shown}). {way_out}."
        )
    elif found["exact"] or found["near"]:
        said.append(
            f"{_many(found['exact'], 'image')} {_are(found['exact'])} there more than once, "
            f"{found['near']:,} {_look(found['near'])} like another one, none across parts "
            f"({shown})."
        )
    if found["classes"]:
        pairs = found["classes"]
        said.append(
            f"{_many(pairs, 'pair')} of images that are alike {_have(pairs)} two classes: one of "
            "the two labels may be wrong."
        )
    return said


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _lie(count: int) -> str:
    return "lies" if count == 1 else "lie"


def _look(count: int) -> str:
    return "looks" if count == 1 else "look"
