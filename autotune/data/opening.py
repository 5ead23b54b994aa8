"""From what a study file says to a source of images."""

from __future__ import annotations

from autotune.data.known import known_names, open_known
from autotune.data.own import open_own
from autotune.data.progress import Progress, silent
from autotune.data.sources import Source


def open_source(name: str, progress: Progress = silent) -> Source:
    """Open a dataset by what a study file says.

    Args:
        name: A known name, or what :func:`autotune.data.own.open_own` takes.
        progress: Told how far it is.

    Returns:
        The source; no image has been decoded yet.

    Raises:
        DatasetError: When there is no such dataset, or it is not laid out as one.
    """
    return open_known(name) if name in known_names() else open_own(name, progress)
