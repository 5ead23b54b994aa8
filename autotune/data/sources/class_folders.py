"""Class folders that may be no classes, and images in them that may be none of their own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence

from autotune.data.sources.folders import ImageFile, SplitFolder
from autotune.data.sources.names import normalized, printable, quoted, warn_once
from autotune.data.sources.split_names import (
    AUTO,
    TRAIN,
    SplitNames,
    has_only_neutral_words,
    split_word,
    splits_key,
)
from autotune.errors import DatasetError
from autotune.text import plural

#: Words for what is drawn on images, or made from them.
_MASKS = (
    r"masks?|seg|segmentations?|segmentation(class|object)|labels?|gt|ground[ _-]?truth|"
    r"annotations?|trimaps?|depth|bbox(es)?|thumbs?|thumbnails?|previews?"
)
_VARIANTS = (
    r"aug|augmented|copy|kopie|edited|original|backup|crop(ped)?|resized|small|[hv]?flip(ped)?|"
    r"mirror(ed)?|rot(ated?)?"
)
_MASK_FOLDER = re.compile(
    rf"(?i)((images?|img)[\W_]*)?({_MASKS})([\W_]*(images?|img|png|class|object))?[\W\d_]*"
)
#: The end of the name of an image beside its mask or depth.
_IMAGE = re.compile(r"(?i)[ _.-]+(rgb|colou?r|img|image|photo)$")
_DERIVED = re.compile(rf"(?i)(.+?)[ _.-]+({_MASKS}|{_VARIANTS})[\W\d_]*")


def check_class_folders(
    root: str, layout: Sequence[SplitFolder], files: Sequence[ImageFile], splits: SplitNames
) -> None:
    """Ask about class folders whose names or content speak against it, and warn of others.

    Args:
        root: The data set.
        layout: The folders of its splits, or the folder itself.
        files: Its images.
        splits: What ``data.splits`` says; nothing is asked where that is decided.

    Raises:
        DatasetError: When the folders may be no classes.
    """
    inside = _inside(root, layout, files)
    _warn_of_derived(root, files, inside)
    if splits != AUTO:
        return
    if problem := _problem(root, layout, inside):
        raise DatasetError(
            f"{root}: {problem}; or set {_decision(root, layout)} if {quoted(inside)} are the "
            "classes"
        )
    for name, folders in inside.items():
        for other in sorted(folders & inside.keys() - {name}):
            warn_once(
                f"{root}: the folder {other!r} in {name!r} is called like another class, but its "
                f"images are of class {name!r}"
            )
    shared = _shared(inside)
    if layout[0].split is None and shared:
        warn_once(
            f"{root}: the classes are {quoted(inside)}, which hold the same folders "
            f"{quoted(sorted(shared))}; if those are the classes, set "
            f"{splits_key(dict.fromkeys(inside, TRAIN))}"
        )


def _problem(
    root: str, layout: Sequence[SplitFolder], inside: Mapping[str, set[str]]
) -> str | None:
    """Say why folders may be no classes, and what to do."""
    no_class = [name for name in inside if has_only_neutral_words(name)]
    masks = [name for name in inside if _MASK_FOLDER.fullmatch(name)]
    if no_class and masks:
        return (
            f"{quoted(masks)} beside {quoted(no_class)} may be no classes, but masks, labels or "
            "small copies of the images; move them elsewhere, and put the images of each class "
            "into a folder named after it, or name a table of them"
        )
    for name, folders in inside.items():
        if len(same := folders & inside.keys() - {name}) > 1:
            return (
                f"the folder {name!r} holds folders that are called like the classes beside it, "
                f"{quoted(sorted(same))}; move it elsewhere, or its images into those"
            )
    if layout[0].class_name is not None and (shared := _shared(inside)):
        return (
            f"each of {quoted(inside)} is divided into splits with the same folders "
            f"{quoted(sorted(shared))}, which may be the classes; name one of the folders, such "
            f"as {os.path.join(root, next(iter(inside)))}"
        )
    around = [name for name in no_class if "" not in inside[name] and len(inside[name]) > 1]
    if layout[0].split is not None or not around:
        return None
    others = sorted(set().union(*(inside[name] for name in around)))
    return (
        f"{quoted(around)} may be no classes, but folders around those, {quoted(others)}; set "
        f"{splits_key(dict.fromkeys(around, TRAIN))}"
    )


def _inside(
    root: str, layout: Sequence[SplitFolder], files: Iterable[ImageFile]
) -> dict[str, set[str]]:
    """Return class -> the folders with images in it; an empty name where images lie directly."""
    starts = {_key(root, folder.folder): folder.class_name is None for folder in layout}
    inside: dict[str, set[str]] = {}
    for class_name, path in sorted({(file.class_name, _folder(file.key)) for file in files}):
        parts = path.split("/")
        depth = next(
            depth for depth in range(len(parts) + 1) if ("/".join(parts[:depth]) or ".") in starts
        )
        rest = parts[depth + starts["/".join(parts[:depth]) or "."] :]
        inside.setdefault(class_name, set()).add(normalized(rest[0]) if rest else "")
    return inside


def _shared(inside: Mapping[str, set[str]]) -> set[str]:
    """Return the folders that are in all classes, if these hold nothing else than folders."""
    shared = set.intersection(*inside.values())
    is_images = all(
        has_only_neutral_words(name) or _MASK_FOLDER.fullmatch(name) for name in shared
    )
    has_loose = any("" in folders for folders in inside.values())
    return set() if len(shared) < 2 or has_loose or is_images else shared


def _warn_of_derived(
    root: str, files: Sequence[ImageFile], inside: Mapping[str, set[str]]
) -> None:
    """Name images that are called like masks or variants of other ones."""
    masks = {
        name: {
            folder
            for folder in folders
            if _MASK_FOLDER.fullmatch(folder) and not all(map(_MASK_FOLDER.fullmatch, folders))
        }
        for name, folders in inside.items()
    }
    stems = {os.path.splitext(file.key)[0] for file in files}
    stems |= {_IMAGE.sub("", stem) for stem in stems}
    derived = [
        file.key
        for file in files
        if not masks[file.class_name].isdisjoint(file.key.split("/")[:-1])
        or ((match := _DERIVED.fullmatch(os.path.splitext(file.key)[0])) and match[1] in stems)
    ]
    if derived:
        images = plural(len(files), "image is", "images are")
        warn_once(
            f"{root}: {len(derived):,} of {images} called like masks or variants of others, such "
            f"as {derived[0]}; each is read as an image of its class: move masks elsewhere, and "
            "keep variants in one split with data.group"
        )


def _decision(root: str, layout: Sequence[SplitFolder]) -> str:
    """Return the key that says that the folders are classes."""
    if layout[0].split is None:
        return "data.splits=none"
    names = {}
    for folder in layout:
        parts = _key(root, folder.folder).split("/")
        names[next((part for part in parts if split_word(part)), parts[-1])] = str(folder.split)
    return splits_key(names)


def _key(root: str, path: str) -> str:
    return printable(os.path.relpath(path, root)).replace(os.sep, "/")


def _folder(key: str) -> str:
    return key.rpartition("/")[0]
