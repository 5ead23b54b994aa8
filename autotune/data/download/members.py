"""The members of zip and tar files of unknown origin: names, sizes and contents, as streams.

An archive decides about these alone, not about links, modes, owners or devices.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from autotune.file_kinds import archive_format, decompressed, is_tar, kind_of_head, zip_document
from autotune.text import format_bytes, join_some

#: Limits the content of an archive, as a multiple of its size; small archives may hold
#: ``_MIN_LIMIT_BYTES``. Files of images hardly shrink; deflate makes a thousand zeros one byte.
MAX_RATIO = 100
_MIN_LIMIT_BYTES = 1 << 23
#: Limits the depth of folders.
MAX_LEVELS = 64
#: Limits one read: a header of a tar file can claim any size.
_MAX_READ_BYTES = 1 << 26
CHUNK_BYTES = 1 << 20
#: Methods of compression that Python reads in zip files, and names of others (APPNOTE 4.4.5).
_READ_METHODS = (
    *(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA),
    getattr(zipfile, "ZIP_ZSTANDARD", 0),
)
_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "xz", 98: "PPMd"}
_UTF8 = 0x800
#: The size from which the fields of a zip file are too small.
_MAX_32_BITS = 1 << 32
_ENCRYPTED = 0x2041
_UNPACK = "unpack it with {} and name the folder"
#: The end of a zip file, with a comment of the longest kind.
_ZIP_END_BYTES = (1 << 16) + 22
#: Endings of the volumes that zip, 7-Zip and split make.
_VOLUME = re.compile(r"\.(z\d\d|\d\d\d|(part-?)?a[a-z]|part\d+(\.\w+)?)$", re.IGNORECASE)
#: Encodings in which programs write names into zip files without saying so.
_EASTERN = ("gbk", "cp932", "cp949", "big5")
_ENCODINGS = (*_EASTERN, "cp866", "cp1252", "cp850", "cp437", "utf-8")
#: Chinese, Japanese or Korean, and not a single character within a Latin word.
_EASTERN_WORD = re.compile(
    "[\u3041-\u30ff\u4e00-\u9fff\uac00-\ud7a3]{2}"
    "|(?<![A-Za-z])[\u3041-\u30ff\u4e00-\u9fff\uac00-\ud7a3](?![A-Za-z])"
)


@dataclass(frozen=True)
class Member:
    """A file of an archive, or a folder, which has no ``open``; its size is in bytes."""

    name: str
    path: PurePosixPath
    size: int = 0
    open: Callable[[], IO[bytes] | None] | None = None


class RefusedError(Exception):
    """A member must not be written."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"its member {name!r} {reason}")


class TooLargeError(Exception):
    """An archive holds more than any archive of images would."""


class UnsupportedError(Exception):
    """An archive cannot be read here, though it is whole: what it is, and what to do."""


@contextmanager
def open_members(archive: Path) -> Iterator[Iterator[Member]]:
    """Open an archive of any name; unknown content is read as the name says.

    Raises:
        RefusedError, TooLargeError, UnsupportedError: Also while members are read.
        OSError: When the archive cannot be read.
        Exception: One of :data:`autotune.file_kinds.DAMAGE` when it is damaged.
    """
    kind = archive_format(archive) or ("zip" if archive.suffix.lower() == ".zip" else "tar")
    try:
        if kind == "zip":
            _check_volumes(archive)
            with zipfile.ZipFile(archive) as opened:
                yield _zip_members(opened, archive)
        else:
            with archive.open("rb") as file, decompressed(file) as stream:
                limited = cast(IO[bytes], _Limited(stream, max_bytes(archive)))
                with tarfile.open(fileobj=limited, mode="r:") as tar:
                    yield _tar_members(tar, limited, archive)
    except (EOFError, tarfile.ReadError, zipfile.BadZipFile) as error:
        if is_volume(archive.name) or "multiple disks" in str(error):
            raise UnsupportedError(describe_volumes(archive.name)) from error
        raise


def max_bytes(archive: Path) -> int:
    """Return the most bytes that an archive of images may hold."""
    return max(_MIN_LIMIT_BYTES, MAX_RATIO * archive.stat().st_size)


def ratio_problem(limit: int) -> str:
    """Say that an archive holds more than a limit."""
    return (
        f"it holds more than {format_bytes(limit)}, {MAX_RATIO} times its size (small ones: "
        f"{format_bytes(_MIN_LIMIT_BYTES)}), as images never do: it may be made to fill the disk"
    )


