"""Images in class folders, and digests of files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np

from autotune.data.download.extraction import SUFFIXES
from autotune.data.download.paths import data_folder
from autotune.data.image_formats import (
    ENDINGS,
    LOOSE,
    PIPES,
    PassedOver,
    describe_passed_over,
    passed_over_kind,
)
from autotune.data.progress import INDEXING, READING, ProgressCallback
from autotune.data.sources.names import (
    describe_similar,
    is_system_folder,
    normalized,
    printable,
    quoted,
    warn_once,
)
from autotune.data.sources.outputs import OWN, written_by, written_by_imageless
from autotune.errors import DatasetError, join_sentences

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


@dataclass(frozen=True, slots=True)
class SplitFolder:
    """A folder of class folders, of one split or of all images.

    Args:
        split: ``train``, ``validation`` or ``test``; ``None`` where the images are not split.
        folder: Its path.
        class_name: The class of all images in it, where splits are inside of class folders.
    """

    split: str | None
    folder: str
    class_name: str | None = None


def scan_folder(
    root: str,
    splits: Sequence[SplitFolder],
    progress: ProgressCallback,
    passed_over: PassedOver,
) -> tuple[ImageFile, ...]:
    """Find the images of a folder of class folders, already split or not, sorted by key.

    Symlinks are followed. A dangling symlink counts as a file: it is somebody's image.

    Args:
        root: The folder; keys are relative to it.
        splits: The folders of its splits, or the folder itself.
        progress: Called with the number of images.
        passed_over: Counts the files that are no images.

    Raises:
        DatasetError: When the folder has no class folders, an empty class, only one class, or
            splits whose classes differ.
    """
    files: list[ImageFile] = []
    with readable_folders():
        for path in _around_classes(root, splits):
            _count_loose(path, passed_over)
        folders = [folder for split in splits for folder in _class_folders(split)]
        for class_files in _class_files(root, folders, passed_over):
            files += class_files
            progress(INDEXING, len(files), None)
    if not files:
        raise DatasetError(
            join_sentences(
                f"a dataset has one folder for each class, but {root} has none with images",
                describe_passed_over(passed_over.by_kind()),
            )
        )
    _check_classes(root, files, splits)
    for path in [split.folder for split in splits if split.class_name is None]:
        names = Counter(normalized(name) for name in subfolders(path))
        if repeated := sorted(name for name, count in names.items() if count > 1):
            warn_once(
                f"{root}: {quoted(repeated)}: folders whose names differ in how Unicode spells "
                "them are one class"
            )
    return tuple(sorted(files, key=lambda file: file.key))


@contextmanager
def readable_folders() -> Iterator[None]:
    """Turn the error of a folder that cannot be read into a message."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"every folder of a dataset must be readable, but {error.filename}: {error.strerror}; "
            "change its permissions or move it elsewhere"
        ) from error


def digest_files(paths: Mapping[str, str], progress: ProgressCallback) -> np.ndarray:
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
    """Return the only folder with images inside another one, if it may hold class folders."""
    if _count_images(folder):
        return None
    paths = (os.path.join(folder, name) for name in subfolders(folder))
    inner = [*islice(filter(holds_images, paths), 2)]
    return inner[0] if len(inner) == 1 and subfolders(inner[0]) else None


def holds_images(folder: str) -> bool:
    """Tell whether there are images in a folder that may be a class, or in the folders in it."""
    return next(image_paths(folder, is_class=True), None) is not None


def subfolders(folder: str) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones and a system's."""
    names = [entry.name for entry in _entries(folder) if _is_folder(entry)]
    return [name for name in names if not is_system_folder(name)]


