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
from autotune.study.engine.worker import Job, run_worker
from autotune.study.state import attrs
from tests.support.images import photo
from tests.support.small import open_small

SPEC = ImageSpec(16, 16, "bilinear", 1.0, "center", (0.5,) * 3, (0.5,) * 3)
FORMATS = ("jpeg", "png", "webp", "bmp", "tiff", "gif")
#: Of each kind of damage, over all formats.
EACH = 50
GOOD = 12


def encoded(form: str, draws: random.Random, **options: object) -> bytes:
    stream = io.BytesIO()
    side = draws.randint(24, 60)
    photo(side, draws.randint(24, 60), seed=side).save(stream, form, **options)
    return stream.getvalue()


def some(draws: random.Random) -> bytes:
    return encoded(draws.choice(FORMATS), draws)


def truncated(draws: random.Random) -> bytes:
    whole = encoded(draws.choice(("jpeg", "png", "webp", "tiff")), draws)
    return whole[: draws.randint(1, len(whole) * 2 // 3)]


def empty(draws: random.Random) -> bytes:
    return b""


def zeros(draws: random.Random) -> bytes:
    return bytes(draws.randint(1, 5000))


def no_image(draws: random.Random) -> bytes:
    kinds = (b"<!DOCTYPE html><html>404", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"PK\x03\x04", b"{}")
    return draws.choice(kinds) + draws.randbytes(draws.randint(0, 3000))


def bomb(draws: random.Random) -> bytes:
    side = draws.randint(40_000, 2_000_000_000)
    if draws.random() < 0.5:
        whole = bytearray(encoded("png", draws))
        whole[16:24] = struct.pack(">II", side, side)
        whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    else:
        whole = bytearray(encoded("bmp", draws))
        whole[18:26] = struct.pack("<ii", side, side)
    return bytes(whole)


def text_bomb(draws: random.Random) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "0" * 3_000_000, zip=True)
    return encoded("png", draws, pnginfo=text)


def broken_checksum(draws: random.Random) -> bytes:
    whole = bytearray(encoded("png", draws))
    whole[draws.randint(29, 32)] ^= 0xFF
    return bytes(whole)


def wild_tags(draws: random.Random) -> bytes:
    whole = bytearray(encoded("tiff", draws))
    start = struct.unpack("<I", whole[4:8])[0]
    for place in range(start, len(whole)):
        if draws.random() < 0.5:
            whole[place] = draws.randrange(256)
    return bytes(whole)


def flipped(draws: random.Random) -> bytes:
    whole = bytearray(some(draws))
    for _ in range(draws.randint(1, 40)):
        whole[draws.randrange(len(whole))] = draws.randrange(256)
    return bytes(whole)


def garbage_inside(draws: random.Random) -> bytes:
    whole = encoded("jpeg", draws)
    place = draws.randint(len(whole) // 2, len(whole) - 20)
    return whole[:place] + draws.randbytes(15) + whole[place + 15 :]


def damaged_exif(draws: random.Random) -> bytes:
    return encoded("jpeg", draws, exif=b"Exif\0\0II*\0" + draws.randbytes(draws.randint(0, 60)))


def not_a_number(draws: random.Random) -> bytes:
    values = np.array([draws.choice((np.nan, np.inf, 1e38, 0.5)) for _ in range(400)], np.float32)
    stream = io.BytesIO()
    Image.fromarray(values.reshape(20, 20)).save(stream, "tiff")
    return stream.getvalue()


def animated(draws: random.Random) -> bytes:
    stream = io.BytesIO()
    frames = [photo(30, 30, seed=seed) for seed in range(3)]
    form = draws.choice(("gif", "webp", "png", "tiff"))
    frames[0].save(stream, form, save_all=True, append_images=frames[1:])
    return stream.getvalue()


Damage = Callable[[random.Random], bytes]
#: What no reader can make an image of; and what one may.
HOPELESS: tuple[Damage, ...] = (
    *(truncated, empty, zeros, no_image, bomb, text_bomb, broken_checksum),
)
DOUBTFUL: tuple[Damage, ...] = (wild_tags, flipped, garbage_inside)
FINE: tuple[Damage, ...] = (damaged_exif, not_a_number, animated, some)


def make_zoo(root: Path, seed: int, each: int) -> dict[str, set[str]]:
    """Write a folder of two classes, and return which files are of which kind."""
    draws = random.Random(seed)
    kinds: dict[str, set[str]] = {"good": set(), "damaged": set()}
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for index in range(GOOD):
            key = f"{label}/good-{index}.png"
            photo(20, 20, seed=index).save(root / key)
            kinds["good"].add(key)
    for damage in (*HOPELESS, *DOUBTFUL, *FINE):
        for index in range(each):
            ending = draws.choice(("jpg", "PNG", "webp", "bmp", "tif", "gif"))  # most are wrong
            key = f"{draws.choice('ab')}/{damage.__name__}-{index}.{ending}"
            (root / key).write_bytes(damage(draws))
            if damage in HOPELESS:
                kinds["damaged"].add(key)
            elif damage in FINE:
                kinds["good"].add(key)
    (root / "a" / "lost.jpg").symlink_to(root / "nowhere.jpg")
    (root / "b" / "loop.jpg").symlink_to(root / "b" / "loop.jpg")
    kinds["damaged"] |= {"a/lost.jpg", "b/loop.jpg"}
    (root / "a" / "folder.jpg").mkdir()
    os.mkfifo(root / "a" / "pipe.jpg")
    (root / "b" / "pipe.png").symlink_to(root / "a" / "pipe.jpg")
    if os.geteuid() != 0:  # who may read everything
        photo(20, 20).save(root / "a" / "closed.png")
        (root / "a" / "closed.png").chmod(0)
        kinds["damaged"].add("a/closed.png")
    return kinds


def opened(root: Path, folder: Path) -> ImageStore:
    source = open_source(str(root))
    every = range(len(source.samples))
    return open_store(source, every, SPEC, folder, unreadable_limit=1.0)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, set[str]]]:
    root = tmp_path_factory.mktemp("zoo")
    return root, make_zoo(root, seed=0, each=EACH)


