"""Decoded images on disk: made once, mapped into the memory of every worker."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from autotune.data.building import IMAGES, RECORD, build, check_skipped
from autotune.data.images import ImageSpec
from autotune.data.sources import Source
from autotune.errors import DiskFullError, UserError, disk_full_as_user_error

logger = logging.getLogger(__name__)

#: Raised whenever the same images would be stored otherwise.
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class ImageStore:
    """Decoded images, read-only and shared.

    Args:
        folder: Where they lie; its name is the key of source, indices and specification.
        images: uint8, ``(N, 3, T, T)``, mapped from disk.
        labels: int64, ``(N,)``.
        indices: int64, ``(N,)``: indices into the source's samples.
        skipped: Key and reason of each image that could not be decoded.
    """

    folder: Path
    images: np.memmap[Any, np.dtype[np.uint8]]
    labels: np.ndarray
    indices: np.ndarray
    skipped: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """Digest of the source's content, the indices and the specification."""
        return self.folder.name

    def rows(self, indices: Sequence[int]) -> np.ndarray:
        """Find the rows of source indices.

        Args:
            indices: Indices into the source's samples.

        Returns:
            int64 rows in the same order; indices without a row are left out.
        """
        known = self._rows
        return np.array([known[index] for index in indices if index in known], dtype=np.int64)

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {int(index): row for row, index in enumerate(self.indices)}

    def __reduce__(self) -> tuple[Callable[[Path], ImageStore], tuple[Path]]:
        # pickling the mapped array would copy every image into each data-loading process
        return _read, (self.folder,)


def open_store(
    source: Source,
    indices: Sequence[int],
    spec: ImageSpec,
    folder: Path,
    *,
    unreadable_limit: float,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> ImageStore:
    """Open the decoded images of a source, and decode them first if nobody has.

    Processes that ask for the same images at once wait for the one that decodes them. A store
    appears under its name only when it is whole.

    Args:
        source: The images.
        indices: Which of its samples.
        spec: What the backbone wants.
        folder: Where all stores lie.
        unreadable_limit: Largest share of ``indices`` that may fail to decode.
        progress: Called with the number of images done and their total.
        workers: Decoding threads; None takes one for each core.

    Returns:
        The images that could be decoded.

    Raises:
        DatasetError: When too many images, or all of a class, cannot be decoded.
        DiskFullError: When the decoded images do not fit on the disk.
    """
    key = _key(source, indices, spec)
    home = folder / key
    store = _read_or_none(home)
    if store is None:
        with disk_full_as_user_error(folder), _locked(folder, key):
            store = _read_or_none(home)  # another process may have built it meanwhile
            if store is None:
                _check_disk(folder, len(indices), spec)
                build(home, source, indices, spec, unreadable_limit, progress, workers)
                store = _read(home)
    check_skipped(source, indices, store.indices, store.skipped, unreadable_limit)
    return store


def _key(source: Source, indices: Sequence[int], spec: ImageSpec) -> str:
    identity = [_FORMAT, source.fingerprint, [int(index) for index in indices], asdict(spec)]
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest()


def _read_or_none(home: Path) -> ImageStore | None:
    if not home.exists():
        return None
    try:
        return _read(home)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        logger.warning("the decoded images in %s are damaged (%s); decoding again", home, error)
        return None


def _read(home: Path) -> ImageStore:
    record = json.loads((home / RECORD).read_text(encoding="utf-8"))
    shape = (len(record["indices"]), 3, record["store_size"], record["store_size"])
    if record["bytes"] != np.prod(shape) or (home / IMAGES).stat().st_size != record["bytes"]:
        raise ValueError(f"{IMAGES} has not the size that {RECORD} says")
    return ImageStore(
        folder=home,
        images=np.memmap(home / IMAGES, dtype=np.uint8, mode="r", shape=shape),
        labels=np.array(record["labels"], dtype=np.int64),
        indices=np.array(record["indices"], dtype=np.int64),
        skipped=tuple((str(name), str(reason)) for name, reason in record["skipped"]),
    )


@contextmanager
def _locked(folder: Path, key: str) -> Iterator[None]:
    """Hold the lock of a store; when it is not built, leave no trace of the attempt."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(str(folder / f"{key}.lock"))
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise UserError(
                f"decoded images are kept in a folder that can be written, but {folder}: "
                f"{error.strerror}; name another one with 'files='"
            ) from error
        try:
            yield
        except BaseException:
            # filelock looks whether a lock file that it got is still the one of that name
            Path(lock.lock_file).unlink(missing_ok=True)
            raise
        finally:
            lock.release()
    except BaseException:
        for path in new:
            with suppress(OSError):  # not empty: somebody else uses it
                path.rmdir()
        raise


def _check_disk(folder: Path, count: int, spec: ImageSpec) -> None:
    needed = count * 3 * spec.store_size**2
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            f"{count} decoded images of {spec.store_size}x{spec.store_size} need "
            f"{_megabytes(needed)}, but the disk of {folder} has {_megabytes(free)} free; free "
            "some space, or move the files of the study with 'files='"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
