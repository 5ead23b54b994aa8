from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autotune.data.progress import INDEXING, READING
from autotune.data.source import Sample, Source
from autotune.data.sources.registry import open_source
from autotune.errors import DatasetError
from tests.support.data.images import photo


def table(folder: Path, *lines: str) -> Path:
    path = folder / "table.csv"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    return path


def opened(folder: Path, *lines: str) -> Source:
    return open_source(str(table(folder, *lines)))


def refusal(folder: Path, *lines: str) -> str:
    with pytest.raises(DatasetError) as caught:
        opened(folder, *lines)
    return str(caught.value)


def labels(source: Source) -> list[tuple[str, str]]:
    return [(sample.key, source.classes[sample.label]) for sample in source.samples]


def test_a_row_is_an_image_and_its_class(photos: Path) -> None:
    source = opened(photos, "path,label", "photos/1.png,dog", "photos/0.png,cat", "")
    assert source.classes == ("cat", "dog")
    assert source.samples == (Sample("photos/0.png", 0, None), Sample("photos/1.png", 1, None))
    assert np.array_equal(np.asarray(source.read(source.samples[1])), photo(8, 6, seed=1))


@pytest.mark.parametrize("path", ["path", "File", "file_name", "filename", "filepath", " image "])
@pytest.mark.parametrize("label", ["label", "CLASS", "class_name", "category"])
def test_columns_have_usual_names_and_others_are_passed_over(
    photos: Path, path: str, label: str
) -> None:
    source = opened(photos, f"id,{label},{path}", "7,a,photos/0.png", "8,b,photos/1.png")
    assert labels(source) == [("photos/0.png", "a"), ("photos/1.png", "b")]


@pytest.mark.parametrize("path", ["id", "image_id", "Image Name", "img_path", "fname"])
def test_other_columns_are_paths_where_none_is_called_so(photos: Path, path: str) -> None:
    lines = (f"note,label,{path}", "x,a,photos/0.png", "y,b,photos/1.png")
    assert len(opened(photos, *lines).samples) == 2
    rows = [
        f"{line},{cell}"
        for line, cell in zip(lines, ["path", "photos/2.png", "photos/3.png"], strict=True)
    ]
    assert labels(opened(photos, *rows)) == [("photos/2.png", "a"), ("photos/3.png", "b")]


def test_paths_are_relative_to_the_table_or_absolute(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ("path,label", "../photos/0.png,a", f"{photos}/photos/1.png,b")
    (photos / "tables").mkdir()
    table(photos / "tables", *lines)
    monkeypatch.chdir(photos)
    source = open_source("tables/table.csv")
    assert len(source.samples) == 2
    assert all(source.read(sample).size == (8, 6) for sample in source.samples)


def test_a_parquet_table_is_the_csv_table(photos: Path) -> None:
    values = {"path": [f"photos/{index}.png" for index in range(4)], "label": [1, 2, 1, 2]}
    frame = pd.DataFrame({**values, "group": ["a", None, "b", "b"]})
    frame.to_parquet(photos / "table.parquet")
    frame.to_csv(photos / "table.csv", index=False)
    from_parquet, from_csv = (
        open_source(str(photos / f"table.{ending}")) for ending in ("parquet", "csv")
    )
    assert from_parquet.samples == from_csv.samples
    assert from_parquet.fingerprint == from_csv.fingerprint
    assert from_parquet.classes == ("1", "2")
    assert [sample.group for sample in from_csv.samples] == ["a", None, "b", "b"]


@pytest.mark.parametrize("index", [["path"], ["label"], ["path", "group"], ["note"], [None]])
def test_the_index_of_a_parquet_table_is_a_column_too(
    photos: Path, index: list[str | None]
) -> None:
    values = {"path": ["photos/0.png", "photos/1.png"], "label": ["a", "b"], "group": ["x", "y"]}
    frame = pd.DataFrame({**values, "note": ["path", "label"]})
    (frame if index == [None] else frame.set_index(index)).to_parquet(photos / "table.parquet")
    source = open_source(str(photos / "table.parquet"))
    assert labels(source) == [("photos/0.png", "a"), ("photos/1.png", "b")]
    assert [sample.group for sample in source.samples] == ["x", "y"]


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        ([0.0, 1.0], ("0", "1")),  # numbers with gaps
        ([1.0, np.inf], ("1.0", "inf")),
        ([b"cat", "K\u00e4fer".encode()], ("K\u00e4fer", "cat")),
        (pd.Categorical(["a", "b"]), ("a", "b")),
    ],
)
def test_labels_of_every_kind(photos: Path, cells: object, classes: tuple[str, ...]) -> None:
    frame = pd.DataFrame({"path": ["photos/0.png", "photos/1.png"], "label": cells})
    frame["group"] = pd.Categorical(["x", "x"])
    frame.to_parquet(photos / "table.parquet")
    source = open_source(str(photos / "table.parquet"))
    assert source.classes == tuple(sorted(classes))
    assert [sample.group for sample in source.samples] == ["x", "x"]


