"""A folder of images -> its classes and files, and their digests."""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from autotune.data.progress import INDEXING, READING, Progress, no_progress
from autotune.errors import DatasetError, join_sentences

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
#: Names of the folders of a data set that is already split (in lower case) -> part.
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
#: Folders that systems put among others: of macOS into archives, of Synology, of file systems.
_OF_SYSTEMS = ("__MACOSX", "@eaDir", "lost+found")
_LAYOUT = "put the images of each class into a folder named after the class"
_EDGE_BYTES = 1 << 16
_THREADS = 16
_CHUNK = 500
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image file.

    Args:
        key: Its stable name: the path relative to the folder, with ``/``; printable whatever the
            file is called.
        path: The file, as the system names it.
        class_name: Name of its class, as :func:`one_spelling` writes it.
        part: ``train``, ``validation`` or ``test`` when the images are already split.
        group: What goes to the same part as a whole, if anything says so.
    """

    key: str
    path: str
    class_name: str
    split: str | None
    group: str | None = None


def scan_folder(root: str, progress: Progress = no_progress) -> tuple[ImageFile, ...]:
    """Find the images of a folder of class folders, split into parts or not.

    Args:
        root: An existing folder. Hidden files, other files and symlink loops are passed over;
            symlinks are followed. A dangling symlink counts as a file: it is somebody's image.
        progress: Told of the images found so far.

    Returns:
        The images, sorted by key.

    Raises:
        DatasetError: When the folder has no class folders, an empty class, only one class, or
            parts whose classes differ.
    """
    files: list[ImageFile] = []
    try:
        parts = _parts(root)
        for part, folder in parts:
            for found in _classes(root, part, folder):
                files += found
                progress(INDEXING, len(files), None)
    except OSError as error:
        raise DatasetError(
            f"every folder of a dataset must be readable, but {error.filename}: {error.strerror}; "
            "change its permissions or move it elsewhere"
        ) from error
    _check_classes(root, files, [part for part, _ in parts])
    _mention_spellings(root, [folder for _, folder in parts])
    return tuple(sorted(files, key=lambda file: file.key))


def digest_files(paths: Mapping[str, str], progress: Progress = no_progress) -> np.ndarray:
    """Digest files by name, size and the content of both their ends.

    Two ends of 64 KiB are what makes 10,000 photos a matter of seconds; an editor that leaves
    them and the size alone goes unnoticed.

    Args:
        paths: Key of each file -> the file.
        progress: Told of the files read so far.

    Returns:
        uint8, ``(N, 16)``.
    """
    every = list(paths.items())
    chunks = [every[start : start + _CHUNK] for start in range(0, len(every), _CHUNK)]
    found = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, digests in enumerate(pool.map(_file_digests, chunks), 1):
            found.append(digests)
            progress(READING, min(number * _CHUNK, len(every)), len(every))
    return np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, _DIGEST_BYTES)


def wrapped_folder(folder: str) -> str | None:
    """Return the only folder that lies in another one, if it may hold class folders or parts."""
    inner = _subfolders(folder)
    loose = any(_is_image(entry) for entry in _entries(folder))
    if len(inner) != 1 or loose:
        return None
    path = os.path.join(folder, inner[0])
    return path if _subfolders(path) else None


def printable(name: str) -> str:
    """Write a file's name so that any log, terminal and JSON file can hold it.

    Names that are no UTF-8 reach Python with lone surrogates, which cannot be encoded again.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def one_spelling(name: str) -> str:
    """Write a name as Unicode composes it (NFC), however its letters were put together.

    An umlaut is one character or two; systems differ in which they write, and people see no
    difference.
    """
    return unicodedata.normalize("NFC", name)


def _file_digests(files: Sequence[tuple[str, str]]) -> bytes:
    return b"".join(_file_digest(key, path) for key, path in files)


def _file_digest(key: str, path: str) -> bytes:
    digest = hashlib.blake2b(key.encode(), digest_size=_DIGEST_BYTES)
    try:
        file = os.open(path, os.O_RDONLY)  # a third of the time that open() takes
        try:
            size = os.fstat(file).st_size
            digest.update(b"\0%d\0" % size)
            digest.update(os.pread(file, _EDGE_BYTES, 0))
            if size > _EDGE_BYTES:
                digest.update(os.pread(file, _EDGE_BYTES, max(size - _EDGE_BYTES, _EDGE_BYTES)))
        finally:
            os.close(file)
    except OSError:  # counted and named as unreadable when the images are decoded
        digest.update(b"\0unreadable")
    return digest.digest()


