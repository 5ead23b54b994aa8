"""A data set that is downloaded once, and kept for all studies."""

from __future__ import annotations

from typing import Protocol

from autotune.data.download.paths import DatasetPaths
from autotune.data.progress import Progress, no_progress


class Downloadable(Protocol):
    """A data set that is fetched once, and kept for all studies."""

    @property
    def title(self) -> str:
        """Its full name."""

    @property
    def description(self) -> str:
        """What it is, and where it is described."""

    @property
    def paths(self) -> DatasetPaths:
        """Where it lies."""

    @property
    def is_downloaded(self) -> bool:
        """Whether it is here, whole."""

    @property
    def size(self) -> int | None:
        """Bytes to fetch, where they are known."""

    def fetch(self, progress: Progress = no_progress) -> None:
        """Fetch, check and unpack it, where that is not done yet."""

    def verify(self, progress: Progress = no_progress) -> list[str]:
        """Return what is wrong with what is here, a line each."""