def test_na_and_none_are_classes(photos: Path) -> None:
    source = opened(photos, "path,label", "photos/0.png,NA", "photos/1.png, None ")
    assert source.classes == ("NA", "None")


def test_two_spellings_of_a_label_are_one(photos: Path) -> None:
    lines = ("photos/0.png,Ka\u0308fer", "photos/1.png,K\u00e4fer", "photos/2.png,x")
    source = opened(photos, "path,label", *lines)
    assert source.classes == ("K\u00e4fer", "x")


def test_file_names_that_are_no_utf_8_are_found(photos: Path) -> None:
    raw = os.fsdecode(os.fsencode(photos / "photos") + b"/caf\xe9.png")
    os.rename(photos / "photos" / "0.png", raw)
    source = opened(photos, "path,label", "photos/caf\udce9.png,a", "photos/1.png,b")
    assert source.samples[1].key == "photos/caf\\xe9.png"
    assert source.read(source.samples[1]).size == (8, 6)


def test_an_empty_column_of_splits_splits_nothing(photos: Path) -> None:
    source = opened(photos, "path,label,split", "photos/0.png,a,", "photos/1.png,b, ")
    assert {sample.split for sample in source.samples} == {None}


def test_the_fingerprint_follows_labels_splits_and_groups(photos: Path) -> None:
    def fingerprint(**columns: list[str]) -> str:
        values = {"path": [f"photos/{index}.png" for index in range(4)], "label": [*"abab"]}
        pd.DataFrame({**values, **columns}).to_csv(photos / "table.csv", index=False)
        return open_source(str(photos / "table.csv")).fingerprint

    parts = ["train", "train", "test", "test"]
    tables = ({}, {"label": [*"abba"]}, {"group": [*"xyxy"]}, {"split": parts}, {"id": [*"1234"]})
    first, *others = [fingerprint(**columns) for columns in tables]
    assert others.pop() == first
    assert len({first, *others}) == 4


