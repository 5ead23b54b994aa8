"""One's own images: what lies at a path."""

from __future__ import annotations

import os

from autotune.data.known import known_names
from autotune.data.sources import FolderSource, Source
from autotune.errors import DatasetError, join_sentences, nearest


def open_own(name: str) -> Source:
    """Open one's own images.

    Args:
        name: The path of a folder (``~`` is the home folder).

    Returns:
        The source; no image has been decoded yet.

    Raises:
        DatasetError: When nothing is there, or it is not laid out as a dataset.
    """
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return FolderSource(name, path)
    if os.path.exists(path):
        raise DatasetError(
            f"a dataset is a folder with one folder of images for each class, but {name!r} is a "
            "file; name a folder, and unpack an archive first"
        )
    raise DatasetError(
        join_sentences(
            f"a dataset is a known name ({', '.join(known_names())}) or the path of a folder with "
            f"one folder of images for each class, but {name!r} is neither",
            nearest(name, known_names()),
            f"no folder {os.path.abspath(path)!r} exists" if "\0" not in path else "",
        )
    )
