"""Extraction of archives of unknown origin into a folder that is complete or absent.

Members are read as streams and written here: an archive decides about names and contents alone,
not about links, modes, owners or devices. All members are checked before the first is written.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from filelock import FileLock

from autotune.errors import DatasetError, DiskFullError, InsufficientSpaceError, is_disk_full
from autotune.text import first_line, format_bytes

#: Names of files that are taken for archives, whatever is in them.
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")
#: First bytes of archives and compressed files for which neither the standard library nor a
#: dependency has a reader.
_UNSUPPORTED = {
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\x07": "RAR",
    b"LZIP": "lzip",
    b"\x04\x22\x4d\x18": "LZ4",
    b"\x1f\x9d": "compress (.Z)",
    b"xar!": "xar",
    b"MSCF": "CAB",
}
_CHUNK_BYTES = 1 << 20
#: Limits the content of an archive, as a multiple of its size; small archives may hold
#: ``_MIN_LIMIT_BYTES``. Files of images hardly shrink; deflate makes a thousand zeros one byte.
MAX_RATIO = 100
_MIN_LIMIT_BYTES = 1 << 23
#: Limits the members: each is a value in memory, folders too, and most become files.
MAX_MEMBERS = 2_000_000
#: Limits the depth of folders.
MAX_LEVELS = 64
#: Limits one read: a header of a tar file can claim any size.
_MAX_READ_BYTES = 1 << 26
#: Disk space of a file beside its content, on average.
_BLOCK_BYTES = 4096
#: Errors of the standard library's readers on damaged archives.
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, ValueError, NotImplementedError, RuntimeError),
)


def is_archive(path: Path) -> bool:
    """Tell whether a file is an archive that can be unpacked, by its name or else by its content.

    A damaged file whose name ends with ``.zip`` is one, so that a message can call it damaged.
    """
    if not path.is_file():
        return False
    if path.name.lower().endswith(SUFFIXES):
        return True
    try:
        if zipfile.is_zipfile(path):
            return True
        with _open_tar(path):
            return True
    except _TooLarge:
        return True
    except (OSError, *_DAMAGE):
        return False


def unsupported_format(path: Path) -> str:
    """Return the name of an archive format that cannot be unpacked here; empty for others."""
    with suppress(OSError), path.open("rb") as stream:
        start = stream.read(8)
        return next((name for magic, name in _UNSUPPORTED.items() if start.startswith(magic)), "")
    return ""


def extract(
    archive: Path, into: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Unpack an archive into a new folder, which appears when it is complete.

    Args:
        archive: A zip or tar file; a tar file may be compressed with gzip, bzip2 or xz.
        into: The folder to make; nothing is done if it exists. Until it is complete it is called
            ``.<name>.part``. One process makes it while others wait.
        on_progress: Called with the bytes written and their total.

    Raises:
        DatasetError: When the archive is damaged; when a member would be written outside of the
            folder, over another one, or as anything but a file or a folder; when the archive
            exceeds :data:`MAX_RATIO` or :data:`MAX_MEMBERS`.
        InsufficientSpaceError: When the disk has less space than the archive needs.
        DiskFullError: When the disk fills up meanwhile.
    """
    if into.is_dir():
        return
    staging = into.with_name(f".{into.name}.part")
    with _user_errors(archive, into):
        into.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(into.with_name(f".{into.name}.lock")):
            if into.is_dir():
                return
            remove(staging)  # of a process that was killed
            try:
                with _open(archive) as members:
                    _write(members, archive, staging, on_progress)
                os.sync()  # or after a power cut the folder could be there without its files
                os.rename(staging, into)
            except BaseException:
                remove(staging)
                raise


def remove(folder: Path) -> None:
    """Remove a folder, if it exists; what cannot be removed stays."""
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Member:
    """A file of an archive, or a folder, which has no ``open``; its size is in bytes."""

    name: str
    path: PurePosixPath
    size: int = 0
    open: Callable[[], IO[bytes] | None] | None = None


