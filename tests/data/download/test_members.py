"""Archives as people have them: what they are is told by their bytes, and nothing is lost."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from autotune.data.download.extraction import extract, is_archive
from autotune.errors import DatasetError
from tests.data.download.test_extraction import content
from tests.support.data.archives import tar_bytes, zip_bytes

FILES = {"cat/1.jpg": b"a cat", "dog/1.jpg": b"a dog" * 2000}
MORE = {"cow/1.jpg": b"a cow", "fox/1.jpg": b"a fox"}
OLD = zip_bytes({"red/1.jpg": b"red", "blue/1.jpg": b"blue"})


def unpacked(name: str, data: bytes, folder: Path) -> dict[str, bytes]:
    (folder / name).write_bytes(data)
    assert is_archive(folder / name)
    extract(folder / name, folder / "out")
    return content(folder / "out")


def refusal(name: str, data: bytes, folder: Path) -> str:
    (folder / name).write_bytes(data)
    with pytest.raises(DatasetError) as refused:
        extract(folder / name, folder / "out")
    assert not (folder / "out").exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)


# The first bytes tell the format


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("plain.tar", tar_bytes({**FILES, "old.zip": OLD}, pad=False)),
        ("named.zip", tar_bytes({**FILES, "old.zip": OLD}, pad=False)),
        ("tail.tar.gz", gzip.compress(tar_bytes({**FILES, "old.zip": OLD}), compresslevel=0)),
        ("set.tar", zip_bytes({**FILES, "old.zip": OLD})),
        ("set", bz2.compress(tar_bytes({**FILES, "old.zip": OLD}))),
        ("set.gz", lzma.compress(tar_bytes({**FILES, "old.zip": OLD}))),
        ("photos.jpg", gzip.compress(tar_bytes({**FILES, "old.zip": OLD}))),
        ("set.csv", zip_bytes({**FILES, "old.zip": OLD})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_first_bytes_tell_the_format(name: str, data: bytes, tmp_path: Path) -> None:
    assert unpacked(name, data, tmp_path) == {**FILES, "old.zip": OLD}


def test_a_zip_file_behind_other_bytes_is_read_by_its_name(tmp_path: Path) -> None:
    assert unpacked("set.zip", b"of a program" + zip_bytes(FILES), tmp_path) == FILES


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, images=np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (zip_bytes({"xl/workbook.xml": b"", "xl/media/image1.png": b"x"}), "an Excel workbook"),
        (zip_bytes({"word/document.xml": b""}), "a Word document"),
        (zip_bytes({"META-INF/MANIFEST.MF": b"", "AndroidManifest.xml": b""}), "an Android app"),
        (zip_bytes({"META-INF/MANIFEST.MF": b"", "a.png": b""}), "a Java archive"),
        (zip_bytes({"mimetype": b"", "META-INF/container.xml": b""}), "an EPUB book"),
        (zip_bytes({"net/data.pkl": b"", "net/version": b"3"}), "a PyTorch checkpoint"),
        (_npz(), "an archive of NumPy arrays"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_document_is_no_archive_of_images(data: bytes, kind: str, tmp_path: Path) -> None:
    assert f"set.zip is {kind}" in refusal("set.zip", data, tmp_path)


def test_images_beside_what_documents_have(tmp_path: Path) -> None:
    files = {"cat/data.pkl": b"", "cat/xl/workbook.xml": b"", "dog/1.npy": b"", "dog/1.jpg": b"x"}
    assert unpacked("set.zip", zip_bytes(files), tmp_path) == files


# What is whole, and cannot be read


def _patched(data: bytes, local: int, central: int, value: int, size: str = "<H") -> bytes:
    """Change a field of every header, at these offsets of local and central ones."""
    changed = bytearray(data)
    for sign, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        start = 0
        while (at := data.find(sign, start)) >= 0:
            struct.pack_into(size, changed, at + offset, value)
            start = at + 4
    return bytes(changed)


@pytest.mark.parametrize(
    ("method", "word"),
    [(9, "Deflate64"), (6, "Implode"), (95, "xz"), (98, "PPMd"), (97, "method 97")],
)
def test_a_method_of_compression_that_python_lacks(method: int, word: str, tmp_path: Path) -> None:
    data = _patched(zip_bytes(FILES), 8, 10, method)
    message = refusal("set.zip", data, tmp_path)
    assert f"'cat/1.jpg' is compressed with {word}, which Python does not read" in message
    assert "unpack it with unzip or 7z x and name the folder" in message


@pytest.mark.parametrize(("method", "flags"), [(8, 0x1), (99, 0x1), (8, 0x2041)])
def test_an_encrypted_zip_file(method: int, flags: int, tmp_path: Path) -> None:
    data = _patched(_patched(zip_bytes(FILES), 8, 10, method), 6, 8, flags)
    message = refusal("set.zip", data, tmp_path)
    assert "is encrypted; unpack it with its password (unzip, 7z x) and name the folder" in message


def test_a_large_zip_file_of_macos(tmp_path: Path) -> None:
    """Without Zip64, places in the file are written without their multiples of 4 GB."""
    data = zip_bytes(FILES)
    start = data.index(b"PK\x01\x02")
    with (tmp_path / "set.zip").open("wb") as stream:
        stream.write(data[:start])
        stream.seek(1 << 32, 1)
        stream.write(data[start:])
    with pytest.raises(DatasetError, match=r"over 4 GB, but not the format .*ditto -x -k"):
        extract(tmp_path / "set.zip", tmp_path / "out")


def _last_volume() -> bytes:
    data = bytearray(zip_bytes(FILES))
    struct.pack_into("<HH", data, data.rindex(b"PK\x05\x06") + 4, 2, 2)
    return bytes(data[1000:])


def _continued_tar() -> bytes:
    info = tarfile.TarInfo("cat/1.jpg")
    info.type, info.size = b"M", 100
    return info.tobuf() + bytes(10000)


VOLUMES: Mapping[str, bytes] = {
    "set.zip": _last_volume(),
    "set.z01": b"PK\x07\x08" + zip_bytes(FILES)[:2000],
    "set.zip.001": zip_bytes(FILES)[:60],
    "set.tar.gz.aa": gzip.compress(tar_bytes(FILES))[:80],
    "set.tar.001": tar_bytes(FILES)[:3000],
    "set.tar": _continued_tar(),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_one_of_several_volumes(name: str, tmp_path: Path) -> None:
    message = refusal(name, VOLUMES[name], tmp_path)
    assert "is one of several volumes; join them with '" in message and "damaged" not in message
    assert ("zip -s 0 set.zip" if ".z" in name[-4:] else "cat set.") in message


def test_labels_and_lists_of_gnu_tar(tmp_path: Path) -> None:
    others = [tarfile.TarInfo("photos of 2024"), tarfile.TarInfo("cat")]
    others[0].type, others[1].type = b"V", b"D"
    assert unpacked("set.tar", tar_bytes(FILES, *others), tmp_path) == FILES


# Names


def named(names: Mapping[str, bytes], flags: int = 0, extra: bytes = b"") -> bytes:
    """Make a zip file with names of any bytes: ASCII stand-ins of the same length -> bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.extra = extra
            archive.writestr(info, b"x")
    data = file.getvalue()
    for name, raw in names.items():
        assert len(name) == len(raw) and name.isascii()
        data = data.replace(name.encode(), raw)
    return _patched(data, 6, 8, flags)


