"""Where the class folders of a data set are: in the folder itself, or in folders of its splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

from autotune.data.image_formats import PassedOver
from autotune.data.sources.folders import (
    SplitFolder,
    holds_images,
    list_images,
    readable_folders,
    subfolders,
    wrapped_folder,
)
from autotune.data.sources.names import normalized, printable, quoted
from autotune.data.sources.split_names import (
    AUTO,
    NONE,
    TEST,
    TRAIN,
    SplitNames,
    SplitWord,
    given,
    has_no_labels,
    is_split,
    names_no_class,
    recognized,
    resolved,
    says_unlabeled,
    split_word,
    splits_key,
)
from autotune.errors import DatasetError

_ARE_CLASSES = "data.splits=none if they are the classes"


def find_layout(root: str, splits: SplitNames, passed_over: PassedOver) -> list[SplitFolder]:
    """Find the folders of the splits of a data set, or return the folder itself.

    Splits are told by their names: those of folders of class folders, or of folders in every class
    folder. Folders around them are passed through. A split without labels is passed over.

    Args:
        root: The folder.
        splits: What ``data.splits`` says.
        passed_over: Counts the files in folders that are not used.

    Raises:
        DatasetError: When folders may be splits and may be classes, or splits are there twice.
    """
    with readable_folders():
        if splits == NONE:
            return [SplitFolder(None, root)]
        if isinstance(splits, Mapping):
            return _labeled(root, _given(root, splits, passed_over), passed_over)
        if folders := _named(root, passed_over):
            return _labeled(root, folders, passed_over)
        if split_folders := _inside_classes(root, passed_over):
            return split_folders
        inner = wrapped_folder(root)
        layout = find_layout(inner, AUTO, passed_over) if inner else []
        if inner is None or layout[0].split is None:
            return [SplitFolder(None, root)]
        for name in set(subfolders(root)) - {os.path.basename(inner)}:
            _pass_over(root, os.path.join(root, name), "without classes", passed_over)
        return layout


def _given(
    root: str, splits: Mapping[str, Sequence[str]], passed_over: PassedOver
) -> list[SplitFolder]:
    """Return the folders that ``data.splits`` names, at the top or in every class folder."""
    names = {normalized(name) for members in splits.values() for name in members}
    folder = root
    while not names & {normalized(name) for name in subfolders(folder)}:
        inner = wrapped_folder(folder)
        if inner is None:
            break
        folder = inner
    tops = subfolders(folder)
    if not names & {normalized(name) for name in tops}:
        inner_names = {top: subfolders(os.path.join(folder, top)) for top in tops}
        if any(names & set(map(normalized, inner)) for inner in inner_names.values()):
            return [
                SplitFolder(split, os.path.join(folder, top, name), top)
                for top, inner in inner_names.items()
                for name, split in given(os.path.join(folder, top), inner, splits).items()
            ]
    named = given(folder, tops, splits)
    for name in set(tops) - set(named):
        _pass_over(root, os.path.join(folder, name), "not in data.splits", passed_over)
    return [SplitFolder(split, _unwrapped(folder, name)) for name, split in named.items()]


def _named(root: str, passed_over: PassedOver) -> list[SplitFolder]:
    """Return the folders whose names say which split they are; none where they do not."""
    folders = subfolders(root)
    words = {name: word for name in folders if (word := split_word(name))}
    splits = _splits_of(root, folders, words)
    if not splits:
        _ask_if_alike(root, folders, words)
        _ask_if_crossed(root, folders, words)
        return []
    classes = _train_classes(root, splits)
    others = []
    for name in folders:
        path = os.path.join(root, name)
        if name in splits:
            continue
        if (
            says_unlabeled(name)
            or has_no_labels(_classes_in(path), classes)
            or not holds_images(path)
        ):
            _pass_over(root, path, "without classes", passed_over)
        else:
            others.append(name)
    if others:
        raise DatasetError(
            f"a folder that is already split has no other folders with images, but {root} has "
            f"{quoted(others)} next to {quoted(splits)}; move one of the two elsewhere, name the "
            f"splits with {splits_key(splits)}, or set {_ARE_CLASSES}"
        )
    counts = Counter(splits.values())
    if repeated := [name for name, split in splits.items() if counts[split] > 1]:
        raise DatasetError(
            f"a folder that is already split has one folder for each split, but {root} has "
            f"{quoted(repeated)}; join them, move one elsewhere, or name those to use with "
            f"{splits_key(splits)}"
        )
    named = [SplitFolder(split, _unwrapped(root, name)) for name, split in splits.items()]
    return sorted(named, key=lambda folder: str(folder.split))


def _splits_of(
    root: str, folders: Sequence[str], words: Mapping[str, SplitWord]
) -> dict[str, str]:
    """Return name -> split, of folders that differ in the word for their split alone."""
    for rest in sorted({word.rest for word in words.values()}):
        group = resolved({name: word.split for name, word in words.items() if word.rest == rest})
        # toy_train and toy_test may be classes
        if is_split(group.values()) and (not rest or _train_classes(root, group)):
            return group
    train = [name for name, word in words.items() if word.split == TRAIN]
    return {train[0]: TRAIN} if len(train) == 1 and any(map(says_unlabeled, folders)) else {}


def _ask_if_alike(root: str, folders: Sequence[str], words: Mapping[str, SplitWord]) -> None:
    """Refuse folders that hold the same class folders, if the name of one of them is a split's."""
    classes = cache(lambda name: _classes_in(os.path.join(root, name)))
    for name, word in words.items():
        others = words if word.rest else folders  # bullet_train and car may be classes
        alike = [other for other in others if len(classes(name) & classes(other)) > 1]
        if len(alike) > 1:
            shared = set.intersection(*map(classes, alike)) or classes(name)
            guess = resolved(
                {other: words[other].split if other in words else TEST for other in alike}
            )
            if TRAIN not in guess.values():
                guess[alike[0]] = TRAIN
            raise DatasetError(
                f"{root}: the folders {quoted(alike)} hold the same folders, such as "
                f"{quoted(sorted(shared)[:2])}, so they may be splits; name the splits with "
                f"{splits_key(guess)}, or set {_ARE_CLASSES}"
            )


