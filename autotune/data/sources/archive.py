"""An archive of class folders, unpacked once."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path

from autotune.data.download.extraction import extract, remove
from autotune.data.download.paths import unpacked_folder
from autotune.data.progress import Progress, no_progress
from autotune.data.sources.base import FolderSource
from autotune.data.sources.folders import wrapped_folder
from autotune.errors import DatasetError

_EDGE_BYTES = 1 << 16


def open_archive(name: str, path: str, progress: Progress = no_progress) -> FolderSource:
    """Open the class folders in a zip or tar file; folders around them are passed through.

    The archive is unpacked once: size, time of change and both its ends identify it.

    Args:
        name: The archive as the user named it.
        path: Its path.
        progress: Called while files are unpacked, listed and read.

    Raises:
        DatasetError: When the archive is damaged, or holds no class folders; nothing stays.
        DiskFullError: When the disk has no room for its content.
    """
    folder = unpacked_folder(_digest(path))
    extract(Path(path), folder, partial(progress, "unpacking the images"))
    root = str(folder)
    while (inner := wrapped_folder(root)) is not None:
        root = inner
    try:
        return FolderSource(name, root, progress)
    except DatasetError as error:
        remove(folder)
        raise DatasetError(f"{name!r} was unpacked into {folder}: {error}") from error


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            status = os.fstat(stream.fileno())
            identity = b"%d %d" % (status.st_size, status.st_mtime_ns)
            digest = hashlib.blake2b(identity, digest_size=16)
            digest.update(stream.read(_EDGE_BYTES))
            stream.seek(max(0, status.st_size - _EDGE_BYTES))
            digest.update(stream.read(_EDGE_BYTES))
    except OSError as error:
        raise DatasetError(
            f"{path} must be an archive, but cannot be read: {error.strerror}"
        ) from error
    return digest.hexdigest()
