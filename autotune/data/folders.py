"""A folder of images -> its classes and files, and one fingerprint of them all."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from autotune.errors import DatasetError, join_sentences

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
#: Names of the folders of a data set that is already split (in lower case) -> part.
PART_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_LAYOUT = "put the images of each class into a folder named after the class"
_EDGE_BYTES = 1 << 16
_THREADS = 16


@dataclass(frozen=True)
class ImageFile:
    """One image file of a folder.

    Args:
        key: Path relative to the folder, with ``/``; printable whatever the file is called.
        path: The file, as the system names it.
        class_name: Name of its class folder.
        part: ``train``, ``validation`` or ``test`` when the folder is already split.
    """

    key: str
    path: str
    class_name: str
    part: str | None


def scan_folder(root: str) -> tuple[ImageFile, ...]:
    """Find the images of a folder of class folders, split into parts or not.

    Args:
        root: An existing folder. Hidden files, other files and symlink loops are passed over;
            symlinks are followed. A dangling symlink counts as a file: it is somebody's image.

    Returns:
        The images, sorted by key.

    Raises:
        DatasetError: When the folder has no class folders, an empty class, only one class, or
            parts whose classes differ.
    """
    try:
        parts = _parts(root)
        files = [file for part, name in parts for file in _classes(root, part, name)]
    except OSError as error:
        raise DatasetError(
            f"every folder of a dataset must be readable, but {error.filename}: {error.strerror}; "
            "change its permissions or move it elsewhere"
        ) from error
    _check_classes(root, files, [part for part, _ in parts])
    return tuple(sorted(files, key=lambda file: file.key))


def digest_files(files: Sequence[ImageFile]) -> dict[str, bytes]:
    """Digest files by name, size and the content of both their ends.

    Two ends of 64 KiB are what makes 10,000 photos a matter of seconds; an editor that leaves
    them and the size alone goes unnoticed.

    Args:
        files: The files.

    Returns:
        Key -> digest.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(_file_digest, files)
        return {file.key: digest for file, digest in zip(files, digests, strict=True)}


def join_digests(digests: Iterable[bytes]) -> str:
    """Join the digests of files, in the order that counts, into 32 hexadecimal digits."""
    whole = hashlib.blake2b(digest_size=16)
    for digest in digests:
        whole.update(digest)
    return whole.hexdigest()


def printable(name: str) -> str:
    """Write a file's name so that any log, terminal and JSON file can hold it.

    Names that are no UTF-8 reach Python with lone surrogates, which cannot be encoded again.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _file_digest(file: ImageFile) -> bytes:
    digest = hashlib.blake2b(file.key.encode(), digest_size=16)
    try:
        with open(file.path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest.update(b"\0%d\0" % size)
            digest.update(stream.read(_EDGE_BYTES))
            if size > _EDGE_BYTES:
                stream.seek(max(size - _EDGE_BYTES, _EDGE_BYTES))
                digest.update(stream.read(_EDGE_BYTES))
    except OSError:  # counted and named as unreadable when the images are decoded
        digest.update(b"\0unreadable")
    return digest.digest()


def _parts(root: str) -> list[tuple[str | None, str]]:
    """Return (part, its folder's path) for a split folder, else the folder itself."""
    folders = _subfolders(root)
    named = [(PART_NAMES[name.lower()], name) for name in folders if name.lower() in PART_NAMES]
    parts = [part for part, _ in named]
    if "train" not in parts or len(set(parts)) < 2:
        return [(None, root)]
    others = [name for name in folders if name.lower() not in PART_NAMES]
    others = [name for name in others if _image_paths(os.path.join(root, name))]
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


def _classes(root: str, part: str | None, folder: str) -> list[ImageFile]:
    names = _subfolders(folder)
    loose = sum(_is_image_name(entry.name) for entry in _entries(folder) if not entry.is_dir())
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
    paths = {name: _image_paths(os.path.join(folder, name)) for name in names}
    empty = [
        os.path.relpath(os.path.join(folder, name), root) for name in names if not paths[name]
    ]
    if empty:
        raise DatasetError(
            f"every class needs images ({' '.join(EXTENSIONS)}), but {root} has none in "
            f"{_names(empty)}; fill or remove {'it' if len(empty) == 1 else 'them'}"
        )
    return [
        ImageFile(printable(os.path.relpath(path, root)).replace(os.sep, "/"), path, name, part)
        for name in names
        for path in paths[name]
    ]


def _check_classes(root: str, files: Sequence[ImageFile], parts: Sequence[str | None]) -> None:
    classes = sorted({file.class_name for file in files})
    for part in parts:
        present = {file.class_name for file in files if file.part == part}
        missing = [name for name in classes if name not in present]
        if missing:
            raise DatasetError(
                f"the parts of a split folder must have the same classes, but {_names(missing)} "
                f"of {root} {'is' if len(missing) == 1 else 'are'} missing in {part}; add images "
                "there, or remove the class from the other parts"
            )
    if len(classes) == 1:
        inner = os.path.join(root, classes[0])
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
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _image_paths(folder: str) -> list[str]:
    """List the images of a folder and of the folders in it, each real folder once."""
    seen: set[str] = set()
    found: list[str] = []
    pending = [folder]
    while pending:
        here = pending.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        for entry in _entries(here):
            if entry.is_dir():
                pending.append(entry.path)
            elif _is_image_name(entry.name) and (entry.is_file() or entry.is_symlink()):
                found.append(entry.path)
    return found


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _names(names: Sequence[str]) -> str:
    """Quote names for a message; the first 20 are enough to see what is wrong."""
    text = ", ".join(f"'{printable(name)}'" for name in names[:20])
    return text + (f" and {len(names) - 20} more" if len(names) > 20 else "")
