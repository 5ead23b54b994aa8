"""Where data sets by name and unpacked archives are kept: the one place that knows the layout.

All of them lie in one folder, ``AUTOTUNE_DATA`` or else ``autotune/data`` in the user's cache
folder, for all studies::

    dogs/images.tar         an archive as it is published, fetched or put there by hand
    dogs/images.tar.part    what has come of one so far, with images.tar.part.json: from where
    dogs/SHA256SUMS         put there by hand: the archives differ from the published ones
    dogs/unpacked/          the images; it is there only when they are whole
    dogs/unpacked/SHA256SUMS
    unpacked/0a1b.../       one's own archive, unpacked
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

#: The environment variable that names the folder of all data sets.
DATA_VARIABLE = "AUTOTUNE_DATA"


def data_folder() -> Path:
    """Return the folder of all data sets; it need not be there."""
    given = os.environ.get(DATA_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    if not cache.is_absolute():  # the XDG base directory specification: to be ignored
        cache = Path("~/.cache").expanduser()
    return cache / "autotune" / "data"


def unpacked_folder(key: str) -> Path:
    """Return where one's own archive is unpacked; it is there only when it is whole.

    Args:
        key: Tells archives apart.
    """
    return data_folder() / "unpacked" / key


@dataclass(frozen=True)
class DatasetPaths:
    """Where one data set lies.

    Args:
        root: Its folder.
    """

    root: Path

    @staticmethod
    def from_name(name: str) -> DatasetPaths:
        """Return the place of a data set by its name."""
        return DatasetPaths(data_folder() / name)

    def archive(self, file: str) -> Path:
        """An archive as it is published."""
        return self.root / file

    def partial(self, file: str) -> Path:
        """What has come of an archive so far."""
        return self.root / f"{file}.part"

    def origin(self, file: str) -> Path:
        """From where it came: JSON."""
        return self.root / f"{file}.part.json"

    @property
    def replaced_sums(self) -> Path:
        """Checksums of archives that differ from the published ones."""
        return self.root / "SHA256SUMS"

    @property
    def final(self) -> Path:
        """The unpacked data set; there only when it is whole."""
        return self.root / "unpacked"

    @property
    def sums(self) -> Path:
        """Checksums of the unpacked files, as ``sha256sum`` writes them."""
        return self.final / "SHA256SUMS"

    @property
    def staging(self) -> Path:
        """The data set while it is unpacked; what lies there without the lock is a leftover."""
        return self.root / ".unpacked.part"

    @property
    def lock(self) -> Path:
        """Held by the process that fetches and unpacks."""
        return self.root / ".lock"
