from __future__ import annotations

import functools
import os
import pathlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from autotune.errors import BackboneError
from autotune.models.pretrained.reading import find_file, read_file

TENSORS = {"layer.weight": torch.ones(50, 50)}


class Touch:
    """Makes a folder when it is unpickled by a reader that runs what a file says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class Evaluated(Touch):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('os').mkdir({str(self.path)!r})",)


def write(file: Path, how: str) -> Path:
    """Write a file that is not what it is called, or is damaged."""
    contents: dict[str, str | bytes] = {
        "empty": b"",
        "lfs": "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46830571\n",
        "html": "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
        "json": '{"architecture": "resnet18"}',
        "text": "not weights at all\n" * 100,
        "onnx": b"\x08\x08\x12\x07pytorch\x1a\x052.5.0",
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "noise": bytes(range(255, 128, -1)) * 9,
    }
    if how in contents:
        content = contents[how]
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    elif how == "torchscript":
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)  # type: ignore[no-untyped-call]
    elif how == "module":
        torch.save(timm.create_model("test_resnet"), file)
    elif how == "module inside":
        torch.save({"model": timm.create_model("test_resnet"), "epoch": 1}, file)
    elif how in ("code", "other code"):
        kind = Touch if how == "code" else Evaluated
        torch.save({"state_dict": TENSORS, "extra": kind(file.parent / "pwned")}, file)
    else:
        if "safetensors" in how:
            save_file(TENSORS, file)
        else:
            torch.save(TENSORS, file, _use_new_zipfile_serialization="old" not in how)
        size = file.stat().st_size
        if "bit" in how:
            content = bytearray(file.read_bytes())
            content[20] ^= 255
            file.write_bytes(content)
        else:
            os.truncate(file, size // 2)
    return file


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", "it is an empty file; .*get it again"),
        ("lfs", "it is a Git LFS pointer.*; run 'git lfs pull'"),
        ("html", "it is an HTML page; .*a login"),
        ("json", "it is a JSON file; .*its settings"),
        ("text", "it is a text file; give a .safetensors file"),
        ("onnx", "it is an ONNX model; .*converted"),
        ("hdf5", "it is an HDF5 file, as Keras.*converted"),
        ("noise", "its first bytes are of no kind of weights; give"),
        ("torchscript", "it is a TorchScript program; .*save its tensors alone"),
        ("half safetensors", r"it ends after [\d,]+ of 10,\d+ bytes; get it again"),
        ("bit of safetensors", "it is a damaged safetensors file .*; get it again"),
        ("half pth", "it is a PyTorch checkpoint whose end is missing; .*get it again"),
        ("half old pth", "it is a damaged PyTorch checkpoint"),
        ("module", r"it is a whole pickled module \(timm.models.resnet.ResNet\)"),
        ("module inside", r"its 'model' is a whole pickled module \(timm.models.resnet.ResNet\)"),
        ("code", r"it holds Python objects besides tensors \(posix.mkdir\)"),
        ("other code", r"it holds Python objects besides tensors \(builtins.eval\)"),
    ],
)
def test_a_file_that_is_not_what_it_is_called(how: str, message: str, tmp_path: Path) -> None:
    from autotune.models.backbone import load_backbone

    for suffix in (".pth", ".safetensors"):
        file = write(tmp_path / f"w{suffix}", how)
        with pytest.raises(BackboneError, match=f"cannot read '.*w{suffix}': {message}") as caught:
            load_backbone("test_resnet", str(file))
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin", ""])
def test_the_name_of_a_file_decides_nothing(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"w{suffix}"
    save_file(TENSORS, file)
    assert list(read_file(file)[0]) == list(TENSORS)
    torch.save(TENSORS, file)
    assert list(read_file(file)[0]) == list(TENSORS)


@pytest.fixture
def library() -> Iterator[types.ModuleType]:
    """A library that the reader of a checkpoint may not have."""
    module = types.ModuleType("some_library")
    for name, bases in (("Config", (dict,)), ("Settings", (object,))):
        kind = type(name, bases, {"__module__": "some_library", "__qualname__": name})
        setattr(module, name, kind)
    sys.modules["some_library"] = module
    yield module
    del sys.modules["some_library"]


def test_objects_of_other_libraries_are_placeholders(
    library: types.ModuleType, tmp_path: Path
) -> None:
    settings = library.Settings()
    settings.lr = np.float64(0.1)
    torch.save(
        {
            "state_dict": TENSORS,
            "hyper_parameters": library.Config(optimizer=functools.partial(torch.optim.SGD, lr=1)),
            "settings": settings,
            "path": pathlib.Path("runs"),
            "best": np.float64(0.9),
            "arrays": {"a": np.ones(3, dtype="float32"), "b": np.arange(3)},
            "classes": np.array(["cat", "dog"]),
            "objects": np.array([[1], [2, 3]], dtype=object),
            "date": np.array("2026-01-01", dtype="datetime64[s]"),
        },
        tmp_path / "last.ckpt",
    )
    del sys.modules["some_library"]
    content, _ = read_file(tmp_path / "last.ckpt")
    sys.modules["some_library"] = library
    assert content["state_dict"].keys() == TENSORS.keys()
    assert type(content["settings"]) is not library.Settings
    assert content["best"] == 0.9 and content["arrays"]["a"].dtype == "float32"


def test_a_folder_has_one_file(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"there is no file .*'hub', 'none' or the path"):
        find_file(tmp_path / "missing.pth")
    with pytest.raises(BackboneError, match="has no file of weights; give"):
        find_file(tmp_path)
    (tmp_path / "best.PTH").touch()
    (tmp_path / "._best.PTH").touch()
    with pytest.raises(BackboneError, match=r"no file .*did you mean 'best.PTH'"):
        find_file(tmp_path / "bets.PTH")
    assert find_file(tmp_path).name == "best.PTH"
    (tmp_path / "last.pth").touch()
    with pytest.raises(
        BackboneError, match=r"has 2 files of weights: best.PTH, last.pth; give one"
    ):
        find_file(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert find_file(tmp_path).name == "model.safetensors"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("saved_model.pb", "is a TensorFlow model"),
        (".metadata", "a distributed checkpoint; 'python -m torch.distributed.checkpoint"),
        ("zero_to_fp32.py", "a checkpoint of DeepSpeed; 'python zero_to_fp32.py"),
        ("digits/model.safetensors", r"its folder digits has"),
        ("snapshots/abc/model.safetensors", r"its folder snapshots/abc has"),
        ("global_step10/mp_rank_00_model_states.pt", r"its folder global_step10 has"),
    ],
)
def test_a_folder_of_something_else(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).touch()
    with pytest.raises(BackboneError, match=message):
        find_file(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/dev/null", "is no regular file"),
        ("https://example.org/w.pth", "is an address; download the file"),
        ("file:///w.pth", "is an address; download the file"),
        ("None", "did you mean 'none'"),
        ("x" * 300, "there is no file"),
        ("link.pth", "is a link to 'gone.pth', which is not there"),
    ],
)
def test_a_path_of_no_file(
    path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link.pth").symlink_to("gone.pth")
    with pytest.raises(BackboneError, match=message):
        find_file(Path(path))


def test_the_files_of_an_index_are_read_together(tmp_path: Path) -> None:
    for index in range(2):
        save_file({f"layer.{index}": torch.ones(2)}, tmp_path / f"model-{index}.safetensors")
    index_file = tmp_path / "model.safetensors.index.json"
    index_file.write_text(
        '{"weight_map": {"layer.0": "model-0.safetensors", "layer.1": "model-1.safetensors"}}'
    )
    (tmp_path / "pytorch_model.bin.index.json").touch()
    assert find_file(tmp_path) == index_file
    assert set(read_file(index_file)[0]) == {"layer.0", "layer.1"}
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"there is no file .*model-1"):
        read_file(index_file)
    index_file.write_text('{"error": "not found"}')
    with pytest.raises(BackboneError, match="it is no index of files of weights"):
        read_file(index_file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_protocol_that_is_not_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "w.pth", pickle_protocol=4)
    with pytest.raises(BackboneError, match=r"a pickle protocol .*without pickle_protocol="):
        read_file(tmp_path / "w.pth")
