from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autotune.config.schema import DataConfig
from autotune.data.quality.checks import (
    check_dataset,
    dataset_warnings,
    describe_counts,
    duplicate_summary,
)
from autotune.data.quality.statistics import compute_statistics
from autotune.data.splits.dataset import Dataset
from tests.support.data.images import make_class_folders, make_split_folder

UNEVEN = {"largest": ["b", 31], "smallest": ["a", 10]}
OBJECTIVE = "objective: balanced_accuracy, which counts every class alike"
SAMPLING = "sampling: balanced, which shows the classes equally often"
BEGIN = "The classes are uneven: 'b' has 31 training images, 'a' 10. See training."


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({}, f"{OBJECTIVE}, and training.{SAMPLING}."),
        ({"objective": "balanced_accuracy"}, f"{SAMPLING}."),
        ({"sampling": "balanced"}, f"{OBJECTIVE}."),
    ],
)
def test_uneven_classes(training: dict[str, Any], said: str) -> None:
    assert dataset_warnings(UNEVEN, training) == [BEGIN + said]


def test_nothing_is_said_where_there_is_nothing_to_say() -> None:
    assert dataset_warnings({}, {}) == []
    assert dataset_warnings({**UNEVEN, "largest": ["b", 30]}, {}) == []
    assert dataset_warnings(UNEVEN, {"objective": "macro_f1", "sampling": "balanced"}) == []
    assert duplicate_summary({}) == ""


def test_training_images_are_what_is_counted(tmp_path: Path) -> None:
    make_class_folders(tmp_path, {"a": 10, "b": 100})
    few = Dataset.open(str(tmp_path), DataConfig(train_per_class=3))
    assert check_dataset(few, "off") == {"largest": ["b", 3], "smallest": ["a", 3]}
    assert check_dataset(Dataset.open(str(tmp_path), DataConfig()), "off")["largest"] == ["b", 60]


def test_groups_across_given_parts_are_said(tmp_path: Path) -> None:
    make_split_folder(tmp_path, {"train": {"a": 5, "b": 5}, "test": {"a": 2, "b": 2}})
    dataset = Dataset.open(str(tmp_path), DataConfig(group=r"/(\w/\d+)"))
    values = check_dataset(dataset, "off")
    assert (values["groups"]["count"], values["groups"]["across"]) == (10, 4)
    (message,) = dataset_warnings(values, {})
    assert message == (
        "4 groups of images are in several splits, because the data set is already split: "
        "train/a/000.png (train), test/a/000.png (test)."
    )


def test_what_was_compared(tmp_path: Path) -> None:
    make_class_folders(tmp_path, {"a": 5, "b": 5}, size=(80, 80))
    values = check_dataset(Dataset.open(str(tmp_path), DataConfig()), "report")
    assert duplicate_summary(values).startswith("0 of 10 images are there more than once, ")
    assert duplicate_summary(values).endswith(" look alike; data.duplicates: report")


@pytest.mark.parametrize(
    ("mode", "way_out"),
    [
        ("report", "They stay in one split with data.duplicates: group."),
        ("group", "The data set is already split, which is kept."),
        ("together", "The data set is already split, which is kept."),  # of an earlier study
    ],
)
def test_duplicates_across_splits(mode: str, way_out: str) -> None:
    example = ["test/a.png", "test", "train/b.png", "train", "exact"]
    counts = {"mode": mode, "exact": 2, "near": 0, "test": 1, "validation": 0, "classes": 0}
    counts |= {"too_many": False, "examples": [example]}
    assert dataset_warnings({"duplicates": counts}, {}) == [
        "Duplicates across splits flatter what is measured: 1 test image is like one of training "
        f"or validation (test/a.png (test) and train/b.png (train), exact). {way_out}"
    ]


def test_blank_images_are_counted_whatever_makes_them_blank(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path, {"a": 8, "b": 8})
    Image.new("RGB", (40, 30), "gray").save(root / "a" / "gray.jpg")
    Image.new("RGBA", (40, 30), (200, 10, 10, 0)).save(root / "b" / "clear.png")
    Image.new("I;16", (40, 30), 900).save(root / "b" / "deep.png")
    low = np.arange(1200, dtype=np.uint16).reshape(30, 40) * 3  # 12 bits of 16
    Image.fromarray(low).save(root / "b" / "low.png")
    dataset = Dataset.open(str(root), DataConfig())
    values = check_dataset(dataset, "report")
    keys = ["a/gray.jpg", "b/clear.png", "b/deep.png", "b/low.png"]
    assert values["duplicates"]["blank"] == [4, *keys]
    line = f"4 images have one color all over or are nearly black: {', '.join(keys)}."
    assert dataset_warnings(values, {})[0] == line
    assert set(compute_statistics(dataset, "off", test=True).blank) == set(keys)


def test_all_files_are_accounted_for_in_one_sentence() -> None:
    counts = {"train": 11, "validation": 3, "test": 4, "skipped": [["a", "empty"]] * 4}
    values = {"unreadable_test": {"count": 2}, "passed_over": {"videos": {".mp4": 8}}}
    assert describe_counts(counts, values) == [
        "16 images are read (11 train, 3 validation, 2 test), 6 unreadable.",
        "8 files are passed over: videos 8 (.mp4).",
    ]
    in_folds = {**counts, "train": 14, "validation": 14, "folds": [11, 11, 11]}
    assert describe_counts(in_folds, values)[0] == (
        "16 images are read (14 in folds, 2 test), 6 unreadable."
    )
    for quiet in ({}, {"passed_over": {"files of the system": {"": 1}}}):
        assert describe_counts({**counts, "skipped": []}, quiet) == []