def _parts(root: str) -> list[tuple[str | None, str]]:
    """Return (part, its folder's path) for a split folder, else the folder itself."""
    folders = _subfolders(root)
    named = [(SPLIT_NAMES[name.lower()], name) for name in folders if name.lower() in SPLIT_NAMES]
    parts = [part for part, _ in named]
    if "train" not in parts or len(set(parts)) < 2:
        return [(None, root)]
    others = [name for name in folders if name.lower() not in SPLIT_NAMES]
    others = [name for name in others if next(image_paths(os.path.join(root, name)), None)]
    if others:
        raise DatasetError(
            f"a folder that is already split has no other folders with images, but {root} has "
            f"{_names(others)} next to {_names([name for _, name in named])}; move one of the "
            "two elsewhere"
        )
    doubled = [name for part, name in named if parts.count(part) > 1]
    if doubled:
        raise DatasetError(
            f"a folder that is already split has one folder for each part, but {root} has "
            f"{_names(doubled)}; join them or move one elsewhere"
        )
    return [(part, os.path.join(root, name)) for part, name in sorted(named)]


def _classes(root: str, part: str | None, folder: str) -> Iterator[list[ImageFile]]:
    """Yield the images of one class folder after the other."""
    names = _subfolders(folder)
    loose = sum(_is_image(entry) for entry in _entries(folder))
    if not names:
        raise DatasetError(
            join_sentences(
                f"a dataset has one folder for each class, but {folder} has no folders",
                f"its {loose} images lie directly in it" if loose else "",
                _LAYOUT,
            )
        )
    if loose:
        logger.warning("%s: %d images belong to no class and are left out", folder, loose)
    empty = []
    inside = len(os.path.join(root, ""))
    folders = [os.path.join(folder, name) for name in names]
    with ThreadPoolExecutor(_THREADS) as pool:  # a network file system takes its time for each
        all_paths = pool.map(lambda one: list(image_paths(one)), folders)
        for name, class_folder, paths in zip(names, folders, all_paths, strict=True):
            if not paths:
                empty.append(class_folder[inside:])
            class_name = one_spelling(name)
            yield [
                ImageFile(printable(path[inside:]).replace(os.sep, "/"), path, class_name, part)
                for path in paths
            ]
    if empty:
        raise DatasetError(
            f"every class needs images ({' '.join(EXTENSIONS)}), but {root} has none in "
            f"{_names(empty)}; fill or remove {'it' if len(empty) == 1 else 'them'}"
        )


def _mention_spellings(root: str, folders: Sequence[str]) -> None:
    """Say which class folders of one folder are one class, spelled in two ways."""
    for folder in folders:
        names = Counter(one_spelling(name) for name in _subfolders(folder))
        doubled = sorted(name for name, count in names.items() if count > 1)
        if doubled:
            logger.warning(
                "%s: %s: folders whose names differ in how Unicode spells them are one class",
                root,
                _names(doubled),
            )


def _check_classes(root: str, files: Sequence[ImageFile], parts: Sequence[str | None]) -> None:
    classes = sorted({file.class_name for file in files})
    for part in parts:
        present = {file.class_name for file in files if file.split == part}
        missing = [name for name in classes if name not in present]
        if missing:
            raise DatasetError(
                f"the parts of a split folder must have the same classes, but {_names(missing)} "
                f"of {root} {'is' if len(missing) == 1 else 'are'} missing in {part}; add images "
                "there, or remove the class from the other parts"
            )
    if len(classes) == 1:
        inner = os.path.join(root, _subfolders(root)[0])
        nested = parts[0] is None and len(_subfolders(inner)) > 1
        raise DatasetError(
            join_sentences(
                f"a dataset needs at least two classes, but {root} has one, {_names(classes)}",
                f"did you mean {inner}?" if nested else _LAYOUT,
            )
        )


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: entry.name)


def _subfolders(folder: str) -> list[str]:
    entries = _entries(folder)
    return [one.name for one in entries if _is_folder(one) and one.name not in _OF_SYSTEMS]


def image_paths(folder: str) -> Iterator[str]:
    """Yield the images of a folder and of the folders in it, each real folder once.

    Args:
        folder: An existing folder.

    Raises:
        OSError: When one of the folders cannot be read.
    """
    seen: set[str] = set()
    pending = [folder]
    while pending:
        here = pending.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        for entry in _entries(here):
            if _is_folder(entry):
                if entry.name not in _OF_SYSTEMS:
                    pending.append(entry.path)
            elif _is_image(entry):
                yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is called like an image, and no pipe or device, nor a link to one."""
    if not entry.name.lower().endswith(EXTENSIONS):
        return False
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def _names(names: Sequence[str]) -> str:
    """Quote names for a message; the first 20 are enough to see what is wrong."""
    text = ", ".join(f"'{printable(name)}'" for name in names[:20])
    return text + (f" and {len(names) - 20} more" if len(names) > 20 else "")
