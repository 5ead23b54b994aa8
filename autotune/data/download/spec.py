"""The archives of a published data set."""

from __future__ import annotations

import os
from dataclasses import dataclass

from autotune.data.download.paths import DATA_VARIABLE
from autotune.errors import UserError

#: The environment variable with addresses that are tried before the publisher's.
MIRROR_VARIABLE = "AUTOTUNE_MIRROR"


@dataclass(frozen=True)
class ArchiveSpec:
    """One archive as published, or another file, which is copied.

    Args:
        file: Its name.
        urls: Its addresses, the publisher's first.
        sha256: Its checksum, hexadecimal; ``None`` where no source states one.
        size: In bytes; ``None`` where no source states it.
        folder: Where its content goes in the unpacked data set.
        inner: The archive inside it that holds the images, if any.
        md5: Its checksum where no source states the SHA-256, hexadecimal.
    """

    file: str
    urls: tuple[str, ...]
    sha256: str | None
    size: int | None
    folder: str
    inner: str | None = None
    md5: str | None = None

    @property
    def checksum(self) -> tuple[str, str] | None:
        """The name of a digest and the published value of it, hexadecimal."""
        if self.sha256 is not None:
            return "sha256", self.sha256
        return None if self.md5 is None else ("md5", self.md5)


def archive_urls(name: str, archive: ArchiveSpec) -> tuple[str, ...]:
    """Return the addresses of an archive of a data set, those of mirrors first.

    Raises:
        UserError: When a mirror is no HTTP address.
    """
    mirrors = os.environ.get(MIRROR_VARIABLE, "").split()
    for mirror in mirrors:
        if not mirror.startswith(("http://", "https://")):
            raise UserError(
                f"{MIRROR_VARIABLE} must be addresses that start with http:// or https://, "
                f"separated by spaces, but got {mirror!r}; a folder of archives is what "
                f"{DATA_VARIABLE} names"
            )
    mirrored = (f"{mirror.rstrip('/')}/{name}/{archive.file}" for mirror in mirrors)
    return (*mirrored, *archive.urls)
