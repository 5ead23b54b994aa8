"""Images in class folders, and digests of files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from autotune.data.image_formats import (
    ENDINGS,
    LOOSE,
    PIPES,
    PassedOver,
    describe_passed_over,
    passed_over_kind,
)
from autotune.data.progress import INDEXING, READING, ProgressCallback, no_progress
from autotune.data.sources.names import (
    describe_similar,
    is_system_folder,
    normalized,
    printable,
    quoted,
    warn_once,
)
from autotune.errors import DatasetError, join_sentences

#: Names of splits, in lower case -> split.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_LAYOUT = "put the images of each class into a folder named after the class"
_EDGE_BYTES = 1 << 16
_THREADS = 16
_CHUNK = 500
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image file.

    Args:
        key: Its stable name: the path relative to the folder, with ``/``; always printable.
        path: The file, as the system names it.
        class_name: Name of its class, as :func:`normalized` writes it.
        split: ``train``, ``validation`` or ``test`` when the images are already split.
        group: Images of one group go to the same split.
    """

    key: str
    path: str
    class_name: str
    split: str | None
    group: str | None = None


def scan_folder(
    root: str, progress: ProgressCallback = no_progress, passed_over: PassedOver | None = None
) -> tuple[ImageFile, ...]:
    """Find the images of a folder of class folders, already split or not, sorted by key.

    Symlinks are followed. A dangling symlink counts as a file: it is somebody's image.

    Args:
        root: The folder.
        progress: Called with the number of images.
        passed_over: Counts the files that are no images, if given.

    Raises:
        DatasetError: When the folder has no class folders, an empty class, only one class, or
            splits whose classes differ.
    """
    files: list[ImageFile] = []
    passed_over = PassedOver() if passed_over is None else passed_over
    try:
        splits = _splits(root, passed_over)
        for folder in dict.fromkeys([root, *(folder for _, folder in splits)]):
            _count_loose(folder, passed_over)
        for split, folder in splits:
            for class_files in _classes(root, split, folder, passed_over):
                files += class_files
                progress(INDEXING, len(files), None)
    except OSError as error:
        raise DatasetError(
            f"every folder of a dataset must be readable, but {error.filename}: {error.strerror}; "
            "change its permissions or move it elsewhere"
        ) from error
    _check_classes(root, files, [split for split, _ in splits])
    for _, folder in splits:
        names = Counter(normalized(name) for name in _subfolders(folder))
        if repeated := sorted(name for name, count in names.items() if count > 1):
            warn_once(
                f"{root}: {quoted(repeated)}: folders whose names differ in how Unicode spells "
                "them are one class"
            )
    return tuple(sorted(files, key=lambda file: file.key))


def digest_files(paths: Mapping[str, str], progress: ProgressCallback = no_progress) -> np.ndarray:
    """Digest files by key, size and the content of both their ends: uint8, ``(N, 16)``.

    Two ends of 64 KiB are what makes 10,000 photos a matter of seconds; an editor that leaves
    them and the size alone goes unnoticed.
    """
    files = list(paths.items())
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    digests = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, content in enumerate(
            pool.map(lambda chunk: [*map(_file_digest, chunk)], chunks), 1
        ):
            digests += content
            progress(READING, min(number * _CHUNK, len(files)), len(files))
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, _DIGEST_BYTES)


def wrapped_folder(folder: str) -> str | None:
    """Return the only folder inside another one, if it may hold class folders or splits."""
    inner = _subfolders(folder)
    if len(inner) != 1 or _count_images(folder):
        return None
    path = os.path.join(folder, inner[0])
    return path if _subfolders(path) else None


def image_paths(folder: str, passed_over: PassedOver | None = None) -> Iterator[str]:
    """Yield the images of an existing folder and of the folders in it, each real folder once.

    Hidden folders and those of systems are left out; other files are counted in ``passed_over``.

    Raises an OSError when one of the folders cannot be read.
    """
    seen: set[str] = set()
    pending = [folder]
    while pending:
        path = pending.pop()
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        for entry in _entries(path, hidden=True):
            if _is_folder(entry):
                if not entry.name.startswith(".") and not is_system_folder(entry.name):
                    pending.append(entry.path)
            elif kind := _kind(entry):
                if passed_over is not None:
                    passed_over.add(entry.name, kind)
            else:
                yield entry.path


def _file_digest(file: tuple[str, str]) -> bytes:
    key, path = file
    digest = hashlib.blake2b(key.encode(), digest_size=_DIGEST_BYTES)
    try:
        descriptor = os.open(path, os.O_RDONLY)  # a third of the time that open() takes
        try:
            size = os.fstat(descriptor).st_size
            digest.update(b"\0%d\0" % size)
            digest.update(os.pread(descriptor, _EDGE_BYTES, 0))
            if size > _EDGE_BYTES:
                offset = max(size - _EDGE_BYTES, _EDGE_BYTES)
                digest.update(os.pread(descriptor, _EDGE_BYTES, offset))
        finally:
            os.close(descriptor)
    except OSError:  # counted and named as unreadable when the images are decoded
        digest.update(b"\0unreadable")
    return digest.digest()


