"""Five hundred damaged images among good ones: each is named once, and nothing else happens."""

from __future__ import annotations

import io
import os
import random
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState
from PIL import Image, PngImagePlugin

from autotune.data.cache.decoded_images import ImageStore, open_store
from autotune.data.preprocessing import ImageSpec
from autotune.data.sources.registry import open_source
from autotune.study.engine.pool import Job
from autotune.study.engine.worker import run_worker
from autotune.study.state import attrs
from tests.support.data.images import photo
from tests.support.study.small import open_small

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


def half_empty(draws: random.Random) -> bytes:
    name = draws.choice(("jpeg", "png"))
    content = encoded(name, draws)
    start = content[: draws.randint(len(content) // 3, len(content) * 2 // 3)]
    return start + (b"\xff\xd9" if name == "jpeg" else bytes(len(content) - len(start)))


def no_image(draws: random.Random) -> bytes:
    starts = (b"<!DOCTYPE html><html>404", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"PK\x03\x04", b"{}")
    return draws.choice(starts) + draws.randbytes(draws.randint(0, 3000))


def text_bomb(draws: random.Random) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "0" * 3_000_000, zip=True)
    return encoded("png", draws, pnginfo=text)


def broken_checksum(draws: random.Random) -> bytes:
    content = bytearray(encoded("png", draws))
    content[draws.randint(29, 32)] ^= 0xFF
    return bytes(content)


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


def not_a_number(draws: random.Random) -> bytes:
    values = np.array([draws.choice((np.nan, np.inf, 1e38, 0.5)) for _ in range(400)], np.float32)
    stream = io.BytesIO()
    Image.fromarray(values.reshape(20, 20)).save(stream, "tiff")
    return stream.getvalue()


def animated(draws: random.Random) -> bytes:
    stream = io.BytesIO()
    first, *others = [photo(30, 30, seed=seed) for seed in range(3)]
    name = draws.choice(("gif", "webp", "png", "tiff"))
    first.save(stream, name, save_all=True, append_images=others)
    return stream.getvalue()


Make = Callable[[random.Random], bytes]
#: No reader can make an image of these; of the doubtful ones one may; the others are fine.
HOPELESS: dict[str, Make] = {
    "truncated": truncated,
    "empty": lambda draws: b"",
    "zeros": lambda draws: bytes(draws.randint(1, 5000)),
    "no_image": no_image,
    "bomb": bomb,
    "half_empty": half_empty,
    "broken_checksum": broken_checksum,
}
DOUBTFUL: dict[str, Make] = {
    "wild_tags": wild_tags,
    "flipped": flipped,
    "garbage_inside": garbage_inside,
}
FINE: dict[str, Make] = {
    "text_bomb": text_bomb,
    "damaged_exif": lambda draws: encoded(
        "jpeg", draws, exif=b"Exif\0\0II*\0" + draws.randbytes(draws.randint(0, 60))
    ),
    "not_a_number": not_a_number,
    "animated": animated,
    "some": lambda draws: encoded(draws.choice(FORMATS), draws),
}


def make_zoo(root: Path, seed: int, each: int) -> dict[str, set[str]]:
    """Write a folder of two classes, and return which files are good and which damaged."""
    draws = random.Random(seed)
    kinds: dict[str, set[str]] = {"good": set(), "damaged": set()}
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for index in range(GOOD):
            key = f"{label}/good-{index}.png"
            photo(20, 20, seed=index).save(root / key)
            kinds["good"].add(key)
    for name, make in (HOPELESS | DOUBTFUL | FINE).items():
        for index in range(each):
            ending = draws.choice(("jpg", "PNG", "webp", "bmp", "tif", "gif"))  # most are wrong
            key = f"{draws.choice('ab')}/{name}-{index}.{ending}"
            (root / key).write_bytes(make(draws))
            if name not in DOUBTFUL:
                kinds["damaged" if name in HOPELESS else "good"].add(key)
    (root / "a" / "lost.jpg").symlink_to(root / "nowhere.jpg")
    (root / "b" / "loop.jpg").symlink_to(root / "b" / "loop.jpg")
    kinds["damaged"] |= {"a/lost.jpg", "b/loop.jpg"}
    (root / "a" / "folder.jpg").mkdir()
    os.mkfifo(root / "a" / "pipe.jpg")
    (root / "b" / "pipe.png").symlink_to(root / "a" / "pipe.jpg")
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
    kinds = make_zoo(tmp_path / "zoo", seed=0, each=EACH)
    store = opened(tmp_path / "zoo", tmp_path / "first")
    samples = open_source(str(tmp_path / "zoo")).samples
    skipped = [key for key, _ in store.skipped]
    decoded = {samples[index].key for index in store.indices}
    assert EACH * len(HOPELESS | DOUBTFUL) == 500
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


@pytest.mark.usefixtures("analyzed_once")
def test_a_study_of_such_a_folder_ends(tmp_path: Path) -> None:
    kinds = make_zoo(tmp_path / "zoo", seed=1, each=3)
    data = {"data__max_unreadable_share": 0.9, "data__train_per_class": None, "data__test": 0.1}
    study = open_small(tmp_path, dataset=str(tmp_path / "zoo"), search__trials=2, **data)
    job = Job(study.name, study.url, None, "host/1/0", 0, workers=1, threads=1, log="here")
    run_worker(job, threading.Event(), lambda event: None)
    assert [trial.state for trial in study.study.get_trials()] == 2 * [TrialState.COMPLETE]
    skipped = [key for key, _ in study.study.user_attrs[attrs.DATASET]["skipped"]]
    assert len(skipped) == len(set(skipped)) > len(kinds["damaged"]) // 2  # the rest is in test
