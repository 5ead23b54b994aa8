from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from autotune.data.progress import INDEXING, READING
from autotune.data.source import Sample
from autotune.data.sources.registry import dataset_names, open_source
from autotune.errors import DatasetError
from tests.support.data.images import make_class_folders, make_split_folder, photo


def refusal(name: Path | str) -> str:
    with pytest.raises(DatasetError) as caught:
        open_source(str(name))
    return str(caught.value)


def test_digits_are_the_ones_of_scikit_learn() -> None:
    source = open_source("digits")
    assert "digits" in dataset_names()
    assert source.name == "digits"
    assert source.classes == tuple("0123456789")
    assert len(source.samples) == 1797
    assert source.samples[17] == Sample("digits/0017", 7, None)
    array = np.asarray(source.read(source.samples[17]))
    assert array.shape == (8, 8, 3)
    assert np.array_equal(array[..., 0], np.rint(load_digits().images[17] * 255 / 16))
    assert source.fingerprint == open_source("digits").fingerprint
    assert re.fullmatch("[0-9a-f]{16,}", source.fingerprint)


def test_class_folders_are_searched_to_the_bottom(tmp_path: Path) -> None:
    make_class_folders(tmp_path, {"dogs": 1, "cats": 2})
    photo(5, 5).save(tmp_path / "cats" / "B.JPeG", format="JPEG")
    (tmp_path / "cats" / "deep" / "er").mkdir(parents=True)
    photo(5, 5).save(tmp_path / "cats" / "deep" / "er" / "c.TIFF")
    for ignored in ("notes.txt", ".hidden.png", ".deep/x.png"):
        (tmp_path / "cats" / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / "cats" / ignored).write_text("no image")
    (tmp_path / ".git").mkdir()
    (tmp_path / "labels.csv").touch()
    source = open_source(str(tmp_path))
    assert source.classes == ("cats", "dogs")
    assert [(sample.key, sample.label, sample.split) for sample in source.samples] == [
        ("cats/000.png", 0, None),
        ("cats/001.png", 0, None),
        ("cats/B.JPeG", 0, None),
        ("cats/deep/er/c.TIFF", 0, None),
        ("dogs/000.png", 1, None),
    ]
    assert source.read(source.samples[3]).size == (5, 5)


