"""Hundreds of damaged images among good ones: each is named once, and nothing else happens."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autotune.data.cache.decoded_images import ImageStore, open_store
from autotune.data.preprocessing import ImageSpec
from autotune.data.sources.registry import open_source
from tests.support.data.images import make_class_folders, photo
from tests.support.data.odd_images import half_empty

SPEC = ImageSpec(16, 16, "bilinear", 1.0, "center", (0.5,) * 3, (0.5,) * 3)
FORMATS = ("jpeg", "png", "webp", "bmp", "tiff", "gif")
#: Images of each kind of damage, over all formats.
EACH = 50
GOOD = 12


def encoded(name: str, draws: random.Random, **options: object) -> bytes:
    stream = io.BytesIO()
    side = draws.randint(24, 60)
    photo(side, draws.randint(24, 60), seed=side).save(stream, name, **options)
    return stream.getvalue()


def bomb(draws: random.Random) -> bytes:
    side = draws.randint(40_000, 2_000_000_000)
    if draws.random() < 0.5:
        content = bytearray(encoded("png", draws))
        content[16:24] = struct.pack(">II", side, side)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    else:
        content = bytearray(encoded("bmp", draws))
        content[18:26] = struct.pack("<ii", side, side)
    return bytes(content)


def truncated(draws: random.Random) -> bytes:
    content = encoded(draws.choice(("jpeg", "png", "webp", "tiff")), draws)
    return content[: draws.randint(1, len(content) * 2 // 3)]


def wild_tags(draws: random.Random) -> bytes:
    content = bytearray(encoded("tiff", draws))
    for offset in range(struct.unpack("<I", content[4:8])[0], len(content)):
        if draws.random() < 0.5:
            content[offset] = draws.randrange(256)
    return bytes(content)


def flipped(draws: random.Random) -> bytes:
    content = bytearray(encoded(draws.choice(FORMATS), draws))
    for _ in range(draws.randint(1, 40)):
        content[draws.randrange(len(content))] = draws.randrange(256)
    return bytes(content)


def garbage_inside(draws: random.Random) -> bytes:
    content = encoded("jpeg", draws)
    offset = draws.randint(len(content) // 2, len(content) - 20)
    return content[:offset] + draws.randbytes(15) + content[offset + 15 :]


Make = Callable[[random.Random], bytes]
#: No reader can make an image of these; of the doubtful ones one may; the others are fine.
HOPELESS: dict[str, Make] = {
    "truncated": truncated,
    "empty": lambda draws: b"",
    "zeros": lambda draws: bytes(draws.randint(1, 5000)),
    "no_image": lambda draws: (
        b"<!DOCTYPE html><html>404" + draws.randbytes(draws.randint(0, 3000))
    ),
    "bomb": bomb,
    "half_empty": lambda draws: half_empty(encoded("jpeg", draws)),
}
DOUBTFUL: dict[str, Make] = {
    "wild_tags": wild_tags,
    "flipped": flipped,
    "garbage_inside": garbage_inside,
}
FINE: dict[str, Make] = {
    "damaged_exif": lambda draws: encoded(
        "jpeg", draws, exif=b"Exif\0\0II*\0" + draws.randbytes(draws.randint(0, 60))
    ),
    "some": lambda draws: encoded(draws.choice(FORMATS), draws),
}


def make_zoo(root: Path) -> dict[str, set[str]]:
    """Write a folder of two classes, and return which files are good and which damaged."""
    draws = random.Random(0)
    kinds: dict[str, set[str]] = {"good": set(), "damaged": set()}
    make_class_folders(root, {"a": GOOD, "b": GOOD})
    for name, make in (HOPELESS | DOUBTFUL | FINE).items():
        for index in range(EACH):
            ending = draws.choice(("jpg", "PNG", "webp", "bmp", "tif", "gif"))  # most are wrong
            key = f"{draws.choice('ab')}/{name}-{index}.{ending}"
            (root / key).write_bytes(make(draws))
            if name not in DOUBTFUL:
                kinds["damaged" if name in HOPELESS else "good"].add(key)
    (root / "a" / "lost.jpg").symlink_to(root / "nowhere.jpg")
    (root / "b" / "loop.jpg").symlink_to(root / "b" / "loop.jpg")
    kinds["damaged"] |= {"a/lost.jpg", "b/loop.jpg"}
    os.mkfifo(root / "a" / "pipe.jpg")
    if os.geteuid() != 0:  # root may read everything
        photo(20, 20).save(root / "a" / "closed.png")
        (root / "a" / "closed.png").chmod(0)
        kinds["damaged"].add("a/closed.png")
    return kinds


def opened(root: Path, folder: Path) -> ImageStore:
    source = open_source(str(root))
    indices = range(len(source.samples))
    return open_store(source, indices, SPEC, folder, unreadable_limit=1.0)


def test_every_damaged_image_is_named_once_with_a_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    kinds = make_zoo(tmp_path / "zoo")
    store = opened(tmp_path / "zoo", tmp_path / "first")
    samples = open_source(str(tmp_path / "zoo")).samples
    skipped = [key for key, _ in store.skipped]
    decoded = {samples[index].key for index in store.indices}
    assert len(skipped) == len(set(skipped))
    assert set(skipped) | decoded == {sample.key for sample in samples}
    assert not set(skipped) & decoded
    assert kinds["damaged"] <= set(skipped)
    assert kinds["good"] <= decoded
    reasons = dict(store.skipped).values()
    assert all(reason and "\n" not in reason and len(reason) < 200 for reason in reasons)
    (message,) = caplog.messages
    assert all(message.count(f"{key} (") == 1 for key in skipped)
    assert capfd.readouterr() == ("", "")
    second = opened(tmp_path / "zoo", tmp_path / "second")
    assert second.skipped == store.skipped
    assert np.array_equal(second.images[:], store.images[:])
