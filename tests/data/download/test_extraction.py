from __future__ import annotations

import bz2
import gzip
import io
import lzma
import multiprocessing
import os
import signal
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from autotune.data.download import extraction as extracting
from autotune.data.download import members
from autotune.data.download.extraction import extract, is_archive
from autotune.data.download.members import MAX_RATIO
from autotune.data.sources.registry import open_source
from autotune.errors import DatasetError, DiskFullError, InsufficientSpaceError
from tests.support.data.archives import tar_bytes, zip_bytes

FORK = multiprocessing.get_context("fork")
FILES = {"set/cat/1.jpg": b"a cat", "set/dog/1.jpg": b"a dog" * 30000, "set/notes": b""}
KINDS: Mapping[str, Callable[[bytes], bytes]] = {
    "set.tar": bytes,
    "set.tar.gz": gzip.compress,
    "set.tgz": gzip.compress,
    "set.tar.bz2": bz2.compress,
    "set.tar.xz": lzma.compress,
}


def content(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def left(folder: Path) -> list[str]:
    """What is in a folder beside locks, which are never removed."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("name", [*KINDS, "set.zip"])
def test_a_whole_archive(name: str, tmp_path: Path) -> None:
    data = zip_bytes(FILES) if name == "set.zip" else KINDS[name](tar_bytes(FILES))
    archive = put(tmp_path / name, data)
    seen: list[tuple[int, int]] = []
    assert is_archive(archive)
    extract(archive, tmp_path / "new" / "set", lambda done, total: seen.append((done, total)))
    assert content(tmp_path / "new" / "set") == FILES
    assert seen[-1] == (150005, 150005)
    assert left(tmp_path / "new") == ["set"]


def test_a_folder_that_is_there_is_whole(tmp_path: Path) -> None:
    archive = put(tmp_path / "set.tar", tar_bytes(FILES))
    extract(archive, tmp_path / "out")
    archive.unlink()
    extract(archive, tmp_path / "out")
    assert content(tmp_path / "out") == FILES


def test_names_are_kept_and_nothing_else_is(tmp_path: Path) -> None:
    info = tarfile.TarInfo("./Ünï/\udcff.jpg")
    info.mode, info.uid, info.size = 0o4777, 4711, 2
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", errors="surrogateescape") as tar:
        tar.addfile(info, io.BytesIO(b"ab"))
    extract(put(tmp_path / "set.tar", file.getvalue()), tmp_path / "out")
    (one,) = (tmp_path / "out" / "Ünï").iterdir()
    assert os.fsencode(one.name) == b"\xff.jpg"
    assert one.stat().st_mode & 0o7111 == 0
    assert one.stat().st_uid == os.getuid()


def test_a_zip_that_windows_wrote(tmp_path: Path) -> None:
    extract(put(tmp_path / "a.zip", zip_bytes({"set\\cat\\1.jpg": b"x"})), tmp_path / "out")
    assert content(tmp_path / "out") == {"set/cat/1.jpg": b"x"}


MALICIOUS = {
    "absolute": (tar_bytes({"/tmp/autotune-escaped": b"x"}), "'/tmp/autotune-escaped' would be"),
    "parent": (tar_bytes({"a/../../escaped": b"x"}), "would be written outside of the folder"),
    "absolute zip": (zip_bytes({"/escaped": b"x"}), "would be written outside of the folder"),
    "parent zip": (zip_bytes({"..\\escaped": b"x"}), "would be written outside of the folder"),
    "symlink": (
        tar_bytes(FILES, member("link", tarfile.SYMTYPE, "/etc")),
        "'link' is a link or a device",
    ),
    "hard link": (tar_bytes(FILES, member("link", tarfile.LNKTYPE, "set/notes")), "is a link"),
    "device": (tar_bytes(FILES, member("null", tarfile.CHRTYPE)), "is a link or a device"),
    "pipe": (tar_bytes(FILES, member("pipe", tarfile.FIFOTYPE)), "is a link or a device"),
    "symlink zip": (zip_bytes({"link": b"/etc"}, mode=0o120777), "is a link or a device"),
    "twice": (tar_bytes({"a": b"1"}, member("./a", tarfile.REGTYPE)), "be written over another"),
    "file and folder": (tar_bytes({"a": b"1", "a/b": b"2"}), "'a' is a file and the folder of"),
    "deep": (tar_bytes({f"{'a/' * 1500}b": b"1"}), "is more than 64 folders deep"),
    "deep zip": (zip_bytes({f"{'a/' * 1500}b": b"1"}), "is more than 64 folders deep"),
    "no name": (tar_bytes({".": b"1"}), "would be written over another one"),
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_a_malicious_archive_is_refused_before_anything_is_written(
    case: str, tmp_path: Path
) -> None:
    data, message = MALICIOUS[case]
    archive = put(tmp_path / "bad", data)
    with pytest.raises(DatasetError) as refusal:
        extract(archive, tmp_path / "home" / "out")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert left(tmp_path) == ["bad", "home"]
    assert left(tmp_path / "home") == []


@pytest.mark.parametrize("name", [*KINDS, "set.zip"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.97])
def test_a_truncated_archive(name: str, share: float, tmp_path: Path) -> None:
    noise = {"set/1.jpg": os.urandom(40000), "set/2.jpg": os.urandom(40000)}
    data = zip_bytes(noise) if name == "set.zip" else KINDS[name](tar_bytes(noise, pad=False))
    archive = put(tmp_path / name, data[: int(share * len(data))])
    assert is_archive(archive)
    with pytest.raises(DatasetError, match="must be a whole zip or tar file, but it is damaged"):
        extract(archive, tmp_path / "out")
    assert left(tmp_path) == [name]


def test_a_tar_file_that_ends_between_two_files(tmp_path: Path) -> None:
    data = tar_bytes({"1.jpg": b"x" * 512, "2.jpg": b"y" * 512})
    archive = put(tmp_path / "set.tar", data[:1024])
    with pytest.raises(DatasetError, match=r"it is damaged \(it ends too early\)"):
        extract(archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["set.tar.gz", "set.zip"])
def test_a_byte_that_has_changed(name: str, tmp_path: Path) -> None:
    noise = {"set/1.jpg": os.urandom(40000)}
    data = bytearray(zip_bytes(noise) if name == "set.zip" else KINDS[name](tar_bytes(noise)))
    data[20000] ^= 255
    with pytest.raises(DatasetError, match="damaged"):
        extract(put(tmp_path / name, bytes(data)), tmp_path / "out")
    assert left(tmp_path) == [name]


def test_what_is_no_archive(tmp_path: Path) -> None:
    text = put(tmp_path / "notes.txt", b"hello" * 1000)
    assert not is_archive(text)
    assert not is_archive(tmp_path)
    assert not is_archive(tmp_path / "nothing.zip")
    assert is_archive(put(tmp_path / "without-suffix", tar_bytes(FILES)))
    with pytest.raises(DatasetError, match="damaged"):
        extract(text, tmp_path / "out")


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="No such file or directory"):
        extract(tmp_path / "gone.tar", tmp_path / "out")


def test_an_archive_larger_than_the_disk(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before anything is written."""
    monkeypatch.setattr(members, "MAX_RATIO", 10_000)
    archive = put(tmp_path / "bomb.tgz", gzip.compress(tar_bytes({"zeros": bytes(10**8)})))
    with pytest.raises(
        InsufficientSpaceError, match=r"takes 100 MB when it is unpacked, but the disk of"
    ):
        extract(archive, small_disk / "out")
    assert left(small_disk) == []


def test_a_disk_that_fills_up_meanwhile(small_disk: Path, tmp_path: Path) -> None:
    archive = put(tmp_path / "set.tar", tar_bytes({str(i): b"x" * 200_000 for i in range(4)}))

    def fill(done: int, total: int) -> None:
        if not (small_disk / "other").exists():
            (small_disk / "other").write_bytes(b"x" * 300_000)

    with pytest.raises(DiskFullError, match=f"no space left on the disk of {small_disk} while"):
        extract(archive, small_disk / "out", fill)
    assert left(small_disk) == ["other"]
    (small_disk / "other").unlink()
    extract(archive, small_disk / "out")
    assert len(content(small_disk / "out")) == 4


def killed_halfway(archive: Path, into: Path) -> None:
    extract(archive, into, lambda done, total: done < total or os.kill(os.getpid(), 9))


def test_what_a_killed_process_left_is_not_trusted(tmp_path: Path) -> None:
    archive = put(tmp_path / "set.tar", tar_bytes(FILES))
    process = FORK.Process(target=killed_halfway, args=(archive, tmp_path / "out"))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert left(tmp_path) == [".out.part", "set.tar"]
    extract(archive, tmp_path / "out")
    assert left(tmp_path) == ["out", "set.tar"]
    assert content(tmp_path / "out") == FILES


def slowly(archive: Path, into: Path, log: Path) -> None:
    def note(done: int, total: int) -> None:
        with open(log, "a") as stream:
            stream.write(f"{os.getpid()}\n")
        time.sleep(0.1)

    extract(archive, into, note)
    assert content(into) == FILES


def test_two_processes_at_once(tmp_path: Path) -> None:
    archive = put(tmp_path / "set.tar", tar_bytes(FILES))
    log = tmp_path / "log"
    arguments = (archive, tmp_path / "out", log)
    both = [FORK.Process(target=slowly, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(30)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(set(log.read_text().split())) == 1


# Archives that are made to fill the disk


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_an_archive_that_is_made_to_fill_the_disk(kind: str, tmp_path: Path) -> None:
    size = 40 << 20
    path = tmp_path / f"bomb.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(4):
                archive.writestr(f"a/{number}.png", bytes(size // 4))
    else:
        path.write_bytes(KINDS[f"set.{kind}"](tar_bytes({"a/zeros.png": bytes(size)})))
    assert path.stat().st_size * MAX_RATIO < size
    with pytest.raises(DatasetError, match=r"100 times its size.*unpack it yourself and name"):
        extract(path, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []


def test_zeros_behind_the_end_of_a_tar_file(tmp_path: Path) -> None:
    path = put(tmp_path / "tail.tar.gz", gzip.compress(tar_bytes(FILES) + bytes(40 << 20)))
    with pytest.raises(DatasetError, match="100 times its size"):
        extract(path, tmp_path / "out")


def test_a_header_that_claims_to_be_huge(tmp_path: Path) -> None:
    """tarfile reads such a header whole, into memory."""
    info = member("././@PaxHeader", tarfile.XHDTYPE)
    info.size = 1 << 32
    path = put(tmp_path / "header.tar", info.tobuf() + bytes(1 << 20))
    with pytest.raises(DatasetError):
        extract(path, tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_too_many_members(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are values in memory as files are, and a tar file of them shrinks a lot."""
    monkeypatch.setattr(extracting, "MAX_MEMBERS", 3)
    folders = [member(str(number), tarfile.DIRTYPE) for number in range(4)]
    pack = {"zip": zip_bytes({f"{number}/": b"" for number in range(4)})}
    path = put(tmp_path / f"many.{kind}", pack.get(kind) or tar_bytes({}, *folders))
    with pytest.raises(DatasetError, match=r"more than 3 files and folders.*unpack it yourself"):
        extract(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\x28\xb5\x2f\xfd", "Zstandard"),
        (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
        (b"Rar!\x1a\x07\x01\x00", "RAR"),
        (b"\x1f\x9d\x90", "compress"),
    ],
)
def test_a_format_that_is_not_read_here(start: bytes, name: str, tmp_path: Path) -> None:
    path = put(tmp_path / "photos.tar.zst", start + bytes(600))
    with pytest.raises(DatasetError, match=f"{name}.*pack it as .tar.gz or .zip"):
        open_source(str(path))


def test_blank_images_are_no_bomb(tmp_path: Path) -> None:
    """A few of them shrink a thousand times."""
    path = tmp_path / "blank.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.bmp", bytes(1 << 20))
    extract(path, tmp_path / "out")
    assert (tmp_path / "out/a/b.bmp").stat().st_size == 1 << 20