def test_symlinks_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "set", {"a": 1, "b": 1})
    elsewhere = make_class_folders(tmp_path / "elsewhere", {"c": 2})
    (root / "c").symlink_to(elsewhere / "c")
    (root / "a" / "link.png").symlink_to(elsewhere / "c" / "001.png")
    (root / "a" / "loop").symlink_to(root / "a")
    (root / "b" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(str(root))
    keys = [sample.key for sample in source.samples]
    assert keys == [
        *("a/000.png", "a/link.png", "b/000.png", "b/lost.png"),
        *("c/000.png", "c/001.png"),
    ]
    assert source.fingerprint  # a dangling link is somebody's image: unreadable, not absent
    with pytest.raises(OSError, match="No such file"):
        source.read(source.samples[3])


def test_odd_file_names_are_kept(tmp_path: Path) -> None:
    make_class_folders(tmp_path, {"Käfer 🐞": 1, "b": 1})
    names = ["a b.png", "ü\u0308.png", "new\nline.png", "日本.png", "-x%20&'.png"]
    for name in names:
        photo(4, 4).save(tmp_path / "b" / name)
    raw = os.fsencode(tmp_path / "b") + b"/caf\xe9.png"
    shutil.copy(tmp_path / "b" / "000.png", os.fsdecode(raw))
    source = open_source(str(tmp_path))
    keys = {sample.key for sample in source.samples}
    assert keys == {"Käfer 🐞/000.png", "b/000.png", "b/caf\\xe9.png", *(f"b/{n}" for n in names)}
    assert all(source.read(sample).mode == "RGB" for sample in source.samples)
    assert source.fingerprint


def test_two_spellings_of_a_class_are_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_split_folder(
        tmp_path, {"train": {"Ka\u0308fer": 1, "x": 1}, "test": {"Käfer": 2, "x": 1}}
    )
    source = open_source(str(tmp_path))
    assert source.classes == ("Käfer", "x")
    assert not caplog.records  # as they come from two systems
    make_class_folders(tmp_path / "test", {"Ka\u0308fer": 1})
    source = open_source(str(tmp_path))
    assert [sample.label for sample in source.samples] == [0, 0, 0, 1, 0, 1]
    assert "'Käfer': folders whose names differ in how Unicode spells them" in caplog.text
    assert all(source.read(sample).size == (20, 16) for sample in source.samples)


def test_a_single_class_in_another_spelling_is_refused_as_one(tmp_path: Path) -> None:
    make_class_folders(tmp_path / "Ka\u0308fer", {"a": 1, "b": 1})
    assert f"did you mean {tmp_path / 'Ka'}" in refusal(tmp_path).replace("\u0308fer", "")


def test_files_that_print_alike_are_refused(tmp_path: Path) -> None:
    make_class_folders(tmp_path, {"a": 1, "b": 1})
    for raw in (b"caf\xe9.png", rb"caf\xe9.png"):
        shutil.copy(
            tmp_path / "b" / "000.png", os.fsdecode(os.fsencode(tmp_path / "b") + b"/" + raw)
        )
    assert r"are written 'b/caf\\xe9.png'; rename one of them" in refusal(tmp_path)


def test_what_is_called_like_an_image_and_is_none_is_not_waited_for(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path, {"a": 1, "b": 1})
    os.mkfifo(root / "a" / "pipe.png")
    (root / "a" / "link-to-pipe.png").symlink_to(root / "a" / "pipe.png")
    (root / "a" / "link-to-zeros.png").symlink_to("/dev/zero")
    (root / "a" / "loop.png").symlink_to(root / "a" / "loop.png")
    (root / "b" / "folder.png").mkdir()
    photo(4, 4).save(root / "b" / "folder.png" / "0.png")
    keys = [sample.key for sample in open_source(str(root)).samples]
    assert keys == ["a/000.png", "a/loop.png", "b/000.png", "b/folder.png/0.png"]


def test_the_images_found_are_told(tmp_path: Path) -> None:
    make_class_folders(tmp_path, {"a": 2, "b": 3})
    calls: list[tuple[str, int, int | None]] = []
    open_source(str(tmp_path), lambda *one: calls.append(one))
    assert calls == [(INDEXING, 2, None), (INDEXING, 5, None), (READING, 5, 5)]


def test_the_home_folder_may_be_written_as_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_class_folders(tmp_path / "pets", {"a": 1, "b": 1})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("~/pets").name == "~/pets"


class TestFingerprint:
    def test_follows_names_sizes_and_contents(self, tmp_path: Path) -> None:
        root = make_class_folders(tmp_path / "a", {"x": 2, "y": 2})
        before = open_source(str(root)).fingerprint
        shutil.copytree(root, tmp_path / "b")
        assert open_source(str(tmp_path / "b")).fingerprint == before
        seen = {before}
        (root / "x" / "000.png").rename(root / "x" / "002.png")
        seen.add(open_source(str(root)).fingerprint)
        photo(20, 16, seed=99).save(root / "x" / "002.png")
        seen.add(open_source(str(root)).fingerprint)
        (root / "y" / "000.png").unlink()
        seen.add(open_source(str(root)).fingerprint)
        assert len(seen) == 4

    def test_reads_both_ends_of_large_files(self, tmp_path: Path) -> None:
        root = make_class_folders(tmp_path, {"x": 1, "y": 1})
        large = root / "x" / "large.png"
        data = bytearray(300_000)
        seen = set()
        for position in (None, 0, 65_535, 299_999, 240_000):
            if position is not None:
                data[position] += 1
            large.write_bytes(data)
            seen.add(open_source(str(root)).fingerprint)
        assert len(seen) == 5


class TestRefusals:
    def test_what_is_nothing(self, tmp_path: Path) -> None:
        assert refusal("digit").startswith(
            f"a dataset is a known name ({', '.join(dataset_names())}), the path of a folder with "
            "one folder of images for each class, of a zip or tar file of such folders, or of a "
            "table (.csv, .tsv, .parquet) with a path and a label in each row, or "
            "hf://owner/name, but 'digit' is none of these; did you mean 'digits'?; nothing is "
            "at '/"
        )
        assert "did you mean" not in refusal(tmp_path / "nowhere")
        assert refusal("a\0b").endswith("is none of these")
        for long in ("x" * 5000, f"{'x' * 5000}.csv", f"{'x' * 5000}.zip"):
            assert "is none of these; nothing is at " in refusal(long)

    def test_another_file(self, tmp_path: Path) -> None:
        (tmp_path / "pets.txt").write_text("cat")
        message = refusal(tmp_path / "pets.txt")
        assert message.startswith("a dataset is the path of a folder with one folder of images")
        assert message.endswith("pets.txt' is a text file")
        os.mkfifo(tmp_path / "pets.csv")
        assert refusal(tmp_path / "pets.csv").endswith("pets.csv' is no regular file")

    @pytest.mark.parametrize(
        ("folders", "message"),
        [
            (
                {},
                "a dataset has one folder for each class, but {root} has no folders; put the "
                "images of each class into a folder named after the class",
            ),
            ({".": 3}, "{root} has no folders; its 3 images lie directly in it; put the images"),
            ({"only": 2}, "a dataset needs at least two classes, but {root} has one, 'only'; put"),
            ({"p/a": 1, "p/b": 1}, "{root} has one, 'p'; did you mean {root}/p?"),
            (
                {"a": 1, "b": 1, "c": 0, "d": 0},
                ".heic .heif .hif), but {root} has none in 'c', 'd'; fill or remove them",
            ),
            (
                {"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 0},
                "{root} has none in 'val/b'; fill or remove it",
            ),
            (
                {"train/a": 1, "train/b": 1, "val/a": 1},
                "the splits of a folder must have the same classes, but 'b' of {root} is missing "
                "in validation; add images there, or remove the class from the other splits",
            ),
            (
                {"train/a": 1, "val/a": 1, "val/b": 1},
                "'b' of {root} is missing in train; add images",
            ),
        ],
    )
    def test_layouts(self, tmp_path: Path, folders: dict[str, int], message: str) -> None:
        root = tmp_path / "root"
        make_class_folders(root, folders)
        root.mkdir(exist_ok=True)
        assert message.format(root=root) in refusal(root)

    def test_a_folder_that_may_not_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_class_folders(tmp_path, {"a": 1, "b": 1})
        scandir = os.scandir

        def closed(path: str) -> object:  # the tests may run as root, who may read everything
            if str(path).endswith("b"):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", closed)
        assert refusal(tmp_path) == (
            f"every folder of a dataset must be readable, but {tmp_path / 'b'}: Permission "
            "denied; change its permissions or move it elsewhere"
        )
