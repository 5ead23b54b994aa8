"""Columns of splits: used, named once as passed over, or asked about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from autotune.data.source import Source
from autotune.data.sources.registry import open_source
from autotune.data.sources.split_names import AUTO, SplitNames
from autotune.errors import DatasetError
from tests.support.data.images import photo


def opened(
    folder: Path, columns: dict[str, Sequence[object]], splits: SplitNames = AUTO, labels: str = ""
) -> Source:
    """Open a table with some columns beside path and label; classes alternate."""
    count = len(next(iter(columns.values())))
    rows = [",".join(["path", "label", *columns])]
    for number in range(count):
        photo(8, 6, seed=number).save(folder / f"{number:02d}.png")
        cells = [f"{number:02d}.png", (labels or "ab" * count)[number].strip()]
        rows.append(",".join([*cells, *(str(values[number]) for values in columns.values())]))
    (folder / "table.csv").write_text("\n".join(rows))
    return open_source(str(folder / "table.csv"), splits=splits)


def splits_of(source: Source) -> list[str | None]:
    return [sample.split for sample in source.samples]


TTVV = ["train", "train", "validation", "validation"]


@pytest.mark.parametrize(
    ("columns", "splits"),
    [
        ({"split": ["training", "Train", "val", "DEV"]}, TTVV),
        ({"Split": ["trn", "train set", "valid", "validation"]}, TTVV),
        ({"subset": ["train", "train", "holdout", "eval"]}, ["train", "train", "test", None]),
        ({"set": ["train", "train", "val", "val"]}, TTVV),
        ({"partition": ["TRAIN", "TRAIN", "dev", "dev"]}, TTVV),
        ({"fold": ["train", "train", "val", "val"]}, TTVV),
        ({"Data Split": ["train", "train", "val", "val"]}, TTVV),
        ({"dataset": ["train", "train", "val", "val"]}, TTVV),
        ({"Train/Val": ["T", "T", "V", "V"], "type": ["train", "train", "val", "val"]}, TTVV),
        ({"is_valid": [False, False, True, True]}, TTVV),
        ({"is_val": [0, 0, 1, 1]}, TTVV),
        ({"isValid": ["no", "", "yes", "Y"]}, TTVV),
        ({"is_validation": ["0.0", "0.0", "1.0", "1.0"]}, TTVV),
        ({"is_train": [1, 1, 0, 0]}, ["train", "train", "test", "test"]),
        ({"is_training_image": [1, 1, 0, 0]}, ["train", "train", "test", "test"]),
        ({"is_test": ["f", "f", "t", "t"]}, ["train", "train", "test", "test"]),
        ({"fold": [0, 1, 0, 1], "is_valid": [0, 0, 1, 1]}, TTVV),
    ],
)
def test_columns_of_splits(
    tmp_path: Path, columns: dict[str, Sequence[object]], splits: list[str | None]
) -> None:
    if None in splits:  # evaluation is validation beside a test split
        with pytest.raises(DatasetError, match="no image of 'a' is in validation"):
            opened(tmp_path, columns)
    else:
        assert splits_of(opened(tmp_path, columns)) == splits


def test_several_marks_make_three_splits(tmp_path: Path) -> None:
    marks = {"is_val": [0, 0, 1, 1, 0, 0], "is_test": [0, 0, 0, 0, 1, 1]}
    assert splits_of(opened(tmp_path, marks)) == [*TTVV, "test", "test"]
    with pytest.raises(DatasetError, match="'test and validation' in the column of splits"):
        opened(tmp_path, {**marks, "is_val": [0, 0, 1, 1, 1, 0]})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"is_valid": [0, 0, 1, 1]}, "the splits are those of 'is_valid'"),
        (
            {"fold": [0, 1, 2, 2]},
            "the column 'fold' is passed over: '0', '1', '2' are no names of splits; name them "
            "with data.splits='{train: [0, 1], test: 2}'",
        ),
        ({"set": ["A", "B", "A", "B"]}, "the column 'set' is passed over: 'A', 'B' are no names"),
        (
            {"type": ["train", "train", "test", "extra"]},
            "the column 'type' is passed over: 'extra' are no names of splits; name them with "
            "data.splits='{train: train, test: test}'",
        ),
        ({"is_valid": ["maybe", 0, 1, 1]}, "the column 'is_valid' is passed over: '0', '1', "),
        (
            {"split": ["train", "train", "val", "val"], "fold": [0, 1, 0, 1], "is_test": [0] * 4},
            "the columns 'fold', 'is_test' are passed over; the splits are those of 'split'",
        ),
    ],
)
def test_what_is_used_or_passed_over_is_named_once(
    tmp_path: Path,
    columns: dict[str, Sequence[object]],
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        opened(tmp_path, columns)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path}/table.csv: {message}")


@pytest.mark.parametrize(
    "columns",
    [
        *(
            {name: [0, 0, 1, 1]}
            for name in ("valid", "test", "dataset_id", "part_number", "offset")
        ),
        *({"fold": [value] * 4, "is_valid": [0] * 4} for value in ("", 1)),
    ],
)
def test_other_columns_are_none_of_splits(
    tmp_path: Path, columns: dict[str, Sequence[object]], caplog: pytest.LogCaptureFixture
) -> None:
    assert splits_of(opened(tmp_path, columns)) == [None] * 4
    assert not caplog.records


@pytest.mark.parametrize(
    ("values", "splits", "expected", "passed_over"),
    [
        (
            [0, 0, 1, 1, 2, 2],
            {"train": ["0"], "validation": ["1"], "test": ["2"]},
            [*TTVV, "test", "test"],
            {},
        ),
        (["A", "a", "b", "b"], {"train": ["a"], "validation": ["B"]}, TTVV, {}),
        (
            [0, 0, 1, 1, 7, ""],
            {"train": ["0"], "validation": ["1"]},
            TTVV,
            {"rows of 7, not in data.splits": 1, "rows of no split, not in data.splits": 1},
        ),
        ([0, 0, 1, 1], "none", [None] * 4, {}),
    ],
)
@pytest.mark.parametrize("column", ["split", "fold"])
def test_values_can_be_named(
    tmp_path: Path,
    values: list[object],
    splits: SplitNames,
    expected: list[str | None],
    passed_over: dict[str, int],
    column: str,
) -> None:
    source = opened(tmp_path, {column: values}, splits)
    assert splits_of(source) == expected
    assert source.passed_over == {kind: {"": count} for kind, count in passed_over.items()}


def test_values_that_no_column_has(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"data.splits names '8', but .*/table.csv has no column of splits"
    ):
        opened(tmp_path, {"fold": [0, 1, 0, 1]}, {"train": ["8"]})
    with pytest.raises(DatasetError, match=r"data.splits names '8', but the column 'fold' of "):
        opened(tmp_path, {"fold": [0, 1, 0, 1]}, {"train": ["0"], "test": ["8"]})


@pytest.mark.parametrize("labels", ["abab  ", "ababuu"])
@pytest.mark.parametrize(
    "columns",
    [
        {"split": [*TTVV, "test", "test"]},
        {"subset": [*TTVV, "holdout", "holdout"]},
        {"is_val": [0, 0, 1, 1, 0, 0], "is_test": [0, 0, 0, 0, 1, 1]},
    ],
)
def test_rows_of_a_split_without_labels_are_counted(
    tmp_path: Path, columns: dict[str, Sequence[object]], labels: str
) -> None:
    source = opened(tmp_path, columns, labels=labels)
    assert source.classes == ("a", "b")
    assert splits_of(source) == TTVV
    assert source.passed_over == {"rows of test without labels": {"": 2}}


@pytest.mark.parametrize("labels", ["abab a", "ab abb", "   bab"])
def test_some_rows_without_labels_are_refused(tmp_path: Path, labels: str) -> None:
    with pytest.raises(DatasetError, match="without a label"):
        opened(tmp_path, {"split": [*TTVV, "test", "test"]}, labels=labels)
