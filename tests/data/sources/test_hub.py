from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from autotune.data.sources.registry import open_source
from autotune.errors import DatasetError
from tests.support.data.dataset_hub import opened, running_hub

COLORS = {"cat": (200, 10, 10), "dog": (10, 200, 10)}


def picture(label: str, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), COLORS[label]).save(stream, form, **options)
    return stream.getvalue()


def parquet(features: dict[str, Any], **columns: Any) -> bytes:
    """Write a file as the library does: what is an image and a class is in its metadata."""
    held = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table(
        {
            name: pa.array(values, held if features[name] == IMAGE else None)
            for name, values in columns.items()
        }
    )
    info = json.dumps({"info": {"features": features}})
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), stream)
    return stream.getvalue()


IMAGE = {"_type": "Image"}
CLASS = {"names": ["unused", "cat", "dog"], "_type": "ClassLabel"}
TEXT = {"dtype": "string", "_type": "Value"}


def pets(labels: list[int], form: str = "PNG") -> bytes:
    images = [
        {"bytes": picture(CLASS["names"][abs(label)], form), "path": None}  # type: ignore[arg-type]
        for label in labels
    ]
    return parquet({"image": IMAGE, "label": CLASS}, image=images, label=labels)


def texts(**columns: list[str]) -> bytes:
    count = len(next(iter(columns.values())))
    images = [{"bytes": picture("cat"), "path": None}] * count
    features = {"photo": IMAGE, **dict.fromkeys(columns, TEXT)}
    return parquet(features, photo=images, **columns)


FILES = {
    "me/pets/data/train-00000-of-00001.parquet": pets([1, 2, 1, 2]),
    "me/pets/data/validation-00000-of-00001.parquet": pets([2, 1], form="WEBP"),
    "me/pets/data/test-00000-of-00001.parquet": pets([-1, -1]),  # their labels are held back
    "me/folders/cat/0.png": picture("cat"),
    "me/folders/dog/1.png": picture("dog"),
    "me/folders/dog/2.jpg": picture("dog", "JPEG", quality=100),
    "me/words/data.parquet": texts(category=["ä", "a\u0308", "b"], group=["x", "y", "x"]),
    "me/two/data.parquet": texts(fine=["a", "b"], coarse=["c", "d"]),
    "me/one/data.parquet": texts(label=["a", "a"]),
    "me/gaps/data.parquet": texts(label=["a", "", "b"]),
    "me/names/data/train-00000-of-00001.parquet": texts(label=["a", "b"]),
    "me/names/data/holdout-00000-of-00001.parquet": texts(label=["b", "a"]),
    "me/names/data/extra-00000-of-00001.parquet": texts(label=["a", "b"]),
    "me/columns/data.parquet": texts(
        label=["a", "b", "a", "b", "?", "?"],
        split=["training", "training", "val", "val", "test", "test"],
    ),
    "me/marks/data.parquet": texts(label=["a", "b"] * 3, is_val=[*"001111"], is_test=[*"000011"]),
}


NAMED = 'hf://me/names {"train": ["extra"], "test": ["holdout"]}'
JOINED = 'hf://me/names {"train": ["train", "extra"], "validation": ["holdout"]}'
UNSPLIT = 'hf://me/pets "none"'
VALUES = 'hf://me/columns {"train": ["training", "val"]}'
WRONG = 'hf://me/names {"train": ["tarin"]}'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def found(home: Path) -> dict[str, dict[str, Any]]:
    """What comes of all data sets of the hub."""
    names = [
        *("hf://me/pets", "hf://me/folders", "hf://me/words", "hf://me/two", "hf://me/one"),
        *("hf://me/gaps", "hf://me/two?label=coarse", "hf://me/two?label=corase", "hf://me/none"),
        *("hf://me/pets/other", "hf://me", "hf://me/pets?split=train", "hf://me/names"),
        *("hf://me/columns", "hf://me/marks", NAMED, JOINED, UNSPLIT, VALUES, WRONG),
    ]
    with running_hub(FILES) as hub:
        answers, message = opened(names, hub.url, home)
    assert message == (
        "hf://me/pets: the split test has no labels and is skipped\n"
        "hf://me/names: the split extra has another name than those of splits and is skipped\n"
        "hf://me/columns: the splits are those of 'split'\n"
        "hf://me/marks: the splits are those of 'is_val', 'is_test'\n"
        "hf://me/names: the split train is not in data.splits and is skipped\n"
    )
    return dict(zip(names, answers, strict=True))