def encoded(*names: str, encoding: str, flags: int = 0) -> bytes:
    raw = [name.encode(encoding) for name in names]
    return named({f"{n:_<{len(name)}}": name for n, name in enumerate(raw, 10)}, flags)


@pytest.mark.parametrize(
    ("encoding", "flags"), [("utf-8", 0x800), ("utf-8", 0), ("cp437", 0), ("cp850", 0)]
)
@pytest.mark.parametrize(
    "names", [("Käfer/übel.jpg", "Vögel/1.jpg"), ("pâté/Schlüssel.jpg", "café/Größe.jpg")]
)
def test_names_whose_encoding_can_be_told(
    names: tuple[str, ...], encoding: str, flags: int, tmp_path: Path
) -> None:
    data = encoded(*names, encoding=encoding, flags=flags)
    assert set(unpacked("set.zip", data, tmp_path)) == set(names)


@pytest.mark.parametrize(
    ("encoding", "word"),
    [
        ("gbk", "猫"),
        ("cp932", "ネコ"),
        ("cp932", "猫"),
        ("cp949", "고양이"),
        ("big5", "貓貓"),
        ("cp866", "кошка"),
        ("cp1252", "Käfer"),
    ],
)
def test_names_whose_encoding_cannot_be_told(encoding: str, word: str, tmp_path: Path) -> None:
    data = encoded(f"set/{word}/{word}.jpg", "set/dog/1.jpg", encoding=encoding)
    message = refusal("set.zip", data, tmp_path)
    assert f"'set/{word}' in {encoding}" in message
    assert "'python -m zipfile --metadata-encoding " in message and "name the folder" in message