def image_paths(
    folder: str, passed_over: PassedOver | None = None, is_class: bool = False
) -> Iterator[str]:
    """Yield the images of an existing folder and of the folders in it, each real folder once.

    Hidden folders and those of systems are left out. So is what programs have written, but not
    ``folder`` itself unless it is that of a class. All else is counted in ``passed_over``.

    Raises an OSError when one of the folders cannot be read.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    downloads = os.path.realpath(data_folder())
    seen: set[str] = set()
    pending = [folder]
    while pending:
        path = pending.pop()
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        entries = _entries(path, hidden=True)
        files = {entry.path: _kind(entry) for entry in entries if not _is_folder(entry)}
        if is_class or path != folder:
            names = [entry.name for entry in entries]
            has_images = not all(files.values())
            if writer := OWN if real == downloads else written_by(path, names, has_images):
                passed_over.add_folder(path, writer)
                continue
        for entry in entries:
            if entry.path not in files:
                if not entry.name.startswith(".") and not is_system_folder(entry.name):
                    pending.append(entry.path)
            elif kind := files[entry.path]:
                passed_over.add(entry.name, kind)
            else:
                yield entry.path


def list_images(folder: str, passed_over: PassedOver) -> list[str]:
    """List the images of a class folder; without any, count it when a program has written it."""
    paths = [*image_paths(folder, passed_over, is_class=True)]
    if not paths:
        unseen = "" if passed_over.has_photos else written_by_imageless(folder)
        if writer := passed_over.writer or unseen:
            passed_over.clear()
            passed_over.add_folder(folder, writer)
    return paths


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


def _around_classes(root: str, splits: Sequence[SplitFolder]) -> list[str]:
    """Return the root and the folders between it and the class folders."""
    paths = {root: None}
    for split in splits:
        path = root
        inside = os.path.relpath(split.folder, root).split(os.sep)
        for name in inside if split.class_name is None else inside[:-1]:
            path = os.path.normpath(os.path.join(path, name))
            paths[path if name != "." else root] = None
    return [*paths]


def _count_loose(folder: str, passed_over: PassedOver) -> None:
    """Count the files that lie directly in a folder of class folders."""
    for entry in _entries(folder, hidden=True):
        if not _is_folder(entry):
            passed_over.add(entry.name, _kind(entry) or LOOSE)


def _class_folders(split: SplitFolder) -> list[SplitFolder]:
    """Return the folders of a split, one for each class."""
    folder = split.folder
    if split.class_name is not None:
        return [split]
    names = subfolders(folder)
    if not names:
        loose = _count_images(folder)
        raise DatasetError(
            join_sentences(
                f"a dataset has one folder for each class, but {folder} has no folders",
                f"its {loose} images lie directly in it" if loose else "",
                _LAYOUT,
                _file_hint(folder),
            )
        )
    return [SplitFolder(split.split, os.path.join(folder, name), name) for name in names]


def _file_hint(folder: str) -> str:
    """Name an archive in a folder, or a table that may have the classes, also beside it."""
    for path in (folder, os.path.dirname(folder)):
        for entry in _entries(path or "."):
            if entry.name.lower().endswith((".csv", ".tsv", ".parquet")):
                return f"if {printable(entry.path)} has their classes, name it as the dataset"
            if path == folder and entry.name.lower().endswith(SUFFIXES):
                return f"{printable(entry.path)} is not looked into; name it, or unpack it"
    return ""


def _class_files(
    root: str, folders: Sequence[SplitFolder], passed_over: PassedOver
) -> Iterator[list[ImageFile]]:
    """Yield the images of one class folder after the other."""
    empty = []
    counts = [PassedOver() for _ in folders]
    inside = len(os.path.join(root, ""))
    with ThreadPoolExecutor(_THREADS) as pool:  # a network file system takes its time for each
        all_paths = pool.map(
            lambda folder, count: list_images(folder.folder, count), folders, counts
        )
        for folder, paths, count in zip(folders, all_paths, counts, strict=True):
            if not paths and not count.writer:
                empty.append(folder.folder[inside:])
            class_name = normalized(folder.class_name or "")
            keys = [printable(path[inside:]).replace(os.sep, "/") for path in paths]
            yield [
                ImageFile(key, path, class_name, folder.split)
                for key, path in zip(keys, paths, strict=True)
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


def _check_classes(root: str, files: Sequence[ImageFile], splits: Sequence[SplitFolder]) -> None:
    classes = sorted({file.class_name for file in files})
    for split in dict.fromkeys(split.split for split in splits):
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
        inner = os.path.join(root, subfolders(root)[0])
        is_nested = splits[0].split is None and len(subfolders(inner)) > 1
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
