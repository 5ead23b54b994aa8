"""Paths of tables that are nearly those of files: found, or counted with what differs."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from autotune.data.source import Source
from autotune.data.sources.registry import open_source
from autotune.errors import DatasetError
from tests.support.data.images import photo


def opened(folder: Path, files: list[str], cells: list[str]) -> Source:
    """Open a table of some cells beside some files."""
    for number, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        photo(8, 6, seed=number).save(folder / file)
    lines = [f'"{cell}",{"ab"[number % 2]}' for number, cell in enumerate(cells)]
    (folder / "table.csv").write_text("\n".join(["path,label", *lines]))
    return open_source(str(folder / "table.csv"))


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    ("file", "cell"),
    [
        (decomposed("Käfer/größe.png"), "Käfer/größe.png"),
        ("Käfer/größe.png", decomposed("Käfer/größe.png")),
        (f"{decomposed('Käfer')}/größe.png", "Käfer/größe.png"),
        ("photos/x.png", "photos/x.png "),
        ("photos/x.png", " photos/x.png\t"),
        ("photos/x.png", "./photos/x.png"),
        ("photos/x.png", "photos\\x.png"),
        ("photos/x.png", " .\\photos\\x.png "),
        ("photos/red fox.png", "photos/red\u00a0fox.png"),
        ("Käfer/x.png", decomposed("Käfer\\x.png ")),
        ("photos /x.png", "photos/x.png"),
        ("photos/x.png ", "photos/x.png "),
        ("a\\b.png", "a\\b.png"),
    ],
)
def test_another_spelling_of_a_file(tmp_path: Path, file: str, cell: str) -> None:
    if file.endswith(" "):
        photo(8, 6).save(tmp_path / "image.png")
        (tmp_path / file).parent.mkdir()
        (tmp_path / "image.png").rename(tmp_path / file)
        source = opened(tmp_path, ["other.png"], [cell, "other.png"])
    else:
        source = opened(tmp_path, [file, "other.png"], [cell, "other.png"])
    assert all(source.read(sample).size == (8, 6) for sample in source.samples)


def test_two_spellings_of_one_file_are_one_image(tmp_path: Path) -> None:
    cells = ["photos/ä.png", "b.png", "photos/ä.png ", decomposed("b.png")]
    assert len(opened(tmp_path, ["photos/ä.png", "b.png"], cells).samples) == 2


def test_a_spelling_of_two_files_is_none_of_them(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="1 file is not there"):
        opened(tmp_path, ["a  b.png", "a   b.png", "c.png"], ["a b.png", "c.png"])


@pytest.mark.parametrize(
    ("file", "cell", "hint"),
    [
        ("train/{}.jpg", "{}", "with .jpg in train/"),
        ("train/{}.jpg", "{}.jpg", "in train/"),
        ("{}.JPG", "{}.jpg", "with .JPG instead of .jpg"),
        ("photos/{}.png", "photos/{}.jpg", "with .png instead of .jpg"),
        ("photos/{}.jpg", "/home/me/set/photos/{}.jpg", "without /home/me/set/"),
        ("photos/{}.jpg", "C:\\Users\\me\\photos\\{}.jpg", "without C:/Users/me/"),
        ("photos/{}.jpg", "file:///data/photos/{}.jpg", "without file:///data/"),
        ("photos/{}.jpg", "images/{}.jpg", "in photos/ instead of images/"),
        ("photos/{}.jpg", "Photos/{}.jpg", "in other letter case"),
        ("photos/A{}.jpg", "photos/a{}.jpg", "in other letter case"),
        ("red fox/{}.jpg", "red%20fox/{}.jpg", "with characters for %20 and its like"),
        ("train/1.5 {}.jpg", "1.5 {}", "with .jpg in train/"),
    ],
)
def test_where_missing_files_are(tmp_path: Path, file: str, cell: str, hint: str) -> None:
    numbers = range(12)
    with pytest.raises(DatasetError) as caught:
        opened(
            tmp_path,
            [file.format(number) for number in numbers],
            [cell.format(number) for number in numbers],
        )
    message = str(caught.value)
    assert "12 files are not there: " in message
    assert message.endswith(f"; 12 of 12 are there {hint}")


def test_files_that_are_nowhere_have_no_hint(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"2 files are not there: \S+/x.png, \S+/y.png$"):
        opened(tmp_path, ["a.png"], ["a.png", "x.png", "y.png"])
    with pytest.raises(DatasetError, match=r"3 files are .*; 1 of 3 are there in photos/$"):
        opened(tmp_path, ["photos/x.png"], ["a.png", "x.png", "y.png", "z.png"])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_hint_keeps_most_of_a_path(split: str, tmp_path: Path) -> None:
    files = [f"set/{each}/cat/{n}.jpg" for each in ("train", "val", "test") for n in range(2)]
    with pytest.raises(DatasetError, match=r"; 2 of 2 are there in set/ instead of /other/$"):
        opened(tmp_path, files, [f"/other/{split}/cat/{n}.jpg" for n in range(2)])
