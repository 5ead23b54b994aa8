"""One entry of the array cache: how it is written, opened and checked."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from autotune.errors import CacheError

logger = logging.getLogger(__name__)

#: The file of an entry that describes the others.
RECORD = "record.json"
#: The file of an unfinished entry with its largest possible size, in bytes.
NEEDED = "needed"
_CHUNK_BYTES = 1 << 24
_CHECKSUM = "crc32"
#: Errors of the system for files that are missing, cannot be read, or are not what they should be.
_DAMAGED = (errno.ENOENT, errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_LAST = re.compile(rf', "{_CHECKSUM}": (\d+)}}$'.encode())


@dataclass(frozen=True, eq=False)
class Entry:
    """Arrays, read-only and shared between processes. Only its path is pickled.

    Args:
        folder: Its folder.
        record: The values that its maker returned, as JSON gives them back, and under ``arrays``
            the dtype, shape and checksum of each array.
    """

    folder: Path
    record: dict[str, Any]
    _arrays: dict[str, np.ndarray] = field(repr=False)

    def array(self, name: str) -> np.ndarray:
        """Return an array by its name, mapped from disk (an empty one is not)."""
        return self._arrays[name]

    def __reduce__(self) -> tuple[Callable[[Path], Entry], tuple[Path]]:
        # pickling a mapped array would copy it into each data-loading process
        return read_entry, (self.folder,)


class ArrayWriter:
    """Writes one array, row after row.

    Plain writes, not a mapping: a full disk raises OSError, not SIGBUS.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._stream = open(path, "wb")  # noqa: SIM115
        self._dtype = dtype
        self._shape = shape
        self._count = 0
        self._crc = 0

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows, ``(n, *shape)``.

        Raises:
            ValueError: When they are of another shape or dtype.
            OSError: When the disk is full.
        """
        if rows.dtype != self._dtype or rows.shape[1:] != self._shape:
            raise ValueError(
                f"rows must be {self._dtype} of shape {self._shape}, but got {rows.dtype} of "
                f"shape {rows.shape[1:]}"
            )
        content = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        self._stream.write(content)
        self._crc = zlib.crc32(content, self._crc)
        self._count += len(rows)

    def finish(self) -> dict[str, Any]:
        """Flush the array to the disk, and return its part of the record."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        shape = [self._count, *self._shape]
        return {"dtype": self._dtype.str, "shape": shape, "crc32": self._crc}

    def close(self) -> None:
        """Close the file, finished or not."""
        with suppress(OSError):  # of a full disk, which has been reported
            self._stream.close()


class EntryWriter:
    """Writes the arrays of an entry into its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: dict[str, ArrayWriter] = {}

    def array(self, name: str, dtype: np.typing.DTypeLike, shape: Sequence[int]) -> ArrayWriter:
        """Begin an array; several may be written side by side.

        Args:
            name: Its name, a file name.
            dtype: Of its values. numpy has no bfloat16: write such values as ``uint16`` and
                return torch's name for them in the record.
            shape: Of one row, ``()`` for a number.
        """
        if name in ("", "..", RECORD, NEEDED, *self._arrays) or name != Path(name).name:
            raise ValueError(f"an array needs its own file name, but got {name!r}")
        self._arrays[name] = ArrayWriter(self._folder / name, np.dtype(dtype), tuple(shape))
        return self._arrays[name]

    def finish(self) -> dict[str, dict[str, Any]]:
        """Flush all arrays to the disk, and return their part of the record."""
        return {name: array.finish() for name, array in self._arrays.items()}

    def close(self) -> None:
        """Close the files, finished or not."""
        for array in self._arrays.values():
            array.close()


def try_lock(stream: BinaryIO, kind: int) -> bool:
    """Lock a file, shared or exclusively (``fcntl``), if that is possible at once."""
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        return kind == fcntl.LOCK_SH  # a file system without locks: read, and drop nothing
    return True


def read_if_valid(folder: Path, noun: str | None) -> Entry | None:
    """Open an entry if it exists and is undamaged; damage is logged where there is a noun."""
    if not folder.exists():
        return None
    try:
        entry = read_entry(folder)
        _check(entry)
    except BlockingIOError:  # it is being dropped
        return None
    except CacheError as error:
        reason = str(error)  # not the error: its traceback would keep the mappings
    except OSError as error:
        if error.errno not in _DAMAGED:  # such as too many open files
            raise
        reason = str(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        return entry
    if noun is not None:
        logger.warning("the %s in %s are damaged (%s); making them again", noun, folder, reason)
    return None


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write the record of an entry: JSON, whose last value is the checksum of all before it."""
    start = json.dumps(record).encode().removesuffix(b"}")
    with open(path, "wb") as stream:
        stream.write(start + f', "{_CHECKSUM}": {zlib.crc32(start)}}}'.encode())
        stream.flush()
        os.fsync(stream.fileno())


