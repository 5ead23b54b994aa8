"""Tell what a file is by its first bytes, whatever its name says, and what it is good for.

Messages about a file that cannot be used name its kind: a Git LFS pointer, the HTML page of a
login, an archive, weights of another framework.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Literal, cast

from autotune.text import shell_quote

#: What files are good for: ``images`` can be a data set, ``packed`` has to be unpacked before.
Use = (
    Literal["images", "packed", "sheet", "image", "weights", "arrays", "database", "model"]
    | Literal["pointer", "page", "broken", "text", ""]
)
_ADVICE: dict[Use, str] = {
    "images": "a study uses it with dataset={path}",
    "packed": "unpack it and name the folder, or pack it as .tar.gz or .zip",
    "sheet": "save the table as CSV and name that file",
    "image": "name the folder that has a folder of images for each class; 'autotune predict MODEL "
    "{path}' tells the class of one image",
    "weights": "a study uses weights with weights={path}",
    "arrays": "write the images into files, in a folder for each class",
    "database": "--storage sqlite:///{path} names it",
    "model": "'autotune predict {path} IMAGES' uses it",
    "pointer": "'git lfs pull' or 'git annex get' gets the file itself",
    "page": "open it to see why it is there, and download the file again",
    "broken": "copy or download it again",
    "text": "",
    "": "",
}


@dataclass(frozen=True)
class FileKind:
    """What a file is, with an article (empty where the bytes tell nothing), and its use."""

    name: str = ""
    use: Use = ""

    def advice(self, path: str) -> str:
        """Say what to do with such a file where a data set or a study file is wanted."""
        return _ADVICE[self.use].format(path=shell_quote(str(path)))


#: Bytes that are read of the beginning of a file.
HEAD_BYTES = 1024
PARQUET = FileKind("a Parquet table", "images")
_ZIP = FileKind("a zip archive", "images")
_TAR = FileKind("a tar archive", "images")
_TABLE = FileKind("a table", "images")
_TEXT = FileKind("a text file", "text")
_POINTERS = (
    (0, b"version https://git-lfs.github.com/spec", "a Git LFS pointer, not the file itself"),
    (0, b"/annex/objects/", "a git-annex pointer, not the file itself"),
)
_IMAGES = (
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (0, b"II+\0", "a TIFF image"),
    (0, b"MM\0+", "a TIFF image"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"%!PS", "a PostScript drawing"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript drawing"),
    (0, b"gimp xcf", "a GIMP image"),
    (0, b"v/1\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"qoif", "a QOI image"),
    (0, b"\0\0\x01\0", "an icon"),
    (0, b"FUJIFILMCCD-RAW", "a raw photo"),
    (4, b"ftypcrx ", "a raw photo"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    *(
        (4, b"ftyp" + brand, "a HEIC image")
        for brand in (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")
    ),
    *((4, b"ftyp" + brand, "an AVIF image") for brand in (b"avif", b"avis")),
    *((0, b"P%d\n" % number, "a PNM image") for number in range(1, 7)),
)
_FILMS_AND_SOUNDS = (
    (4, b"ftyp", "an MP4 or QuickTime film"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM film"),
    (8, b"AVI ", "an AVI film"),
    (8, b"WAVE", "a sound file"),
    (0, b"ID3", "a sound file"),
    (0, b"OggS", "a sound file"),
)
_PACKED = (
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"\x5d\0\0", "an lzma file"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"LZIP\x01", "an lzip file"),
    (0, b"\x04\x22\x4d\x18", "an LZ4 file"),
    (0, b"\x1f\x9d", "a file of compress (.Z)"),
    (0, b"xar!", "a xar archive"),
    (0, b"MSCF\0", "a CAB archive"),
    (0, b"!<arch>\n", "an ar archive (.deb, .a)"),
    (0, b"\xed\xab\xee\xdb", "an RPM package"),
    (0, b"070701", "a cpio archive"),
    (0, b"\x60\xea", "an ARJ archive"),
    *((2, b"-lh%d-" % method, "an LHA archive") for method in range(8)),
)
_WEIGHTS = (
    (0, b"GGUF", "a GGUF model"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a PyTorch checkpoint"),
)
_ARRAYS = (
    (128, b"DICM", "a DICOM image"),
    (0, b"SIMPLE  =", "a FITS image"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"MATLAB 5.0", "a MATLAB file"),
    *((0, b"\x80" + bytes([protocol]), "a Python pickle") for protocol in (2, 3, 4, 5)),
    (0, b"ARROW1", "an Arrow table"),
)
_DOCUMENTS_AND_PROGRAMS = (
    (0, b"%PDF", "a PDF document"),
    (0, b"\0\x05\x16\x07", "the attributes of a file on a Mac (AppleDouble), not the file itself"),
    (0, b"book\0\0\0\0mark", "an alias of macOS, not the file itself"),
    (0, b"L\0\0\0\x01\x14\x02\0", "a shortcut of Windows, not the file itself"),
    (0, b"[InternetShortcut]", "a link to a page, not the file itself"),
    (0, b"MZ\x90\0", "a Windows program"),
    (0, b"\x7fELF", "a program"),
    (0, b"#!", "a script"),
)
#: Offset, bytes there, and what such a file is. The first match counts.
_SIGNATURES: tuple[tuple[int, bytes, FileKind], ...] = tuple(
    (offset, signature, FileKind(name, use))
    for use, rows in cast(
        tuple[tuple[Use, tuple[tuple[int, bytes, str], ...]], ...],
        (
            ("pointer", _POINTERS),
            ("image", _IMAGES),
            ("", _FILMS_AND_SOUNDS),
            ("packed", _PACKED),
            ("weights", _WEIGHTS),
            ("arrays", _ARRAYS),
            ("images", ((0, b"PAR1", PARQUET.name),)),
            ("database", ((0, b"SQLite format 3\0", "an SQLite database"),)),
            ("sheet", ((0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document"),)),
            ("", _DOCUMENTS_AND_PROGRAMS),
        ),
    )
    for offset, signature, name in rows
)
#: A member of a zip archive, as a pattern, and what such an archive is. The first match counts.
_ZIP_MEMBERS: tuple[tuple[str, str, Use], ...] = (
    (r"[^/]+/archive_format", "a program of torch.export", ""),
    (r"serialized_exported_program\.json", "a program of torch.export", ""),
    (r"model\.weights\.h5", "a Keras model", ""),
    (r"AndroidManifest\.xml", "an Android app", ""),
    (r"Payload/[^/]+\.app/.*", "an iOS app", ""),
    (r"xl/workbook\.(xml|bin)", "an Excel workbook", "sheet"),
    (r"word/document\.xml", "a Word document", ""),
    (r"ppt/presentation\.xml", "a PowerPoint presentation", ""),
    (r"\[Content_Types\]\.xml", "an Open XML document", ""),
    (r"META-INF/container\.xml", "an EPUB book", ""),
    (r"META-INF/manifest\.xml", "an OpenDocument file", "sheet"),
    (r"META-INF/MANIFEST\.MF", "a Java archive", ""),
    (r"[^/]+\.dist-info/WHEEL", "a Python wheel", ""),
)
_ZIP_MEMBER = re.compile("|".join(pattern for pattern, *_ in _ZIP_MEMBERS))
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--")
#: Ending of a text -> what it is, where the content tells less.
_TEXTS = {
    ".csv": _TABLE,
    ".tsv": _TABLE,
    ".ipynb": FileKind("a Jupyter notebook"),
    ".py": FileKind("a Python program"),
    ".yaml": FileKind("a YAML file, as of a study", "text"),
    ".yml": FileKind("a YAML file, as of a study", "text"),
    ".json": FileKind("a JSON file", "text"),
}
#: The end of the index of a TensorFlow checkpoint, which is a table of LevelDB.
_LEVELDB_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
#: Beginnings of zip files: of a member, of the end of an empty archive, of several volumes.
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08", b"PK00PK\x03\x04")
#: Errors of the standard library's readers on damaged archives, besides OSError.
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, ValueError, NotImplementedError, RuntimeError),
)
_Reader = Callable[[IO[bytes]], IO[bytes]]
_READERS: dict[str, _Reader] = {
    "a gzip file": lambda stream: cast(IO[bytes], gzip.GzipFile(fileobj=stream)),
    "a bzip2 file": cast(_Reader, bz2.BZ2File),
    "an xz file": cast(_Reader, lzma.LZMAFile),
    "an lzma file": cast(_Reader, lzma.LZMAFile),
}


def file_kind(path: str | PathLike[str]) -> FileKind:
    """Return what a file or folder is; zip archives and compressed files are looked into.

    Its name has an article: ``an HTML page``, ``a folder``, ``an empty file``.

    Raises:
        OSError: When it cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        is_model = (file / "record.json").is_file() and (file / "model.safetensors").is_file()
        return (
            FileKind("a refitted model", "model") if is_model else FileKind("a folder", "images")
        )
    if not file.is_file():
        return FileKind("no regular file")
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(max(0, file.stat().st_size - len(_LEVELDB_END)))
        if stream.read() == _LEVELDB_END:
            return FileKind("the index of a TensorFlow checkpoint")
        if head.startswith(_ZIP_STARTS):
            return _zip_kind(stream)
        kind = kind_of_head(head)
        if kind.name in _READERS:
            return _compressed_kind(stream, kind)
    return _TEXTS.get(file.suffix.lower(), kind) if kind.use == "text" else kind