def _splits(root: str, passed_over: PassedOver) -> list[tuple[str | None, str]]:
    """Return (split, path) for each folder of a split data set, else the folder itself."""
    folders = _subfolders(root)
    named = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    splits = list(named.values())
    if "train" not in splits or len(set(splits)) < 2:
        return [(None, root)]
    others = [
        name
        for name in folders
        if name not in named and next(image_paths(os.path.join(root, name), passed_over), None)
    ]
    if others:
        raise DatasetError(
            f"a folder that is already split has no other folders with images, but {root} has "
            f"{quoted(others)} next to {quoted(named)}; move one of the two elsewhere"
        )
    repeated = [name for name, split in named.items() if splits.count(split) > 1]
    if repeated:
        raise DatasetError(
            f"a folder that is already split has one folder for each split, but {root} has "
            f"{quoted(repeated)}; join them or move one elsewhere"
        )
    return sorted((split, os.path.join(root, name)) for name, split in named.items())


def _count_loose(folder: str, passed_over: PassedOver) -> None:
    """Count the files that lie directly in a folder of class folders."""
    for entry in _entries(folder, hidden=True):
        if not _is_folder(entry):
            passed_over.add(entry.name, _kind(entry) or LOOSE)


def _classes(
    root: str, split: str | None, folder: str, passed_over: PassedOver
) -> Iterator[list[ImageFile]]:
    """Yield the images of one class folder after the other."""
    names = _subfolders(folder)
    if not names:
        loose = _count_images(folder)
        raise DatasetError(
            join_sentences(
                f"a dataset has one folder for each class, but {folder} has no folders",
                f"its {loose} images lie directly in it" if loose else "",
                _LAYOUT,
            )
        )
    empty = []
    counts = [PassedOver() for _ in names]
    inside = len(os.path.join(root, ""))
    folders = [os.path.join(folder, name) for name in names]
    with ThreadPoolExecutor(_THREADS) as pool:  # a network file system takes its time for each
        all_paths = pool.map(lambda *args: list(image_paths(*args)), folders, counts)
        for name, class_folder, paths in zip(names, folders, all_paths, strict=True):
            if not paths:
                empty.append(class_folder[inside:])
            class_name = normalized(name)
            yield [
                ImageFile(printable(path[inside:]).replace(os.sep, "/"), path, class_name, split)
                for path in paths
            ]
    for count in counts:
        passed_over.update(count)
    if empty:
        raise DatasetError(
            join_sentences(
                f"every class needs images ({' '.join(ENDINGS)}), but {root} has none in "
                f"{quoted(empty)}; fill or remove {'it' if len(empty) == 1 else 'them'}",
                describe_passed_over(passed_over.by_kind()),
            )
        )


def _check_classes(root: str, files: Sequence[ImageFile], splits: Sequence[str | None]) -> None:
    classes = sorted({file.class_name for file in files})
    for split in splits:
        present = {file.class_name for file in files if file.split == split}
        missing = [name for name in classes if name not in present]
        if missing:
            raise DatasetError(
                join_sentences(
                    f"the splits of a folder must have the same classes, but {quoted(missing)} of "
                    f"{root} {'is' if len(missing) == 1 else 'are'} missing in {split}; add "
                    "images there, or remove the class from the other splits",
                    describe_similar(classes),
                )
            )
    if len(classes) == 1:
        inner = os.path.join(root, _subfolders(root)[0])
        is_nested = splits[0] is None and len(_subfolders(inner)) > 1
        raise DatasetError(
            join_sentences(
                f"a dataset needs at least two classes, but {root} has one, {quoted(classes)}",
                f"did you mean {inner}?" if is_nested else _LAYOUT,
            )
        )


def _entries(folder: str, hidden: bool = False) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        wanted = [entry for entry in entries if hidden or not entry.name.startswith(".")]
    return sorted(wanted, key=lambda entry: entry.name)


def _subfolders(folder: str) -> list[str]:
    names = [entry.name for entry in _entries(folder) if _is_folder(entry)]
    return [name for name in names if not is_system_folder(name)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def _count_images(folder: str) -> int:
    """Count the images that lie directly in a folder."""
    return sum(not _is_folder(entry) and not _kind(entry) for entry in _entries(folder))


def _kind(entry: os.DirEntry[str]) -> str:
    """Return the kind of a file that is passed over; empty where it is an image."""
    if kind := passed_over_kind(entry.path):
        return kind
    try:  # a pipe would be waited for; a link that leads nowhere is somebody's image
        is_file = entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        is_file = True
    return "" if is_file else PIPES
