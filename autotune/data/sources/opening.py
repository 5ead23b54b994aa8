"""From what a study file says to a source of images."""

from __future__ import annotations

from autotune.data.progress import Progress, silent
from autotune.data.source import Source
from autotune.data.sources.local import open_own
from autotune.data.sources.registry import kept_of, known_names, open_known


def open_source(name: str, progress: Progress = silent) -> Source:
    """Open a dataset by what a study file says.

    Args:
        name: A known name, or what :func:`autotune.data.sources.local.open_own` takes.
        progress: Told how far it is.

    Returns:
        The source; no image has been decoded yet.

    Raises:
        DatasetError: When there is no such dataset, it is not laid out as one, or it has not been
            fetched yet.
    """
    return open_known(name, progress) if name in known_names() else open_own(name, progress)


def fetch_source(name: str, progress: Progress) -> None:
    """Bring a dataset here that is known by name, if it is not; others are here or nowhere.

    Args:
        name: What a study file says.
        progress: Told how far it is.

    Raises:
        DatasetError: When it cannot be had, or is not what is published.
        DiskFullError: When there is no room for it.
    """
    kept = kept_of(name)
    if kept is not None:
        kept.fetch(progress)