def kind_of_head(head: bytes) -> FileKind:
    """Return what a file is by its first :data:`HEAD_BYTES` bytes; zip is not looked into."""
    if not head:
        return FileKind("an empty file", "broken")
    for offset, signature, kind in _SIGNATURES:
        if head.startswith(signature, offset):
            return kind
    if head.startswith(_ZIP_STARTS):
        return _ZIP
    if is_tar(head):
        return _TAR
    if (
        head.startswith(b"BM")
        and len(head) >= 18
        and head[14:18] in (b"\x28\0\0\0", b"\x0c\0\0\0")
    ):
        return FileKind("a BMP image", "image")
    if is_safetensors(head):
        return FileKind("a safetensors file", "weights")
    if head[0] == 8 and head[2:3] in (b"\x12", b"\x1a", b"\x3a"):  # fields of a protocol buffer
        return FileKind("a TensorFlow model" if head[1] == 1 else "an ONNX model")
    if not head.strip(b"\0"):
        return FileKind("a file of zeros, as an interrupted download leaves", "broken")
    return _text_kind(head)


def is_safetensors(head: bytes) -> bool:
    """Tell whether a file begins as one of safetensors: the length of a header, and the header."""
    return len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 1 << 30


def is_tar(head: bytes) -> bool:
    """Tell whether a file begins with a header of a tar archive, by its checksum."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def archive_format(path: str | PathLike[str]) -> Literal["zip", "tar", ""]:
    """Return the format of an archive that can be unpacked by its first bytes; empty for others.

    Raises:
        OSError: When the file cannot be read.
    """
    with open(path, "rb") as stream:
        if stream.read(8).startswith(_ZIP_STARTS):
            return "zip"
        try:
            return "tar" if is_tar(decompressed(stream).read(tarfile.BLOCKSIZE)) else ""
        except (OSError, *DAMAGE):  # of a compressed file
            return ""


def decompressed(stream: IO[bytes]) -> IO[bytes]:
    """Return what decompresses a stream from its beginning; itself where it is not compressed."""
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    reader = _READERS.get(kind_of_head(head).name)
    return stream if reader is None else reader(stream)


def zip_document(names: Collection[str]) -> FileKind | None:
    """Return what the members of a zip archive make of it; ``None`` for a mere archive."""
    members = set(names)
    if members and all(name.endswith(".npy") for name in members):
        return FileKind("an archive of NumPy arrays", "arrays")
    for top in {name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")}:
        if f"{top}constants.pkl" in members:
            return FileKind("a TorchScript program")
        if f"{top}version" in members:
            return FileKind("a PyTorch checkpoint", "weights")
    telling = [name for name in members if _ZIP_MEMBER.fullmatch(name)]
    for pattern, kind, use in _ZIP_MEMBERS:
        if any(re.fullmatch(pattern, name) for name in telling):
            return FileKind(kind, use)
    return None


def _zip_kind(stream: IO[bytes]) -> FileKind:
    try:
        with zipfile.ZipFile(stream) as archive:
            return zip_document(archive.namelist()) or _ZIP
    except zipfile.BadZipFile:
        stream.seek(0)
        is_torch = b"data.pkl" in stream.read(HEAD_BYTES)
        kind = "a PyTorch checkpoint" if is_torch else "a zip archive"
        return FileKind(f"{kind} whose end is missing", "broken")


def _compressed_kind(stream: IO[bytes], kind: FileKind) -> FileKind:
    """Return what is in a compressed file by its first bytes."""
    try:
        inner = kind_of_head(decompressed(stream).read(HEAD_BYTES))
    except (OSError, *DAMAGE):
        return FileKind(f"{kind.name} that is damaged", "broken")
    if inner == _TAR:
        return FileKind(f"a tar archive in {kind.name}", "images")
    return FileKind(f"{kind.name} with {inner.name}", "packed") if inner.name else kind


def _text_kind(head: bytes) -> FileKind:
    """Return what a text is; an empty kind where the bytes are none."""
    try:
        text = head[:-3].decode() if len(head) == HEAD_BYTES else head.decode()
    except UnicodeDecodeError:  # the cut may be inside a character, hence the three bytes
        with suppress(UnicodeDecodeError):
            head[: head.rfind(b"\n") + 1 or None].decode()
            return _TEXT
        return FileKind()
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.encode().startswith(_HTML):
        return FileKind("an HTML page", "page")
    if start.startswith("<svg") or (start.startswith("<?xml") and "<svg" in start):
        return FileKind("an SVG drawing", "image")
    if start.startswith("<?xml"):
        return FileKind("an XML document", "page")
    if start.startswith(("{", "[")):
        with suppress(ValueError):
            json.loads(head)
            return FileKind("a JSON file", "text")
    return FileKind() if "\0" in text else _TEXT
