"""Folders of splits under any names: used, asked about, or classes as before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from autotune.data.source import Source
from autotune.data.sources.registry import open_source
from autotune.data.sources.split_names import AUTO, SplitNames
from autotune.errors import DatasetError
from tests.support.data.images import make_class_folders

ALL = ("train", "validation", "test")


def make(root: Path, folders: Sequence[str], classes: Sequence[str] = ("cat", "dog")) -> Path:
    """Write a folder with class folders in each of some folders; ``=`` for images without."""
    counts: dict[str, int] = {}
    for folder in folders:
        if folder.endswith("="):
            counts[folder[:-1]] = 3
        else:
            counts |= {f"{folder}/{name}": 2 for name in classes}
    return make_class_folders(root, counts, size=(4, 4))


def opened(root: Path, splits: SplitNames = AUTO) -> Source:
    return open_source(str(root), splits=splits)


def counts(source: Source) -> dict[str | None, int]:
    """Return split -> number of images."""
    values = [sample.split for sample in source.samples]
    return {split: values.count(split) for split in dict.fromkeys(values)}


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["seg_train/seg_train", "seg_test/seg_test"], ("train", "test")),
        (["training_set", "test_set"], ("train", "test")),
        (["train", "eval"], ("train", "test")),
        (["train", "eval", "test"], ALL),
        (["train_images", "test_images"], ("train", "test")),
        (["train2017", "val2017"], ("train", "validation")),
        (["TRAIN", "VALID", "HOLDOUT"], ALL),
        (["train", "dev", "hold-out"], ALL),
        (["1. Train Set", "2. Test Set"], ("train", "test")),
        (["trainset", "testset"], ("train", "test")),
        (["xray-train", "xray-dev", "xray-test"], ALL),
        (["TrainImages", "TestImages"], ("train", "test")),
        (["train/images", "valid/images", "test/images"], ALL),
        (["photos/train", "photos/test"], ("train", "test")),
        (["a/b/train", "a/b/val", "a/b/test"], ALL),
        (["train_val", "test"], ("train", "test")),
    ],
)
def test_splits_under_usual_names(
    tmp_path: Path, folders: list[str], splits: Sequence[str]
) -> None:
    source = opened(make(tmp_path / "set", folders))
    assert source.classes == ("cat", "dog")
    assert counts(source) == dict.fromkeys(sorted(splits), 4)
    assert not source.passed_over


@pytest.mark.parametrize("top", ["Cat", "a/Cat"])
def test_splits_inside_of_class_folders(tmp_path: Path, top: str) -> None:
    dog = top.replace("Cat", "Dog")
    make(tmp_path, [top, dog], ["train", "val", "test"])
    source = opened(tmp_path)
    assert source.classes == ("Cat", "Dog")
    assert counts(source) == {"test": 4, "train": 4, "validation": 4}
    make_class_folders(tmp_path, {f"{dog}/masks": 1})
    with pytest.raises(DatasetError, match=r"'Dog/masks' is not a split; move .*splits=none"):
        opened(tmp_path)
    assert counts(opened(tmp_path / top.removesuffix("Cat"), "none")) == {None: 13}


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (["train=", "car=", "bus="], ("bus", "car", "train")),
        (["train", "car=", "bus="], ("bus", "car", "train")),
        (["bullet_train=", "road_test=", "sea="], ("bullet_train", "road_test", "sea")),
        (["toy_train=", "toy_test=", "toy_car="], ("toy_car", "toy_test", "toy_train")),
        (["animals/cat=", "plants/oak="], ("animals", "plants")),
        (["cat/indoors=", "cat/outdoors=", "dog/indoors="], ("cat", "dog")),
        (["train/steam=", "train/tram=", "car/red=", "car/blue="], ("car", "train")),
        (["dev=", "test="], ("dev", "test")),
        (["bullet_train/red=", "bullet_train/blue=", "car/red="], ("bullet_train", "car")),
    ],
)
def test_classes_stay_classes(
    tmp_path: Path,
    folders: list[str],
    classes: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = opened(make(tmp_path, folders))
    assert (source.classes, counts(source).keys()) == (classes, {None})
    assert not caplog.records and not source.passed_over


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["train", "new"], "{train: train, test: new}"),
        (["val", "test"], "{train: test, validation: val}"),
        (["learn", "test"], "{train: learn, test: test}"),
        (["a_train", "b_test"], "{train: a_train, test: b_test}"),
        (["train", "test", "train_augmented"], "{train: train, test: test}"),
        (["train", "train2", "test"], "{train: [train, train2], test: test}"),
        (["train", "val", "valid"], "{train: train, validation: [val, valid]}"),
        (["a_train", "a_test", "b_train", "b_test"], "{train: a_train, test: a_test}"),
        (["train", "kaggle=", "2024"], "{train: train, test: 2024}"),
    ],
)
def test_what_may_be_splits_is_asked_about(tmp_path: Path, folders: list[str], names: str) -> None:
    with pytest.raises(DatasetError) as caught:
        opened(make(tmp_path, folders))
    message = str(caught.value)
    assert f"data.splits='{names}'" in message
    assert "data.splits=none" in message or "join them" in message


def test_equal_folders_in_all_classes_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, ["camera1", "camera2"])
    for _ in range(2):
        assert opened(tmp_path).classes == ("camera1", "camera2")
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: the classes are 'camera1', 'camera2', which hold the same folders 'cat', "
        "'dog'; if those are the classes, set data.splits='{train: [camera1, camera2]}'"
    )


@pytest.mark.parametrize(
    ("folders", "splits", "passed_over"),
    [
        (["train", "valid", "test="], ["train", "validation"], "images in test/ without classes"),
        (["train", "test="], ["train"], "images in test/ without classes"),
        (["train", "test/test="], ["train"], "images in test/ without classes"),
        (["train", "test/unknown="], ["train"], "images in test/ without classes"),
        (
            ["seg_train/seg_train", "seg_test/seg_test", "seg_pred/seg_pred="],
            ["test", "train"],
            "images in seg_pred/ without classes",
        ),
        (["train", "unlabeled="], ["train"], "images in unlabeled/ without classes"),
        (["train", "test", "extra="], ["test", "train"], "images in extra/ without classes"),
    ],
)
def test_splits_without_classes_are_counted(
    tmp_path: Path, folders: list[str], splits: list[str], passed_over: str
) -> None:
    source = opened(make(tmp_path, folders))
    assert source.classes == ("cat", "dog")
    assert counts(source) == dict.fromkeys(splits, 4)
    assert source.passed_over == {passed_over: {".png": 3}}


def test_all_files_beside_splits_are_counted(tmp_path: Path) -> None:
    make(tmp_path, ["images/train", "images/val"])
    for name in ("labels/train/1.txt", "notes.md", "images/readme.md", "images/train/list.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert opened(tmp_path).passed_over == {"texts and tables": {".md": 2, ".txt": 2}}


@pytest.mark.parametrize(
    ("splits", "expected", "left"),
    [
        ({"train": ["a"], "test": ["b"]}, {"train": 4, "test": 4}, ["c"]),
        ({"train": ["A", "b"], "validation": ["c"]}, {"train": 8, "validation": 4}, []),
        ({"train": ["a", "b", "c"]}, {"train": 12}, []),
        ("none", {None: 12}, []),
    ],
)
@pytest.mark.parametrize("around", ["", "set/"])
def test_splits_can_be_named(
    tmp_path: Path,
    splits: SplitNames,
    expected: Mapping[str | None, int],
    left: list[str],
    around: str,
) -> None:
    make(tmp_path, [f"{around}a", f"{around}b", f"{around}c"])
    root = tmp_path / around if splits == "none" else tmp_path
    source = opened(root, splits)
    assert counts(source) == expected
    assert source.classes == (("a", "b", "c") if splits == "none" else ("cat", "dog"))
    assert list(source.passed_over) == [
        f"images in {around}{name}/ not in data.splits" for name in left
    ]


def test_named_splits_inside_of_class_folders(tmp_path: Path) -> None:
    make(tmp_path, ["cat", "dog"], ["old", "new"])
    source = opened(tmp_path, {"train": ["old"], "test": ["new"]})
    assert source.classes == ("cat", "dog")
    assert counts(source) == {"test": 4, "train": 4}


@pytest.mark.parametrize("name", ["labels.csv", "train/labels.tsv"])
def test_a_table_beside_images_without_class_folders_is_named(tmp_path: Path, name: str) -> None:
    make(tmp_path, ["train=", "test="])
    (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=f"if {tmp_path / name} has their classes, name it"):
        opened(tmp_path)


def test_names_that_are_not_there(tmp_path: Path) -> None:
    make(tmp_path, ["first", "second"])
    with pytest.raises(DatasetError, match=r"names 'frist', but .*; did you mean 'first'\?"):
        opened(tmp_path, {"train": ["frist"], "test": ["second"]})
    with pytest.raises(DatasetError, match="'digits' is a known data set"):
        open_source("digits", splits="none")
