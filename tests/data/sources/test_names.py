"""Names of classes and folders: what is overlooked easily, and what systems put among images."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.data.sources.names import describe_doubtful, describe_similar, is_system_folder
from autotune.data.sources.registry import open_source
from autotune.errors import DatasetError
from tests.support.data.images import make_class_folders, make_split_folder

SIMILAR = [
    ("Cat", "cat"),
    ("cat", "cat "),
    ("red  fox", "red fox"),
    ("red_fox", "red fox"),
    ("cat", "cat\u200b"),
    ("cat\u00a0", "cat"),
    ("\u2764", "\u2764\ufe0f"),
    ("K\u00c4FER", "ka\u0308fer"),
    ("Stra\u00dfe", "STRASSE"),
    ("001", "1"),
    ("cat", "'cat'"),
    ("cat", "['cat']"),
    ("cat", "cat?"),
    ("red-fox", "red fox"),
    ("1.0", "1"),
    ("class_01", "class 1"),
    ("cat", "cat copy"),
    ("cat", "cat - Copy (2)"),
    ("cat", "cat (1)"),
    ("cat", "cat_backup"),
]


@pytest.mark.parametrize("names", SIMILAR)
def test_names_that_are_easily_taken_for_each_other(names: tuple[str, str]) -> None:
    first, second = sorted(names)
    text = describe_similar([*names, "dog"])
    assert text.startswith(f"{first!r} and {second!r} are different classes, though ")
    assert "dog" not in text


@pytest.mark.parametrize(
    "names",
    [
        ("cat", "cats"),
        ("1", "-1"),
        ("a b", "ab"),
        ("o", "ö"),
        ("C", "C++"),
        ("😺", "😸"),
        ("0.5", "0.05"),
        ("1", "10"),
        ("0", "1.0"),
        ("carbon", "carbon copy machine"),
    ],
)
def test_other_names_are_different(names: tuple[str, str]) -> None:
    assert describe_similar(names) == ""


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["nan", "cat"], "no label"),
        (["<NA>", "cat"], "no label"),
        (["#N/A", "cat"], "no label"),
        (["null", "NULL"], "no label"),
        (["cat", "cat,dog"], "several labels"),
        (["cat", "cat; dog"], "several labels"),
        (["cat", "dog|cat"], "several labels"),
        (["cat", "dog", "cat dog"], "several labels"),
        (["cat", "dog", "cat / dog"], "several labels"),
        (["cat", "dog", "cat_and_dog"], "several labels"),
        (["NA", "None", "C", "C++", "bird", "bird house", "a,b", "nano", "R&D"], ""),
    ],
)
def test_classes_that_are_no_label_or_several(names: list[str], kind: str) -> None:
    assert [kind in line for line in describe_doubtful(names)] == [True] * bool(kind)


def test_classes_of_similar_names_stay_and_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_class_folders(tmp_path / "photos", {"Cat": 1, "cat": 1, "cat ": 1, "dog": 1})
    for _ in range(2):
        assert open_source(str(root)).classes == ("Cat", "cat", "cat ", "dog")
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{root}: 'Cat' and 'cat' and 'cat ' are different classes, though their names differ "
        "only in case, blanks, punctuation, zeros, hidden characters or the mark of a copy; "
        "rename them if they are one class"
    )


def test_splits_whose_classes_differ_in_case_say_so(tmp_path: Path) -> None:
    make_split_folder(tmp_path, {"train": {"Cat": 1, "dog": 1}, "test": {"cat": 1, "dog": 1}})
    with pytest.raises(DatasetError, match=r"'Cat' of .* missing in test; .*; 'Cat' and 'cat' "):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        *("$RECYCLE.BIN", "$Recycle.Bin", "#recycle", "@eaDir", "@Recycle", "__MACOSX"),
        *("System Volume Information", "lost+found", ".Trash-1000", "FOUND.000", "__pycache__"),
    ],
)
def test_folders_of_systems_are_left_out(tmp_path: Path, name: str) -> None:
    make_class_folders(tmp_path, {"a": 1, "b": 1, name: 1, f"a/{name}": 1})
    (tmp_path / "a" / "Thumbs.db").touch()
    (tmp_path / "desktop.ini").touch()
    source = open_source(str(tmp_path))
    assert [sample.key for sample in source.samples] == ["a/000.png", "b/000.png"]


@pytest.mark.parametrize("name", ["recycled", "#hashtag", "$", "@home", "found", "trash"])
def test_classes_of_odd_names_are_classes(name: str) -> None:
    assert not is_system_folder(name)
