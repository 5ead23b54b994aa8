"""One's own images: what lies at a path, or on the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from autotune.data.download.extraction import is_archive, other_format
from autotune.data.progress import Progress, silent
from autotune.data.source import Source
from autotune.data.sources.archive import open_packed
from autotune.data.sources.base import FolderSource
from autotune.data.sources.hub import SCHEME, HubSource
from autotune.data.sources.registry import known_names
from autotune.data.sources.tables import TABLE_ENDINGS, TableSource
from autotune.errors import DatasetError, did_you_mean, join_sentences

_PATHS = (
    "the path of a folder with one folder of images for each class, of a zip or tar file of such "
    f"folders, or of a table ({', '.join(TABLE_ENDINGS)}) with a path and a label in each row"
)


def open_own(name: str, progress: Progress = silent) -> Source:
    """Open one's own images.

    Args:
        name: The path of a folder, a table or an archive (``~`` is the home folder), or
            ``hf://owner/name``.
        progress: Told how far it is.

    Returns:
        The source; no image has been decoded yet.

    Raises:
        DatasetError: When nothing is there, or it is not laid out as a dataset.
    """
    if name.lower().startswith(SCHEME):
        return HubSource(name, progress)
    path = os.path.expanduser(name)
    if "\0" not in path:
        if os.path.isdir(path):
            return FolderSource(name, path, progress)
        if path.lower().endswith(TABLE_ENDINGS) and os.path.isfile(path):
            return TableSource(name, path, progress)
        if os.path.exists(path):
            if is_archive(Path(path)):
                return open_packed(name, path, progress)
            if kind := other_format(Path(path)):
                raise DatasetError(
                    f"a dataset is {_PATHS}, but {name!r} is a file of {kind}, which cannot be "
                    "read here; unpack it and name the folder, or pack it as .tar.gz or .zip"
                )
            raise DatasetError(f"a dataset is {_PATHS}, but {name!r} is none of these")
    raise DatasetError(
        join_sentences(
            f"a dataset is a known name ({', '.join(known_names())}), {_PATHS}, or "
            f"{SCHEME}owner/name, but {name!r} is none of these",
            did_you_mean(name, known_names()),
            f"nothing is at {os.path.abspath(path)!r}" if "\0" not in path else "",
        )
    )
