from __future__ import annotations

from pathlib import Path

import pytest

from autotune.data import image_formats
from autotune.data.image_formats import describe_content, describe_passed_over
from autotune.data.sources.registry import open_source
from autotune.errors import DatasetError
from tests.support.data.images import make_class_folders, photo

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the file is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "not an image but a Git LFS pointer, not the file itself; 'git lfs pull'",
        ),
        (b"\n<!DOCTYPE html>\n<title>404</title>", "not an image but an HTML page"),
        (b"Access denied\n", "not an image but a text file that begins with 'Access denied'"),
        (b"8BPS\0\x01", "a Photoshop document, which is not read; export it as PNG or JPEG"),
        (b"II*\0\x08\0\0\0", "a TIFF image that is damaged, or of a kind that Pillow cannot"),
        (b"\x01\x02\xff\xfe" * 20, ""),
    ],
)
def test_a_file_that_is_no_image_is_described(content: bytes, text: str) -> None:
    assert describe_content(content).startswith(text)
    assert text or describe_content(content) == ""


def test_what_a_folder_holds_beside_images_is_counted_by_kind(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path, {"a": 2, "b": 2})
    for name in ("a/1.CR2", "a/2.nef", "b/1.svg", "b/deep/1.mp4", "b/2.txt", "labels.csv", "b/x"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("something")
    for name in ("b/.DS_Store", "b/._1.jpg", "a/Thumbs.db", "a/.hidden.jpg"):
        (root / name).touch()
    photo(5, 5).save(root / "a" / "0017", "JPEG")
    photo(5, 5).save(root / "a" / "0017.jpg_large", "JPEG")
    photo(5, 5).save(root / "loose.png")
    source = open_source(str(root))
    assert len(source.samples) == 4
    assert source.passed_over == {
        "raw photos": {".cr2": 1, ".nef": 1},
        "drawings and layered images": {".svg": 1},
        "videos": {".mp4": 1},
        "texts and tables": {".txt": 1, ".csv": 1},
        "other files": {"": 1},
        "files of the system": {"": 1, ".jpg": 1, ".db": 1},
        "hidden files": {".jpg": 1},
        "images without the ending of one": {"": 1, ".jpg_large": 1},
        "images outside the class folders": {".png": 1},
    }
    text = describe_passed_over(source.passed_over)
    assert text.startswith("14 files are passed over: files of the system 3 (.db, .jpg), ")
    assert "raw photos 2 (.cr2, .nef)" in text
    assert text.endswith("; images are read once their names end as those of images, such as .jpg")


def test_heic_is_passed_over_where_its_plugin_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_class_folders(tmp_path, {"a": 2, "b": 0})
    for number in range(3):
        (root / "b" / f"{number}.HEIC").write_bytes(HEIC)
    monkeypatch.setattr(image_formats, "has_heic", lambda: False)
    with pytest.raises(DatasetError) as caught:
        open_source(str(root))
    assert (
        "has none in 'b'; fill or remove it; 3 files are passed over: HEIC photos 3 (.heic); "
        in (str(caught.value))
    )
    assert str(caught.value).endswith("HEIC is read after pip install 'autotune[heic]'")
    assert "pip install 'autotune[heic]'" in describe_content(HEIC)
    photo(5, 5).save(root / "b" / "in-truth.heic", "JPEG")
    assert len(open_source(str(root)).samples) == 3


@pytest.mark.parametrize("ending", image_formats.ENDINGS)
def test_every_ending_of_an_image_is_read_whatever_its_case(tmp_path: Path, ending: str) -> None:
    root = make_class_folders(tmp_path, {"a": 1, "b": 1})
    photo(5, 5).save(root / "a" / f"x{ending.upper()}", "PNG")  # by its content
    source = open_source(str(root))
    assert [source.read(sample).mode for sample in source.samples] == ["RGB"] * 3
