"""The one table of image formats, and the kinds of files that are passed over beside them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec

from autotune.file_kinds import HEAD_BYTES, kind_of_head
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
_KINDS: Mapping[str, str] = {
    "raw photos": (
        ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef "
        ".raf .raw .rw2 .rwl .sr2 .srf .srw .x3f"
    ),
    "drawings and layered images": (
        ".afphoto .ai .cdr .drawio .emf .eps .kra .ps .psb .psd .svg .svgz .wmf .xcf"
    ),
    "images of other formats": (
        ".bpg .cur .dcm .dds .dicom .exr .fits .flif .hdp .hdr .icns .ico .jls .jxl .jxr .jxs "
        ".nii .pcx .pict .qoi .ras .sgi .tga .wdp .xbm .xpm"
    ),
    "videos": ".3gp .avi .flv .insv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .webm .wmv",
    "texts and tables": (
        ".aae .cfg .csv .htm .html .ini .ipynb .json .jsonl .log .md .parquet .py .rst .tsv .txt "
        ".url .xml .xmp .yaml .yml"
    ),
    "documents": ".doc .docx .odp .ods .odt .pdf .ppt .pptx .rtf .xls .xlsx",
    "archives": ".7z .bz2 .gz .rar .tar .tgz .xz .zip .zst",
    "arrays": ".h5 .hdf5 .mat .npy .npz .pkl .pt .pth .tfrecord",
}
_KIND_OF = {ending: kind for kind, endings in _KINDS.items() for ending in endings.split()}
_SYSTEM_FILES = (".ds_store", ".localized", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
#: Kinds of :mod:`autotune.file_kinds` that are read.
_HEIC_KIND = "a HEIC image"
_READ = frozenset(
    (
        *("a JPEG image", "a PNG image", "a GIF image", "a WebP image", "a TIFF image"),
        *("a BMP image", "a PNM image", "a JPEG 2000 image", "an AVIF image", _HEIC_KIND),
    )
)


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
    if ending in IMAGE_FORMATS["HEIF"] and not has_heic() and _kind(path) == _HEIC_KIND:
        return _HEIC
    if ending in ENDINGS:
        return ""
    if ending in _KIND_OF:
        return _KIND_OF[ending]
    return _UNNAMED if _kind(path) in _READ else _OTHER


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
    """Describe a file that Pillow cannot read as an image, by its first ``HEAD_BYTES``.

    Returns:
        Such as ``not an image but an HTML page``; empty where nothing is recognized.
    """
    kind = kind_of_head(head)
    if not head:
        return "the file is empty"
    if kind.name == _HEIC_KIND and not has_heic():
        return f"{kind.name}, which is read after pip install 'autotune[heic]'"
    if kind.name in _READ:
        return f"{kind.name} that is damaged, or of a kind that Pillow cannot read"
    if kind.use == "image":
        return f"{kind.name}, which is not read; export it as PNG or JPEG"
    begin = ""
    if kind.use == "text":
        begin = f" that begins with {' '.join(head.decode('utf-8', 'replace').split())[:40]!r}"
    advice = f"; {kind.advice('')}" if kind.use == "pointer" else ""
    return f"not an image but {kind.name}{begin}{advice}" if kind.name else ""


def _kind(path: str) -> str:
    """Return what a file is; empty where it cannot be read."""
    try:
        if not os.path.isfile(path):  # a pipe would be waited for
            return ""
        with open(path, "rb") as stream:
            return kind_of_head(stream.read(HEAD_BYTES)).name
    except OSError:
        return ""
