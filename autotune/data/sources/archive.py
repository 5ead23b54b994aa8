"""An archive of class folders -> the folder that is in it, unpacked once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from autotune.data.download.extraction import extract, remove
from autotune.data.download.paths import unpacked_folder
from autotune.data.progress import Progress, no_progress
from autotune.data.sources.base import FolderSource
from autotune.data.sources.folders import wrapped_folder
from autotune.errors import DatasetError

_EDGE_BYTES = 1 << 16


def open_archive(name: str, path: str, progress: Progress = no_progress) -> FolderSource:
    """Open the class folders in a zip or tar file.

    They are unpacked once, and looked for by size, time of change and both ends of the archive. A
    folder around them is looked through.

    Args:
        name: What the user calls the archive.
        path: Its path.
        progress: Told of the bytes unpacked, and of the images found and read.

    Raises:
        DatasetError: When the archive is damaged, or holds no class folders; nothing is left.
        DiskFullError: When there is no room for its content.
    """
    folder = unpacked_folder(_key(path))
    extract(Path(path), folder, lambda done, total: progress("unpacking the images", done, total))
    root = str(folder)
    while (inner := wrapped_folder(root)) is not None:
        root = inner
    try:
        return FolderSource(name, root, progress)
    except DatasetError as error:
        remove(folder)
        raise DatasetError(f"{name!r} was unpacked into {folder}: {error}") from error


def _key(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            known = os.fstat(stream.fileno())
            digest = hashlib.blake2b(b"%d %d" % (known.st_size, known.st_mtime_ns), digest_size=16)
            digest.update(stream.read(_EDGE_BYTES))
            stream.seek(max(0, known.st_size - _EDGE_BYTES))
            digest.update(stream.read(_EDGE_BYTES))
    except OSError as error:
        raise DatasetError(
            f"{path} must be an archive, but cannot be read: {error.strerror}"
        ) from error
    return digest.hexdigest()