def test_the_command_that_the_message_names(tmp_path: Path) -> None:
    data = encoded("猫/1.jpg", "狗/1.jpg", encoding="gbk")
    message = refusal("set.zip", data, tmp_path)
    command = message.partition("such as 'python -m ")[2].partition("'")[0].split()
    assert command[:4] == ["zipfile", "--metadata-encoding", "gbk", "-e"]
    zipfile.main([*command[1:-1], str(tmp_path / "out")])
    assert set(content(tmp_path / "out")) == {"猫/1.jpg", "狗/1.jpg"}


def test_names_of_files_alone_keep_their_bytes(tmp_path: Path) -> None:
    names = unpacked("set.zip", encoded("cat/猫.jpg", encoding="gbk"), tmp_path)
    assert [name.encode("utf-8", "surrogateescape") for name in names] == [b"cat/\xc3\xa8.jpg"]


@pytest.mark.parametrize("around", ["图片", "数据/图片"])
def test_folders_around_the_classes_may_have_any_name(around: str, tmp_path: Path) -> None:
    data = encoded(f"{around}/cat/1.jpg", f"{around}/dog/猫.jpg", encoding="gbk")
    names = sorted(unpacked("set.zip", data, tmp_path))
    assert [name.rsplit("/", 2)[1] for name in names] == ["cat", "dog"]


def test_names_in_the_extra_field_of_info_zip(tmp_path: Path) -> None:
    raw, name = "猫/1.jpg".encode("gbk"), "猫/1.jpg".encode()
    extra = struct.pack("<HHBL", 0x7075, 5 + len(name), 1, zlib.crc32(raw)) + name
    data = named({"10/1.jpg": raw}, extra=extra)
    assert set(unpacked("set.zip", data, tmp_path)) == {"猫/1.jpg"}


# Joined archives


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("whole", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_joined_tar_files(whole: Callable[[bytes], bytes], pad: bool, tmp_path: Path) -> None:
    one, two = (tar_bytes(files, pad=pad) for files in (FILES, MORE))
    assert unpacked("all.tar", whole(one + two), tmp_path) == {**FILES, **MORE}
    if pad:  # each compressed for itself
        (tmp_path / "each").mkdir()
        data = whole(one) + whole(two)
        assert unpacked("all.tgz", data, tmp_path / "each") == {**FILES, **MORE}


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("all.zip", zip_bytes(FILES) + zip_bytes(MORE), "is several zip files in one"),
        ("all.tar", tar_bytes(FILES) + gzip.compress(tar_bytes(MORE)), "follows a gzip file"),
        ("all.tar", tar_bytes(FILES) + zip_bytes(MORE), "follows a zip archive"),
        ("all.tar", tar_bytes(FILES) + b"\xffgarbage" * 99, "follows other content"),
        ("all.tar", tar_bytes(FILES) + tar_bytes(FILES), "would be written over another one"),
        ("all.tar", tar_bytes(FILES) + tar_bytes(MORE)[:900], "damaged"),
        ("all.tgz", gzip.compress(tar_bytes(FILES)) + tar_bytes(MORE), "damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_joined_files_that_are_refused(name: str, data: bytes, word: str, tmp_path: Path) -> None:
    assert word in refusal(name, data, tmp_path)
