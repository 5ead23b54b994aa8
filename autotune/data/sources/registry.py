"""Open a data set by what a study file says: a registered name, a path, or an address."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autotune.data.download.archived_dataset import ArchivedDataset
from autotune.data.download.downloadable import Downloadable
from autotune.data.download.extraction import extract, is_archive, remove
from autotune.data.download.members import describe_volumes, is_volume
from autotune.data.download.paths import unpacked_folder
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.source import Source
from autotune.data.sources.base import DigitsSource, FileSource, open_folder
from autotune.data.sources.folders import holds_images, wrapped_folder
from autotune.data.sources.hub import SCHEME, HubSource
from autotune.data.sources.published.caltech import CALTECH101, CALTECH256
from autotune.data.sources.published.stanford_dogs import STANFORD_DOGS
from autotune.data.sources.published.torchvision_datasets import (
    OXFORD_DATASETS,
    TORCHVISION_DATASETS,
)
from autotune.data.sources.split_names import AUTO, SplitNames
from autotune.data.sources.tables.table import TABLE_ENDINGS, open_table
from autotune.errors import DatasetError, did_you_mean, join_sentences
from autotune.file_kinds import PARQUET, file_kind
from autotune.text import join_some

_PATHS = (
    "the path of a folder with one folder of images for each class, of a zip or tar file of such "
    f"folders, or of a table ({', '.join(TABLE_ENDINGS)}) with a path and a label in each row"
)

_EDGE_BYTES = 1 << 16
#: Changes when other members or names are read of the same archive.
_READING = b" 2"


@dataclass(frozen=True)
class RegisteredDataset:
    """A data set that has a name."""

    open: Callable[[ProgressCallback], Source]
    download: Downloadable | None = None


def _archived(dataset: ArchivedDataset, **options: str) -> RegisteredDataset:
    """Return the entry of a data set; options are those of its reader."""
    read = partial(dataset.read, **options)
    return RegisteredDataset(lambda progress: read(dataset.folder(), progress), dataset)


_REGISTRY: dict[str, RegisteredDataset] = {
    "digits": RegisteredDataset(lambda progress: DigitsSource()),
    "dogs": _archived(STANFORD_DOGS),
    "caltech101": _archived(CALTECH101, name="caltech101", left_out="BACKGROUND_Google"),
    "caltech101-background": _archived(CALTECH101),
    "caltech256": _archived(CALTECH256, name="caltech256", left_out="257.clutter"),
    "caltech256-clutter": _archived(CALTECH256),
    **{dataset.name: _archived(dataset) for dataset in OXFORD_DATASETS},
    **{dataset.name: RegisteredDataset(dataset.open, dataset) for dataset in TORCHVISION_DATASETS},
}


def dataset_names() -> tuple[str, ...]:
    """Return the names of all registered data sets."""
    return tuple(sorted(_REGISTRY))


def downloadable(name: str) -> Downloadable | None:
    """Return what must be downloaded before a data set can be opened, if anything."""
    registered = _REGISTRY.get(name)
    return registered.download if registered else None


def needs_download(name: str) -> bool:
    """Tell whether a data set must be downloaded before it can be opened."""
    download = downloadable(name)
    return download is not None and not download.is_downloaded


def fetch_source(name: str, progress: ProgressCallback) -> None:
    """Download a registered data set if that is not done yet; do nothing for all others.

    Raises:
        DatasetError: When the download fails, or its content is not what was published.
        DiskFullError: When the disk has no room for it.
    """
    download = downloadable(name)
    if download is not None:
        download.fetch(progress)


def open_source(
    name: str, progress: ProgressCallback = no_progress, splits: SplitNames = AUTO
) -> Source:
    """Open a data set. No image is decoded.

    Args:
        name: A registered name, the path of a folder, a table or an archive (``~`` is the home
            folder), or ``hf://owner/name``.
        progress: Called while files are listed and read.
        splits: What ``data.splits`` says of the names of its splits.

    Raises:
        DatasetError: When there is no such data set, its layout is wrong, or it must be
            downloaded first.
    """
    registered = _REGISTRY.get(name)
    if registered is not None and splits != AUTO:
        raise DatasetError(
            f"data.splits names the splits of your own images, but {name!r} is a known data set, "
            "whose splits do not change; leave data.splits out"
        )
    if registered is not None:
        return registered.open(progress)
    if name.lower().startswith(SCHEME):
        return HubSource(name, progress, splits)
    path = os.path.expanduser(name)
    if "\0" not in path:
        if os.path.isdir(path):
            return open_folder(name, path, progress, splits)
        if os.path.exists(path):
            return _open_file(name, path, progress, splits)
    names = dataset_names()
    raise DatasetError(
        join_sentences(
            f"a dataset is a known name ({', '.join(names)}), {_PATHS}, or {SCHEME}owner/name, "
            f"but {name!r} is none of these",
            did_you_mean(name, names),
            f"nothing is at {os.path.abspath(path)!r}" if "\0" not in path else "",
        )
    )


def _open_file(name: str, path: str, progress: ProgressCallback, splits: SplitNames) -> Source:
    """Open a file by its content; an unknown one by the ending of its name."""
    if is_archive(Path(path)):
        return _open_archive(name, path, progress, splits)
    try:
        kind = file_kind(path)
    except OSError as error:
        raise DatasetError(f"{name!r} cannot be read: {error.strerror}") from error
    is_table = kind.use in ("images", "broken", "") and path.lower().endswith(TABLE_ENDINGS)
    if (is_table and os.path.isfile(path)) or kind == PARQUET:  # a pipe would be waited for
        return open_table(name, path, progress, splits)
    if not kind.name and is_volume(path):
        raise DatasetError(f"{name} {describe_volumes(os.path.basename(path))}")
    problem = f"a dataset is {_PATHS}, but {name!r} is {kind.name or 'none of these'}"
    raise DatasetError(join_sentences(problem, kind.advice(name)))


def _open_archive(
    name: str, path: str, progress: ProgressCallback, splits: SplitNames
) -> FileSource:
    """Open the class folders in a zip or tar file; folders around them are passed through.

    The archive is unpacked once: size, time of change and both its ends identify it. Without class
    folders, nothing stays of what this call has unpacked.
    """
    folder = unpacked_folder(_archive_digest(path, _READING))
    is_unpacked = folder.is_dir()
    if not is_unpacked:
        remove(unpacked_folder(_archive_digest(path)))  # as an earlier version read it
    extract(Path(path), folder, partial(progress, "unpacking the images"))
    root = str(folder)
    while (inner := wrapped_folder(root)) is not None:
        root = inner
    try:
        return open_folder(name, root, progress, splits)
    except DatasetError as error:
        archives = [] if holds_images(root) else sorted(Path(root).rglob("*"))
        names = [file.relative_to(root).as_posix() for file in archives if is_archive(file)]
        if not is_unpacked:  # otherwise a study may be reading it, with other splits
            remove(folder)
        if names:
            raise DatasetError(
                f"{name!r} holds other archives ({join_some(names, 5)}) and no class folders; "
                "unpack it and name one of them, or the folder into which you unpack them"
            ) from error
        raise DatasetError(f"{name!r} was unpacked into {folder}: {error}") from error


def _archive_digest(path: str, reading: bytes = b"") -> str:
    """Digest what identifies an archive, and how it is read."""
    try:
        with open(path, "rb") as stream:
            status = os.fstat(stream.fileno())
            identity = b"%d %d" % (status.st_size, status.st_mtime_ns) + reading
            digest = hashlib.blake2b(identity, digest_size=16)
            digest.update(stream.read(_EDGE_BYTES))
            stream.seek(max(0, status.st_size - _EDGE_BYTES))
            digest.update(stream.read(_EDGE_BYTES))
    except OSError as error:
        raise DatasetError(
            f"{path} must be an archive, but cannot be read: {error.strerror}"
        ) from error
    return digest.hexdigest()
