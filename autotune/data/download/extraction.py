"""An archive of unknown origin -> a folder that is whole, or not there.

Members are read as streams and written here, so that an archive decides about names and contents
alone: no links, modes, owners or devices. All members are checked before the first is written.
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
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast

from filelock import FileLock

from autotune.errors import DatasetError, DiskFullError, InsufficientSpaceError, is_disk_full

#: What a file may be called to be taken for an archive, whatever is in it.
SUFFIXES = (
    *(".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2"),
    *(".tar.xz", ".txz"),
)
#: Archives and compressed files for which neither the standard library nor a dependency has a
#: reader, by how they begin.
_OTHERS = {
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
#: Limits what an archive may hold for its size, from so many bytes on. Files of images hardly
#: shrink; deflate makes a thousand bytes of zeros one.
MAX_RATIO = 100
_FREE_BYTES = 1 << 23
#: Limits its members, folders among them, of which each is a value in memory, and most are files.
MAX_MEMBERS = 2_000_000
#: Limits the folders that are inside of each other.
MAX_LEVELS = 64
#: Limits what is read at once: a header of a tar file can claim any size.
_AT_ONCE_BYTES = 1 << 26
#: What a file takes on disk beside its content, on average.
_BLOCK_BYTES = 4096
#: What the readers of the standard library raise of damaged archives.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)

Progress = Callable[[int, int], None]


def is_archive(path: Path) -> bool:
    """Tell whether a file is to be unpacked: by its name, or else by its content.

    One in a format that is not read here is no archive; :func:`unsupported_format` names it.

    Args:
        path: Anything; a folder and what is not there are no archives. A damaged file that is
            called ``.zip`` is one, so that it is named as damaged.
    """
    if not path.is_file():
        return False
    if path.name.lower().endswith(SUFFIXES):
        return True
    try:
        return zipfile.is_zipfile(path) or _is_tar(path)
    except (OSError, *_DAMAGE):
        return False


def unsupported_format(path: Path) -> str:
    """Return the name of the format of an archive that cannot be read here; empty for others."""
    with suppress(OSError), path.open("rb") as stream:
        start = stream.read(8)
        for magic, name in _OTHERS.items():
            if start.startswith(magic):
                return name
    return ""


def _is_tar(path: Path) -> bool:
    try:
        with (
            _decompressed(path) as stream,
            tarfile.open(fileobj=_Limited(stream, most_of(path)), mode="r:"),
        ):
            return True
    except _TooMuch:
        return True


def extract(archive: Path, into: Path, progress: Progress | None = None) -> None:
    """Unpack an archive into a new folder, which appears when it is whole.

    Args:
        archive: A zip or tar file; a tar file may be compressed with gzip, bzip2 or xz.
        into: The folder to make. If it is there, it was made whole, and nothing is done. While
            it is made, it is called ``.<name>.part``; one process makes it, others wait.
        progress: Called with the bytes written and their total.

    Raises:
        DatasetError: When the archive is damaged, or a member would be written outside of the
            folder, over another one, or as anything but a file or a folder; when it holds more
            than :data:`MAX_RATIO` times its size, or more than :data:`MAX_MEMBERS` files.
        InsufficientSpaceError: When the disk has less space than the archive needs.
        DiskFullError: When the disk fills up meanwhile.
    """
    if into.is_dir():
        return
    part = into.with_name(f".{into.name}.part")
    with _as_user_errors(archive, into):
        into.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(into.with_name(f".{into.name}.lock")):
            if into.is_dir():
                return
            remove(part)  # of a process that died
            try:
                with _open(archive) as reader:
                    _write(reader, archive, part, progress)
                os.sync()  # or after a power cut the folder could be there without its files
                os.rename(part, into)
            except BaseException:
                remove(part)
                raise


def remove(folder: Path) -> None:
    """Remove a folder that is no longer wanted, if it is there; what cannot be removed stays."""
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Member:
    """A file of an archive.

    Args:
        name: As the archive has it.
        path: Where it goes, relative to the folder.
        size: Of its content, in bytes.
        token: What the reader opens it by; ``None`` of a folder, which is made for its files.
    """

    name: str
    path: PurePosixPath
    size: int
    token: object


class _Reader(Protocol):
    """An open archive."""

    def members(self) -> Iterator[_Member]:
        """Yield its files and folders.

        Raises:
            DatasetError: At a member that is neither file nor folder, or has no place inside.
        """

    def open(self, member: _Member) -> IO[bytes]:
        """Open a file."""


class _Zip:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def members(self) -> Iterator[_Member]:
        for info in self._archive.infolist():
            name = info.filename.replace("\\", "/")  # as Windows wrote it, against the format
            path = _inside(name)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _Refused(name, "is a link or a device")
            if info.flag_bits & 1:
                raise _Refused(name, "is encrypted")
            folder = info.is_dir() or name.endswith("/")
            yield _Member(name, path, info.file_size, None if folder else info)

    def open(self, member: _Member) -> IO[bytes]:
        assert isinstance(member.token, zipfile.ZipInfo)
        return self._archive.open(member.token)


class _Tar:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def members(self) -> Iterator[_Member]:
        for info in self._archive:
            path = _inside(info.name)
            if info.isreg():
                yield _Member(info.name, path, info.size, info)
            elif info.isdir():
                yield _Member(info.name, path, 0, None)
            else:
                raise _Refused(info.name, "is a link or a device")
        # tarfile takes anything that is no header for the end; the end is a block of zeros
        stream = self._archive.fileobj
        assert stream is not None
        stream.seek(self._archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends too early")
        while stream.read(_CHUNK_BYTES):  # to the checksum of what is compressed
            pass

    def open(self, member: _Member) -> IO[bytes]:
        assert isinstance(member.token, tarfile.TarInfo)
        stream = self._archive.extractfile(member.token)
        assert stream is not None
        return stream


class _Refused(Exception):
    """A member must not be written."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"its member {name!r} {why}")