def _zip_members(archive: zipfile.ZipFile, path: Path) -> Iterator[Member]:
    infos = archive.infolist()
    if document := zip_document({info.filename for info in infos}):
        raise UnsupportedError(f"is {document.name}; {document.advice(str(path))}")
    start = min((info.header_offset for info in infos), default=0)
    if start and not start % _MAX_32_BITS:
        raise UnsupportedError(
            "cannot be unpacked here: it has over 4 GB, but not the format for that (Zip64), as "
            "Finder of macOS writes it; " + _UNPACK.format("7z x, or with ditto -x -k on a Mac")
        )
    if start and archive_format(path) == "zip":
        raise UnsupportedError(
            "is several zip files in one, of which only the last has a list of its files; "
            "unpack each before they are joined, and name the folder"
        )
    for info, name in zip(infos, _zip_names(infos, path), strict=True):
        place = _path_inside(name)
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise RefusedError(name, "is a link or a device")
        if info.flag_bits & _ENCRYPTED:
            raise UnsupportedError(
                f"cannot be unpacked here: its member {name!r} is encrypted; "
                + _UNPACK.format("its password (unzip, 7z x)")
            )
        if info.compress_type not in _READ_METHODS:
            method = _METHODS.get(info.compress_type, f"method {info.compress_type}")
            raise UnsupportedError(
                f"cannot be unpacked here: its member {name!r} is compressed with {method}, which "
                "Python does not read; " + _UNPACK.format("unzip or 7z x")
            )
        is_folder = info.is_dir() or name.endswith("/")
        yield Member(
            name, place, info.file_size, None if is_folder else partial(archive.open, info)
        )


def _zip_names(infos: Sequence[zipfile.ZipInfo], path: Path) -> list[str]:
    r"""Return the names of members with ``/``: Windows wrote ``\``, against the format.

    Names are UTF-8 if they say so, and otherwise CP437 in the standard: programs write the
    encoding of their system instead, that of macOS and Linux is UTF-8.
    """
    raw = {
        info.orig_filename: _stated_name(info) or info.orig_filename.encode("cp437")
        for info in infos
        if not info.flag_bits & _UTF8 and not info.orig_filename.isascii()
    }
    unstated = [name for name in raw.values() if isinstance(name, bytes)]
    encoding = _encoding_of(unstated)
    if not encoding and (folders := _unreadable_folders(infos)):
        raise UnsupportedError(_describe_encodings(folders, path))
    names = []
    for info in infos:
        name = raw.get(info.orig_filename, info.filename)
        if isinstance(name, bytes):
            name = name.decode(encoding or "utf-8", "surrogateescape")
        names.append(name.replace("\\", "/"))
    return names


def _stated_name(info: zipfile.ZipInfo) -> str:
    """Return the name of the extra field for Unicode (Info-ZIP, APPNOTE 4.6.9), if any."""
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == 0x7075:
            return extra[9 : 4 + size].decode("utf-8", "replace")
        extra = extra[4 + size :]
    return ""


def _encoding_of(names: Sequence[bytes]) -> str:
    """Return the encoding of names where it can be told; empty where it cannot."""
    eastern = (word for encoding in _EASTERN for word in _decoded(names, encoding))
    is_eastern = any(map(_EASTERN_WORD.search, eastern))
    letters = {
        encoding: {letter for letter in "".join(_decoded(names, encoding)) if not letter.isascii()}
        for encoding in ("utf-8", "cp437")
    }
    utf8, western = letters["utf-8"], letters["cp437"]
    # one or two characters of Chinese may be Latin letters of UTF-8: of both, 0xC3A8 is one
    if utf8 and (not is_eastern or len(utf8) > 2 or max(utf8) > "\u07ff"):
        return "utf-8"
    is_western = all(letter.isalpha() and letter < "\u0180" for letter in western)
    return "cp437" if is_western and not is_eastern else ""


def _describe_encodings(folders: Sequence[bytes], path: Path) -> str:
    readings = {encoding: _decoded(folders, encoding) for encoding in _ENCODINGS}
    likely = {
        encoding: join_some([repr(name) for name in names if not name.isascii()], 3)
        for encoding, names in readings.items()
        if names and all(letter.isalpha() or letter.isascii() for letter in "".join(names))
    }
    command = (
        f"python -m zipfile --metadata-encoding {next(iter(likely), 'gbk')} -e "
        f"{shlex.quote(str(path))} {shlex.quote(path.stem)}"
    )
    return (
        "does not say in which encoding it writes the names of its folders: "
        f"{'; '.join(f'{words} in {encoding}' for encoding, words in likely.items())}. Unpack it "
        f"with the right encoding, such as '{command}', and name the folder"
    )


