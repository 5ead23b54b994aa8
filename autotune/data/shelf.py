"""Arrays on disk: made once, by one process, and mapped into the memory of all that need them.

An entry is a folder, named by its key, on the shelf::

    <key>/record.json        what its maker says of it; dtype, shape and checksum of its arrays
    <key>/<name>             one array, row after row
    <key>/checked-<boot>     compared with its checksums since this machine was started
    <key>.lock               locked by whoever makes the entry, or drops it
    <key>.tmp-<process>/     an entry that is being made; ``needed`` says how large it may become

Whoever maps an array holds a shared lock of its file for as long as the mapping lives, and the
system takes the lock back from a process that is killed: what is in use is never dropped. That
would free no space here, and on a network file system it would take the pages from under
processes of other machines.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from autotune.errors import NoRoomError, UserError, disk_full_as_user_error

logger = logging.getLogger(__name__)

#: The file of an entry that says what the others are.
RECORD = "record.json"
#: After how long a process that waits for another one says so.
WAIT_SHOWN_S = 10.0
#: Of what is free or taken by entries, the share that they may take where no limit is given.
SHARE = 0.5
_NEEDED = "needed"
_UNFINISHED = ".tmp-"
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class Entry:
    """Arrays that have been made, read-only and shared. It travels between processes by its path.

    Args:
        folder: Where they lie.
        record: What the maker returned, as JSON gives it back, and under ``arrays`` the dtype,
            shape and checksum of each array.
    """

    folder: Path
    record: dict[str, Any]
    _arrays: dict[str, np.ndarray] = field(repr=False)

    def array(self, name: str) -> np.ndarray:
        """Return an array, mapped from disk (an empty one is not).

        Args:
            name: What the maker called it.

        Raises:
            KeyError: When there is none of that name.
        """
        return self._arrays[name]

    def __reduce__(self) -> tuple[Callable[[Path], Entry], tuple[Path]]:
        # pickling a mapped array would copy it into each data-loading process
        return _read, (self.folder,)


class Writer:
    """What the maker of an entry writes to.

    Args:
        folder: Where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[str, Rows] = {}

    def array(self, name: str, dtype: np.typing.DTypeLike, shape: Sequence[int]) -> Rows:
        """Begin an array; several may be written side by side.

        Args:
            name: Its name, a file name.
            dtype: Of its values. numpy has no bfloat16: write such values as ``uint16`` and
                return torch's name for them in the record.
            shape: Of one row, ``()`` for a number.
        """
        taken = ("", "..", RECORD, _NEEDED, *self._rows)
        if name in taken or name != Path(name).name:
            raise ValueError(f"an array needs a file name of its own, but got {name!r}")
        self._rows[name] = Rows(self._folder / name, np.dtype(dtype), tuple(shape))
        return self._rows[name]

    def finish(self) -> dict[str, dict[str, Any]]:
        """Bring all arrays to the disk.

        Returns:
            What the record has to say of each.
        """
        return {name: rows.finish() for name, rows in self._rows.items()}

    def close(self) -> None:
        """Close the files, whole or not."""
        for rows in self._rows.values():
            rows.close()


class Rows:
    """One array that is being written. Written, not mapped: a full disk is an error, no SIGBUS.

    Args:
        path: Its file.
        dtype: Of its values.
        shape: Of one row.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._stream = open(path, "wb")  # noqa: SIM115
        self._dtype = dtype
        self._shape = shape
        self._count = 0
        self._crc = 0

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows.

        Args:
            rows: ``(n, *shape)``, of the dtype that was announced.

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
        """Bring the array to the disk, and return what the record has to say of it."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        shape = [self._count, *self._shape]
        return {"dtype": self._dtype.str, "shape": shape, "crc32": self._crc}

    def close(self) -> None:
        """Close the file, whole or not."""
        with suppress(OSError):  # of a full disk, which has been reported
            self._stream.close()


