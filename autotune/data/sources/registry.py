"""Open a data set by what a study file says: a registered name, a path, or an address."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autotune.data.download.archived_dataset import ArchivedDataset
from autotune.data.download.downloadable import Downloadable
from autotune.data.download.extraction import is_archive, unsupported_format
from autotune.data.progress import Progress, no_progress
from autotune.data.source import Source
from autotune.data.sources.archive import open_archive
from autotune.data.sources.base import DigitsSource, FolderSource
from autotune.data.sources.caltech import CALTECH101, CALTECH256, read_caltech101, read_caltech256
from autotune.data.sources.hub import SCHEME, HubSource
from autotune.data.sources.stanford_dogs import STANFORD_DOGS, read_dogs
from autotune.data.sources.tables import TABLE_ENDINGS, TableSource
from autotune.data.sources.torchvision_datasets import TORCHVISION_DATASETS
from autotune.errors import DatasetError, did_you_mean, join_sentences

_PATHS = (
    "the path of a folder with one folder of images for each class, of a zip or tar file of such "
    f"folders, or of a table ({', '.join(TABLE_ENDINGS)}) with a path and a label in each row"
)


@dataclass(frozen=True)
class RegisteredDataset:
    """A data set that has a name.

    Args:
        open: Opens it.
        download: What has to be downloaded before; ``None`` for nothing.
    """

    open: Callable[[Progress], Source]
    download: Downloadable | None = None


def _archived(
    dataset: ArchivedDataset, read: Callable[[Path, Progress], Source]
) -> RegisteredDataset:
    return RegisteredDataset(lambda progress: read(dataset.unpacked(), progress), dataset)


_DOGS = ArchivedDataset(STANFORD_DOGS, read_dogs)
_CALTECH101 = ArchivedDataset(CALTECH101, read_caltech101)
_CALTECH256 = ArchivedDataset(CALTECH256, read_caltech256)

_REGISTRY: dict[str, RegisteredDataset] = {
    "digits": RegisteredDataset(lambda progress: DigitsSource()),
    "dogs": _archived(_DOGS, read_dogs),
    "caltech101": _archived(_CALTECH101, partial(read_caltech101, background=False)),
    "caltech101-background": _archived(_CALTECH101, read_caltech101),
    "caltech256": _archived(_CALTECH256, partial(read_caltech256, clutter=False)),
    "caltech256-clutter": _archived(_CALTECH256, read_caltech256),
    **{dataset.name: RegisteredDataset(dataset.open, dataset) for dataset in TORCHVISION_DATASETS},
}


def dataset_names() -> tuple[str, ...]:
    """Return the names of all registered data sets."""
    return tuple(sorted(_REGISTRY))


def downloadable(name: str) -> Downloadable | None:
    """Return what has to be downloaded before a data set can be opened.

    It is ``None`` for the digits, and for images of the user.
    """
    registered = _REGISTRY.get(name)
    return registered.download if registered else None


def needs_download(name: str) -> bool:
    """Tell whether a data set must be downloaded before it can be opened."""
    download = downloadable(name)
    return download is not None and not download.is_downloaded


def fetch_source(name: str, progress: Progress) -> None:
    """Download a registered data set if that is not done yet; do nothing for all others.

    Raises:
        DatasetError: When the download fails, or its content is not what was published.
        DiskFullError: When the disk has no room for it.
    """
    download = downloadable(name)
    if download is not None:
        download.fetch(progress)


def open_source(name: str, progress: Progress = no_progress) -> Source:
    """Open a data set by what a study file says.

    Args:
        name: A registered name, or what :func:`open_local` takes.
        progress: Called while files are listed and read.

    Returns:
        The source; no image has been decoded yet.

    Raises:
        DatasetError: When there is no such data set, its layout is wrong, or it must be
            downloaded first.
    """
    registered = _REGISTRY.get(name)
    return open_local(name, progress) if registered is None else registered.open(progress)


def open_local(name: str, progress: Progress = no_progress) -> Source:
    """Open images of the user.

    Args:
        name: The path of a folder, a table or an archive (``~`` is the home folder), or
            ``hf://owner/name``.
        progress: Called while files are listed and read.

    Returns:
        The source; no image has been decoded yet.

    Raises:
        DatasetError: When nothing is there, or its layout is wrong.
    """
    if name.lower().startswith(SCHEME):
        return HubSource(name, progress)
    path = os.path.expanduser(name)
    if "\0" not in path:
        if os.path.isdir(path):
            return FolderSource(name, path, progress)
        if path.lower().endswith(TABLE_ENDINGS) and os.path.isfile(path):
            return TableSource(name, path, progress)
        if is_archive(Path(path)):
            return open_archive(name, path, progress)
        if archive_format := unsupported_format(Path(path)):
            raise DatasetError(
                f"a dataset is {_PATHS}, but {name!r} is a file of {archive_format}, which cannot "
                "be read here; unpack it and name the folder, or pack it as .tar.gz or .zip"
            )
        if os.path.exists(path):
            raise DatasetError(f"a dataset is {_PATHS}, but {name!r} is none of these")
    names = dataset_names()
    raise DatasetError(
        join_sentences(
            f"a dataset is a known name ({', '.join(names)}), {_PATHS}, or {SCHEME}owner/name, "
            f"but {name!r} is none of these",
            did_you_mean(name, names),
            f"nothing is at {os.path.abspath(path)!r}" if "\0" not in path else "",
        )
    )
