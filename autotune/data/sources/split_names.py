"""Which split a name means: of a folder, of a value in a table, of a split on a hub."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from autotune.data.sources.names import normalized, printable, quoted
from autotune.errors import DatasetError, did_you_mean, join_sentences

#: Values of ``data.splits`` beside a mapping: splits are told by their names; there are none.
AUTO, NONE = "auto", "none"
#: ``data.splits``: a word, or the names of each split.
SplitNames = str | Mapping[str, Sequence[str]]

SPLITS = TRAIN, VALIDATION, TEST = "train", "validation", "test"
#: The test split, or the validation split where another one is the test split.
_EVALUATION = "evaluation"
_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "devel", "development"), VALIDATION),
    **dict.fromkeys(("test", "testing", "tst", "holdout"), TEST),
    **dict.fromkeys(("eval", "evaluation"), _EVALUATION),
}
_UNLABELED = frozenset(
    ("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "submission")
)
#: Words beside that of the split which name no class.
_NEUTRAL = frozenset(
    (
        *("set", "data", "dataset", "split", "subset", "part", "folder"),
        *("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos"),
        *("jpegimages", "fold", "folds", "kfold"),
    )
)
#: Limits the names of a split in an example.
_MAX_SHOWN = 3
_GLUED = re.compile(rf"({'|'.join(_WORDS)})(set|data|images|imgs)")
_HOLDOUT = re.compile(r"(?i)h[eo]ld[\W_]?out")


class SplitWord(NamedTuple):
    """What a name says of a split: which one, and its other words."""

    split: str
    rest: tuple[str, ...]


def split_word(name: str) -> SplitWord | None:
    """Find the word for a split in a name such as ``seg_train`` or ``Test set``, if it has one."""
    words = _words(name)
    splits = {_WORDS[word] for word in words if word in _WORDS}
    if splits == {TRAIN, VALIDATION}:  # both in one
        splits = {TRAIN}
    if len(splits) != 1:
        return None
    rest = tuple(word for word in words if word not in _WORDS and word not in _NEUTRAL)
    return SplitWord(splits.pop(), rest)


def says_unlabeled(name: str) -> bool:
    """Tell whether a name is that of images whose classes are to be predicted."""
    return not _UNLABELED.isdisjoint(_words(name))


def names_no_class(name: str) -> bool:
    """Tell whether a name has only words for splits and images, such as ``train_images``."""
    return all(word in _WORDS or word in _NEUTRAL for word in _words(name))


def has_only_neutral_words(name: str) -> bool:
    """Tell whether a name has only words for images and sets of them, such as ``data set 2``."""
    return bool(words := _words(name)) and _NEUTRAL.issuperset(words)


def recognized(names: Iterable[str]) -> dict[str, str]:
    """Return name -> split, of those names that mean a split and nothing else."""
    words = {name: word for name in names if (word := split_word(name)) and not word.rest}
    return resolved({name: word.split for name, word in words.items()})


def resolved(splits: Mapping[str, str]) -> dict[str, str]:
    """Decide what evaluation means: the test split, or what a test split leaves."""
    evaluation = VALIDATION if TEST in splits.values() else TEST
    return {name: evaluation if split == _EVALUATION else split for name, split in splits.items()}


def is_split(splits: Collection[str]) -> bool:
    """Tell whether some splits divide images: there must be one to train on, and another."""
    return TRAIN in splits and len(set(splits)) > 1


def given(
    where: str, names: Collection[str], splits: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return name -> split, as ``data.splits`` says.

    Args:
        where: What has the names, for the message.
        names: The names that are there.
        splits: The names of each split.

    Raises:
        DatasetError: When a name is not there.
    """
    by_form: dict[str, list[str]] = {}
    for name in names:
        by_form.setdefault(_form(name), []).append(name)
    result: dict[str, str] = {}
    missing = []
    for split, members in splits.items():
        for member in members:
            same = by_form.get(_form(member), [])
            result |= dict.fromkeys(same, split)
            missing += [member] * (not same)
    for split, members in splits.items():  # a name as it is written comes before its other forms
        result |= {member: split for member in members if member in names}
    if missing:
        raise DatasetError(
            join_sentences(
                f"data.splits names {quoted(missing)}, but {where} has {quoted(names) or 'none'}",
                did_you_mean(missing[0], names),
            )
        )
    return result


def matches(name: str, other: str) -> bool:
    """Tell whether two names are the same in ``data.splits``: in any case and spelling."""
    return _form(name) == _form(other)


def has_no_labels(classes: Set[str | None], train: Set[str | None]) -> bool:
    """Tell whether a split is without labels: no class, or one that stands for "unknown"."""
    labels = classes - {None}
    return not labels or (len(classes) == 1 and len(train) > 1 and labels.isdisjoint(train))


def splits_key(splits: Mapping[str, str]) -> str:
    """Return the value of ``data.splits`` that says name -> split, as an example."""
    by_split: dict[str, list[str]] = {TRAIN: []}
    for name, split in splits.items():
        by_split.setdefault(split, []).append(_in_yaml(name))
    texts = []
    for split, names in by_split.items():
        some = [*names[:_MAX_SHOWN], *["..."] * (len(names) > _MAX_SHOWN)]
        texts.append(f"{split}: {some[0] if len(some) == 1 else '[' + ', '.join(some) + ']'}")
    return "data.splits='{" + ", ".join(texts) + "}'"


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case, split at capitals, digits and marks."""
    text = _HOLDOUT.sub("holdout", normalized(name))
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower()
    words = re.findall(r"[^\W\d_]+", text)
    return [match[1] if (match := _GLUED.fullmatch(word)) else word for word in words]


def _in_yaml(name: str) -> str:
    text = printable(name)
    return text if re.fullmatch(r"\w[\w .-]*", text) else json.dumps(text, ensure_ascii=False)


def _form(name: str) -> str:
    return normalized(name).strip().casefold()
