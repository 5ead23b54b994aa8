"""What a table says beside path, label, split and group is named where it matters."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from autotune.data.sources.registry import open_source
from autotune.data.sources.split_names import SplitNames
from autotune.errors import DatasetError
from tests.support.data.images import photo

PATHS = ["0.png", "1.png", "2.png", "3.png"]


def make(folder: Path, paths: list[str] = PATHS, **columns: list[str]) -> Path:
    for number, name in enumerate(paths):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photo(8, 6, seed=number).save(folder / name)
    table = pd.DataFrame({"path": paths, "label": ["a", "b", "a", "b"], **columns})
    table.to_csv(folder / "train.csv", index=False)
    return folder / "train.csv"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        *[
            ({name: ["1", "1", "2", "2"]}, f"the groups in {name!r} are passed over; call")
            for name in ("patient_id", "Patient ID", "subject", "lesion_id", "StudyUID", "video")
        ],
        *[
            ({name: ["1", "2", "3", "4"]}, f"the boxes in {name!r} are passed over; images")
            for name in ("xmin", "x1", "bbox", "Roi.X1", "bbox_x1", "box_left")
        ],
        ({"patient": ["1", "1", "2", "2"], "group": ["1", "1", "2", "2"]}, ""),
        ({"patient": ["1", "1", "2", "2"], "split": ["train", "train", "test", "test"]}, ""),
        ({"patient": ["1", "2", "3", "4"], "age": ["9", "9", "9", "8"]}, ""),
    ],
)
def test_columns_that_matter_are_named_once(
    tmp_path: Path, columns: dict[str, list[str]], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = make(tmp_path, **columns)
    for _ in range(2):
        open_source(str(path))
    assert [message in record.getMessage() for record in caplog.records] == [True] * bool(message)


def test_an_image_of_two_groups_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make(tmp_path, ["0.png", "1.png", "0.png", "3.png"], group=["x", "y", "z", "y"])
    assert [sample.group for sample in open_source(str(path)).samples] == ["x", "y", "y"]
    (record,) = caplog.records
    assert f"1 image has more than one group, e.g. {tmp_path}/0.png; " in record.getMessage()


@pytest.mark.parametrize(
    ("paths", "splits", "is_named"),
    [
        (["train/0.png", "train/1.png", "test/0.png", "test/1.png"], "auto", True),
        (
            ["set/Training/0.png", "set/Training/1.png", "set/val/0.png", "set/val/1.png"],
            "auto",
            1,
        ),
        (["a/train/0.png", "a/train/1.png", "b/test/0.png", "b/test/1.png"], "auto", True),
        (["train/0.png", "train/1.png", "test/0.png", "test/1.png"], "none", False),
        (["train/0.png", "train/1.png", "train/2.png", "train/3.png"], "auto", False),
    ],
)
def test_splits_in_paths_are_named(
    tmp_path: Path,
    paths: list[str],
    splits: SplitNames,
    is_named: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = open_source(str(make(tmp_path, paths)), splits=splits)
    assert {sample.split for sample in source.samples} == {None}
    lines = [record.getMessage() for record in caplog.records]
    assert ["but no column says the splits" in line for line in lines] == [True] * is_named


@pytest.mark.parametrize("beside", ["test.csv", "valid.csv", "Validation.csv", "sample.csv", ""])
def test_tables_of_other_splits_are_named(
    tmp_path: Path, beside: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = make(tmp_path)
    (tmp_path / (beside or "val.txt")).touch()
    open_source(str(path))
    is_named = [f"not {beside} beside it" in record.getMessage() for record in caplog.records]
    assert is_named == [True] * (beside not in ("", "sample.csv"))


@pytest.mark.parametrize("value", [["a", "b"], {"x": 1}])
def test_several_values_in_a_cell_are_refused(tmp_path: Path, value: object) -> None:
    pytest.importorskip("pyarrow")
    make(tmp_path)
    table = pd.DataFrame({"path": PATHS, "label": [value] * 4})
    table.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(
        DatasetError, match="'label' must hold a label in each cell, but it holds "
    ):
        open_source(str(tmp_path / "t.parquet"))


@pytest.mark.parametrize("column", ["label.1", "class", "path.1", "split.1"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, column: str) -> None:
    path = make(tmp_path, split=["train", "train", "test", "test"], **{column: PATHS})
    with pytest.raises(DatasetError, match=rf"'{column}' are all \w+s; keep one of them"):
        open_source(str(path))
