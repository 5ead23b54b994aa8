"""What ``autotune data info`` shows of a data set."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.support.commands.inside import call, contents
from tests.support.data.archives import tar_bytes, zip_bytes
from tests.support.data.images import make_class_folders, photo


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    make_class_folders(tmp_path / "photos", {"ant": 10, "字[bee]": 40}, size=(80, 70))
    return tmp_path


def test_it_counts(photos: Path) -> None:
    (photos / "photos/字[bee]/000.png").write_bytes(b"")
    before = contents(photos)
    ended = call("data", "info", "photos", cwd=photos)
    assert (ended.code, ended.err) == (0, "")
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    for line in (
        "images 50: 30 train, 10 validation, 10 test",
        "classes 2",
        "read 40 images (train, validation)",
        "width 80 px",
        "height 70 px",
        "unreadable 1",
        "ant 6 2 2",
        "字[bee] 24 8 8",
        "unreadable: 字[bee]/000.png (the file is empty)",
    ):
        assert line in lines
    assert "The classes are uneven: '字[bee]' has 24 training images, 'ant' 6." in ended.out
    assert contents(photos) == before


def test_as_json(photos: Path) -> None:
    photo(80, 70, seed=0).save(photos / "photos/字[bee]/copy.png")
    ended = call("data", "info", "photos", "--json", "--test", cwd=photos)
    values = json.loads(ended.out)
    assert values["classes"]["ant"] == {"train": 6, "validation": 2, "test": 2, "unused": 0}
    assert (values["looked_at"], values["parts"]) == (51, ["train", "validation", "test"])
    assert values["widths"] == [80, 80, 80]
    assert values["survey"]["duplicates"]["exact"] == 2
    assert all(0.2 < value < 0.8 for value in values["mean"])
    off = json.loads(
        call("data", "info", "photos", "--json", "data.duplicates=off", cwd=photos).out
    )
    assert "duplicates" not in off["survey"]


def test_a_contact_sheet(photos: Path) -> None:
    for path in sorted((photos / "photos/ant").iterdir())[:-5]:
        path.write_bytes(b"")
    make_class_folders(photos / "many", {f"c{one:02d}": 4 for one in range(15)})
    for name, rows in (("photos", 2), ("many", 12)):
        ended = call("data", "info", name, "data.image_size=32", "-o", "sheet.png", cwd=photos)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.endswith("contact sheet: sheet.png\n")
        sheet = Image.open(photos / "sheet.png")
        assert sheet.height == 60 + rows * (26 + 112 + 4)
        pixels = np.asarray(sheet)
        assert pixels[60 + 26 + 60, 20:1400].std() > 20
    assert {path.name for path in photos.iterdir()} == {"photos", "many", "sheet.png"}


def test_a_study_file_says_how_images_are_split(photos: Path) -> None:
    (photos / "my.yaml").write_text(
        "dataset: photos\nbackbone: test_resnet.letters\n"
        "data: {train_per_class: 3, group: '/(...)'}\n"
    )
    ended = call("data", "info", "my.yaml", cwd=photos)
    assert (ended.code, ended.err) == (0, "")
    assert "6 train" in ended.out
    assert "the backbone expects 0.500, 0.500, 0.500" in ended.out
    assert "groups       " in ended.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "is none of these"),
        (("photos", "data.gruop=x"), "did you mean 'group'?"),
        (
            ("photos", "-o", "none/sheet.png"),
            "must exist and be writable, to write none/sheet.png",
        ),
        (("no.yaml",), "no study file 'no.yaml'"),
    ],
)
def test_what_is_wrong_is_one_message(photos: Path, arguments: tuple[str, ...], said: str) -> None:
    before = contents(photos)
    ended = call("data", "info", *arguments, cwd=photos)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert contents(photos) == before


@pytest.mark.parametrize(
    "name", ["photos", "set.zip", "set.tar.gz", "table.csv", "table", "table.tsv", "set"]
)
def test_any_file_of_images_is_a_data_set(name: str, tmp_path: Path) -> None:
    photos = make_class_folders(tmp_path / "photos", {"ant": 10, "bee": 10})
    files = {
        f"{path.parent.name}/{path.name}": path.read_bytes() for path in photos.rglob("*.png")
    }
    table = pd.DataFrame({"path": [f"photos/{key}" for key in files]})
    table["label"] = table["path"].str.split("/").str[1]
    match name:
        case "set.zip":
            (tmp_path / name).write_bytes(zip_bytes(files))
        case "set.tar.gz" | "set":
            (tmp_path / name).write_bytes(gzip.compress(tar_bytes(files)))
        case "table.csv":
            table.to_csv(tmp_path / name, index=False)
        case "table" | "table.tsv":  # Parquet all the same
            table.to_parquet(tmp_path / name)
    ended = call("data", "info", name, cwd=tmp_path, AUTOTUNE_DATA=str(tmp_path / "data"))
    assert (ended.code, ended.err) == (0, "")
    assert "20: 12 train, 4 validation, 4 test" in ended.out
    for verb in ("run", "validate"):
        refused = call(verb, name, cwd=tmp_path)
        assert refused.code == 2
        assert f"'autotune run folder dataset={name}' makes a study" in refused.err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.jpg", b"\xff\xd8\xff\xe0", "is a JPEG image; name the folder that has a folder"),
        ("photos.zip", b"<html>sign in", "is an HTML page; open it to see why it is there"),
        ("photos.zip", b"", "must be a whole zip or tar file, but it is damaged"),
        (
            "labels.gz",
            gzip.compress(b"path,label", mtime=0),
            "is a gzip file with a text file; unpack it",
        ),
        ("empty", None, "a dataset has one folder for each class, but empty has no folders"),
    ],
)
def test_what_is_no_data_set_is_named(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    ended = call("data", "info", name, cwd=tmp_path, AUTOTUNE_DATA=str(tmp_path / "data"))
    assert ended.code == 2
    assert message in ended.err


def test_a_folder_of_archives_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips/photos.zip").write_bytes(zip_bytes({"a/1.png": b"x"}))
    ended = call("data", "info", "zips", cwd=tmp_path)
    assert ended.code == 2
    assert "zips/photos.zip is not looked into; name it, or unpack it" in ended.err
