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
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
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
from autotune.errors import CacheError, InsufficientSpaceError, UserError, disk_full_as_user_error

logger = logging.getLogger(__name__)

#: After how long a process that waits for another one says so.
WAIT_SHOWN_S = 10.0
#: Of what is free or taken by entries, the share that they may take where no limit is given.
SHARE = 0.5
_UNFINISHED = ".tmp-"
#: Where the entries are noted that this process makes, see :func:`record_new_entries`.
_NOTED: ContextVar[list[Path] | None] = ContextVar("noted entries", default=None)
#: Pauses before what was removed is made again: removing a large cache takes seconds.
_PAUSES_S = (0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class ArrayCache:
    """A folder of entries that together stay below a limit.

    Args:
        folder: Where they lie.
        limit_bytes: What all of them together may take; None is half of what is free on the disk
            or taken by them.
    """

    folder: Path
    limit_bytes: int | None = None

    def get_or_create(
        self,
        key: str,
        make: Callable[[EntryWriter], dict[str, Any]],
        needed_bytes: int,
        what: str = "arrays",
    ) -> Entry:
        """Open an entry, and make it first if nobody has.

        Processes that ask for the same entry at once wait for the one that makes it. It appears
        under its name only when it is whole. Others that have not been used for longest are
        dropped for it where there is no room. Whoever wants the space may remove the shelf, or any
        file of it, at any time: what is missing is made again.

        Args:
            key: Its name on the shelf, which may lead through folders: ``features/<digest>``.
            make: Writes the arrays, and returns what else there is to know, as JSON values.
            needed_bytes: The most that the arrays may take.
            what: What they are, for messages, in the plural.

        Returns:
            The entry.

        Raises:
            InsufficientSpaceError: When there is no room for it; nothing has been made or dropped.
            DiskFullError: When the disk fills up meanwhile.
            UserError: When the folder cannot be written.
            CacheError: When its files are removed again and again.
        """
        for pause_s in _PAUSES_S:
            try:
                return self._get_or_create(key, make, needed_bytes, what)
            except (CacheError, OSError) as error:
                if not self._was_removed(error):
                    raise
                reason = str(error)
            logger.warning("files in %s were removed (%s); making them again", self.folder, reason)
            time.sleep(pause_s)
        try:
            return self._get_or_create(key, make, needed_bytes, what)
        except OSError as error:
            if not self._was_removed(error):
                raise
            raise CacheError(
                f"{what} cannot be kept, because files in {self.folder} are removed again and "
                f"again ({error}); it may be emptied, but not all the time"
            ) from error

    def _was_removed(self, error: Exception) -> bool:
        """Tell whether an error comes of files of the shelf that somebody has removed.

        With a lock that was removed, two processes may make the same entry; one of them is late.
        """
        if not isinstance(error, OSError):
            return isinstance(error, CacheError)
        paths = (error.filename, error.filename2)
        return error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST) and any(
            Path(str(one)).is_relative_to(self.folder) for one in paths if one is not None
        )

    def _get_or_create(
        self, key: str, make: Callable[[EntryWriter], dict[str, Any]], needed_bytes: int, what: str
    ) -> Entry:
        home = self._home(key)
        entry = self.get(key)
        if entry is None:
            with disk_full_as_user_error(self.folder), _locked(home, what):
                entry = read_if_valid(home, what)  # another process may have made it meanwhile
                if entry is None:
                    self._make(home, make, needed_bytes, what)
                    entry = read_entry(home)
            _mark_used(home)
        return entry

    def get(self, key: str) -> Entry | None:
        """Open an entry if it has been made.

        Args:
            key: Its name on the shelf.

        Returns:
            The entry; None when it is not there or damaged.
        """
        home = self._home(key)
        entry = read_if_valid(home, what=None)
        if entry is not None:
            _mark_used(home)
        return entry

    def keys(self, prefix: str = "") -> list[str]:
        """List the keys of the entries below a folder of the shelf, sorted.

        Args:
            prefix: The folder, e.g. ``features``; all of the shelf if empty.
        """
        below = self._home(prefix) if prefix else self.folder
        kept, _ = _list_entries(below)
        return sorted(one.home.relative_to(self.folder).as_posix() for one in kept)

    def remove(self, homes: Iterable[Path]) -> None:
        """Remove entries, apart from those that another process uses by now.

        Args:
            homes: Their folders.
        """
        for home in homes:
            with _unused(home) as ours:
                if ours:
                    _remove(home)
                    _lock_of(home).unlink(missing_ok=True)
        room = self.folder / ".room"
        if _lock_of(room).exists() and not self.keys():
            with _lock_now(room) as ours:
                if ours:
                    _lock_of(room).unlink(missing_ok=True)

    def make_room(self, needed_bytes: int, what: str = "arrays") -> None:
        """Drop what has not been used for longest until there is room.

        What another process uses, makes or drops is left alone. Nothing is dropped where that
        would not suffice.

        Args:
            needed_bytes: How much is to be written.
            what: What it is, for the message, in the plural.

        Raises:
            InsufficientSpaceError: When there cannot be room.
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
        self, home: Path, make: Callable[[EntryWriter], dict[str, Any]], needed: int, what: str
    ) -> None:
        """Write into a temporary folder and give it its name when it is whole."""
        for left_over in home.parent.glob(f"{home.name}{_UNFINISHED}*"):
            _clear(left_over)  # the lock is ours: nobody's now
        _remove(home)
        temporary = _unfinished(home)
        writer = EntryWriter(temporary)
        try:
            # one at a time, or two would both take the room that is left
            with self._room_lock(what):
                self._drop(needed, what)
                temporary.mkdir()
                (temporary / NEEDED).write_text(str(needed))
            record = make(writer)
            if "arrays" in record:
                raise ValueError("'arrays' in a record is what the shelf knows of them")
            record = {**record, "arrays": writer.finish()}
            write_record(temporary / RECORD, record)
            mark_checked(temporary, record["arrays"])
            (temporary / NEEDED).unlink()
            os.replace(temporary, home)
            if (noted := _NOTED.get()) is not None:
                noted.append(home)
        except BaseException:
            with self._room_lock(what):  # goes as well when it fails
                raise
        finally:
            writer.close()
            shutil.rmtree(temporary, ignore_errors=True)

    def _drop(self, needed: int, what: str) -> None:
        kept, coming = _list_entries(self.folder)
        taken = sum(one.bytes for one in kept) + sum(one.takes for one in coming)
        folder = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = shutil.disk_usage(folder).free - sum(one.takes - one.bytes for one in coming)
        limit = self.limit_bytes
        if limit is None:
            limit = int(SHARE * (free + taken))
        with ExitStack() as held:
            dropped: list[_CachedEntry] = []
            gained = 0
            for one in sorted(kept, key=lambda one: one.used_s):
                if needed <= min(free + gained, limit - taken + gained):
                    break
                if held.enter_context(_unused(one.home)):
                    dropped.append(one)
                    gained += one.bytes
            if needed > free + gained:
                raise InsufficientSpaceError(
                    f"{what} need {_megabytes(needed)}, but the disk of {self.folder} has "
                    f"{_megabytes(free)} free; free some space, or move the files of the study "
                    "with 'files='"
                )
            if needed > limit - taken + gained:
                raise InsufficientSpaceError(
                    f"{what} need {_megabytes(needed)}, but everything in {self.folder} may take "
                    f"{_megabytes(limit)}, of which {_megabytes(taken - gained)} are in use; "
                    "raise cache.disk_gb, or move the files of the study with 'files='"
                )
            for one in dropped:
                _remove(one.home)
                _lock_of(one.home).unlink(missing_ok=True)
                logger.info("%s: dropped for want of room (%s)", one.home, _megabytes(one.bytes))


@contextmanager
def record_new_entries() -> Iterator[list[Path]]:
    """Note the folders of the entries that this process makes for as long as the context lasts."""
    noted: list[Path] = []
    token = _NOTED.set(noted)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


@dataclass(frozen=True)
class _CachedEntry:
    home: Path
    bytes: int
    used_s: float


@dataclass(frozen=True)
class _PendingEntry:
    bytes: int
    needed: int

    @property
    def takes(self) -> int:
        return max(self.bytes, self.needed)


def _list_entries(folder: Path) -> tuple[list[_CachedEntry], list[_PendingEntry]]:
    """Look at everything below a folder; what killed makers have left is removed."""
    kept: list[_CachedEntry] = []
    coming: list[_PendingEntry] = []
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
                kept.append(_CachedEntry(path, size, (path / RECORD).stat().st_mtime))
            elif not _clear_left_over(path, path.with_name(finished)):
                needed = (path / NEEDED).read_text() if NEEDED in files else ""
                coming.append(_PendingEntry(size, int(needed or 0)))
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
    # Another user's, or a folder in its place.
    with suppress(Timeout, PermissionError, IsADirectoryError):
        lock.acquire(timeout=0)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _lock_files(home: Path, streams: ExitStack) -> bool:
    try:
        return all(
            try_lock(streams.enter_context(open(path, "r+b")), fcntl.LOCK_EX)
            for path in home.iterdir()
        )
    except (PermissionError, FileNotFoundError):  # another user's, or gone meanwhile
        return False


def _mark_used(home: Path) -> None:
    with suppress(OSError):  # dropped meanwhile, or a folder that may only be read
        os.utime(home / RECORD)


def _remove(home: Path) -> None:
    """Remove a folder so that no part of it is ever seen under its name."""
    with suppress(FileNotFoundError):
        os.replace(home, _unfinished(home))
    _clear(_unfinished(home))


def _clear(path: Path) -> None:
    """Remove a folder, or what somebody has put in its place."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


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
            if path.is_dir():  # a folder in its place is nobody's lock
                _clear(path)
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
