"""Read a file of weights. Nothing in it is run, and its name decides nothing.

Checkpoints of a training hold more than tensors: settings, progress, objects of other libraries.
Torch's restricted reader refuses those; here each becomes an inert placeholder instead, and only
tensors are taken.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pickle
import re
import struct
import sys
from collections import OrderedDict
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from autotune.errors import BackboneError, did_you_mean, join_sentences
from autotune.file_kinds import file_kind
from autotune.text import error_line, join_some

_OTHER_FRAMEWORK = "it has to be converted to PyTorch first; weights=hub takes timm's own"
#: Names of the weights in a folder that timm, transformers or autotune wrote, best first.
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
#: Ending of the file that says which of several files has which tensor.
_INDEX = ".index.json"
#: A file of a folder of weights in another form, and what such a folder is.
_FOLDERS = {
    "saved_model.pb": f"a TensorFlow model; {_OTHER_FRAMEWORK}",
    ".metadata": "a distributed checkpoint; 'python -m torch.distributed.checkpoint.format_utils "
    "dcp_to_torch FOLDER weights.pth' makes one file of it",
    "zero_to_fp32.py": "a checkpoint of DeepSpeed; 'python zero_to_fp32.py . FOLDER' in it makes "
    "one file of it",
}
#: Endings of files of weights.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl")
_READABLE = "a .safetensors file, or a .pth, .pt, .bin or .ckpt file that torch.save has written"
#: What to do about a file that holds more than tensors.
SAVE_TENSORS = (
    "where it was made, save its tensors alone: "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)
#: What to do about a file, by a word of its kind.
_WAYS_OUT = {
    "Git LFS": "run 'git lfs pull' in its repository",
    "git-annex": "run 'git annex get' in its repository",
    "HTML": "instead of the file, a page was downloaded (a login, a license, an error)",
    "XML": "instead of the file, the message of a server may have been downloaded",
    "JSON": "instead of the file, its settings or the message of a server were downloaded",
    **dict.fromkeys(
        ("empty", "zeros", "end is missing"),
        "it was not written or downloaded to its end; get it again",
    ),
    **dict.fromkeys(("TorchScript", "torch.export", "pickle"), SAVE_TENSORS),
    **dict.fromkeys(("zip", "gzip", "tar archive"), "unpack it first"),
    **dict.fromkeys(("TensorFlow", "Keras", "ONNX", "NumPy", "GGUF"), _OTHER_FRAMEWORK),
}
#: Modules of Python's library whose objects checkpoints hold and that run nothing.
_HARMLESS = (
    *("argparse", "collections", "copyreg", "datetime", "decimal", "enum", "fractions"),
    *("functools", "logging", "pathlib", "types", "typing", "uuid"),
)
_NUMBERS = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "longdouble", "complex64", "complex128"),
    *("U1", "S1", "O", "V1", "M8[s]", "m8[s]"),  # class names, lists of unequal length, dates
)
#: Names of classes and functions that are read as they are: settings of timm, numbers of NumPy.
_SAFE: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "functools.partial": functools.partial,  # its state is no dictionary; making it calls nothing
    "numpy.dtype": np.dtype,
    "numpy.ndarray": np.ndarray,
    **{f"numpy.dtypes.{type(np.dtype(kind)).__name__}": type(np.dtype(kind)) for kind in _NUMBERS},
    **{
        f"numpy.{core}.multiarray.{name}": value.__reduce__()[0]
        for core in ("core", "_core")
        for name, value in (("scalar", np.float64(0)), ("_reconstruct", np.zeros(1)))
    },
}


def find_file(path: Path) -> Path:
    """Return a file of weights: the path itself, or the only one in the folder that it names.

    Raises:
        BackboneError: When there is none, or a folder has several.
    """
    if path.suffix == ".distcp":
        path = path.parent
    if os.path.isfile(path):  # a Path raises for a name that is too long
        return path
    if not os.path.isdir(path):
        raise _no_file(path)
    # A Mac leaves a file ._NAME beside a file NAME.
    names = sorted(
        file.name for file in path.iterdir() if file.is_file() and not file.name.startswith("._")
    )
    for name in FOLDER_FILES:
        if name in names:
            return path / name
    files = [name for name in names if name.lower().endswith(SUFFIXES)]
    if len(files) == 1:
        return path / files[0]
    for name in names:  # of two indexes, that of safetensors files is the first
        if name.endswith(_INDEX):
            return path / name
    way_out = next((text for name, text in _FOLDERS.items() if name in names), "")
    if way_out:
        what = f"is {way_out}"
    elif files:
        what = f"has {len(files)} files of weights: {join_some(files, 5)}; give one of them"
    else:
        folders = sorted(
            {
                str(file.parent.relative_to(path))
                for pattern in ("*/*", "*/*/*")
                for file in path.glob(pattern)
                if file.name.lower().endswith(SUFFIXES)
            }
        )
        inside = f" (its folder {join_some(folders, 3)} has)" if folders else ""
        what = f"has no file of weights{inside}; give {_READABLE}"
    raise BackboneError(f"weights: the folder {str(path)!r} {what}")


def _no_file(path: Path) -> BackboneError:
    """Return the error for a path that is neither a file nor a folder."""
    if os.path.islink(path):
        return BackboneError(
            f"weights: {str(path)!r} is a link to {str(path.readlink())!r}, which is not there"
        )
    if os.path.exists(path):
        return BackboneError(f"weights: {str(path)!r} is no regular file; give {_READABLE}")
    if re.match(r"[\w-]+:", str(path)):
        return BackboneError(
            f"weights: {str(path)!r} is an address; download the file and give its path, or give "
            "hf-hub:OWNER/NAME as the backbone and weights=hub"
        )
    siblings = (
        [other.name for other in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    )
    siblings += ["hub", "none"]
    return BackboneError(
        join_sentences(
            f"weights: there is no file {str(path)!r}; allowed are 'hub', 'none' or the path "
            f"of {_READABLE}, or of a folder that has one",
            did_you_mean(path.name, siblings),
        )
    )


def read_file(file: Path) -> tuple[Any, dict[str, str]]:
    """Read a file of weights.

    Returns:
        What it holds, tensors on the CPU, and the metadata of a safetensors file.

    Raises:
        BackboneError: With what the file is, when it holds no weights or is damaged.
    """
    try:
        kind = file_kind(file).name
        if kind == "a safetensors file":
            return _read_safetensors(file)
        if kind == "a PyTorch checkpoint":
            return _read_torch(file), {}
        if file.name.endswith(_INDEX):
            return _read_shards(file), {}
    except OSError as error:
        raise BackboneError(
            f"weights: cannot read {str(file)!r}: {error.strerror or error_line(error)}"
        ) from error
    if re.search(r"\.data-\d+-of-\d+$", file.name):
        kind = "a part of a TensorFlow checkpoint"
    way_out = next((way_out for word, way_out in _WAYS_OUT.items() if word in kind), "")
    what = f"it is {kind}" if kind else "its first bytes are of no kind of weights"
    allowed = "" if way_out else f"give {_READABLE}"
    raise BackboneError(
        join_sentences(f"weights: cannot read {str(file)!r}: {what}", way_out, allowed)
    )


def _read_shards(index: Path) -> dict[str, Any]:
    """Read the files beside an index that share the tensors of a model."""
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        shards = [index.parent / Path(name).name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(
            f"weights: cannot read {str(index)!r}: it is no index of files of weights "
            f"({error_line(error)}); give {_READABLE}"
        ) from error
    return {
        key: value for shard in shards for key, value in read_file(find_file(shard))[0].items()
    }


def _read_safetensors(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return tensors, dict(opened.metadata() or {})
    except SafetensorError as error:
        size, expected = file.stat().st_size, _expected_bytes(file)
        if expected is not None and size < expected:
            reason = f"it ends after {size:,} of {expected:,} bytes; get it again"
        else:
            reason = f"it is a damaged safetensors file ({error_line(error)}); get it again"
        raise BackboneError(f"weights: cannot read {str(file)!r}: {reason}") from error


def _expected_bytes(file: PathLike[str]) -> int | None:
    """Return how long a safetensors file is by its header; ``None`` when that is damaged."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = stream.read(length)
    if len(header) < length:
        return 8 + int(length)
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name[:2] != "__"]
        return 8 + int(length) + int(max(ends, default=0))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _read_torch(file: Path) -> Any:
    """Read what ``torch.save`` has written, with placeholders for objects of other libraries."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError):  # not of a zip archive
        names = []
    refused = [name for name in names if not _is_inert(name)]
    if refused:
        raise _foreign_objects(file, sorted(refused))
    objects = {name: _placeholder(name) for name in names} | _SAFE
    trusted: list[Any] = [(value, name) for name, value in objects.items()]
    try:
        # Of a path, torch would judge the ending.
        with torch.serialization.safe_globals(trusted), file.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader's errors on a damaged file are of many types
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and (name or names):
            raise _foreign_objects(file, [name[1]] if name else sorted(names)) from error
        if "Unsupported operand" in str(error):
            raise BackboneError(
                f"weights: cannot read {str(file)!r}: it was saved with a pickle protocol that "
                "torch's reader of mere tensors does not have; save it where it was made without "
                "pickle_protocol="
            ) from error
        reason = error_line(error) if len(str(error)) < 150 else type(error).__name__
        raise BackboneError(
            f"weights: cannot read {str(file)!r}: it is a damaged PyTorch checkpoint ({reason}); "
            "get it again"
        ) from error


def _foreign_objects(file: Path, names: list[str]) -> BackboneError:
    return BackboneError(
        f"weights: cannot read {str(file)!r}: it holds Python objects besides tensors "
        f"({join_some(names, 3)}), which autotune does not load because they can run code; "
        f"{SAVE_TENSORS}"
    )


def _is_inert(name: str) -> bool:
    """Tell whether an object of that class may be replaced by a placeholder without a word.

    Nothing of a file is run in either case. But what names a function of Python's own library is
    no checkpoint, and is refused.
    """
    package = name.partition(".")[0]
    return package in _HARMLESS or package not in sys.stdlib_module_names


def _placeholder(name: str) -> type:
    """Make a class whose objects keep what a pickle gives them, and do nothing."""

    def make(cls: type, *args: object, **options: object) -> OrderedDict[str, object]:
        inert: OrderedDict[str, object] = OrderedDict()  # a type that torch fills
        inert.__dict__["placeholder_of"] = name
        return inert

    return type("Placeholder", (), {"__new__": make})


def class_of(value: object) -> str:
    """Return the class of a whole pickled module, or an empty text for anything else."""
    attributes = getattr(value, "__dict__", {})
    if isinstance(value, Mapping) and "_modules" in attributes:
        return str(attributes.get("placeholder_of", "torch.nn.Module"))
    return ""