class _Refused(Exception):
    """A member must not be written."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"its member {name!r} {reason}")


class _TooLarge(Exception):
    """An archive holds more than any archive of images would."""


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")  # as Windows wrote it, against the format
        path = _path_inside(name)
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _Refused(name, "is a link or a device")
        if info.flag_bits & 1:
            raise _Refused(name, "is encrypted")
        is_folder = info.is_dir() or name.endswith("/")
        yield _Member(
            name, path, info.file_size, None if is_folder else partial(archive.open, info)
        )


def _tar_members(archive: tarfile.TarFile, stream: IO[bytes]) -> Iterator[_Member]:
    for info in archive:
        path = _path_inside(info.name)
        if info.isreg():
            yield _Member(info.name, path, info.size, partial(archive.extractfile, info))
        elif info.isdir():
            yield _Member(info.name, path)
        else:
            raise _Refused(info.name, "is a link or a device")
    # tarfile takes anything that is no header for the end; the end is a block of zeros
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends too early")
    while stream.read(_CHUNK_BYTES):  # to the checksum of what is compressed
        pass


@contextmanager
def _open(archive: Path) -> Iterator[Iterator[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield _zip_members(opened)
    else:
        with _open_tar(archive) as (tar, stream):
            yield _tar_members(tar, stream)


@contextmanager
def _open_tar(archive: Path) -> Iterator[tuple[tarfile.TarFile, IO[bytes]]]:
    with _decompressed(archive) as stream:
        limited = cast(IO[bytes], _Limited(stream, _max_bytes(archive)))
        with tarfile.open(fileobj=limited, mode="r:") as tar:
            yield tar, limited


def _max_bytes(archive: Path) -> int:
    return max(_MIN_LIMIT_BYTES, MAX_RATIO * archive.stat().st_size)


def _decompressed(archive: Path) -> IO[bytes]:
    with archive.open("rb") as stream:
        start = stream.read(6)
    if start.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(archive))
    if start.startswith(b"BZh"):
        return bz2.open(archive)
    if start.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00")):
        return lzma.open(archive)
    return archive.open("rb")


class _Limited(io.RawIOBase):
    """A stream that raises an error beyond a limit.

    Args:
        stream: The stream, decompressed on the way.
        limit: Its most bytes.
    """

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream = stream
        self._limit = limit

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ_BYTES:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        content = self._stream.read(size)
        self._check(self._stream.tell())
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check(offset)  # before everything up to there is decompressed
        return self._stream.seek(offset, whence)

    def _check(self, position: int) -> None:
        if position > self._limit:
            raise _TooLarge(_ratio_problem(self._limit))


def _ratio_problem(limit: int) -> str:
    return (
        f"it holds more than {format_bytes(limit)}, {MAX_RATIO} times its size (small ones: "
        f"{format_bytes(_MIN_LIMIT_BYTES)}), as images never do: it may be made to fill the disk"
    )


def _path_inside(name: str) -> PurePosixPath:
    """Return the place of a member relative to the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise _Refused(name, "would be written outside of the folder")
    if len(path.parts) > MAX_LEVELS:
        raise _Refused(name[:200], f"is more than {MAX_LEVELS} folders deep")
    return path


def _write(
    members: Iterator[_Member],
    archive: Path,
    staging: Path,
    on_progress: Callable[[int, int], None],
) -> None:
    files, total = _checked(members, _max_bytes(archive))
    needed = total + _BLOCK_BYTES * len(files)
    free = shutil.disk_usage(staging.parent).free
    if needed > free:
        raise InsufficientSpaceError(
            f"{archive} takes {format_bytes(needed)} when it is unpacked, but the disk of "
            f"{staging.parent} has {format_bytes(free)} left; free some space"
        )
    staging.mkdir()
    done = 0
    for file in files:
        target = staging / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        source = file.open() if file.open else None
        if source is None:
            raise tarfile.ReadError(f"{file.name} has no content")
        with source, open(target, "xb") as stream:
            written = 0
            while chunk := source.read(_CHUNK_BYTES):  # a zip file's checksum is at its end
                stream.write(chunk)
                written += len(chunk)
                on_progress(done + written, total)
        if written != file.size:
            raise EOFError(f"{file.name} ends too early")
        done += written


def _checked(members: Iterator[_Member], limit: int) -> tuple[Sequence[_Member], int]:
    """Return the files among members, and their bytes, when all may be written."""
    files: list[_Member] = []
    names: dict[PurePosixPath, str] = {}
    total = 0
    for count, member in enumerate(members, start=1):
        if count > MAX_MEMBERS:
            raise _TooLarge(f"it has more than {MAX_MEMBERS:,} files and folders")
        total += member.size
        if total > limit:
            raise _TooLarge(_ratio_problem(limit))
        if member.open is None:
            continue
        if not member.path.parts or member.path in names:
            raise _Refused(member.name, "would be written over another one")
        names[member.path] = member.name
        files.append(member)
    for file in files:
        for parent in file.path.parents:
            if parent in names:
                raise _Refused(names[parent], f"is a file and the folder of {file.name!r}")
    return files, total


@contextmanager
def _user_errors(archive: Path, into: Path) -> Iterator[None]:
    try:
        yield
    except _Refused as error:
        raise DatasetError(
            f"an archive has files and folders alone, each inside of it and once, but of "
            f"{archive} {error}; nothing was unpacked, get the archive from elsewhere"
        ) from error
    except _TooLarge as error:
        raise DatasetError(
            f"{archive} is not unpacked: {error}. If you trust it, unpack it yourself and name "
            "the folder"
        ) from error
    except (OSError, *_DAMAGE) as error:
        if not isinstance(error, OSError) or isinstance(error, _DAMAGE) or error.errno is None:
            reason = first_line(error) if str(error) else type(error).__name__
            raise DatasetError(
                f"{archive} must be a whole zip or tar file, but it is damaged ({reason}); remove "
                "it, and get it again"
            ) from error
        if is_disk_full(error):
            raise DiskFullError(
                f"no space left on the disk of {into.parent} while {archive} was unpacked; free "
                "some space, what was written has been removed"
            ) from error
        raise DatasetError(
            f"{archive} could not be unpacked into {into}: {error.strerror}"
            + (f" ({error.filename})" if error.filename else "")
        ) from error