@dataclass(frozen=True)
class Shelf:
    """A folder of entries that together stay below a limit.

    Args:
        folder: Where they lie.
        limit_bytes: What all of them together may take; None is half of what is free on the disk
            or taken by them.
    """

    folder: Path
    limit_bytes: int | None = None

    def open(
        self,
        key: str,
        make: Callable[[Writer], dict[str, Any]],
        needed_bytes: int,
        what: str = "arrays",
    ) -> Entry:
        """Open an entry, and make it first if nobody has.

        Processes that ask for the same entry at once wait for the one that makes it. It appears
        under its name only when it is whole. Others that have not been used for longest are
        dropped for it where there is no room.

        Args:
            key: Its name on the shelf, which may lead through folders: ``features/<digest>``.
            make: Writes the arrays, and returns what else there is to know, as JSON values.
            needed_bytes: The most that the arrays may take.
            what: What they are, for messages, in the plural.

        Returns:
            The entry.

        Raises:
            NoRoomError: When there is no room for it; nothing has been made or dropped.
            DiskFullError: When the disk fills up meanwhile.
            UserError: When the folder cannot be written.
        """
        home = self._home(key)
        entry = self.find(key)
        if entry is None:
            with disk_full_as_user_error(self.folder), _locked(home, what):
                entry = _read_or_none(home, what)  # another process may have made it meanwhile
                if entry is None:
                    self._make(home, make, needed_bytes, what)
                    entry = _read(home)
            _mark_used(home)
        return entry

    def find(self, key: str) -> Entry | None:
        """Open an entry if it has been made.

        Args:
            key: Its name on the shelf.

        Returns:
            The entry; None when it is not there or damaged.
        """
        home = self._home(key)
        entry = _read_or_none(home, what=None)
        if entry is not None:
            _mark_used(home)
        return entry

    def known(self, prefix: str = "") -> list[str]:
        """List the keys of the entries below a folder of the shelf, sorted.

        Args:
            prefix: The folder, e.g. ``features``; all of the shelf if empty.
        """
        below = self._home(prefix) if prefix else self.folder
        kept, _ = _census(below)
        return sorted(one.home.relative_to(self.folder).as_posix() for one in kept)

    def room(self, needed_bytes: int, what: str = "arrays") -> None:
        """Drop what has not been used for longest until there is room.

        What another process uses, makes or drops is left alone. Nothing is dropped where that
        would not suffice.

        Args:
            needed_bytes: How much is to be written.
            what: What it is, for the message, in the plural.

        Raises:
            NoRoomError: When there cannot be room.
        """
        with self._room_lock(what):
            self._drop(needed_bytes, what)

    def _room_lock(self, what: str) -> AbstractContextManager[None]:
        return _locked(self.folder / ".room", what)

    def _home(self, key: str) -> Path:
        parts = key.split("/")
        if any(part.startswith(".") or not part or _UNFINISHED in part for part in parts):
            raise ValueError(f"a key is folder names with / between them, but got {key!r}")
        return self.folder.joinpath(*parts)

    def _make(
        self, home: Path, make: Callable[[Writer], dict[str, Any]], needed: int, what: str
    ) -> None:
        """Write into a temporary folder and give it its name when it is whole."""
        for left_over in home.parent.glob(f"{home.name}{_UNFINISHED}*"):
            shutil.rmtree(left_over, ignore_errors=True)  # the lock is ours: nobody's now
        _remove(home)
        temporary = _unfinished(home)
        writer = Writer(temporary)
        try:
            # one at a time, or two would both take the room that is left
            with self._room_lock(what):
                self._drop(needed, what)
                temporary.mkdir()
                (temporary / _NEEDED).write_text(str(needed))
            record = make(writer)
            if "arrays" in record:
                raise ValueError("'arrays' in a record is what the shelf knows of them")
            record = {**record, "arrays": writer.finish()}
            with open(temporary / RECORD, "w", encoding="utf-8") as text:
                json.dump(record, text)
                text.flush()
                os.fsync(text.fileno())
            (temporary / f"checked-{_boot()}").touch()
            (temporary / _NEEDED).unlink()
            os.replace(temporary, home)
        except BaseException:
            with self._room_lock(what):  # goes as well when it fails
                raise
        finally:
            writer.close()
            shutil.rmtree(temporary, ignore_errors=True)

    def _drop(self, needed: int, what: str) -> None:
        kept, coming = _census(self.folder)
        taken = sum(one.bytes for one in kept) + sum(one.takes for one in coming)
        folder = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = shutil.disk_usage(folder).free - sum(one.takes - one.bytes for one in coming)
        limit = self.limit_bytes
        if limit is None:
            limit = int(SHARE * (free + taken))
        with ExitStack() as held:
            dropped: list[_Kept] = []
            gained = 0
            for one in sorted(kept, key=lambda one: one.used_s):
                if needed <= min(free + gained, limit - taken + gained):
                    break
                if held.enter_context(_unused(one.home)):
                    dropped.append(one)
                    gained += one.bytes
            if needed > free + gained:
                raise NoRoomError(
                    f"{what} need {_megabytes(needed)}, but the disk of {self.folder} has "
                    f"{_megabytes(free)} free; free some space, or move the files of the study "
                    "with 'files='"
                )
            if needed > limit - taken + gained:
                raise NoRoomError(
                    f"{what} need {_megabytes(needed)}, but everything in {self.folder} may take "
                    f"{_megabytes(limit)}, of which {_megabytes(taken - gained)} are in use; "
                    "raise cache.disk_gb, or move the files of the study with 'files='"
                )
            for one in dropped:
                _remove(one.home)
                _lock_of(one.home).unlink(missing_ok=True)
                logger.info("%s: dropped for want of room (%s)", one.home, _megabytes(one.bytes))


