"""What is known of a published data set before any of it is here."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from autotune.data.download.paths import DATA_VARIABLE
from autotune.errors import UserError

#: The environment variable with addresses that are asked before the publisher.
MIRROR_VARIABLE = "AUTOTUNE_MIRROR"


@dataclass(frozen=True)
class ArchiveSpec:
    """One archive as it is published.

    Args:
        file: Its name.
        urls: Where it can be had, the publisher first.
        sha256: Its checksum, hexadecimal; ``None`` where no source states one.
        size: In bytes; ``None`` where no source states it.
        folder: Where its content goes in the unpacked data set.
        inner: The archive within it that is meant, where there is one.
    """

    file: str
    urls: tuple[str, ...]
    sha256: str | None
    size: int | None
    folder: str
    inner: str | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """A data set as it is published.

    Args:
        name: What study files call it.
        title: Its full name.
        page: Where it is described.
        terms: What its publisher allows, in a sentence.
        archives: What it consists of.
        images: How many images there are.
        classes: How many classes.
    """

    name: str
    title: str
    page: str
    terms: str
    archives: tuple[ArchiveSpec, ...]
    images: int = field(kw_only=True)
    classes: int = field(kw_only=True)


def archive_urls(name: str, archive: ArchiveSpec) -> tuple[str, ...]:
    """Return where to ask for an archive, in this order: mirrors of one's own, the publisher.

    Args:
        name: Name of the data set.
        archive: The archive.

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
    own = tuple(f"{mirror.rstrip('/')}/{name}/{archive.file}" for mirror in mirrors)
    return (*own, *archive.urls)
