"""Tell what a file is by its first bytes, whatever its name says.

Messages about a file that cannot be used name its kind: a Git LFS pointer, the HTML page of a
login, an archive, weights of another framework.
"""

from __future__ import annotations

import json
import struct
import zipfile
from contextlib import suppress
from os import PathLike
from pathlib import Path

#: Bytes that are read of the beginning of a file.
HEAD_BYTES = 1024
#: Offset, bytes there, and what such a file is. The first match counts.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs.github.com/spec", "a Git LFS pointer, not the file itself"),
    (0, b"/annex/objects/", "a git-annex pointer, not the file itself"),
    # images
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (0, b"II+\0", "a TIFF image"),
    (0, b"MM\0+", "a TIFF image"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    *((4, b"ftyp" + brand, "a HEIC image") for brand in (b"heic", b"heix", b"mif1", b"msf1")),
    *((4, b"ftyp" + brand, "an AVIF image") for brand in (b"avif", b"avis")),
    (128, b"DICM", "a DICOM image"),
    (0, b"SIMPLE  =", "a FITS image"),
    # films and sounds
    (4, b"ftyp", "an MP4 or QuickTime film"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM film"),
    (8, b"AVI ", "an AVI film"),
    (8, b"WAVE", "a sound file"),
    (0, b"ID3", "a sound file"),
    (0, b"OggS", "a sound file"),
    # archives
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    # weights and tables
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"GGUF", "a GGUF model"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a PyTorch checkpoint"),
    *((0, b"\x80" + bytes([protocol]), "a Python pickle") for protocol in (2, 3, 4, 5)),
    (0, b"PAR1", "a Parquet table"),
    (0, b"ARROW1", "an Arrow table"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    # documents and programs
    (0, b"%PDF", "a PDF document"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document"),
    (0, b"\0\x05\x16\x07", "the attributes of a file on a Mac (AppleDouble), not the file itself"),
    (0, b"\x7fELF", "a program"),
    (0, b"#!", "a script"),
)
#: A file in a zip archive (or its ending), and what such an archive is. The first match counts.
_ZIP_MEMBERS = (
    ("/constants.pkl", "a TorchScript program"),
    ("/data.pkl", "a PyTorch checkpoint"),
    ("/archive_format", "a program of torch.export"),
    ("serialized_exported_program.json", "a program of torch.export"),
    ("model.weights.h5", "a Keras model"),
    ("xl/workbook.xml", "an Excel workbook"),
    ("word/document.xml", "a Word document"),
    ("ppt/presentation.xml", "a PowerPoint presentation"),
    ("META-INF/MANIFEST.MF", "a Java archive"),
)
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--")
#: The end of the index of a TensorFlow checkpoint, which is a table of LevelDB.
_LEVELDB_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"


def describe_file(path: str | PathLike[str]) -> str:
    """Return what a file is, with its article: ``an HTML page``, ``a folder``, ``an empty file``.

    Returns:
        Its kind; an empty text where the bytes tell none.

    Raises:
        OSError: When it cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        return "a folder"
    if not file.is_file():
        return "no regular file"
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(max(0, file.stat().st_size - len(_LEVELDB_END)))
        if stream.read() == _LEVELDB_END:
            return "the index of a TensorFlow checkpoint"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _describe_zip(file)
    return describe_head(head)


def describe_head(head: bytes) -> str:
    """Return what a file is by its first :data:`HEAD_BYTES` bytes, as :func:`describe_file`.

    A zip archive is not looked into.
    """
    if not head:
        return "an empty file"
    for offset, signature, kind in _SIGNATURES:
        if head.startswith(signature, offset):
            return kind
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive"
    if (
        head.startswith(b"BM")
        and len(head) >= 18
        and head[14:18] in (b"\x28\0\0\0", b"\x0c\0\0\0")
    ):
        return "a BMP image"
    if is_safetensors(head):
        return "a safetensors file"
    if head[0] == 8 and head[2:3] in (b"\x12", b"\x1a", b"\x3a"):  # fields of a protocol buffer
        return "a TensorFlow model" if head[1] == 1 else "an ONNX model"
    if not head.strip(b"\0"):
        return "a file of zeros, as an interrupted download leaves"
    return _describe_text(head)


def is_safetensors(head: bytes) -> bool:
    """Tell whether a file begins as one of safetensors: the length of a header, and the header."""
    return len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 1 << 30


def _describe_zip(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        with file.open("rb") as stream:
            is_torch = b"data.pkl" in stream.read(HEAD_BYTES)
        kind = "a PyTorch checkpoint" if is_torch else "a zip archive"
        return f"{kind} whose end is missing"
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays"
    for member, kind in _ZIP_MEMBERS:
        if any(name.endswith(member) for name in names):
            return kind
    return "a zip archive"


def _describe_text(head: bytes) -> str:
    """Return what a text is; an empty text where the bytes are none."""
    try:
        text = head[:-3].decode() if len(head) == HEAD_BYTES else head.decode()
    except UnicodeDecodeError:  # the cut may be inside a character, hence the three bytes
        with suppress(UnicodeDecodeError):
            head[: head.rfind(b"\n") + 1 or None].decode()
            return "a text file"
        return ""
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.encode().startswith(_HTML):
        return "an HTML page"
    if start.startswith("<svg") or (start.startswith("<?xml") and "<svg" in start):
        return "an SVG drawing"
    if start.startswith("<?xml"):
        return "an XML document"
    if start.startswith(("{", "[")):
        with suppress(ValueError):
            json.loads(head)
            return "a JSON file"
    return "" if "\0" in text else "a text file"