class _TooMuch(Exception):
    """An archive holds more than any archive of images would."""


@contextmanager
def _open(archive: Path) -> Iterator[_Reader]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield _Zip(opened)
    else:
        with (
            _decompressed(archive) as stream,
            tarfile.open(fileobj=_Limited(stream, most_of(archive)), mode="r:") as opened_tar,
        ):
            yield _Tar(opened_tar)


def most_of(archive: Path) -> int:
    """Return how many bytes an archive may hold."""
    return max(_FREE_BYTES, MAX_RATIO * archive.stat().st_size)


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
    """A stream that ends in an error where it goes on for too long.

    Args:
        stream: What is read, decompressed on the way.
        most: So many bytes it may have.
    """

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream = stream
        self._most = most

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _AT_ONCE_BYTES:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        found = self._stream.read(size)
        self._check(self._stream.tell())
        return found

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        assert whence == os.SEEK_SET
        self._check(offset)  # before what is in between is decompressed
        return self._stream.seek(offset)

    def tell(self) -> int:
        return self._stream.tell()

    def _check(self, place: int) -> None:
        if place > self._most:
            raise _TooMuch(_over_ratio(self._most))


def _over_ratio(most: int) -> str:
    return (
        f"it holds more than {most / 1e6:,.0f} MB, {MAX_RATIO} times its size (small ones: 8 MB), "
        "as images never do: it may be made to fill the disk"
    )


def _inside(name: str) -> PurePosixPath:
    """Return where a member goes, relative to the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise _Refused(name, "would be written outside of the folder")
    if len(path.parts) > MAX_LEVELS:
        raise _Refused(name[:200], f"is more than {MAX_LEVELS} folders deep")
    return path


def _write(reader: _Reader, archive: Path, part: Path, progress: Progress | None) -> None:
    members: list[_Member] = []
    total, most = 0, most_of(archive)
    for count, member in enumerate(reader.members(), start=1):
        if count > MAX_MEMBERS:
            raise _TooMuch(f"it has more than {MAX_MEMBERS:,} files and folders")
        if member.token is not None:
            members.append(member)
        total += member.size
        if total > most:
            raise _TooMuch(_over_ratio(most))
    _check_names(members)
    needed = total + _BLOCK_BYTES * len(members)
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise InsufficientSpaceError(
            f"{archive} takes {_gb(needed)} when it is unpacked, but the disk of {part.parent} "
            f"has {_gb(free)} left; free some space"
        )
    part.mkdir()
    done = 0
    for member in members:
        target = part / member.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with reader.open(member) as source, open(target, "xb") as stream:
            written = 0
            while chunk := source.read(_CHUNK_BYTES):  # a zip file's checksum is at its end
                stream.write(chunk)
                written += len(chunk)
                if progress is not None:
                    progress(done + written, total)
        if written != member.size:
            raise EOFError(f"{member.name} ends too early")
        done += written


def _check_names(members: Sequence[_Member]) -> None:
    """Refuse files that take the place of another file, or of its folder."""
    names: dict[PurePosixPath, str] = {}
    for member in members:
        if not member.path.parts or member.path in names:
            raise _Refused(member.name, "would be written over another one")
        names[member.path] = member.name
    for member in members:
        for parent in member.path.parents:
            if parent in names:
                raise _Refused(names[parent], f"is a file and the folder of {member.name!r}")


@contextmanager
def _as_user_errors(archive: Path, into: Path) -> Iterator[None]:
    try:
        yield
    except _Refused as error:
        raise DatasetError(
            f"an archive has files and folders alone, each inside of it and once, but of "
            f"{archive} {error}; nothing was unpacked, get the archive from elsewhere"
        ) from error
    except _TooMuch as error:
        raise DatasetError(
            f"{archive} is not unpacked: {error}. Where you know it to be all right, unpack it "
            "yourself and name the folder"
        ) from error
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"no space left on the disk of {into.parent} while {archive} was unpacked; free "
                "some space, what was written has been removed"
            ) from error
        if isinstance(error, _DAMAGE) or error.errno is None:  # such as gzip.BadGzipFile
            raise _damaged(archive, error) from error
        raise DatasetError(
            f"{archive} could not be unpacked into {into}: {error.strerror}"
            + (f" ({error.filename})" if error.filename else "")
        ) from error
    except _DAMAGE as error:
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> DatasetError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DatasetError(
        f"{archive} must be a whole zip or tar file, but it is damaged ({reason}); remove it, and "
        "get it again"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
