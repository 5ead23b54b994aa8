from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autotune.data.cache import decoded_images, reading
from autotune.data.cache.decoded_images import ImageStore, open_store
from autotune.data.image_files import read_image
from autotune.data.preprocessing import ImageSpec, to_store_array
from autotune.data.source import Source
from autotune.data.sources.registry import open_source
from autotune.errors import DatasetError, DiskFullError
from tests.support.data.images import make_class_folders, photo

SPEC = ImageSpec(8, 12, "bicubic", 0.6, "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files" / "images"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_class_folders(tmp_path / "photos", {"a": 6, "b": 5})


def opened(source: Source, folder: Path, limit: float = 0.0, **options: Any) -> ImageStore:
    indices = range(len(source.samples))
    return open_store(source, indices, SPEC, folder, unreadable_limit=limit, **options)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_rows_are_the_decoded_images_in_order(photos: Path, folder: Path) -> None:
    source = open_source(str(photos))
    calls: list[tuple[int, int]] = []
    indices = [9, 0, 4]
    options = {"on_progress": lambda *call: calls.append(call), "workers": 2}
    store = open_store(source, indices, SPEC, folder, unreadable_limit=0.0, **options)
    assert isinstance(store.images, np.memmap)
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert np.array_equal(pickle.loads(data).images, store.images)
    assert store.images.shape == (3, 3, 12, 12)
    assert store.images.dtype == np.uint8
    assert not store.images.flags.writeable
    for row, index in enumerate(indices):
        expected = to_store_array(source.read(source.samples[index]), SPEC)
        assert np.array_equal(store.images[row], expected)
    assert store.labels.tolist() == [1, 0, 0]
    assert store.labels.dtype == np.int64
    assert store.indices.tolist() == indices
    assert store.skipped == ()
    assert store.rows([4, 9]).tolist() == [2, 0]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert names(folder) == {store.key}


def test_a_present_store_is_opened_and_not_decoded(
    photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(photos))
    first = opened(source, folder)
    monkeypatch.setattr(decoded_images, "to_store_array", None)
    second = opened(source, folder)
    assert np.array_equal(first.images, second.images)
    assert first.key == second.key


def test_other_images_indices_or_specs_make_another_store(photos: Path, folder: Path) -> None:
    source = open_source(str(photos))
    keys = {opened(source, folder).key}
    keys.add(open_store(source, range(3), SPEC, folder, unreadable_limit=0).key)
    other = ImageSpec(8, 8, "bilinear", 1.0, "center", SPEC.mean, SPEC.std)
    keys.add(open_store(source, range(3), other, folder, unreadable_limit=0).key)
    keys.add(opened(source, folder, fast=True).key)
    photo(9, 9, seed=5).save(photos / "a" / "000.png")
    keys.add(opened(open_source(str(photos)), folder).key)
    assert len(keys) == 5


def test_damaged_metadata_costs_neither_the_photo_nor_a_warning(
    photos: Path, folder: Path
) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a maker with a long name"
    photo(9, 9).save(photos / "a" / "cut.jpg", exif=exif.tobytes()[:-12])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_image(photos / "a" / "cut.jpg")
        assert len(caught) > 0
        assert opened(open_source(str(photos)), folder).skipped == ()
        assert len({str(warning.message) for warning in caught}) == 1


class TestUnreadable:
    def test_few_are_left_out_and_named(
        self, photos: Path, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        damage(photos / "a" / "001.png")
        (photos / "b" / "000.png").write_bytes(b"")
        source = open_source(str(photos))
        store = opened(source, folder, limit=0.2)
        assert [name for name, _ in store.skipped] == ["a/001.png", "b/000.png"]
        assert store.skipped[1] == ("b/000.png", "the file is empty")
        assert store.images.shape[0] == 9
        assert store.indices.tolist() == [0, 2, 3, 4, 5, 7, 8, 9, 10]
        assert store.labels.tolist() == [0] * 5 + [1] * 4
        assert store.rows([0, 1, 2, 6, 7]).tolist() == [0, 1, 5]
        assert opened(source, folder, limit=0.2).skipped == store.skipped
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "2 of 11 images cannot be decoded and are skipped: a/001.png (" in caplog.text
        assert "; b/000.png (the file is empty)" in caplog.text

    def test_too_many_are_refused_and_nothing_stays(self, photos: Path, folder: Path) -> None:
        for index in range(5):
            (photos / "a" / f"{index:03d}.png").write_bytes(b"")
        (photos / "b" / "000.png").write_text("no image")
        with pytest.raises(DatasetError) as caught:
            opened(open_source(str(photos)), folder, limit=0.01, is_new=True)
        assert str(caught.value) == (
            "at most 0.01 of the images may be unreadable (data.max_unreadable_share), but 6 of "
            "11 are: a/000.png (the file is empty); a/001.png (the file is empty); a/002.png (the "
            "file is empty); a/003.png (the file is empty); a/004.png (the file is empty) and 1 "
            "more; repair or remove them, or raise the limit: data.max_unreadable_share=0.546"
        )
        assert not folder.parent.exists()

    def test_a_stricter_limit_holds_for_a_present_store(self, photos: Path, folder: Path) -> None:
        (photos / "a" / "000.png").write_bytes(b"")
        source = open_source(str(photos))
        opened(source, folder, limit=0.5)
        with pytest.raises(DatasetError, match="but 1 of 11 are"):
            opened(source, folder, limit=0.0)
        assert opened(source, folder, limit=0.5)

    def test_a_class_that_loses_all_is_refused(self, tmp_path: Path, folder: Path) -> None:
        photos = make_class_folders(tmp_path / "photos", {"a": 9, "b": 1})
        (photos / "b" / "000.png").write_bytes(b"")
        with pytest.raises(DatasetError) as caught:
            opened(open_source(str(photos)), folder, limit=0.5, is_new=True)
        assert str(caught.value) == (
            "every class needs images that can be decoded, but none can of 'b': b/000.png (the "
            "file is empty); repair or replace them, or remove the class"
        )
        assert not folder.exists()


def test_too_little_space_for_the_list_of_images_even(
    photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 100))
    monkeypatch.setattr(decoded_images, "to_store_array", None)
    with pytest.raises(DiskFullError) as caught:
        opened(open_source(str(photos)), folder)
    assert str(caught.value) == (
        f"keys and labels of 11 images need 704 bytes, but the disk of {folder} has 100 bytes "
        "free; free some space, or move the files of the study with 'files='"
    )
    assert not folder.parent.exists()


class TestMoreThanThereIsRoomFor:
    LIMIT = 2000  # the images are 4752

    def test_images_are_decoded_when_they_are_needed(
        self, photos: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        source = open_source(str(photos))
        calls: list[tuple[int, int]] = []
        store = opened(
            source, folder, limit_bytes=self.LIMIT, on_progress=lambda *call: calls.append(call)
        )
        assert calls[-1] == (11, 11)
        (told,) = caplog.records
        assert told.getMessage() == (
            f"11 decoded images of 12x12 need 4.8 kB, but everything in {folder} may take 2.0 kB, "
            "of which 0 bytes are in use; raise cache.disk_gb, or move the files of the study "
            "with 'files='; until then each is decoded whenever it is needed, slower"
        )
        cached = opened(source, tmp_path / "kept")
        copy = pickle.loads(pickle.dumps(store))
        for one in (store, copy):
            assert not isinstance(one.images, np.ndarray)
            assert one.key == cached.key
            assert one.labels.tolist() == cached.labels.tolist()
            assert one.rows([4, 9]).tolist() == [4, 9]
            for row in range(11):
                assert np.array_equal(one.images[row], cached.images[row])
        assert sum(path.stat().st_size for path in folder.rglob("*.*")) < self.LIMIT

    def test_the_unreadable_are_found_once_and_first(
        self, photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (photos / "b" / "000.png").write_bytes(b"")
        source = open_source(str(photos))
        with pytest.raises(DatasetError, match="but 1 of 11 are"):
            opened(source, folder, limit_bytes=self.LIMIT)
        assert not folder.exists()
        store = opened(source, folder, limit=0.2, limit_bytes=self.LIMIT)
        assert store.skipped == (("b/000.png", "the file is empty"),)
        assert store.indices.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]
        assert np.array_equal(
            store.images[6], to_store_array(source.read(source.samples[7]), SPEC)
        )
        monkeypatch.setattr(decoded_images, "to_store_array", None)
        assert opened(source, folder, limit=0.2, limit_bytes=self.LIMIT).skipped == store.skipped

    def test_they_are_kept_once_there_is_room(self, photos: Path, folder: Path) -> None:
        source = open_source(str(photos))
        opened(source, folder, limit_bytes=self.LIMIT)
        assert isinstance(opened(source, folder).images, np.memmap)
        assert isinstance(opened(source, folder, limit_bytes=self.LIMIT).images, np.memmap)

    def test_an_image_that_goes_while_a_study_runs(self, photos: Path, folder: Path) -> None:
        store = opened(open_source(str(photos)), folder, limit_bytes=self.LIMIT)
        (photos / "a" / "003.png").unlink()
        with pytest.raises(DatasetError) as caught:
            store.images[3]
        assert str(caught.value) == (
            f"the images of {str(photos)!r} must stay while a study runs, but a/003.png cannot be "
            "read any more (No such file or directory); bring it back"
        )


@pytest.mark.parametrize(("code", "reads"), [(errno.ESTALE, 3), (errno.EACCES, 1)])
def test_an_image_that_the_disk_would_not_give_is_read_again(
    photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, reads: int
) -> None:
    source = open_source(str(photos))
    asked: list[str] = []
    read = type(source).read

    def away(self: Source, sample: Any, shrink: Any) -> Image.Image:
        asked.append(sample.key)
        if sample.key == source.samples[0].key and len(asked) < 3:
            raise OSError(code, os.strerror(code))
        return read(self, sample, shrink)

    monkeypatch.setattr(reading, "RETRY_PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(type(source), "read", away)
    store = opened(source, folder, limit=0.5, workers=1)
    assert asked.count(source.samples[0].key) == reads
    assert len(store.skipped) == (reads == 1)
