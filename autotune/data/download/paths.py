"""Paths of downloaded data sets and of unpacked archives.

They are in one folder for all studies, ``AUTOTUNE_DATA`` or else ``autotune/data`` in the user's
cache folder::

    dogs/images.tar         an archive as published: downloaded, or put there by the user
    dogs/images.tar.part    an unfinished download; images.tar.part.json: where it comes from
    dogs/SHA256SUMS         written by the user, for archives that replace the published ones
    dogs/unpacked/          the images; exists only when it is complete
    dogs/unpacked/SHA256SUMS
    unpacked/0a1b.../       an archive of the user, unpacked
"""

from __future__ import annotations

import os
from pathlib import Path

from autotune.errors import DatasetError

#: The environment variable that names the folder of all data sets.
DATA_VARIABLE = "AUTOTUNE_DATA"


def data_folder() -> Path:
    """Return the folder of all data sets; it need not exist.

    Raises:
        DatasetError: When the folder is in the home of an unknown user.
    """
    if folder := os.environ.get(DATA_VARIABLE):
        try:
            return Path(folder).expanduser().absolute()
        except RuntimeError as error:  # ~somebody without a home
            raise DatasetError(f"{DATA_VARIABLE}: {folder}: {error}") from None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    if not cache.is_absolute():  # the XDG base directory specification: to be ignored
        cache = Path("~/.cache").expanduser()
    return cache / "autotune" / "data"


def unpacked_folder(digest: str) -> Path:
    """Return where an archive of the user is unpacked; it exists only when it is complete."""
    return data_folder() / "unpacked" / digest


class DatasetPaths:
    """Paths of one data set.

    Attributes:
        root: Its folder.
        replaced_sums: Checksums of archives that replace the published ones.
        final: The unpacked data set; exists only when it is complete.
        sums: Checksums of the unpacked files, in the form of ``sha256sum``.
        staging: The data set while it is unpacked; without the lock it is a remainder.
        lock: Locked by the process that downloads and unpacks.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.replaced_sums = root / "SHA256SUMS"
        self.final = root / "unpacked"
        self.sums = self.final / "SHA256SUMS"
        self.staging = root / ".unpacked.part"
        self.lock = root / ".lock"

    def archive(self, file: str) -> Path:
        """Return the path of an archive as published."""
        return self.root / file

    def partial(self, file: str) -> Path:
        """Return the path of an unfinished download of an archive."""
        return self.root / f"{file}.part"

    def origin(self, file: str) -> Path:
        """Return the path of the source of an unfinished download: JSON."""
        return self.root / f"{file}.part.json"
