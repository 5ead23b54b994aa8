"""Problems of the images of a study: counted when it is made, described in reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from autotune.data.image_formats import SYSTEM, describe_passed_over
from autotune.data.progress import ProgressCallback, no_progress
from autotune.text import join_some, plural

if TYPE_CHECKING:
    from autotune.data.splits.dataset import Dataset

#: Largest ratio of the largest to the smallest class without a warning.
IMBALANCE = 3.0
_EXAMPLES = 5


def check_dataset(
    dataset: Dataset,
    duplicates: str,
    progress: ProgressCallback = no_progress,
    unreadable_test: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Count possible problems of the images of a new study, as plain JSON values.

    Args:
        dataset: The images.
        duplicates: The setting ``data.duplicates``.
        progress: Called while images are compared.
        unreadable_test: Key -> reason of each test image that cannot be read.

    Returns:
        ``largest`` and ``smallest``, names and training images of two classes; ``passed_over``,
        numbers of files that are no images, by kind and ending; ``unreadable_test``, how many
        test images there are, how many cannot be read, and a few of those; ``groups``, how
        many there are, how many are in several splits, and a few of those; ``duplicates``, see
        :func:`autotune.data.splits.duplicates.count_duplicates`. The last two are absent without
        groups, and where ``duplicates``, the setting, is ``off``.
    """
    source, split = dataset.source, dataset.split
    counts = Counter(source.samples[index].label for index in split.train)
    ranked = sorted(range(len(source.classes)), key=lambda label: counts[label])
    values: dict[str, Any] = {
        "largest": [source.classes[ranked[-1]], counts[ranked[-1]]],
        "smallest": [source.classes[ranked[0]], counts[ranked[0]]],
    }
    if source.passed_over:
        values["passed_over"] = source.passed_over
    if unreadable_test:
        values["unreadable_test"] = {
            "count": len(unreadable_test),
            "images": len(split.test),
            "examples": list(map(list, unreadable_test.items()))[:_EXAMPLES],
        }
    if dataset.groups is not None:
        keys = [sample.key for sample in source.samples]
        examples: dict[int, dict[str, str]] = {}
        for index, name in split.by_index().items():
            examples.setdefault(int(dataset.groups[index]), {}).setdefault(name, keys[index])
        across = [list(example.items()) for example in examples.values() if len(example) > 1]
        values["groups"] = {
            "count": len(set(dataset.groups.tolist())),
            "across": len(across),
            "examples": [[name, key] for pairs in across[:_EXAMPLES] for name, key in pairs],
        }
    if duplicates != "off":
        from autotune.data.splits.duplicates import count_duplicates, find_duplicates

        pairs = dataset.duplicates or find_duplicates(source, progress)
        values["duplicates"] = {"mode": duplicates, **count_duplicates(pairs, source, split)}
    return values