def _unreadable_folders(infos: Sequence[zipfile.ZipInfo]) -> list[bytes]:
    """Return the folders whose names are in an unknown encoding, below what all are in."""
    folders: dict[bytes, bool] = {}
    for info in infos:
        is_utf8 = info.flag_bits & _UTF8 or info.orig_filename.isascii()
        name = info.orig_filename.encode("utf-8" if is_utf8 else "cp437")
        folder = os.path.dirname(name if b"/" in name else name.replace(b"\\", b"/"))
        folders[folder] = folders.get(folder, False) or not is_utf8
    around = len(os.path.commonpath([b"/" + folder for folder in folders])) - 1
    return sorted(
        folder
        for folder, is_other in folders.items()
        if is_other and not folder[around:].isascii()
    )


def _decoded(names: Sequence[bytes], encoding: str) -> list[str]:
    """Decode names; an empty list if one is not in this encoding."""
    try:
        return [name.decode(encoding) for name in names]
    except UnicodeDecodeError:
        return []


def _check_volumes(archive: Path) -> None:
    """Raise an error for a zip file that continues in other files, as its last bytes say."""
    with archive.open("rb") as stream:
        stream.seek(max(0, archive.stat().st_size - _ZIP_END_BYTES))
        tail = stream.read()
    for match in re.finditer(rb"PK\x05\x06(..).{14}(..)", tail, re.DOTALL):
        volume, comment = (int.from_bytes(field, "little") for field in match.groups())
        if match.end() + comment == len(tail) and volume not in (0, 0xFFFF):
            raise UnsupportedError(describe_volumes(archive.name))


def is_volume(name: str) -> bool:
    """Tell by its name whether a file is one of several that make an archive."""
    return _VOLUME.search(name) is not None


def describe_volumes(name: str) -> str:
    """Say how to join the volumes of an archive, by the name of one of them."""
    stem = shlex.quote(_VOLUME.sub("", name))
    command = f"cat {stem}.* > whole"
    if name.lower().endswith(".zip") or re.search(r"\.z\d\d$", name, re.IGNORECASE):
        command = f"zip -s 0 {stem.removesuffix('.zip')}.zip --out whole.zip"
    return (
        f"is one of several volumes; join them with '{command}', or unpack the first with 7z x, "
        "and name the result"
    )


def _tar_members(archive: tarfile.TarFile, stream: IO[bytes], path: Path) -> Iterator[Member]:
    """Yield the members of a tar file, and of those that are joined to it."""
    while True:
        for info in archive:
            place = _path_inside(info.name)
            if info.isreg():
                yield Member(info.name, place, info.size, partial(archive.extractfile, info))
            elif info.isdir() or info.type in (b"D", b"V"):  # of GNU tar: list, label
                yield Member(info.name, place)
            elif info.type == b"M":
                raise UnsupportedError(describe_volumes(path.name))
            else:
                raise RefusedError(info.name, "is a link or a device")
        # tarfile takes anything that is no header for the end; the end is a block of zeros
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends too early")
        if (offset := _next_content(stream)) is None:  # read to the checksum of a compression
            return
        stream.seek(offset)
        if not is_tar(head := stream.read(tarfile.BLOCKSIZE)):
            rest = kind_of_head(head).name or "other content"
            raise UnsupportedError(
                f"is several files in one: behind the end of its tar file follows {rest}; "
                "separate them, or unpack it yourself and name the folder"
            )
        stream.seek(offset)
        archive = tarfile.TarFile(fileobj=stream)


def _next_content(stream: IO[bytes]) -> int | None:
    """Return where a stream goes on, in whole blocks, behind zeros; ``None`` if it does not."""
    while True:
        start = stream.tell()
        chunk = stream.read(CHUNK_BYTES)
        if not chunk:
            return None
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros == len(chunk):
            continue
        return start + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE


class _Limited(io.RawIOBase):
    """A stream that raises an error beyond a limit."""

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
            raise TooLargeError(ratio_problem(self._limit))


def _path_inside(name: str) -> PurePosixPath:
    """Return the place of a member relative to the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise RefusedError(name, "would be written outside of the folder")
    if len(path.parts) > MAX_LEVELS:
        raise RefusedError(name[:200], f"is more than {MAX_LEVELS} folders deep")
    return path
