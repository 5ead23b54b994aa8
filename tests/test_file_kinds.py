from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from autotune.file_kinds import file_kind


def image(format: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, format)
    return stream.getvalue()


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return stream.getvalue()


def written(write: Callable[[io.BytesIO], Any]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def old_torch(stream: io.BytesIO) -> None:
    torch.save({"a": torch.ones(2)}, stream, _use_new_zipfile_serialization=False)


TORCH = written(lambda stream: torch.save({"a": torch.ones(999)}, stream))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
KINDS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "an empty file"),
    "lfs": (LFS, "a Git LFS pointer"),
    "html": (b"\n<!DOCTYPE html>\n<html>", "an HTML page"),
    "xml": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "an XML document"),
    "json": (json.dumps({"error": "not found"}).encode(), "a JSON file"),
    "text": ("no weights: ä\n".encode() * 99, "a text file"),
    "noise": (bytes(range(255, 0, -1)), ""),
    "zeros": (b"\0" * 5000, "a file of zeros"),
    **{format: (image(format), f"a {format} image") for format in ("JPEG", "PNG", "BMP", "TIFF")},
    "zip": (zipped("a.txt"), "a zip archive"),
    "excel": (zipped("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook"),
    "half a zip": (zipped("a.txt", "b.txt")[:60], "a zip archive whose end is missing"),
    "npz": (written(lambda stream: np.savez(stream, a=np.ones(2))), "an archive of NumPy arrays"),
    "torch": (TORCH, "a PyTorch checkpoint"),
    "half of torch": (TORCH[:2000], "a PyTorch checkpoint whose end is missing"),
    "old torch": (written(old_torch), "a PyTorch checkpoint"),
    "torchscript": (zipped("m/data.pkl", "m/constants.pkl", "m/code/a"), "a TorchScript program"),
    "safetensors": (save({"a": torch.ones(2)}), "a safetensors file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file"),
    "onnx": (b"\x08\x08\x12\x07pytorch", "an ONNX model"),
    "saved model": (b"\x08\x01\x12\x07abcdefg", "a TensorFlow model"),
    "index": (b"\0abc" * 9 + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "the index of a TensorFlow"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_named_by_its_bytes(name: str, tmp_path: Path) -> None:
    content, kind = KINDS[name]
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    described = file_kind(file).name
    assert described.startswith(kind) and bool(described) == bool(kind), described


def test_a_folder_is_named(tmp_path: Path) -> None:
    assert file_kind(tmp_path).name == "a folder"