def test_every_damaged_image_is_named_once_with_a_reason(
    zoo: tuple[Path, dict[str, set[str]]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    root, kinds = zoo
    store = opened(root, tmp_path)
    samples = open_source(str(root)).samples
    skipped = [key for key, _ in store.skipped]
    kept = {samples[index].key for index in store.indices}
    assert EACH * len((*HOPELESS, *DOUBTFUL)) == 500
    assert len(skipped) == len(set(skipped))
    assert set(skipped) | kept == {sample.key for sample in samples}
    assert not set(skipped) & kept
    assert kinds["damaged"] <= set(skipped)
    assert kinds["good"] <= kept
    reasons = dict(store.skipped)
    assert all(reason and "\n" not in reason and len(reason) < 200 for reason in reasons.values())
    (record,) = caplog.records
    assert all(record.getMessage().count(f"{key} (") == 1 for key in skipped)
    assert capfd.readouterr() == ("", "")


def test_what_is_read_of_damaged_images_is_the_same_every_time(
    zoo: tuple[Path, dict[str, set[str]]], tmp_path: Path
) -> None:
    first, again = (opened(zoo[0], tmp_path / name) for name in ("one", "two"))
    assert first.skipped == again.skipped
    assert np.array_equal(first.images[:], again.images[:])


def test_a_study_over_such_a_folder_ends(tmp_path: Path) -> None:
    kinds = make_zoo(tmp_path / "zoo", seed=1, each=3)
    data = {"data__max_unreadable_share": 0.9, "data__train_per_class": None, "data__test": 0.1}
    study = open_small(tmp_path, dataset=str(tmp_path / "zoo"), search__trials=2, **data)
    job = Job(study.name, study.url, None, "host/1/0", 0, workers=1, threads=1, log="here")
    run_worker(job, threading.Event(), lambda event: None)
    trials = study.study.get_trials()
    assert [trial.state for trial in trials] == 2 * [TrialState.COMPLETE]
    skipped = [key for key, _ in study.study.user_attrs[attrs.DATASET]["skipped"]]
    assert len(skipped) == len(set(skipped)) > len(kinds["damaged"]) // 2  # the rest is in test
