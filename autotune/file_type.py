"""What a file is, told by its content: names of files are wrong too often.

The first bytes decide. What is packed as a zip file is told by its members, compressed text and
text by its beginning.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Literal, cast

#: What a file is good for here.
Use = Literal[
    *("images", "packed", "sheet", "image", "weights", "arrays", "database", "model"),
    *("page", "pointer", "damaged", "unknown", ""),
]
#: Bytes from which a type is told: a header of a tar file, the beginning of a text.
_HEAD_BYTES = 4096
#: Errors of the standard library's readers on damaged archives.
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, ValueError, NotImplementedError, RuntimeError),
)
_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08", b"PK00PK\x03\x04")
_Reader = Callable[[IO[bytes]], IO[bytes]]
#: First bytes -> name of a compression and its reader.
_COMPRESSIONS: dict[bytes, tuple[str, _Reader]] = {
    b"\x1f\x8b": ("gzip", lambda stream: cast(IO[bytes], gzip.GzipFile(fileobj=stream))),
    b"BZh": ("bzip2", cast(_Reader, bz2.BZ2File)),
    b"\xfd7zXZ\x00": ("xz", cast(_Reader, lzma.LZMAFile)),
    b"\x5d\x00\x00": ("lzma", cast(_Reader, lzma.LZMAFile)),
}


@dataclass(frozen=True)
class FileType:
    """The type of a file.

    Args:
        name: Its name with an article, such as ``a zip file``.
        use: What it is good for; ``images`` can be a data set, ``packed`` has to be unpacked.
    """

    name: str
    use: Use = ""

    def advice(self, path: str) -> str:
        """Say what to do with a file of this type where a data set or a study file is wanted."""
        return _ADVICE[self.use].format(path=path)


_ADVICE: dict[Use, str] = {
    "images": "name it as the dataset",
    "packed": "unpack it and name the folder, or pack it as .tar.gz or .zip",
    "sheet": "save the table as CSV and name that file",
    "image": "name the folder that has a folder of images for each class; 'autotune predict MODEL "
    "{path}' tells the class of one image",
    "weights": "a study uses it with weights={path}",
    "arrays": "write the images into files, in a folder for each class",
    "database": "--storage sqlite:///{path} names it",
    "model": "'autotune predict {path} IMAGES' uses it",
    "page": "open it to see why, and download the file again",
    "pointer": "'git lfs pull' gets the file itself",
    "damaged": "copy or download it again",
    "unknown": "name a folder of images, an archive or a table",
    "": "name a folder of images, an archive or a table",
}
_PAGE = FileType("a web page (HTML), which came in place of a download", "page")
_POINTER = FileType("a pointer of Git LFS", "pointer")
EMPTY = FileType("an empty file", "damaged")
_TAR = FileType("a tar file", "images")
_TABLE = FileType("a table", "images")
PARQUET = FileType("a table (Parquet)", "images")
_FOLDER = FileType("a folder", "images")
_MODEL = FileType("a model that 'autotune refit' has written", "model")

#: First bytes (``.`` is any byte) -> type.
_MAGICS: tuple[tuple[bytes, FileType], ...] = tuple(
    (magic, FileType(name, use))
    for use, types in cast(
        dict[Use, tuple[tuple[bytes, str], ...]],
        {
            "packed": (
                (rb"\x28\xb5\x2f\xfd", "a file of Zstandard"),
                (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
                (rb"Rar!\x1a\x07", "a RAR archive"),
                (rb"LZIP\x01", "a file of lzip"),
                (rb"\x04\x22\x4d\x18", "a file of LZ4"),
                (rb"\x1f[\x9d\xa0]", "a file of compress (.Z)"),
                (rb"xar!", "a xar archive"),
                (rb"MSCF\x00", "a CAB archive"),
                (rb"!<arch>\n", "an ar archive (.deb, .a)"),
                (rb"\xed\xab\xee\xdb", "an RPM package"),
                (rb"0707[01][0127][0-9A-Fa-f]{20}|\xc7\x71", "a cpio archive"),
                (rb"\x60\xea", "an ARJ archive"),
                (rb"..-l[hz][0-9s]-", "an LHA archive"),
                (rb"MZ.{58}..\x00\x00", "a Windows program (.exe)"),
            ),
            "sheet": ((rb"\xd0\xcf\x11\xe0", "a document of older Office (.xls, .doc)"),),
            "image": (
                (rb"\xff\xd8\xff", "a JPEG image"),
                (rb"\x89PNG", "a PNG image"),
                (rb"GIF8[79]a", "a GIF image"),
                (rb"RIFF....WEBP", "a WebP image"),
                (rb"BM....\x00\x00\x00\x00", "a BMP image"),
                (rb"II[\x2a\x2b]\x00|MM\x00[\x2a\x2b]", "a TIFF image"),
                (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image"),
                (rb"\x00\x00..ftyp(avi|hei|mif|msf|hev)", "a HEIC or AVIF image"),
                (rb"8BPS", "a Photoshop image"),
                (rb"P[1-6]\s+(#.*\n)?\d", "a PNM image"),
                (rb"<svg", "an SVG drawing"),
            ),
            "weights": (
                (rb".{4}\x00{4}\{ *\"", "a safetensors file"),
                (rb"\x80[\x02-\x05].*\x8a\x0al\xfc\x9cF\xf9", "a file of older PyTorch (.pth)"),
                (rb"GGUF", "a GGUF file"),
            ),
            "arrays": (
                (rb"\x89HDF", "an HDF5 file"),
                (rb"\x93NUMPY", "a NumPy array (.npy)"),
                (rb"MATLAB [57]", "a MATLAB file (.mat)"),
                (rb"ARROW1|FEA1", "an Arrow file"),
                (rb"\x80[\x02-\x05].", "a pickle file"),
                (rb"SIMPLE  =", "a FITS file"),
                (rb".{128}DICM", "a DICOM file"),
                (rb".{16}\xde\xc0\xef\xbe", "an LMDB database"),
            ),
            "database": ((rb"SQLite format 3\x00", "an SQLite database"),),
            "images": ((rb"PAR1", PARQUET.name),),
            "": (
                (rb"%PDF", "a PDF document"),
                (rb"%!PS", "a PostScript document"),
                (rb"\{\\rtf", "an RTF document"),
                (rb"\x00\x00..ftyp|RIFF....AVI |\x1a\x45\xdf\xa3", "a video"),
                (rb"ID3[\x02-\x04]|OggS|fLaC|RIFF....WAVE", "a sound file"),
                (rb"\x7fELF|\xcf\xfa\xed\xfe|\xca\xfe\xba\xbe", "a program"),
                (rb"book\x00\x00\x00\x00mark", "an alias of macOS, not the file itself"),
                (rb"L\x00\x00\x00\x01\x14\x02\x00", "a shortcut of Windows, not the file itself"),
            ),
        },
    ).items()
    for magic, name in types
)
#: A member of a zip file, as a pattern -> the type of the file.
_DOCUMENTS: tuple[tuple[str, FileType], ...] = (
    (r"AndroidManifest\.xml", FileType("an Android app (.apk)")),
    (r"Payload/[^/]+\.app/.*", FileType("an iOS app (.ipa)")),
    (r"word/document.*\.xml", FileType("a Word document (.docx)")),
    (r"xl/workbook\.(xml|bin)", FileType("an Excel workbook (.xlsx)", "sheet")),
    (r"ppt/presentation\.xml", FileType("a PowerPoint presentation (.pptx)")),
    (r"\[Content_Types\]\.xml", FileType("an Open XML document")),
    (r"META-INF/container\.xml", FileType("an EPUB book (.epub)")),
    (r"META-INF/MANIFEST\.MF", FileType("a Java archive (.jar)")),
    (r"[^/]+\.dist-info/WHEEL", FileType("a Python wheel (.whl)")),
    (r"model\.weights\.h5", FileType("a Keras model (.keras)")),
    (r"doc\.kml", FileType("a Google Earth file (.kmz)")),
    (r"Index/Document\.iwa", FileType("a document of Apple's iWork")),
    (r"content\.xml", FileType("an OpenDocument file (.ods, .odt)", "sheet")),
)
_TORCH = FileType("a PyTorch file (.pt, .pth)", "weights")
_NUMPY = FileType("NumPy arrays (.npz)", "arrays")
#: Beginning of a text -> its type.
_TEXTS: tuple[tuple[str, FileType], ...] = (
    (r"version https://git-lfs\.github\.com/spec/", _POINTER),
    (r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype html|<html)", _PAGE),
    (r"(<\?xml.*)?<svg", FileType("an SVG drawing", "image")),
    (r"<\?xml", FileType("an XML file")),
    (r"\[InternetShortcut\]", FileType("a link to a page, not the file itself")),
    (r"#!", FileType("a program")),
)
_NOTEBOOK = FileType("a Jupyter notebook, which can use autotune.Study (docs/api.md)")
#: Ending of a text's name -> its type; the content of such files tells nothing.
_TEXT_ENDINGS = {
    ".csv": _TABLE,
    ".tsv": _TABLE,
    ".ipynb": _NOTEBOOK,
    ".py": FileType("a Python program"),
    ".md": FileType("a text file"),
    ".db": FileType("a damaged database"),
}
#: What a study file has in it, whatever its name.
_STUDY_KEY = re.compile(r"""^[{\s]*["']?(dataset|backbone|space|search|training)["']?\s*:""", re.M)


def file_type(path: str | os.PathLike[str]) -> FileType | None:
    """Tell what a file or a folder is.

    Returns:
        Its type; ``None`` where nothing speaks against a study file: a text, also one in an
        unknown encoding, and what cannot be read.
    """
    name = os.fspath(path).lower()
    if os.path.isdir(path):
        return _MODEL if os.path.isfile(os.path.join(path, "record.json")) else _FOLDER
    try:
        with open(path, "rb") as stream:
            head = stream.read(_HEAD_BYTES)
            if not head:
                return EMPTY
            if head.startswith(_ZIP):
                return _zip_type(stream)
            return type_of_content(head) or _compressed_type(stream) or _text_type(head, name)
    except OSError:
        return None


def type_of_content(head: bytes) -> FileType | None:
    """Tell the type of a file by its first bytes, at least 512 if it has them.

    Returns:
        ``None`` for compressed files, for text that may be anything, and for what is unknown.
    """
    if head.startswith(_ZIP):
        return FileType("a zip file", "images")
    if is_tar(head):
        return _TAR
    for magic, kind in _MAGICS:
        if re.match(magic, head, re.DOTALL):
            return kind
    text = head.decode("utf-8", "replace").removeprefix("\ufeff").lstrip()
    for pattern, kind in _TEXTS:
        if re.match(pattern, text, re.DOTALL | re.IGNORECASE):
            return kind
    return None


def is_tar(head: bytes) -> bool:
    """Tell whether the first 512 bytes of a file are a header of a tar file."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def archive_format(path: str | os.PathLike[str]) -> Literal["zip", "tar", ""]:
    """Return the format of an archive by its first bytes; empty for other files.

    Raises an OSError when the file cannot be read.
    """
    with open(path, "rb") as stream:
        if stream.read(8).startswith(_ZIP):
            return "zip"
        stream.seek(0)
        try:
            return "tar" if is_tar(decompressed(stream).read(tarfile.BLOCKSIZE)) else ""
        except (OSError, *DAMAGE):  # of a compressed file
            return ""


def decompressed(stream: IO[bytes]) -> IO[bytes]:
    """Return what decompresses a stream from its beginning; itself where it is not compressed."""
    compression = _compression(stream)
    return stream if compression is None else compression[1](stream)


def zip_document(names: Collection[str]) -> FileType | None:
    """Tell what the members of a zip file make of it; ``None`` for a mere archive."""
    for pattern, kind in _DOCUMENTS:
        if any(re.fullmatch(pattern, name) for name in names):
            return kind
    if names and all(name.endswith(".npy") for name in names):
        return _NUMPY
    tops = {name.removesuffix("data.pkl") for name in names if name.endswith("data.pkl")}
    return _TORCH if any(f"{top}version" in names for top in tops) else None


def _zip_type(stream: IO[bytes]) -> FileType:
    with suppress(*DAMAGE), zipfile.ZipFile(stream) as archive:
        return zip_document(set(archive.namelist())) or FileType("a zip file", "images")
    return FileType("a damaged zip file", "damaged")


def _compression(stream: IO[bytes]) -> tuple[str, _Reader] | None:
    stream.seek(0)
    start = stream.read(6)
    stream.seek(0)
    return next((found for magic, found in _COMPRESSIONS.items() if start.startswith(magic)), None)


def _compressed_type(stream: IO[bytes]) -> FileType | None:
    if (compression := _compression(stream)) is None:
        return None
    name, reader = compression
    try:
        head = reader(stream).read(_HEAD_BYTES)
    except (OSError, *DAMAGE):
        return FileType(f"a damaged {name} file", "damaged")
    if is_tar(head):
        return FileType(f"a tar file compressed with {name}", "images")
    inner = type_of_content(head)
    return FileType(f"{inner.name if inner else 'a file'} compressed with {name}", "packed")


def _text_type(head: bytes, name: str) -> FileType | None:
    if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        if not head.strip(b"\0"):
            return FileType("a file of zeros, such as an unfinished download", "damaged")
        return FileType("a binary file", "unknown")
    ending = os.path.splitext(name)[1]
    if ending in _TEXT_ENDINGS:
        return _TEXT_ENDINGS[ending]
    text = head.decode("utf-8", "replace")
    if ending in ("", ".yaml", ".yml") or _STUDY_KEY.search(text):
        return None
    return FileType(
        "a JSON file" if re.match(r"""\s*[\[{]\s*["\[{}\]]""", text) else "a text file"
    )