@dataclass(frozen=True)
class _Kept:
    home: Path
    bytes: int
    used_s: float


@dataclass(frozen=True)
class _Coming:
    bytes: int
    needed: int

    @property
    def takes(self) -> int:
        return max(self.bytes, self.needed)


def _census(folder: Path) -> tuple[list[_Kept], list[_Coming]]:
    """Look at everything below a folder; what killed makers have left is removed."""
    kept: list[_Kept] = []
    coming: list[_Coming] = []
    for name, folders, files in os.walk(folder):
        path = Path(name)
        finished, unfinished, _ = path.name.partition(_UNFINISHED)
        if not unfinished and RECORD not in files:
            continue
        folders.clear()
        # an entry may go, or get its name, while it is looked at
        with suppress(FileNotFoundError):
            size = sum((path / file).stat().st_size for file in files)
            if not unfinished:
                kept.append(_Kept(path, size, (path / RECORD).stat().st_mtime))
            elif not _clear_left_over(path, path.with_name(finished)):
                needed = (path / _NEEDED).read_text() if _NEEDED in files else ""
                coming.append(_Coming(size, int(needed or 0)))
    return kept, coming


def _clear_left_over(temporary: Path, home: Path) -> bool:
    """Remove an unfinished entry, unless somebody is at it."""
    with _lock_now(home) as ours:
        if ours:
            shutil.rmtree(temporary, ignore_errors=True)
    return ours


@contextmanager
def _unused(home: Path) -> Iterator[bool]:
    """Keep an entry from being opened, if nobody uses, makes or drops it."""
    with _lock_now(home) as ours, ExitStack() as streams:
        yield ours and _lock_files(home, streams)


@contextmanager
def _lock_now(home: Path) -> Iterator[bool]:
    """Hold the lock of an entry, if it can be had without waiting."""
    lock = FileLock(_lock_of(home))
    with suppress(Timeout, PermissionError):  # the second: another user's
        lock.acquire(timeout=0)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _lock_files(home: Path, streams: ExitStack) -> bool:
    try:
        return all(
            _try_lock(streams.enter_context(open(path, "r+b")), fcntl.LOCK_EX)
            for path in home.iterdir()
        )
    except (PermissionError, FileNotFoundError):  # another user's, or gone meanwhile
        return False


