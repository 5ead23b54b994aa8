"""Cells of tables as spreadsheet programs write them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from autotune.data.sources.registry import open_source
from autotune.data.sources.tables.cells import read_cells
from autotune.errors import DatasetError

WANTED = (("path",), ("label",))


def read(folder: Path, content: str | bytes, name: str = "table.csv") -> pd.DataFrame:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_cells(str(path), WANTED)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("path,label\na,b\n", "table.csv"),
        ("sep=;\npath;label\na;b\n", "table.csv"),
        ("sep=,\r\npath,label\r\na,b\r\n", "table.csv"),
        ('"sep=;"\r\npath;label\r\na;b', "table.csv"),
        ("\ufeffsep=\t\npath\tlabel\na\tb\n", "table.csv"),
        ("path;label;size, weight, color, age\na;b;1,5\n", "table.csv"),
        ("path\tlabel\tx,y;z,w;v\na\tb\t1,5\n", "table.csv"),
        ("x,y,z;path;label\n1,5;a;b\n", "table.csv"),
        ("path|label\na|b\n", "table.csv"),
        ("path,label\na,b\n", "table.tsv"),
        ("path;label\na;b\n", "table.TSV"),
        ("\n\n  \npath,label\n\na,b\n\n,\n , \n\n", "table.csv"),
        ("path;label;;\na;b;;\n;;;\n;;;\n", "table.csv"),
        ("path,label\na,b,,\n", "table.csv"),
        ('"path","label","a\nnote"\n"a","b","of\nlines"\n', "table.csv"),
        ("path,label\ra,b\r", "table.csv"),
        ("path, label\na, b\n", "table.csv"),
    ],
)
def test_one_table_written_in_many_ways(tmp_path: Path, content: str, name: str) -> None:
    table = read(tmp_path, content, name)[["path", "label"]]
    assert table.to_numpy().tolist() == [["a", "b"]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("label", ['Käfer; groß, "ja"', "日本の犬", "x"])
def test_encodings(tmp_path: Path, encoding: str, label: str) -> None:
    quoted = label.replace('"', '""')
    text = f'path;label\r\nphotos/long name.png;"{quoted}"\r\nphotos/two.png;b\r\n'
    if encoding == "utf-16-be":
        text = "\ufeff" + text
    assert read(tmp_path, text.encode(encoding))["label"].tolist() == [label, "b"]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    table = read(tmp_path, 'sep=,\n\npath,label\n"a\nb",x\n\nc,y\n')
    assert table.index.tolist() == [4, 7]


def test_columns_of_the_same_name_are_kept_apart(tmp_path: Path) -> None:
    assert list(read(tmp_path, "path,label,note,note\na,b,c,d\n")) == [
        *("path", "label", "note", "note.1")
    ]


def test_text_of_windows_is_read_and_named_once(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "photos" / "1.png").rename(photos / "photos" / "Käfer.png")
    lines = "path;label\nphotos/0.png;Fuß\nphotos/Käfer.png;Käfer – groß\n"
    (photos / "table.csv").write_bytes(lines.encode("cp1252"))
    for _ in range(2):
        source = open_source(str(photos / "table.csv"))
    assert source.classes == ("Fuß", "Käfer – groß")
    assert all(source.read(sample).size == (8, 6) for sample in source.samples)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{photos}/table.csv: it is not in UTF-8 and is read as Windows-1252, as in 'Käfer – "
        "groß'; save it as UTF-8 if that is wrong"
    )


def test_text_that_windows_has_not_is_refused(photos: Path) -> None:
    (photos / "table.csv").write_bytes(b"path,label\nphotos/0.png,\x81x\nphotos/1.png,b\n")
    with pytest.raises(DatasetError, match=r"label is not in UTF-8 \(line 2\); save the table"):
        open_source(str(photos / "table.csv"))
