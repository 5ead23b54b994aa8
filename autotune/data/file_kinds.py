"""The kind of a file, by its name and by its first bytes; the one table of image formats."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec

from autotune.text import join_some, plural

#: Pillow's name of a format that is read -> endings of its files. Pillow would also open EPS,
#: which starts Ghostscript: a file that merely calls itself .jpg must not run a program.
IMAGE_FORMATS: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".pjpeg", ".pjp"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm"),
    "HEIF": (".heic", ".heif", ".hif"),
}
#: Endings of all files that are read as images.
ENDINGS = tuple(ending for endings in IMAGE_FORMATS.values() for ending in endings)
_HEIC = "HEIC photos"
LOOSE = "images outside the class folders"
PIPES = "pipes and devices"
_HIDDEN = "hidden files"
SYSTEM = "files of the system"
_UNNAMED = "images without the ending of one"
_OTHER = "other files"
#: The beginning of the kinds that are folders.
FOLDERS = "folders of"
_PHOTOS = (_HEIC, "raw photos", "images of other formats")
_HINTS = {
    _HEIC: "HEIC is read after pip install 'autotune[heic]'",
    _UNNAMED: "images are read once their names end as those of images, such as .jpg",
}
#: Kinds of files that are passed over, and the endings of each.
_KINDS: Mapping[str, tuple[str, ...]] = {
    "raw photos": (
        *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef"),
        *(".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2"),
        *(".srf", ".srw", ".x3f"),
    ),
    "drawings and layered images": (
        *(".ai", ".cdr", ".eps", ".kra", ".ps", ".psb", ".psd", ".svg", ".svgz", ".xcf", ".wmf"),
        *(".afphoto", ".drawio", ".emf"),
    ),
    "images of other formats": (
        *(".cur", ".dcm", ".dds", ".dicom", ".exr", ".fits", ".hdr", ".icns", ".ico", ".jls"),
        *(".jxl", ".jxr", ".nii", ".pcx", ".pict", ".qoi", ".ras", ".sgi", ".tga", ".xbm"),
        *(".xpm", ".bpg", ".flif", ".wdp", ".hdp", ".jxs"),
    ),
    "videos": (
        *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
        *(".mts", ".webm", ".wmv", ".insv"),
    ),
    "texts and tables": (
        *(".cfg", ".csv", ".htm", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".parquet"),
        *(
            ".py",
            ".rst",
            ".tsv",
            ".txt",
            ".url",
            ".xml",
            ".xmp",
            ".yaml",
            ".yml",
            ".aae",
            ".ipynb",
        ),
    ),
    "documents": (
        *(".doc", ".docx", ".odp", ".ods", ".odt", ".pdf", ".ppt", ".pptx", ".rtf", ".xls"),
        *(".xlsx",),
    ),
    "archives": (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"),
    "arrays": (".h5", ".hdf5", ".mat", ".npy", ".npz", ".pkl", ".pt", ".pth", ".tfrecord"),
}
_KIND_OF = {ending: kind for kind, endings in _KINDS.items() for ending in endings}
_SYSTEM_FILES = (".ds_store", ".localized", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
#: First bytes of a file that is no image -> what it is.
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.github.com/", "a pointer of Git LFS; git lfs pull gets the image"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"7z\xbc\xaf'\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"%PDF-", "a PDF document"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"\0\0\x01\xba", "an MPEG video"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0", "a Thumbs.db or a file of an old Microsoft Office"),
    (b"\x00\x05\x16\x07", "a resource fork of macOS"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)
#: First bytes of images of other formats -> their format.
_OTHER_IMAGES: tuple[tuple[bytes, str], ...] = (
    (b"%!PS", "a PostScript drawing"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript drawing"),
    (b"8BPS", "a Photoshop file"),
    (b"gimp xcf", "a GIMP file"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"FUJIFILMCCD-RAW", "a raw photo"),
    (b"\0\0\x01\0", "an icon"),
    (b"v/1\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"qoif", "a QOI image"),
    (b"DDS ", "a DirectDraw surface"),
)
#: First bytes of the formats that are read.
_IMAGE_STARTS = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0"),
    *(b"MM\0+", b"\0\0\0\x0cjP  ", b"\xffO\xffQ"),
)
HEAD_BYTES = 512
_VIDEO = "not an image but a video"


def passed_over_kind(path: str) -> str:
    """Return the kind of a file that is passed over; empty where it is read as an image.

    Only files without a common ending are opened, and those called ``.heic`` without a plug-in.
    """
    name = os.path.basename(path).lower()
    ending = os.path.splitext(name)[1]
    if name in _SYSTEM_FILES or name.startswith("._"):
        return SYSTEM
    if name.startswith("."):
        return _HIDDEN
    if ending in IMAGE_FORMATS["HEIF"] and not has_heic() and _is_heic(_head(path)):
        return _HEIC
    if ending in ENDINGS:
        return ""
    if ending in _KIND_OF:
        return _KIND_OF[ending]
    return _UNNAMED if _is_image(_head(path)) else _OTHER


class PassedOver(Counter[tuple[str, str]]):
    """Counts files that are passed over: (kind, ending) -> number of files."""

    def add(self, name: str, kind: str) -> None:
        """Count a file."""
        ending = os.path.splitext(name)[1].lower()[:12].encode("utf-8", "backslashreplace")
        self[kind, ending.decode()] += 1

    def add_folder(self, path: str, kind: str) -> None:
        """Count a folder that is left out with all that is in it."""
        self[kind, os.fsencode(os.path.basename(path)).decode("utf-8", "backslashreplace")] += 1

    @property
    def writer(self) -> str:
        """The kind of the first folder that is left out, if any."""
        return next((kind for kind, _ in self if kind.startswith(FOLDERS)), "")

    @property
    def has_photos(self) -> bool:
        """Whether there are photos in formats that are not read."""
        return any(kind in _PHOTOS for kind, _ in self)

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Return kind -> ending -> number of files."""
        kinds: dict[str, dict[str, int]] = {}
        for (kind, ending), count in sorted(self.items()):
            kinds.setdefault(kind, {})[ending] = count
        return kinds