def _ask_if_crossed(root: str, folders: Sequence[str], words: Mapping[str, SplitWord]) -> None:
    """Refuse folders of images that are called after class and split, such as ``cat_train``."""
    by_class: dict[tuple[str, ...], dict[str, str]] = {}
    for name, word in words.items():
        by_class.setdefault(word.rest, {})[name] = word.split
    crossed = {rest: names for rest, names in by_class.items() if is_split(names.values())}
    names = [name for group in crossed.values() for name in group]
    others = (os.path.join(root, name) for name in folders if name not in names)
    if len(crossed) > 1 or (crossed and not any(map(holds_images, others))):
        raise DatasetError(
            f"{root}: the names of {quoted(names)} are those of splits, but hold no class "
            f"folders; put the images into folders such as train/CLASS and test/CLASS, or set "
            f"{_ARE_CLASSES}"
        )


def _inside_classes(root: str, passed_over: PassedOver) -> list[SplitFolder]:
    """Return the folders of splits in each class folder; none where the first has none."""
    tops = subfolders(root)
    first = next((top for top in tops if holds_images(os.path.join(root, top))), None)
    if first is None:
        return []
    if not is_split(recognized(subfolders(os.path.join(root, first))).values()):
        return []
    imageless = {top for top in tops if not holds_images(os.path.join(root, top))}
    tops = [top for top in tops if top not in imageless]
    if len(tops) < 2:
        return []
    for name in imageless:
        _pass_over(root, os.path.join(root, name), "without classes", passed_over)
    result = []
    for top in tops:
        path = os.path.join(root, top)
        splits = recognized(subfolders(path))
        others = [
            os.path.join(top, name)
            for name in subfolders(path)
            if name not in splits and holds_images(os.path.join(path, name))
        ]
        if others or not is_split(splits.values()):
            raise DatasetError(
                f"{root}: class folders such as {first!r} are already split, but "
                f"{quoted(others or [top])} is not a split; move it elsewhere, or set "
                "data.splits=none to leave the splits in the class folders out of account"
            )
        result += [
            SplitFolder(split, os.path.join(path, name), top) for name, split in splits.items()
        ]
    return result


def _labeled(root: str, folders: list[SplitFolder], passed_over: PassedOver) -> list[SplitFolder]:
    """Leave out splits without labels, and count their images."""
    if any(folder.class_name is not None for folder in folders):
        return folders
    train = {
        name for folder in folders if folder.split == TRAIN for name in _classes_in(folder.folder)
    }
    labeled = []
    for folder in folders:
        if folder.split != TRAIN and has_no_labels(_classes_in(folder.folder), train):
            _pass_over(root, folder.folder, "without classes", passed_over)
        else:
            labeled.append(folder)
    return labeled


def _train_classes(root: str, splits: Mapping[str, str]) -> set[str]:
    """Return the names of the class folders of the training split."""
    folders = [os.path.join(root, name) for name, split in splits.items() if split == TRAIN]
    return {name for folder in folders for name in _classes_in(folder)}


def _classes_in(folder: str) -> set[str]:
    return {normalized(name) for name in subfolders(_unwrapped(folder))}


def _unwrapped(*parts: str) -> str:
    """Return the folder of class folders in that of a split, such as ``train/images``."""
    folder = os.path.join(*parts)
    while inner := wrapped_folder(folder):
        name = os.path.basename(inner)
        if name != os.path.basename(folder) and not names_no_class(name):
            break
        folder = inner
    return folder


def _pass_over(root: str, folder: str, why: str, passed_over: PassedOver) -> None:
    """Count the files of a folder that is not used; its images under its name."""
    kind = f"images in {printable(os.path.relpath(folder, root))}/ {why}"
    count = PassedOver()
    for path in list_images(folder, count):
        count.add(os.path.basename(path), kind)
    passed_over.update(count)