def dataset_warnings(values: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    """Return warnings about the images of a study.

    Args:
        values: The result of :func:`check_dataset`; empty for studies of early versions.
        training: The section ``training`` of the study.
    """
    return [
        *_passed_over(values),
        *_unreadable_test(values),
        *_imbalance(values, training),
        *_groups(values),
        *_duplicates(values),
    ]


def describe_counts(dataset: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Describe how many files of a data set are read, unreadable and passed over.

    Args:
        dataset: ``DatasetInfo.to_json()`` of a study.
        values: The result of :func:`check_dataset`; empty for studies of early versions.

    Returns:
        A sentence each; none where all files are images that can be read.
    """
    tests = values.get("unreadable_test", {}).get("count", 0)
    unreadable = len(dataset.get("skipped", ())) + tests
    passed_over = list(_passed_over(values))
    if not unreadable and not passed_over:
        return []
    counts = {name: int(dataset.get(name, 0)) for name in ("train", "validation", "test")}
    counts["test"] -= tests
    if dataset.get("folds"):  # in which training and validation images take turns
        counts = {"in folds": counts["train"], "test": counts["test"]}
    splits = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    read = plural(sum(counts.values()), "image is", "images are")
    return [f"{read} read ({splits}), {unreadable:,} unreadable.", *passed_over]


def duplicate_summary(values: Mapping[str, Any]) -> str:
    """Summarize the search for duplicates; empty where there was none."""
    counts = values.get("duplicates")
    if not counts:
        return ""
    near = "not counted" if counts["too_many"] else f"{counts['near']:,} look alike"
    small = f" ({counts['small']:,} too small to look alike)" if counts["small"] else ""
    return (
        f"{counts['exact']:,} of {plural(counts['images'], 'image')} are there more than once, "
        f"{near}{small}; data.duplicates: {counts['mode']}"
    )


def _passed_over(values: Mapping[str, Any]) -> Iterator[str]:
    counts = values.get("passed_over", {})
    if set(counts) - {SYSTEM}:
        yield f"{describe_passed_over(counts)}."


def _unreadable_test(values: Mapping[str, Any]) -> Iterator[str]:
    if unreadable := values.get("unreadable_test"):
        some = join_some([f"{key} ({reason})" for key, reason in unreadable["examples"]], 3, "; ")
        count = plural(unreadable["count"], "image", "images")
        yield (
            f"{count} of {unreadable['images']:,} in the test split cannot be read, and the final "
            f"measurement will go without: {some}."
        )


def _imbalance(values: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[str]:
    if "largest" not in values:
        return
    (large, most), (small, fewest) = values["largest"], values["smallest"]
    if most <= IMBALANCE * fewest:
        return
    advice = []
    if training.get("objective") not in ("balanced_accuracy", "macro_f1"):
        advice.append("training.objective: balanced_accuracy, which counts every class alike")
    if training.get("sampling") != "balanced":
        advice.append("training.sampling: balanced, which shows the classes equally often")
    if advice:
        yield (
            f"The classes are uneven: {large!r} has {most:,} training images, {small!r} "
            f"{fewest:,}. See {', and '.join(advice)}."
        )


def _groups(values: Mapping[str, Any]) -> Iterator[str]:
    groups = values.get("groups")
    if groups and groups["across"]:
        examples = ", ".join(f"{key} ({split})" for split, key in groups["examples"][:2])
        count = plural(groups["across"], "group of images is", "groups of images are")
        yield f"{count} in several splits, because the data set is already split: {examples}."


def _duplicates(values: Mapping[str, Any]) -> Iterator[str]:
    counts = values.get("duplicates")
    if not counts:
        return
    blank, *examples = counts.get("blank", [0])
    if blank:
        color = "one color all over or"
        yield (
            f"{plural(blank, f'image has {color} is', f'images have {color} are')} nearly black: "
            f"{', '.join(examples)}{', ...' if blank > len(examples) else ''}."
        )
    if counts["too_many"]:
        yield (
            "The images look so much alike that near duplicates cannot be told from others; only "
            "equal ones were counted."
        )
    leaks = [
        f"{plural(counts[split], f'{split} image is', f'{split} images are')} like one of {others}"
        for split, others in (("test", "training or validation"), ("validation", "training"))
        if counts[split]
    ]
    examples = "; ".join(
        f"{first} ({split or 'unused'}) and {second} ({other_split or 'unused'}), {kind}"
        for first, split, second, other_split, kind in counts["examples"][:3]
    )
    if leaks:
        way_out = (
            "The data set is already split, which is kept"
            if counts["mode"] in ("group", "together")  # the name in earlier studies
            else "They stay in one split with data.duplicates: group"
        )
        yield (
            f"Duplicates across splits flatter what is measured: {' and '.join(leaks)} "
            f"({examples}). {way_out}."
        )
    elif counts["exact"] or counts["near"]:
        looks = "looks" if counts["near"] == 1 else "look"
        yield (
            f"{plural(counts['exact'], 'image is', 'images are')} there more than once, "
            f"{counts['near']:,} {looks} like another one, none across splits ({examples})."
        )
    if counts["classes"]:
        pairs = plural(counts["classes"], "pair of duplicates has", "pairs of duplicates have")
        yield f"{pairs} two classes: one of the two labels may be wrong."
