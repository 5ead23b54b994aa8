"""Data sets that need no path: a name is enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from autotune.data.download.archived_dataset import Fetched
from autotune.data.download.paths import Place
from autotune.data.progress import Progress, silent
from autotune.data.source import Source
from autotune.data.sources.base import DigitsSource
from autotune.data.sources.caltech import CALTECH101, CALTECH256, read_caltech101, read_caltech256
from autotune.data.sources.stanford_dogs import PUBLICATION as DOGS
from autotune.data.sources.stanford_dogs import read_dogs
from autotune.data.sources.torchvision_datasets import LOADED


class Kept(Protocol):
    """A data set that is fetched once, and kept for all studies."""

    @property
    def title(self) -> str:
        """Its full name."""

    @property
    def about(self) -> str:
        """What it is, and where it is described."""

    @property
    def place(self) -> Place:
        """Where it lies."""

    @property
    def ready(self) -> bool:
        """Whether it is here, whole."""

    @property
    def size(self) -> int | None:
        """Bytes to fetch, where they are known."""

    def fetch(self, progress: Progress = silent) -> None:
        """Fetch, check and unpack it, where that is not done yet."""

    def verify(self, progress: Progress = silent) -> list[str]:
        """Return what is wrong with what is here, a line each."""


@dataclass(frozen=True)
class Known:
    """A data set that is known by name.

    Args:
        open: Opens it, and tells how far that is.
        kept: What has to be fetched before; ``None`` where nothing has.
    """

    open: Callable[[Progress], Source]
    kept: Kept | None = None


def _fetched(kept: Fetched, read: Callable[[Path, Progress], Source]) -> Known:
    return Known(lambda progress: read(kept.unpacked(), progress), kept)


_DOGS = Fetched(DOGS, read_dogs)
_CALTECH101 = Fetched(CALTECH101, read_caltech101)
_CALTECH256 = Fetched(CALTECH256, read_caltech256)

_KNOWN: dict[str, Known] = {
    "digits": Known(lambda progress: DigitsSource()),
    "dogs": _fetched(_DOGS, read_dogs),
    "caltech101": _fetched(_CALTECH101, partial(read_caltech101, background=False)),
    "caltech101-background": _fetched(_CALTECH101, read_caltech101),
    "caltech256": _fetched(_CALTECH256, partial(read_caltech256, clutter=False)),
    "caltech256-clutter": _fetched(_CALTECH256, read_caltech256),
    **{one.name: Known(one.open, one) for one in LOADED},
}


def known_names() -> tuple[str, ...]:
    """Return the names of the datasets that need no path."""
    return tuple(sorted(_KNOWN))


def open_known(name: str, progress: Progress = silent) -> Source:
    """Open a dataset by its name, one of :func:`known_names`.

    Args:
        name: The name.
        progress: Told how far it is.

    Raises:
        DatasetError: When it has not been fetched yet, or is damaged.
    """
    return _KNOWN[name].open(progress)


def kept_of(name: str) -> Kept | None:
    """Return what has to be fetched before a dataset can be opened.

    Args:
        name: What a study file calls it.

    Returns:
        ``None`` where nothing has: of the digits, and of one's own images.
    """
    known = _KNOWN.get(name)
    return known.kept if known else None


def is_missing(name: str) -> bool:
    """Tell whether a dataset is known by name, and not here yet."""
    kept = kept_of(name)
    return kept is not None and not kept.ready
