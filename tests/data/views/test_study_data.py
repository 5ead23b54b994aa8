from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from autotune.config.schema import AugmentConfig, DataConfig
from autotune.data.preprocessing import ImageSpec
from autotune.data.sources import base
from autotune.data.sources.registry import open_source
from autotune.data.splits.dataset import Dataset
from autotune.data.splits.stratified import make_split
from autotune.data.views.study_data import StudyData, open_test_views
from autotune.errors import DatasetError
from tests.support.data.images import make_class_folders, make_split_folder

SPEC = ImageSpec(8, 12, "bicubic", 0.6, "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
DATA = DataConfig()
AUGMENT = AugmentConfig()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_class_folders(tmp_path / "photos", {"a": 10, "b": 15})


def test_a_task_holds_train_and_validation(photos: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    task = StudyData.open(
        str(photos), DATA, SPEC, tmp_path / "images", lambda *call: calls.append(call)
    )
    split = make_split(open_source(str(photos)), DATA)
    assert task.classes == ("a", "b")
    assert task.store.indices.tolist() == sorted(split.train + split.validation)
    assert task.store.indices[task.train_rows].tolist() == list(split.train)
    assert calls[-1] == (20, 20)
    train, validation = task.train_views(AUGMENT, 3, seed=1), task.validation_views()
    both = task.train_validation_views(AUGMENT, 3, seed=1)
    assert [len(train), len(validation), len(both)] == [15, 5, 20]
    assert [train.views, validation.views, both.views] == [3, 1, 3]
    assert train.labels.bincount().tolist() == [6, 9]
    rows = np.sort(np.concatenate([task.train_rows, task.validation_rows]))
    position = rows.tolist().index(task.train_rows[4])
    assert torch.equal(both.view(position, 2), train.view(4, 2))


def test_the_search_never_reads_a_test_image(photos: Path, tmp_path: Path) -> None:
    source = open_source(str(photos))
    split = make_split(source, DATA)
    read: list[str] = []
    real = base.read_image

    def spy(path: str, shrink: object) -> object:
        read.append(Path(path).relative_to(photos).as_posix())
        return real(path, shrink)

    with patch.object(base, "read_image", spy):
        Dataset.open(str(photos), DATA)
        assert (read, [path.name for path in tmp_path.iterdir()]) == ([], ["photos"])
        StudyData.open(str(photos), DATA, SPEC, tmp_path / "images")
        wanted = {source.samples[index].key for index in split.train + split.validation}
        assert set(read) == wanted
        read.clear()
        views = open_test_views(str(photos), DATA, SPEC, tmp_path / "images")
    assert set(read) == {source.samples[index].key for index in split.test}
    assert len(views) == len(split.test)
    assert views.views == 1
    assert views.labels.tolist() == [source.samples[index].label for index in split.test]


def test_what_a_study_remembers(photos: Path, tmp_path: Path) -> None:
    (photos / "b" / "000.png").write_bytes(b"")
    data = DataConfig(max_unreadable_share=0.2)
    info = StudyData.open(str(photos), data, SPEC, tmp_path / "images").info
    values = info.to_json()
    assert json.loads(json.dumps(values)) == values
    assert values == {
        "name": str(photos),
        "fingerprint": info.fingerprint,
        "test_fingerprint": info.test_fingerprint,
        "classes": ["a", "b"],
        "train": info.train,
        "validation": info.validation,
        "test": 5,
        "skipped": [["b/000.png", "the file is empty"]],
    }
    assert info.train + info.validation == 19


def test_the_fingerprint_follows_images_and_split(photos: Path, tmp_path: Path) -> None:
    def fingerprint(**data: int) -> str:
        config = DataConfig.model_validate(data)
        return StudyData.open(str(photos), config, SPEC, tmp_path / "images").info.fingerprint

    first = fingerprint()
    assert fingerprint() == first
    seen = {first, fingerprint(seed=1), fingerprint(train_per_class=3)}
    (photos / "a" / "009.png").rename(photos / "a" / "zzz.png")
    seen.add(fingerprint())
    assert len(seen) == 4


def test_a_class_that_a_part_loses_is_refused(tmp_path: Path) -> None:
    parts = {"train": {"a": 9, "b": 9}, "val": {"a": 2, "b": 1}, "test": {"a": 1, "b": 1}}
    photos = make_split_folder(tmp_path / "photos", parts)
    (photos / "val" / "b" / "000.png").write_bytes(b"")
    with pytest.raises(DatasetError) as caught:
        StudyData.open(
            str(photos), DataConfig(max_unreadable_share=0.5), SPEC, tmp_path / "images"
        )
    assert str(caught.value) == (
        "every class needs readable images in validation, but none is left of 'b'; repair "
        "val/b/000.png (the file is empty)"
    )
