"""Whether an image file holds all its pixels; and what is left of one that Pillow refuses.

Pillow reads some files whose lower half is missing without a word, and refuses others of which
only an end marker or a text beside the pixels is damaged.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from PIL import Image

#: A marker of JPEG that begins a segment; not a stuffed byte, nor one of a restart.
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
_SOF_PROGRESSIVE, _SOS, _EOI = 0xC2, 0xDA, b"\xff\xd9"
_LACKS_SCANS = "truncated: details of the whole image are missing"
_APP1, _APP14, _ADOBE_BYTES = 0xE1, 0xEE, 12
_SIDE_DATA = (*range(0xE0, 0xF0), 0xFE)
_ZEROS_INSTEAD = "damaged: zeros in place of pixels"
_SOFS = (0xC0, 0xC1, _SOF_PROGRESSIVE)
#: Bytes that stand for missing ones: where they change no pixel, none is missing.
_FILLER = bytes(range(1, 128)) * 16
#: Pillow's names of the formats that :func:`find_damage` looks into.
CHECKED_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF")
#: Zeros in a row that pixels hardly ever become.
_ZEROS = 256
#: Where the pixels of formats without a checksum begin.
_PIXELS = {"WEBP": b"VP8", "AVIF": b"mdat", "HEIF": b"mdat"}
_PNG_START = b"\x89PNG\r\n\x1a\n"
#: Chunks of PNG beside the critical ones that say how an image looks.
_PNG_KEPT = (b"tRNS", b"eXIf")
_PNG_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # they may hold the orientation
_MAX_TEXT_BYTES = 1 << 16


def find_damage(image: Image.Image, content: bytes) -> str:
    """Return why a decoded image lacks pixels; empty where it lacks none."""
    match image.format:
        case "JPEG" | "MPO":
            return _jpeg_damage(image, content)
        case "PNG":
            return _png_damage(content)
        case "WEBP" | "AVIF" | "HEIF":
            start = content.find(_PIXELS[image.format])
            end = _webp_end(content) if image.format == "WEBP" else len(content)
            has_zeros = content.find(bytes(max(_ZEROS, end // 10)), start, end) >= 0
            return _ZEROS_INSTEAD * has_zeros
    return ""


def mend(content: bytes) -> bytes | None:
    """Return the file without what Pillow refuses and no pixel needs; ``None`` if that is not it.

    A JPEG or WebP without its last bytes is completed if these change no pixel. A PNG keeps the
    chunks that say how the image looks.

    Raises:
        OSError: When pixels are missing.
    """
    if content.startswith(_PNG_START):
        return _mend_png(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _mend_webp(content)
    if content.startswith(b"\xff\xd8\xff"):
        return _mend_jpeg(content)
    return None


def _jpeg_damage(image: Image.Image, content: bytes) -> str:
    """Look closer at a JPEG that ends gray, holds zeros, or has several scans.

    What is missing becomes gray. Zeros are pixels of one color, or the remains of a download.
    """
    last = image.getpixel((image.width - 1, image.height - 1))
    is_gray = {127, 128}.issuperset(last if isinstance(last, tuple) else (last,))
    is_progressive = bool(image.info.get("progressive"))
    zeros = content.find(bytes(_ZEROS), content.find(b"\xff\xda"))
    has_zeros = zeros >= 0 and not is_progressive  # whose scans would not end
    if not (is_gray or has_zeros or is_progressive):
        return ""
    end, lacks_scans = _jpeg_end(content)
    if lacks_scans:
        return _LACKS_SCANS
    if is_gray or has_zeros:
        if share := _missing_share(content[:end]):
            return _truncated(share)
        if zeros < end and has_zeros:
            parts = (content[: end - _ZEROS // 4], content[:zeros])
            is_end_needed, are_zeros_seen = (_missing_share(part, content[:end]) for part in parts)
            if are_zeros_seen and not is_end_needed:
                return _ZEROS_INSTEAD
    return ""


def _mend_jpeg(content: bytes) -> bytes | None:
    content = _without_side_data(content)
    end, lacks_scans = _jpeg_end(content)
    data = content[:end].rstrip(b"\xff")
    try:
        share = _missing_share(data)
    except OSError:  # its header is damaged
        return None
    if share or lacks_scans:
        raise OSError(_truncated(share) if share else _LACKS_SCANS)
    return data + _EOI


def _without_side_data(content: bytes) -> bytes:
    """Return a JPEG without the segments beside its pixels, apart from EXIF and Adobe's mark."""
    result = [content[:2]]
    for marker, start, data in _jpeg_segments(content):
        if marker in (_SOS, _EOI[1]):
            return b"".join([*result, content[start:]])
        is_exif = marker == _APP1 and data.startswith(b"Exif\0\0")
        is_adobe = marker == _APP14 and len(data) >= _ADOBE_BYTES
        if is_exif or is_adobe or marker not in _SIDE_DATA:
            result.append(content[start : start + 4 + len(data)])
    return content


