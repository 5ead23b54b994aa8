"""Class folders that may be no classes: asked about, or named once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from autotune.data.sources.registry import open_source
from autotune.data.sources.split_names import SplitNames
from autotune.errors import DatasetError
from tests.support.data.images import make_class_folders


def make(root: Path, folders: Sequence[str]) -> Path:
    return make_class_folders(root, dict.fromkeys(folders, 2), size=(4, 4))


def inside(parents: str, folders: str) -> list[str]:
    return [f"{parent}/{folder}" for parent in parents.split() for folder in folders.split()]


@pytest.mark.parametrize(
    ("folders", "problem", "decision", "classes"),
    [
        (["images", "masks"], "'masks' beside 'images' may be no classes", "none", 2),
        (["images", "annotations/trimaps"], "'annotations' beside 'images'", "none", 2),
        (["JPEGImages", "SegmentationClass"], "'SegmentationClass' beside", "none", 2),
        (inside("train val", "images mask_images"), "beside 'images'", "{train: train, val", 2),
        (inside("set/train set/test", "img label_img"), "beside 'img'", "{train: train, test", 2),
        (["apple", "corn", *inside("Plants", "apple corn")], "'Plants' holds folders", "none", 3),
        (inside("fold1/train fold1/val fold2/train fold2/val", "a b"), "fold1", "{train", 2),
        (inside("fold1 fold2", "a b"), r"set .*\{train: \[fold1, fold2\]\}", "none", 2),
        ([*inside("dataset", "a b"), "docs"], "'dataset' may be no class", "none", 2),
        (["trainA", "trainB", "testA", "testB"], "those of splits", "none", 4),
        (["train_left", "train_right", "test_left", "test_right"], "of splits", "none", 4),
        (["cat_train", "cat_val"], "'cat_train', 'cat_val' are those of splits", "none", 2),
    ],
)
def test_what_may_be_no_classes_is_asked_about(
    tmp_path: Path, folders: list[str], problem: str, decision: str, classes: int
) -> None:
    make(tmp_path, folders)
    with pytest.raises(DatasetError, match=problem) as caught:
        open_source(str(tmp_path))
    assert f"set data.splits={decision}" in str(caught.value).replace("'", "")
    splits: SplitNames = "none"
    if decision != "none":
        splits = {"train": ["train"], "test": [folders[-1].split("/")[-2]]}
    assert len(open_source(str(tmp_path), splits=splits).classes) == classes


@pytest.mark.parametrize(
    "folders",
    [
        ["photos", "drawings"],
        ["with_mask", "without_mask"],
        ["images", "logos"],
        ["labels", "bottles"],
        ["cat", "dog", *inside("mixed", "fish bird")],
        ["photos/2023", "drawings"],
        inside("Cat/train Cat/val", "indoors") + inside("Dog/train Dog/val", "indoors"),
    ],
)
def test_others_stay_classes_without_a_word(
    tmp_path: Path, folders: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert len(open_source(str(make(tmp_path, folders))).classes) > 1
    assert not caplog.records


@pytest.mark.parametrize(
    ("names", "derived"),
    [
        (["0.png", "0_mask.png", "0_mask_1.png"], 2),
        (["benign (1).png", "benign (1)_mask.png"], 1),
        (["a.png", "a-Segmentation.png", "a.label.png"], 2),
        (["images/a.png", "masks/a.png"], 1),
        (["a.png", "thumbnails/a.png"], 1),
        (["a.png", "a_thumb.png", "a_rot90.png", "a_hflip.png", "a copy.png"], 4),
        (["a_rgb.png", "a_depth.png", "a_mask.png"], 2),
        (["a.png", "a-edited.png", "a_original.png"], 2),
        (["mask.png", "a_mask.png", "b_label.png"], 0),
    ],
)
def test_masks_and_variants_beside_images_are_named_once(
    tmp_path: Path, names: list[str], derived: int, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, ["other"])
    image = (tmp_path / "other/000.png").read_bytes()
    for name in names:
        (tmp_path / "cat" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cat" / name).write_bytes(image)
    for _ in range(2):
        open_source(str(tmp_path))
    expected = f"{derived} of {len(names) + 2} images are called like masks or variants"
    assert [expected in record.getMessage() for record in caplog.records] == [True] * bool(derived)


@pytest.mark.parametrize(
    "folders", [["cat", "cat/dog", "dog"], inside("train test", "cat/dog dog")]
)
def test_a_folder_in_a_class_that_is_called_like_another_one_is_named(
    tmp_path: Path, folders: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert open_source(str(make(tmp_path, sorted(folders)))).classes == ("cat", "dog")
    (record,) = caplog.records
    assert "'dog' in 'cat' is called like another class, but its images" in record.getMessage()
