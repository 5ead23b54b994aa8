"""Arrays on disk: made once, by one process, and mapped into the memory of all that need them.

An entry is a folder, named by its key, in the folder of the cache::

    <key>/record.json        values of its maker; dtype, shape and checksum of its arrays
    <key>/<name>             one array, row after row
    <key>/checked-<boot>     compared with its checksums since this machine was started
    <key>.lock               locked by the process that makes the entry, or drops it
    <key>.tmp-<process>/     an unfinished entry; ``needed`` holds its largest possible size

A process that maps an array holds a shared lock of its file for as long as the mapping lives, and
the system takes the lock back from a process that is killed: entries in use are never dropped.
That would free no space here, and on a network file system it would take the pages from under
processes of other machines.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autotune.data.cache.entry import (
    NEEDED,
    RECORD,
    Entry,
    EntryWriter,
    mark_checked,
    read_entry,
    read_if_valid,
    try_lock,
    write_record,
)
from autotune.errors import (
    CacheError,
    InsufficientSpaceError,
    UserError,
    disk_full_as_user_error,
)
from autotune.text import format_bytes

logger = logging.getLogger(__name__)

#: Seconds of waiting for another process before a log message.
WAIT_SHOWN_S = 10.0
#: Limits all entries where no limit is given, as a share of the free space and their own.
SHARE = 0.5
_UNFINISHED = ".tmp-"
#: Folders of the entries that this process makes, see :func:`record_new_entries`.
_NEW_ENTRIES: ContextVar[list[Path] | None] = ContextVar("new entries", default=None)
#: Pauses before removed files are made again: removing a large cache takes seconds.
_PAUSES_S = (0.1, 0.3, 1.0, 3.0)

Make = Callable[[EntryWriter], dict[str, Any]]


@dataclass(frozen=True)
class ArrayCache:
    """A folder of entries that together stay below a limit.

    Args:
        folder: Its folder.
        limit_bytes: Limits all entries together; ``None`` is half of their size and the free
            space of the disk.
    """

    folder: Path
    limit_bytes: int | None = None

    def get_or_create(
        self, key: str, make: Make, needed_bytes: int, noun: str = "arrays"
    ) -> Entry:
        """Open an entry, and make it first if it does not exist.

        Processes that need the same entry at once wait for the one that makes it. It appears
        when it is complete. Where there is no room for it, the entries that have not been used
        for longest are dropped. Anybody who needs the space may remove the cache, or any file of
        it, at any time: what is missing is made again.

        Args:
            key: Its name, which may lead through folders: ``features/<digest>``.
            make: Writes the arrays, and returns further JSON values for the record.
            needed_bytes: The most that the arrays may take.
            noun: A plural noun for the arrays, for messages.

        Raises:
            InsufficientSpaceError: When there is no room for it; nothing has been made or dropped.
            DiskFullError: When the disk fills up meanwhile.
            UserError: When the folder cannot be written.
            CacheError: When its files are removed again and again.
        """
        pauses = iter(_PAUSES_S)
        while True:
            try:
                return self._get_or_create(key, make, needed_bytes, noun)
            except (CacheError, OSError) as error:
                if not self._was_removed(error):
                    raise
                if (pause_s := next(pauses, None)) is None:
                    raise CacheError(
                        f"{noun} cannot be stored, because files in {self.folder} are removed "
                        f"again and again ({error}); it may be emptied, but not all the time"
                    ) from error
                reason = str(error)  # not the error: its traceback would keep the mappings
            logger.warning("files in %s were removed (%s); making them again", self.folder, reason)
            time.sleep(pause_s)

    def get(self, key: str) -> Entry | None:
        """Open an entry; return ``None`` when it does not exist or is damaged."""
        folder = self._entry_folder(key)
        entry = read_if_valid(folder, noun=None)
        if entry is not None:
            _mark_used(folder)
        return entry

    def keys(self, prefix: str = "") -> list[str]:
        """Return the sorted keys of all entries, or of those below a folder, e.g. ``features``."""
        entries, _ = _list_entries(self._entry_folder(prefix) if prefix else self.folder)
        return sorted(entry.folder.relative_to(self.folder).as_posix() for entry in entries)

    def remove(self, folders: Iterable[Path]) -> None:
        """Remove the entries in some folders, apart from those that another process uses."""
        for folder in folders:
            with _unused(folder) as is_ours:
                if is_ours:
                    _remove(folder)
                    _lock_path(folder).unlink(missing_ok=True)
        room = self.folder / ".room"
        if _lock_path(room).exists() and not self.keys():
            with _lock_now(room) as is_ours:
                if is_ours:
                    _lock_path(room).unlink(missing_ok=True)

    def _get_or_create(self, key: str, make: Make, needed: int, noun: str) -> Entry:
        folder = self._entry_folder(key)
        entry = self.get(key)
        if entry is None:
            with disk_full_as_user_error(self.folder), _locked(folder, noun):
                entry = read_if_valid(folder, noun)  # another process may have made it meanwhile
                if entry is None:
                    self._make(folder, make, needed, noun)
                    entry = read_entry(folder)
            _mark_used(folder)
        return entry

    def _was_removed(self, error: Exception) -> bool:
        """Tell whether an error comes of files of the cache that somebody has removed.

        With a lock that was removed, two processes may make the same entry; one of them is late.
        """
        if not isinstance(error, OSError):
            return isinstance(error, CacheError)
        paths = (error.filename, error.filename2)
        return error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST) and any(
            Path(str(path)).is_relative_to(self.folder) for path in paths if path is not None
        )

    def _entry_folder(self, key: str) -> Path:
        names = key.split("/")
        if any(name.startswith(".") or not name or _UNFINISHED in name for name in names):
            raise ValueError(f"a key is folder names with / between them, but got {key!r}")
        return self.folder.joinpath(*names)

    def _make(self, folder: Path, make: Make, needed: int, noun: str) -> None:
        """Write into a temporary folder, and rename it when it is complete."""
        for remainder in folder.parent.glob(f"{folder.name}{_UNFINISHED}*"):
            _clear(remainder)  # the lock is ours: no process uses it
        _remove(folder)
        temporary, room = _unfinished(folder), self.folder / ".room"
        writer = EntryWriter(temporary)
        try:
            # one at a time, or two would both take the room that is left
            with _locked(room, noun):
                self._drop(needed, noun)
                temporary.mkdir()
                (temporary / NEEDED).write_text(str(needed))
            record = make(writer)
            if "arrays" in record:
                raise ValueError("'arrays' in a record is set by the cache")
            record = {**record, "arrays": writer.finish()}
            write_record(temporary / RECORD, record)
            mark_checked(temporary, record["arrays"])
            (temporary / NEEDED).unlink()
            os.replace(temporary, folder)
            if (new_entries := _NEW_ENTRIES.get()) is not None:
                new_entries.append(folder)
        except BaseException:
            with _locked(room, noun):  # its lock is removed as well when this fails
                raise
        finally:
            writer.close()
            shutil.rmtree(temporary, ignore_errors=True)

    def _drop(self, needed: int, noun: str) -> None:
        entries, pending = _list_entries(self.folder)
        taken = sum(entry.reserved for entry in (*entries, *pending))
        existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        free -= sum(entry.reserved - entry.bytes for entry in pending)
        limit = self.limit_bytes
        if limit is None:
            limit = int(SHARE * (free + taken))
        with ExitStack() as locks:
            dropped: list[_ListedEntry] = []
            gained = 0
            for entry in sorted(entries, key=lambda entry: entry.used_s):
                if needed <= min(free + gained, limit - taken + gained):
                    break
                if locks.enter_context(_unused(entry.folder)):
                    dropped.append(entry)
                    gained += entry.bytes
            if needed > free + gained:
                raise InsufficientSpaceError(
                    f"{noun} need {format_bytes(needed)}, but the disk of {self.folder} has "
                    f"{format_bytes(free)} free; free some space, or move the files of the study "
                    "with 'files='"
                )
            if needed > limit - taken + gained:
                raise InsufficientSpaceError(
                    f"{noun} need {format_bytes(needed)}, but everything in {self.folder} may "
                    f"take {format_bytes(limit)}, of which {format_bytes(taken - gained)} are in "
                    "use; raise cache.disk_gb, or move the files of the study with 'files='"
                )
            for entry in dropped:
                _remove(entry.folder)
                _lock_path(entry.folder).unlink(missing_ok=True)
                size = format_bytes(entry.bytes)
                logger.info("%s: dropped to make room (%s)", entry.folder, size)


@contextmanager
def record_new_entries() -> Iterator[list[Path]]:
    """Record the folders of the entries that this process makes inside the block."""
    folders: list[Path] = []
    token = _NEW_ENTRIES.set(folders)
    try:
        yield folders
    finally:
        _NEW_ENTRIES.reset(token)


@dataclass(frozen=True)
class _ListedEntry:
    """An entry: its size, the most that it may grow to, and when it was used."""

    folder: Path
    bytes: int
    reserved: int
    used_s: float


def _list_entries(folder: Path) -> tuple[list[_ListedEntry], list[_ListedEntry]]:
    """List finished and pending entries, and remove what killed processes have left."""
    entries: list[_ListedEntry] = []
    pending: list[_ListedEntry] = []
    for name, folders, files in os.walk(folder):
        path = Path(name)
        finished, is_unfinished, _ = path.name.partition(_UNFINISHED)
        if not is_unfinished and RECORD not in files:
            continue
        folders.clear()
        # an entry may be removed or renamed at the same time
        with suppress(FileNotFoundError):
            size = sum((path / file).stat().st_size for file in files)
            if not is_unfinished:
                entries.append(_ListedEntry(path, size, size, (path / RECORD).stat().st_mtime))
                continue
            with _lock_now(path.with_name(finished)) as is_ours:
                if is_ours:  # of a process that was killed
                    shutil.rmtree(path, ignore_errors=True)
            if not is_ours:
                needed = (path / NEEDED).read_text() if NEEDED in files else ""
                pending.append(_ListedEntry(path, size, max(size, int(needed or 0)), 0.0))
    return entries, pending


@contextmanager
def _unused(folder: Path) -> Iterator[bool]:
    """Keep an entry from being opened, if no process uses, makes or drops it."""
    with _lock_now(folder) as is_ours, ExitStack() as streams:
        yield is_ours and _lock_files(folder, streams)


@contextmanager
def _lock_now(folder: Path) -> Iterator[bool]:
    """Hold the lock of an entry, if that is possible without waiting."""
    lock = FileLock(_lock_path(folder))
    # Another user's, or a folder in its place.
    with suppress(Timeout, PermissionError, IsADirectoryError):
        lock.acquire(timeout=0)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _lock_files(folder: Path, streams: ExitStack) -> bool:
    try:
        return all(
            try_lock(streams.enter_context(open(path, "r+b")), fcntl.LOCK_EX)
            for path in folder.iterdir()
        )
    except (PermissionError, FileNotFoundError):  # another user's, or removed meanwhile
        return False


def _mark_used(folder: Path) -> None:
    with suppress(OSError):  # dropped meanwhile, or a folder that may only be read
        os.utime(folder / RECORD)


def _remove(folder: Path) -> None:
    """Remove a folder so that no part of it is ever seen under its name."""
    with suppress(FileNotFoundError):
        os.replace(folder, _unfinished(folder))
    _clear(_unfinished(folder))


def _clear(path: Path) -> None:
    """Remove a folder, or what somebody has put in its place."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{_UNFINISHED}{os.getpid()}")


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def _locked(folder: Path, noun: str) -> Iterator[None]:
    """Hold a lock of the cache; after a failure leave no trace of the attempt."""
    new = [path for path in folder.parents if not path.exists()]
    path = _lock_path(folder)
    lock = FileLock(path)
    try:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():  # a folder in its place is no lock
                _clear(path)
            try:
                lock.acquire(timeout=WAIT_SHOWN_S)
            except Timeout:
                logger.warning("another process makes %s; waiting for it (%s)", noun, path)
                lock.acquire()
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise UserError(
                f"{noun} are stored in a folder that can be written, but {folder.parent}: "
                f"{error.strerror}; name another one with 'files='"
            ) from error
        try:
            yield
        except BaseException:
            # filelock checks whether a lock file that it got is still the one of that name
            path.unlink(missing_ok=True)
            raise
        finally:
            lock.release()
    except BaseException:
        for parent in new:
            with suppress(OSError):  # not empty: another process uses it
                parent.rmdir()
        raise