def _try_lock(stream: BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        return kind == fcntl.LOCK_SH  # a file system without locks: one reads, and drops nothing
    return True


def _read_or_none(home: Path, what: str | None) -> Entry | None:
    """Open an entry if it is there and whole; ``what`` it is, where damage is to be told."""
    if not home.exists():
        return None
    try:
        entry = _read(home)
        _check(entry)
    except BlockingIOError:  # it is being dropped
        return None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EIO):  # such as too many open files
            raise
        reason = str(error)  # not the error: its traceback would keep the mappings
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        return entry
    if what is not None:
        logger.warning("the %s in %s are damaged (%s); making them again", what, home, reason)
    return None


def _read(home: Path) -> Entry:
    record = json.loads((home / RECORD).read_text(encoding="utf-8"))
    arrays = {name: _map(home / name, about) for name, about in record["arrays"].items()}
    return Entry(home, record, arrays)


def _map(path: Path, about: dict[str, Any]) -> np.ndarray:
    dtype, shape = np.dtype(about["dtype"]), tuple(about["shape"])
    size = dtype.itemsize * math.prod(shape)
    with open(path, "rb") as stream:
        if os.fstat(stream.fileno()).st_size != size:
            raise ValueError(f"{path.name} has not the size that {RECORD} says")
        if size == 0:
            return np.empty(shape, dtype)
        if not _try_lock(stream, fcntl.LOCK_SH):  # the mapping has a duplicate, which keeps it
            raise BlockingIOError(errno.EAGAIN, "is being dropped", str(path))
        return np.memmap(stream, dtype=dtype, mode="r", shape=shape)


def _check(entry: Entry) -> None:
    """Compare the content with the checksums, once after each start of the machine.

    That is when a power cut may have left empty blocks. It is read, not mapped: a sector that
    cannot be read is an error, no SIGBUS.
    """
    mark = entry.folder / f"checked-{_boot()}"
    if mark.exists():
        return
    for name, about in entry.record["arrays"].items():
        crc = 0
        with open(entry.folder / name, "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                crc = zlib.crc32(chunk, crc)
        if crc != about["crc32"]:
            raise ValueError(f"{name} has not the checksum that {RECORD} says")
    with suppress(OSError):  # a folder that may only be read
        mark.touch()


@cache
def _boot() -> str:
    """Name the time since the machine was started; where it cannot be told, this process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{os.getpid()}-{time.time_ns()}"


def _mark_used(home: Path) -> None:
    with suppress(OSError):  # dropped meanwhile, or a folder that may only be read
        os.utime(home / RECORD)


def _remove(home: Path) -> None:
    """Remove a folder so that no part of it is ever seen under its name."""
    with suppress(FileNotFoundError):
        os.replace(home, _unfinished(home))
    shutil.rmtree(_unfinished(home), ignore_errors=True)


def _unfinished(home: Path) -> Path:
    return home.with_name(f"{home.name}{_UNFINISHED}{os.getpid()}")


def _lock_of(home: Path) -> Path:
    return home.with_name(f"{home.name}.lock")


@contextmanager
def _locked(home: Path, what: str) -> Iterator[None]:
    """Hold a lock of the shelf; after a failure leave no trace of the attempt."""
    new = [path for path in home.parents if not path.exists()]
    path = _lock_of(home)
    lock = FileLock(path)
    try:
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            _acquire(lock, what)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise UserError(
                f"{what} are kept in a folder that can be written, but {home.parent}: "
                f"{error.strerror}; name another one with 'files='"
            ) from error
        try:
            yield
        except BaseException:
            # filelock looks whether a lock file that it got is still the one of that name
            path.unlink(missing_ok=True)
            raise
        finally:
            lock.release()
    except BaseException:
        for folder in new:
            with suppress(OSError):  # not empty: somebody else uses it
                folder.rmdir()
        raise


def _acquire(lock: FileLock, what: str) -> None:
    try:
        lock.acquire(timeout=WAIT_SHOWN_S)
    except Timeout:
        logger.warning("another process makes %s; waiting for it (%s)", what, lock.lock_file)
        lock.acquire()


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
