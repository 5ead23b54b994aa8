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
from dataclasses import dataclass
from pathlib import Path

#: The environment variable that names the folder of all data sets.
DATA_VARIABLE = "AUTOTUNE_DATA"


def data_folder() -> Path:
    """Return the folder of all data sets; it need not exist."""
    if folder := os.environ.get(DATA_VARIABLE):
        return Path(folder).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    if not cache.is_absolute():  # the XDG base directory specification: to be ignored
        cache = Path("~/.cache").expanduser()
    return cache / "autotune" / "data"


def unpacked_folder(digest: str) -> Path:
    """Return where an archive of the user is unpacked; it exists only when it is complete."""
    return data_folder() / "unpacked" / digest


@dataclass(frozen=True)
class DatasetPaths:
    """Paths of one data set.

    Args:
        root: Its folder.
    """

    root: Path

    @staticmethod
    def from_name(name: str) -> DatasetPaths:
        """Return the paths of a data set by its name."""
        return DatasetPaths(data_folder() / name)

    def archive(self, file: str) -> Path:
        """An archive as published."""
        return self.root / file

    def partial(self, file: str) -> Path:
        """An unfinished download of an archive."""
        return self.root / f"{file}.part"

    def origin(self, file: str) -> Path:
        """The source of an unfinished download: JSON."""
        return self.root / f"{file}.part.json"

    @property
    def replaced_sums(self) -> Path:
        """Checksums of archives that replace the published ones."""
        return self.root / "SHA256SUMS"

    @property
    def final(self) -> Path:
        """The unpacked data set; exists only when it is complete."""
        return self.root / "unpacked"

    @property
    def sums(self) -> Path:
        """Checksums of the unpacked files, in the form of ``sha256sum``."""
        return self.final / "SHA256SUMS"

    @property
    def staging(self) -> Path:
        """The data set while it is unpacked; without the lock it is a remainder."""
        return self.root / ".unpacked.part"

    @property
    def lock(self) -> Path:
        """Locked by the process that downloads and unpacks."""
        return self.root / ".lock"
