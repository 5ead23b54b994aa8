"""Make a folder of images as people have them: 30 files of 15 odd kinds, in two classes.

``python tests/support/data/odd_images.py FOLDER`` writes it and prints what becomes of each kind.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (64, 48)
READ, UNREADABLE, PASSED_OVER = "read", "unreadable", "passed over"


def picture(seed: int) -> Image.Image:
    """Return an RGB image with detail everywhere, so that any lost part shows."""
    draws = np.random.default_rng(seed)
    coarse = Image.fromarray(draws.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray(
        (pixels + draws.integers(-20, 21, pixels.shape)).clip(0, 255).astype("u1")
    )


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    """Return a file of a format of Pillow."""
    stream = io.BytesIO()
    image.save(stream, name, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def png_chunk(name: bytes, data: bytes, is_right: bool = True) -> bytes:
    checksum = zlib.crc32(name + data) ^ (not is_right)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def with_chunk(content: bytes, chunk: bytes) -> bytes:
    """Return a PNG with another chunk after its header."""
    return content[:33] + chunk + content[33:]


def profile_chunk(size: int) -> bytes:
    """Return the chunk of a color profile of a size in bytes."""
    return png_chunk(b"iCCP", b"camera\0\0" + zlib.compress(bytes(size)))


def half_empty(content: bytes, ending: bytes = b"") -> bytes:
    """Return a file whose second half is zeros, or missing before an end marker."""
    header = max(0, content.find(b"\xff\xda"))
    half = (header + len(content)) // 2
    return content[:half] + (ending or bytes(len(content) - half))


def tiff(
    pixels: np.ndarray, photometric: int, extra: Sequence[int] | None = None, planar: bool = False
) -> bytes:
    """Write an uncompressed TIFF, which Pillow cannot do with any bands.

    Args:
        pixels: ``(H, W, bands)`` of unsigned or signed integers or floats.
        photometric: 1 for gray, 2 for RGB, 5 for CMYK.
        extra: What the bands beyond the colors are: 0 for anything, 1 and 2 for alpha; ``None``
            where the file does not say.
        planar: Whether each band lies in a plane of its own.
    """
    height, width, bands = pixels.shape
    planes = bands if planar else 1
    data = (pixels.transpose(2, 0, 1) if planar else pixels).astype(pixels.dtype).tobytes()
    size = len(data) // planes
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    values: dict[int, Sequence[int]] = {
        **{256: [width], 257: [height], 258: [8 * pixels.itemsize] * bands, 259: [1]},
        **{
            262: [photometric],
            277: [bands],
            278: [height],
            284: [1 + planar],
            339: [kind] * bands,
        },
        **{273: [0] * planes, 279: [size] * planes},
    }
    if extra is not None:
        values[338] = extra
    start = 8 + 2 + 12 * len(values) + 4  # of what the entries have no room for
    room = sum(4 * len(value) for value in values.values() if len(value) > 1)
    values[273] = [start + room + size * plane for plane in range(planes)]
    entries, outside = b"", b""
    for tag, value in sorted(values.items()):
        content = struct.pack(f"<{len(value)}I", *value)
        entries += struct.pack("<HHI", tag, 4, len(value))
        entries += content if len(value) == 1 else struct.pack("<I", start + len(outside))
        outside += content if len(value) > 1 else b""
    header = b"II*\0\x08\0\0\0" + struct.pack("<H", len(values))
    return header + entries + bytes(4) + outside + data


def infrared(seed: int, scale: int, dtype: str) -> bytes:
    """Return a TIFF of red, green, blue and near infrared that does not say what the last is."""
    rgb = np.asarray(picture(seed)).astype(dtype)
    return tiff(np.concatenate([rgb, rgb[..., :1] // 3], axis=2) * scale, 2)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
Make = Callable[[int], tuple[str, bytes]]
#: Kind -> what becomes of it, and its two files: name and content.
KINDS: dict[str, tuple[str, Make, Make]] = {
    "other endings of JPEG": (
        READ,
        lambda seed: ("a.jfif", encoded(picture(seed), "JPEG")),
        lambda seed: ("b.JPE", encoded(picture(seed), "JPEG", progressive=True)),
    ),
    "formats of phones and browsers": (
        READ,
        lambda seed: ("a.avif", encoded(picture(seed), "AVIF")),
        lambda seed: ("b.HEIC", encoded(picture(seed), "HEIF")),
    ),
    "formats of scanners and cameras of old": (
        READ,
        lambda seed: ("a.jp2", encoded(picture(seed), "JPEG2000")),
        lambda seed: ("b.ppm", encoded(picture(seed), "PPM")),
    ),
    "wrong endings": (
        READ,
        lambda seed: ("png.jpg", encoded(picture(seed), "PNG")),
        lambda seed: ("webp.png", encoded(picture(seed), "WEBP")),
    ),
    "much beside the pixels": (
        READ,
        lambda seed: (
            "profile.png",
            with_chunk(encoded(picture(seed), "PNG"), profile_chunk(2_000_000)),
        ),
        lambda seed: (
            "checksum.png",
            with_chunk(encoded(picture(seed), "PNG"), png_chunk(b"tEXt", b"a\0b", False)),
        ),
    ),
    "without their end marker": (
        READ,
        lambda seed: ("end.jpg", encoded(picture(seed), "JPEG")[:-2]),
        lambda seed: ("end.png", encoded(picture(seed), "PNG")[:-12]),
    ),
    "near infrared beside the colors": (
        READ,
        lambda seed: ("infrared.tif", infrared(seed, 1, "u1")),
        lambda seed: ("infrared-16.tiff", infrared(seed, 257, "<u2")),
    ),
    "more bits, other colors": (
        READ,
        lambda seed: (
            "deep.png",
            encoded(
                Image.fromarray(np.asarray(picture(seed).convert("L")).astype("u2") * 257), "PNG"
            ),
        ),
        lambda seed: ("cmyk.jpg", encoded(picture(seed).convert("CMYK"), "JPEG")),
    ),
    "half empty": (
        UNREADABLE,
        lambda seed: ("half.jpg", half_empty(encoded(picture(seed), "JPEG"), b"\xff\xd9")),
        lambda seed: ("half.png", half_empty(encoded(picture(seed), "PNG"))),
    ),
    "texts called images": (
        UNREADABLE,
        lambda seed: ("lfs.jpg", LFS),
        lambda seed: ("page.png", b"<!DOCTYPE html>\n<title>404 Not Found</title>\n"),
    ),
    "nothing, and an archive": (
        UNREADABLE,
        lambda seed: ("empty.jpg", b""),
        lambda seed: ("zip.jpg", b"PK\x03\x04\x14\0" + bytes(60)),
    ),
    "raw photos": (
        PASSED_OVER,
        lambda seed: ("raw.CR2", b"II*\0\x10\0\0\0CR\x02\0" + bytes(60)),
        lambda seed: ("raw.nef", b"MM\0*\0\0\0\x08" + bytes(60)),
    ),
    "drawings": (
        PASSED_OVER,
        lambda seed: ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        lambda seed: ("layers.psd", b"8BPS\0\x01" + bytes(60)),
    ),
    "videos": (
        PASSED_OVER,
        lambda seed: ("video.mp4", b"\0\0\0\x20ftypisom" + bytes(60)),
        lambda seed: ("live.MOV", b"\0\0\0\x14ftypqt  " + bytes(60)),
    ),
    "no ending, and a text": (
        PASSED_OVER,
        lambda seed: ("0001", encoded(picture(seed), "JPEG")),
        lambda seed: ("labels.txt", b"cat\ndog\n"),
    ),
}


def make_odd_images(root: Path) -> dict[str, list[str]]:
    """Write the folder.

    Returns:
        What becomes of a file -> the paths of these files, relative to the folder.
    """
    if "HEIF" not in Image.SAVE:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    paths: dict[str, list[str]] = {READ: [], UNREADABLE: [], PASSED_OVER: []}
    for number, (fate, *makes) in enumerate(KINDS.values()):
        for label, make in zip(("cat", "dog"), makes, strict=True):
            name, content = make(2 * number + (label == "dog"))
            (root / label).mkdir(parents=True, exist_ok=True)
            (root / label / name).write_bytes(content)
            paths[fate].append(f"{label}/{name}")
    return paths


if __name__ == "__main__":
    for fate, names in make_odd_images(Path(sys.argv[1])).items():
        print(f"{fate}: {len(names)}")
        print(*(f"  {name}" for name in names), sep="\n")
