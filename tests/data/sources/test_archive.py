from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from autotune.data.download.paths import unpacked_folder
from autotune.data.progress import INDEXING, READING
from autotune.data.sources.registry import _archive_digest, open_source
from autotune.errors import DatasetError
from tests.support.data.archives import tar_bytes, zip_bytes
from tests.support.data.images import make_class_folders, make_split_folder

pytestmark = pytest.mark.usefixtures("home")


def files(folder: Path, around: str = "") -> dict[str, bytes]:
    result = sorted(path for path in folder.rglob("*") if path.is_file())
    return {around + path.relative_to(folder).as_posix(): path.read_bytes() for path in result}


def pack(folder: Path, name: str) -> Path:
    """Pack a folder as people do."""
    kind = {".zip": "zip", ".tar": "tar", ".tar.gz": "gztar", ".tar.xz": "xztar"}[name]
    made = shutil.make_archive(str(folder.parent / "photos"), kind, folder.parent, folder.name)
    return Path(made)


@pytest.mark.parametrize("name", [".zip", ".tar", ".tar.gz", ".tar.xz"])
def test_an_archive_is_the_folder_that_is_in_it(tmp_path: Path, home: Path, name: str) -> None:
    folder = make_class_folders(tmp_path / "set", {"a": 2, "b": 1})
    path = pack(folder, name)
    source, there = open_source(str(path)), open_source(str(folder))
    assert source.name == str(path)
    assert (source.classes, source.samples) == (there.classes, there.samples)
    assert source.fingerprint == there.fingerprint
    for sample, other in zip(source.samples, there.samples, strict=True):
        assert np.array_equal(np.asarray(source.read(sample)), np.asarray(there.read(other)))


def test_it_is_unpacked_once_wherever_it_lies(tmp_path: Path, home: Path) -> None:
    path = pack(make_class_folders(tmp_path / "set", {"a": 2, "b": 1}), ".zip")
    calls: list[str] = []
    for _ in range(2):
        open_source(str(path), lambda step, *_: calls.append(step))
    assert [
        step for step, after in zip(calls, [*calls[1:], ""], strict=True) if step != after
    ] == [
        *("unpacking the images", INDEXING, READING),
        *(INDEXING, READING),
    ]
    path.rename(tmp_path / "moved")  # by its content it is known too
    assert len(open_source(str(tmp_path / "moved")).samples) == 3
    assert len(list((home / "unpacked").glob("[!.]*"))) == 1


def test_another_archive_of_the_same_name_is_another(tmp_path: Path, home: Path) -> None:
    path = pack(make_class_folders(tmp_path / "set", {"a": 2, "b": 1}), ".zip")
    first = open_source(str(path)).fingerprint
    shutil.rmtree(tmp_path / "set")
    path = pack(make_class_folders(tmp_path / "set", {"a": 1, "b": 2}), ".zip")
    assert open_source(str(path)).fingerprint != first


@pytest.mark.parametrize("around", ["", "set/", "one/two/", "."])
def test_folders_around_the_classes_are_looked_through(tmp_path: Path, around: str) -> None:
    folder = make_class_folders(tmp_path / "set", {"a": 1, "b": 1})
    of_macos = {"__MACOSX/._set": b"", "__MACOSX/set/a/._000.png": b"", "set.txt": b"read me"}
    around = "./" if around == "." else around
    (tmp_path / "set.zip").write_bytes(zip_bytes({**files(folder, around), **of_macos}))
    source = open_source(str(tmp_path / "set.zip"))
    assert [sample.key for sample in source.samples] == ["a/000.png", "b/000.png"]
    assert list(source.passed_over) == ["texts and tables"] * (around in ("", "./"))


def test_parts_in_an_archive_are_kept(tmp_path: Path) -> None:
    counts = {"a": 1, "b": 1}
    folder = make_split_folder(tmp_path / "set", {"train": counts, "test": counts})
    (tmp_path / "set.tar").write_bytes(tar_bytes(files(folder, "set/")))
    source = open_source(str(tmp_path / "set.tar"))
    assert [sample.split for sample in source.samples] == ["test", "test", "train", "train"]


@pytest.mark.parametrize("content", [{"a/readme": b"x"}, {"a/1.png": b"x"}, {"1.png": b"x"}, {}])
def test_an_archive_without_class_folders_leaves_nothing(
    tmp_path: Path, home: Path, content: dict[str, bytes]
) -> None:
    (tmp_path / "set.zip").write_bytes(zip_bytes(content))
    with pytest.raises(DatasetError, match=r"^'.*/set.zip' was unpacked into .*: "):
        open_source(str(tmp_path / "set.zip"))
    assert not list((home / "unpacked").glob("[!.]*"))


def test_other_splits_do_not_remove_what_a_study_reads(tmp_path: Path) -> None:
    folder = make_class_folders(tmp_path / "set", {"images": 1, "masks": 1})
    source = open_source(str(pack(folder, ".zip")), splits="none")
    with pytest.raises(DatasetError, match="'masks' beside 'images' may be no classes"):
        open_source(source.name)
    assert source.read(source.samples[0]).size == (20, 16)


def test_what_an_earlier_version_has_unpacked_is_not_used(tmp_path: Path, home: Path) -> None:
    """It saw the zip file at the end of this tar file, and not the images."""
    images = files(make_class_folders(tmp_path / "set", {"a": 1, "b": 1}))
    old = zip_bytes({"x/1.png": b"1", "y/1.png": b"2"})
    path = tmp_path / "set.tar"
    path.write_bytes(tar_bytes({**images, "old.zip": old}, pad=False))
    former = unpacked_folder(_archive_digest(str(path)))
    make_class_folders(former, {"x": 1, "y": 1})
    for _ in range(2):
        assert open_source(str(path)).classes == ("a", "b")
    assert len(list((home / "unpacked").glob("[!.]*"))) == 1


@pytest.mark.parametrize("inner", ["a.zip", "photos/2024/a.tar", "__MACOSX/b.zip"])
def test_archives_in_an_archive_are_named(tmp_path: Path, inner: str) -> None:
    packed = zip_bytes({"a/1.png": b"1", "b/1.png": b"2"})
    (tmp_path / "set.zip").write_bytes(zip_bytes({inner: packed, "readme.txt": b"x"}))
    with pytest.raises(DatasetError, match=rf"holds other archives \({inner}\) and no class"):
        open_source(str(tmp_path / "set.zip"))


def test_a_wrong_layout_beside_an_archive_is_what_is_named(tmp_path: Path) -> None:
    images = files(make_class_folders(tmp_path / "set", {"a": 2}))
    (tmp_path / "set.zip").write_bytes(zip_bytes({**images, "old.zip": zip_bytes({})}))
    with pytest.raises(DatasetError, match="a dataset needs at least two classes"):
        open_source(str(tmp_path / "set.zip"))
