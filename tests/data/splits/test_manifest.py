from __future__ import annotations

import csv
import gzip
import io
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from autotune.config.schema import DataConfig
from autotune.data.splits.dataset import Dataset
from autotune.data.splits.manifest import Manifest, ManifestRow
from autotune.errors import DatasetError
from tests.support.data.images import make_class_folders, make_split_folder

DATA = DataConfig()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_class_folders(tmp_path / "photos", {"a": 10, 'b, "c"': 15})


def opened(photos: Path, manifest: Manifest | None = None) -> Dataset:
    return Dataset.open(str(photos), DATA, manifest)


def test_it_is_read_as_it_was_written(photos: Path) -> None:
    dataset = Dataset.open(str(photos), DataConfig(train_per_class=2))
    manifest = dataset.manifest
    data = manifest.to_bytes()
    assert data == manifest.to_bytes()
    assert Manifest.from_bytes(data) == manifest
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(data).decode())))
    assert rows[0].keys() == {"key", "label", "class", "part", "group"}
    assert [row["key"] for row in rows] == [sample.key for sample in dataset.source.samples]
    counts = {part: sum(row["part"] == part for row in rows) for part in ("train", "test", "")}
    assert counts == {"train": 4, "test": 5, "": 11}


def test_a_key_may_hold_anything() -> None:
    lines = (ManifestRow('a/"x"\n,1.png', 1, "train", 0), ManifestRow("é\r/字.png", 0, "", 1))
    manifest = Manifest(("é\r", "a"), lines)
    data = manifest.to_bytes()
    assert Manifest.from_bytes(data) == manifest
    for position in range(len(data)):
        with suppress(ValueError):  # never another error; a few bits of gzip's header mean nothing
            Manifest.from_bytes(data[:position] + b"\xff" + data[position + 1 :])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no gzip",
        Manifest(("a",), (ManifestRow("1.png", 0, "train", 0),)).to_bytes()[:-9],
        gzip.compress(b"", mtime=0),
        gzip.compress(b"key,part\na,b\n", mtime=0),
        gzip.compress(b"\xff", mtime=0),
    ],
)
def test_what_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        Manifest.from_bytes(data)


def test_new_files_are_left_out(photos: Path) -> None:
    before = opened(photos)
    shutil.copy(photos / "a/000.png", photos / "a/0000.png")
    make_class_folders(photos / "new", {"x": 2, "y": 1})
    shutil.move(photos / "new", photos / "0new")  # a class before the others shifts their labels
    after = opened(photos, before.manifest)
    assert (after.num_added, after.missing) == (4, ())
    assert (after.fingerprint, after.test_fingerprint) == (
        before.fingerprint,
        before.test_fingerprint,
    )
    assert (after.split, after.source.classes) == (before.split, before.source.classes)
    assert after.source.samples == before.source.samples
    sample = after.source.samples[3]
    assert after.source.read(sample).tobytes() == before.source.read(sample).tobytes()
    assert opened(photos).fingerprint != before.fingerprint


def test_a_missing_file_makes_another_data_set_and_is_named(photos: Path) -> None:
    before = opened(photos)
    (photos / "a" / "003.png").unlink()
    after = opened(photos, before.manifest)
    assert after.missing == ("a/003.png",)
    assert after.fingerprint != before.fingerprint
    for path in sorted((photos / "a").iterdir())[:-1]:
        path.unlink()
    with pytest.raises(DatasetError) as caught:
        opened(photos, before.manifest)
    assert str(caught.value) == (
        "images of the study are missing, or in another class: 'a/000.png', 'a/001.png', "
        "'a/002.png', 'a/003.png', 'a/004.png' and 4 more; and without them every class needs at "
        "least 3 images for train, validation and test, but 'a' has 1; add images or remove the "
        "class"
    )


def test_a_changed_file_has_another_fingerprint(photos: Path) -> None:
    before = opened(photos)
    assert before.fingerprint != before.test_fingerprint  # read now, not after the change
    key = before.source.samples[before.split.test[0]].key
    shutil.copy(photos / "a/001.png", photos / "a/000.png")
    changed = opened(photos, before.manifest)
    assert (changed.split, changed.missing) == (before.split, ())
    assert changed.fingerprint != before.fingerprint
    (photos / key).write_bytes(b"other")
    assert opened(photos, before.manifest).test_fingerprint != before.test_fingerprint


@pytest.mark.parametrize(
    ("split", "name"), [("test", "cat"), ("test", "cow"), ("train", "cat"), (".", "..")]
)
def test_a_layout_that_broke_after_the_study_was_made_has_one_cure(
    split: str, name: str, tmp_path: Path
) -> None:
    counts = {"cat": 3, "dog": 3}
    photos = make_split_folder(
        tmp_path / "photos", dict.fromkeys(("train", "val", "test"), counts)
    )
    manifest = opened(photos).manifest
    folder = photos / split / name
    if name == "cow":
        shutil.copytree(photos / split / "dog", folder)
    else:
        shutil.rmtree(photos if name == ".." else folder)
    with pytest.raises(DatasetError) as caught:
        opened(photos, manifest)
    assert str(caught.value).endswith(
        "; the study needs its images as they were: bring them back, or start another study with "
        "--name"
    )