def describe_passed_over(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Describe how many files of which kinds are passed over; empty where there are none.

    Args:
        counts: The result of :meth:`PassedOver.by_kind`.

    Example:
        >>> describe_passed_over({"videos": {".mp4": 2, ".mov": 1}, "other files": {"": 1}})
        '4 files are passed over: videos 3 (.mp4, .mov), other files 1'
    """
    total = sum(sum(endings.values()) for endings in counts.values())
    words = ("file is", "files are")
    if any(kind.startswith(FOLDERS) for kind in counts):
        words = ("folder is", "folders and files are")
    return f"{plural(total, *words)} passed over: {list_kinds(counts)}" * bool(total)


def list_kinds(counts: Mapping[str, Mapping[str, int]]) -> str:
    """List the kinds of files that are passed over, the most frequent one first, with hints."""
    totals = {kind: sum(endings.values()) for kind, endings in counts.items()}
    kinds = []
    for kind in sorted(totals, key=lambda kind: -totals[kind]):
        endings = sorted(filter(None, counts[kind]), key=lambda ending: -counts[kind][ending])
        kinds.append(f"{kind} {totals[kind]:,}" + f" ({join_some(endings, 4)})" * bool(endings))
    return "; ".join([", ".join(kinds), *(_HINTS[kind] for kind in _HINTS if kind in counts)])


@lru_cache(maxsize=1)
def has_heic() -> bool:
    """Tell whether the plug-in that reads HEIC is installed."""
    return find_spec("pillow_heif") is not None


def describe_content(head: bytes) -> str:
    """Describe a file that Pillow cannot read as an image, by its first :data:`HEAD_BYTES`.

    Returns:
        Such as ``not an image but an HTML page``; empty where nothing is recognized.
    """
    if not head:
        return "the file is empty"
    if not head.strip(b"\0"):
        return "not an image but zeros: it was never written in full"
    if _is_heic(head) and not has_heic():
        return "a HEIC photo, which is read after pip install 'autotune[heic]'"
    if _is_image(head):
        return "it begins like an image, but is damaged or of a kind that Pillow cannot read"
    if text := next((text for start, text in _OTHER_IMAGES if head.startswith(start)), ""):
        return f"{text}, which cannot be read; export it as PNG or JPEG"
    if text := next((text for start, text in _STARTS if head.startswith(start)), ""):
        return f"not an image but {text}"
    if head[4:8] == b"ftyp":
        return "a raw photo; export it as JPEG" if head[8:12] == b"crx " else _VIDEO
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _VIDEO
    text = _describe_text(head)
    return f"not an image but {text}" if text else ""


def _describe_text(head: bytes) -> str:
    try:
        text = head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # else the last character is cut
            return ""
        text = head[: error.start].decode("utf-8-sig")
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        return ""
    start = text.lstrip().lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<body")) or "<html" in start:
        return "an HTML page"
    if "<svg" in start:
        return "an SVG drawing"
    if start.startswith("<"):
        return "an XML text"
    if start.startswith(("{", "[")):
        return "a JSON text"
    if start.startswith(("http://", "https://")) and len(start.split()) == 1:
        return "the address of an image, not the image"
    first = " ".join(text.split())[:40]
    return f"a text that begins with {first!r}"


def _is_image(head: bytes) -> bool:
    return (
        head.startswith(_IMAGE_STARTS)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in (*_HEIC_BRANDS, b"avif", b"avis"))
        or (head[:2] == b"BM" and head[6:10] == bytes(4))
        or (head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n")
    )


def _is_heic(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS and b"avif" not in head[:64]


def _head(path: str) -> bytes:
    """Return the first bytes of a file; none of a pipe, and none where it cannot be read."""
    try:
        if not os.path.isfile(path):
            return b""
        with open(path, "rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError:
        return b""