def read_entry(folder: Path) -> Entry:
    """Open an entry without a comparison of its arrays with their checksums.

    Raises:
        CacheError: When a file of it is missing.
        ValueError: When it is damaged.
    """
    try:
        record = _read_record(folder / RECORD)
        arrays = {name: _map(folder / name, about) for name, about in record["arrays"].items()}
    except FileNotFoundError as error:
        raise CacheError(f"{error.filename} was removed") from error
    return Entry(folder, record, arrays)


def _read_record(path: Path) -> dict[str, Any]:
    text = path.read_bytes()
    last = _LAST.search(text)  # a record of an earlier version has no checksum
    if last is not None and int(last[1]) != zlib.crc32(text[: last.start()]):
        raise ValueError(f"{path.name} does not have its checksum")
    record: dict[str, Any] = json.loads(text)
    if last is not None:
        del record[_CHECKSUM]
    return record


def _map(path: Path, about: dict[str, Any]) -> np.ndarray:
    dtype, shape = np.dtype(about["dtype"]), tuple(about["shape"])
    size = dtype.itemsize * math.prod(shape)
    with open(path, "rb") as stream:
        if os.fstat(stream.fileno()).st_size != size:
            raise ValueError(f"{path.name} does not have the size in {RECORD}")
        if size == 0:
            return np.empty(shape, dtype)
        if not try_lock(stream, fcntl.LOCK_SH):  # the mapping has a duplicate, which keeps it
            raise BlockingIOError(errno.EAGAIN, "is being dropped", str(path))
        return np.memmap(stream, dtype=dtype, mode="r", shape=shape)


def _check(entry: Entry) -> None:
    """Compare the content with the checksums, once after each start of the machine.

    That is when a power cut may have left empty blocks; and when a file was written since. What a
    disk changes by itself in between is not seen: that would mean to read everything whenever it
    is opened. The content is read, not mapped: a sector that cannot be read raises OSError, not
    SIGBUS.
    """
    arrays = entry.record["arrays"]
    with suppress(FileNotFoundError):
        path, write_times = _mark(entry.folder, arrays)
        if path.read_text(encoding="utf-8") == write_times:
            return
    for name, about in arrays.items():
        crc = 0
        with open(entry.folder / name, "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                crc = zlib.crc32(chunk, crc)
        if crc != about["crc32"]:
            raise ValueError(f"{name} does not have the checksum in {RECORD}")
    with suppress(OSError):  # a folder that may only be read
        mark_checked(entry.folder, arrays)


def mark_checked(folder: Path, names: Iterable[str]) -> None:
    """Store that arrays have their checksums, and when they were written."""
    path, write_times = _mark(folder, names)
    path.write_text(write_times, encoding="utf-8")


def _mark(folder: Path, names: Iterable[str]) -> tuple[Path, str]:
    """Return the file for this start of the machine, and its text: when arrays were written."""
    write_times = {name: (folder / name).stat().st_mtime_ns for name in names}
    return folder / f"checked-{boot_id()}", json.dumps(write_times)


@cache
def boot_id() -> str:
    """Return the identity of the machine's last start; where it is unknown, of this process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{os.getpid()}-{time.time_ns()}"