def test_images_labels_and_parts_are_found_by_their_types(found: dict[str, Any]) -> None:
    pets = found["hf://me/pets"]
    assert pets["classes"] == ["cat", "dog"]
    assert pets["samples"] == [
        *(["train/0000000", 0, "train", None], ["train/0000001", 1, "train", None]),
        *(["train/0000002", 0, "train", None], ["train/0000003", 1, "train", None]),
        ["validation/0000000", 1, "validation", None],
        ["validation/0000001", 0, "validation", None],
    ]
    for sample, color in zip(pets["samples"], pets["colors"], strict=True):
        assert color == pytest.approx([*COLORS.values()][sample[1]], abs=3)


def test_a_repository_of_class_folders(found: dict[str, Any]) -> None:
    folders = found["hf://me/folders"]
    assert folders["classes"] == ["cat", "dog"]
    assert [sample[1:3] for sample in folders["samples"]] == [[0, None], [1, None], [1, None]]


def test_labels_and_groups_may_be_words(found: dict[str, Any]) -> None:
    words = found["hf://me/words"]
    assert words["classes"] == ["b", "ä"]
    assert [sample[1] for sample in words["samples"]] == [1, 1, 0]
    assert [sample[3] for sample in words["samples"]] == ["x", "y", "x"]


def test_columns_can_be_chosen(found: dict[str, Any]) -> None:
    assert found["hf://me/two?label=coarse"]["classes"] == ["c", "d"]


@pytest.mark.parametrize(
    ("name", "splits", "passed_over"),
    [
        ("hf://me/names", ["test", "test", "train", "train"], {}),
        (
            "hf://me/columns",
            ["train", "train", "validation", "validation"],
            {"rows of test without labels": {"": 2}},
        ),
        (NAMED, ["train", "train", "test", "test"], {}),
        (JOINED, ["train", "train", "validation", "validation", "train", "train"], {}),
        (UNSPLIT, [None] * 6, {}),
        (VALUES, ["train"] * 4, {"rows of test, not in data.splits": {"": 2}}),
    ],
)
def test_splits_follow_names_and_columns(
    found: dict[str, Any], name: str, splits: list[str | None], passed_over: dict[str, Any]
) -> None:
    source = found[name]
    assert [sample[2] for sample in source["samples"]] == splits
    assert len(source["classes"]) == 2
    assert source["passed_over"] == passed_over


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (WRONG, "data.splits names 'tarin', but hf://me/names has "),
        ("hf://me/two", "is called label or class or class_name or category; say which is one"),
        ("hf://me/two?label=corase", "but got 'corase'; did you mean 'coarse'?"),
        ("hf://me/one", "hf://me/one: there must be at least two classes, but it has 1"),
        ("hf://me/gaps", "hf://me/gaps: 1 image of train has no label"),
        ("hf://me/marks", "hf://me/marks: some images are marked as test and validation, at once"),
        ("hf://me/none", "but Dataset 'me/none' doesn't exist on the Hub or cannot be accessed"),
        ("hf://me/pets/other", "but BuilderConfig 'other' not found. Available: ['default']"),
        ("hf://me", "[?image=column&label=column], but got 'hf://me'"),
        ("hf://me/pets?split=train", "but got 'hf://me/pets?split=train'"),
    ],
)
def test_refusals(found: dict[str, Any], name: str, message: str) -> None:
    assert message in found[name]["refusal"]


def test_offline_it_is_the_same_from_the_cache(found: dict[str, Any], home: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    (pets,), message = opened(["hf://me/pets"], nowhere, home, HF_HUB_OFFLINE="1")
    assert pets == found["hf://me/pets"]
    assert message == "hf://me/pets: the split test has no labels and is skipped\n"


@pytest.mark.slow
def test_the_fingerprint_is_that_of_the_commit(found: dict[str, Any], tmp_path: Path) -> None:
    commit = "a" * 40
    with running_hub(FILES) as hub:
        (second, pinned), _ = opened(["hf://me/pets", f"hf://me/pets@{commit}"], hub.url, tmp_path)
        hub.files["me/pets/data/train-00000-of-00001.parquet"] = pets([2, 1, 2, 1])
        hub.revision = "b" * 40
        (changed,), _ = opened(["hf://me/pets"], hub.url, tmp_path)
    first = found["hf://me/pets"]["fingerprint"]
    assert second["fingerprint"] == pinned["fingerprint"] == first
    assert changed["fingerprint"] != first


def test_the_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"not installed; run pip install 'autotune\[hf\]'"):
        open_source("hf://me/pets")


def test_a_folder_of_the_same_name_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "me" / "pets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match="would read the folder 'me/pets' that is here"):
        open_source("hf://me/pets")