def _jpeg_end(content: bytes) -> tuple[int, bool]:
    """Return where the data of a JPEG end, and whether scans are missing."""
    components: tuple[int, ...] = ()
    bits: dict[tuple[int, int], int] = {}  # of a coefficient of a component: those still missing
    is_progressive, end = False, len(content)
    for marker, start, data in _jpeg_segments(content):
        if marker in _SOFS and len(data) > 5:
            is_progressive = marker == _SOF_PROGRESSIVE
            components = tuple(data[6::3][: data[5]])
        elif marker == _SOS and data:
            count = data[0]
            first, last, low = (0, 63, 0)
            if is_progressive and len(data) >= 2 * count + 4:
                first, last = data[2 * count + 1 : 2 * count + 3]
                low = data[2 * count + 3] & 15
            for component in data[1 : 2 * count : 2]:
                bits |= {(component, k): low for k in range(first, min(last, 63) + 1)}
        elif marker == _EOI[1]:
            end = start
            break
    # an encoder may leave out high frequencies, but nothing that it began
    lacks_scans = any(bits.get((component, 0)) != 0 for component in components)
    return end, lacks_scans or any(bits.values())


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield marker, position and data of the segments of a JPEG, up to its end."""
    position = 2
    while match := _JPEG_MARKER.search(content, position):
        marker, position = content[match.start() + 1], match.end()
        length = 0 if marker == _EOI[1] else int.from_bytes(content[position : position + 2])
        yield marker, match.start(), content[position + 2 : position + length]
        position += length


def _missing_share(content: bytes, whole: bytes | None = None) -> float:
    """Return the share of the rows of a JPEG from the first one that takes pixels from a filler.

    Args:
        content: The file without its end marker.
        whole: What it is compared with; by default the same without a filler.
    """
    files = ((content if whole is None else whole) + _EOI, content + _FILLER + _EOI)
    pixels = []
    for file in files:
        with Image.open(io.BytesIO(file), formats=("JPEG",)) as image:
            pixels.append(np.atleast_3d(np.asarray(image)))
    rows = np.flatnonzero((pixels[0] != pixels[1]).any(axis=(1, 2)))
    return 1 - rows[0] / len(pixels[0]) if len(rows) else 0.0


def _truncated(share: float) -> str:
    return f"truncated: the lower {max(1, round(100 * share))} % of the image is missing"


def _png_damage(content: bytes) -> str:
    """Compare the checksums of the pixels; Pillow does not."""
    chunks = list(_png_chunks(content))
    data = [chunk for name, chunk, _ in chunks if name == b"IDAT"]
    if all(is_right for name, _, is_right in chunks if name == b"IDAT"):
        return ""
    reader = zlib.decompressobj()
    rest = b"".join(data)
    try:  # a second checksum is inside
        while rest and not reader.eof:
            reader.decompress(rest, 1 << 20)
            rest = reader.unconsumed_tail
    except zlib.error:
        pass
    return "" if reader.eof else "damaged: the checksum of its pixels is wrong"


def _mend_png(content: bytes) -> bytes:
    result = [_PNG_START]
    for name, data, is_right in _png_chunks(content):
        is_critical = not name[0] & 32
        is_text = data.startswith(_PNG_TEXTS) and len(data) < _MAX_TEXT_BYTES
        if is_critical or name in _PNG_KEPT or (name in (b"iTXt", b"tEXt", b"zTXt") and is_text):
            checksum = zlib.crc32(name + data)
            if is_critical and not is_right:
                checksum ^= 1  # stays wrong
            result += [len(data).to_bytes(4), name, data, checksum.to_bytes(4)]
    return b"".join(result)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield name and data of each chunk, and whether its checksum is right or cut off."""
    position = len(_PNG_START)
    while position + 8 <= len(content):
        start = position + 8
        end = start + int.from_bytes(content[position : position + 4])
        name, data, checksum = (
            content[start - 4 : start],
            content[start:end],
            content[end : end + 4],
        )
        is_cut = len(checksum) < 4
        yield name, data, is_cut or zlib.crc32(name + data) == int.from_bytes(checksum)
        position = end + 4


def _mend_webp(content: bytes) -> bytes | None:
    position = 12
    while position + 8 <= len(content):
        size = int.from_bytes(content[position + 4 : position + 8], "little")
        if position + 8 + size > len(content):
            break
        position += 8 + size + size % 2
    missing = _webp_end(content) - len(content)
    if missing <= 0 or missing > len(content):
        return None
    if content[position : position + 4] not in (b"VP8 ", b"VP8L", b"ALPH", b"ANMF"):
        whole = content[:position] + bytes(max(0, position - len(content)))
        return whole[:4] + (len(whole) - 8).to_bytes(4, "little") + whole[8:]
    completed = [content + filler * missing for filler in (b"\0", b"\xff")]
    pixels = []
    with suppress(OSError):
        for file in completed:
            with Image.open(io.BytesIO(file), formats=("WEBP",)) as image:
                pixels.append(np.asarray(image))
    if len(pixels) < len(completed) or not np.array_equal(pixels[0], pixels[1]):
        raise OSError("truncated: pixels are missing")
    return completed[0]


def _webp_end(content: bytes) -> int:
    return 8 + int.from_bytes(content[4:8], "little")