class TestRefusals:
    def test_columns_with_other_names(self, photos: Path) -> None:
        assert refusal(photos, "paths,lable", "photos/0.png,a") == (
            "the first line of a table names its columns, a path and a label among them, but "
            f"{photos}/table.csv: no column is called path or file or filename or file_name or "
            "filepath or image; 'paths': did you mean 'path'?; no column is called label or class "
            "or class_name or category; 'lable': did you mean 'label'?; its columns are 'paths', "
            "'lable'"
        )

    def test_two_columns_for_one_thing(self, photos: Path) -> None:
        message = refusal(photos, "file,path,label", "a,b,c")
        assert "'file', 'path' are all paths; keep one of them" in message

    def test_everything_wrong_with_the_rows_at_once(self, photos: Path) -> None:
        message = refusal(
            photos,
            "path,label,split",
            "photos/0.png,a,train",
            "photos/1.png,,train",
            ",b,train",
            "photos/2.png,b,later",
            "photos/0.png,b,train",
            *(f"photos/missing-{index}.png,a,train" for index in range(7)),
        )
        assert message == (
            f"every row of a table names an image file and its class, but {photos}/table.csv: 1 "
            "row without a path (line 4); 1 row without a label (line 3); 'later' in the column "
            "of splits; names are train, validation and test, or what data.splits says, such as "
            "data.splits='{train: train, test: later}'; or set data.splits=none to leave the "
            "column out of account; "
            f"1 image has more than one label, e.g. {photos}/photos/0.png: 'a', 'b'; 7 files are "
            f"not there: {photos}/photos/missing-0.png, {photos}/photos/missing-1.png, "
            f"{photos}/photos/missing-2.png, {photos}/photos/missing-3.png, "
            f"{photos}/photos/missing-4.png and 2 more"
        )

    def test_folders_pipes_and_names_that_no_file_has_are_not_there(self, photos: Path) -> None:
        os.mkfifo(photos / "pipe.png")
        lines = ("photos,a", "pipe.png,b", f"{'x' * 5000}.png,a", "photos/0.png,b")
        assert "3 files are not there" in refusal(photos, "path,label", *lines)

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["0.png,a,", "1.png,a,"], "all images are of one class, 'a'; there must be two"),
            (["0.png,a,train", "1.png,b,train", "2.png,a,test"], "no image of 'b' is in test"),
            (["0.png,a,val", "1.png,b,test"], "no row is in train; all are in test, validation"),
            (["0.png,a,train", "1.png,b,train", "0.png,a,test"], "1 image is in more than one sp"),
        ],
    )
    def test_classes_and_splits(self, photos: Path, lines: list[str], message: str) -> None:
        rows = [f"photos/{line}" for line in lines]
        assert message in refusal(photos, "path,label,split", *rows)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "it is empty"),
            (b"path,label\n", "it has no rows"),
            (b"path,label\na,b\nc,d,e,f\n", "line 3 has 4 cells, but the first line names 2 col"),
            (b'path,label\n"a,b\n', "from line 2 on; is a quotation mark missing?"),
            (b"\xff\xfe\x00", "truncated"),
            (bytes(1000), "no column is called path"),
        ],
    )
    def test_what_is_no_table(self, tmp_path: Path, content: bytes, reason: str) -> None:
        (tmp_path / "table.csv").write_bytes(content)
        with pytest.raises(DatasetError) as caught:
            open_source(str(tmp_path / "table.csv"))
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_what_is_no_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "table.parquet").write_bytes(b"PAR1 and no more")
        with pytest.raises(DatasetError, match="must be a table, but cannot be read: "):
            open_source(str(tmp_path / "table.parquet"))

    def test_images_in_the_table_itself(self, tmp_path: Path) -> None:
        frame = pd.DataFrame({"image": [{"bytes": b"1"}, {"bytes": b"2"}], "label": ["a", "b"]})
        frame.to_parquet(tmp_path / "table.parquet")
        with pytest.raises(DatasetError, match="must hold the paths of files, but it holds dict"):
            open_source(str(tmp_path / "table.parquet"))


def test_the_files_looked_for_are_told(photos: Path) -> None:
    calls: list[tuple[str, int, int | None]] = []
    path = table(photos, "path,label", "photos/0.png,a", "photos/1.png,b")
    open_source(str(path), lambda *one: calls.append(one))
    assert calls == [(INDEXING, 2, 2), (READING, 2, 2)]


def test_pyarrow_that_is_missing_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("no pyarrow")

    (photos / "table.parquet").touch()
    monkeypatch.setattr(pd, "read_parquet", missing)
    with pytest.raises(DatasetError, match=r"run pip install 'autotune\[parquet\]', or write"):
        open_source(str(photos / "table.parquet"))
