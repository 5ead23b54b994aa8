"""The folder of a model: written, read, and refused where it is damaged or of another version."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import autotune
from autotune.errors import ModelError, UserError
from autotune.results.model.export import FORMATS, export, random_images
from autotune.results.model.model import Model
from autotune.results.model.model_folder import FORMAT, RECORD, WEIGHTS, load_model, replace_files
from tests.support.models.surgery import CLASSES, RESHAPED, built, kept, pictures, saved


@pytest.mark.parametrize("name", RESHAPED)
def test_what_is_loaded_is_what_was_saved(name: str, tmp_path: Path) -> None:
    plan = RESHAPED[name]
    model = load_model(saved(tmp_path / "model", plan))
    network = built(plan)
    with torch.no_grad():
        assert torch.equal(model(pictures(name)), network(pictures(name)))
    assert not any(module.training for module in model.modules())
    trained = {key for key, one in model.network.named_parameters() if one.requires_grad}
    assert trained == {key for key, one in network.named_parameters() if one.requires_grad}
    assert model.classes == CLASSES and model.model_spec.plan == plan


def test_the_public_names(folder: Path) -> None:
    assert isinstance(autotune.load(str(folder)), autotune.Model)
    assert autotune.load is load_model and autotune.Model is Model


@pytest.mark.parametrize("value", [None, b"model", ["model"]])
def test_a_model_is_named_by_a_path(value: Any) -> None:
    with pytest.raises(TypeError, match=r"must be the path .* of the folder that autotune refit"):
        load_model(value)


def edited(folder: Path, target: Path, **changes: object) -> Path:
    """Copy a model with another record; ``None`` takes a key away."""
    shutil.copytree(folder, target)
    record = json.loads((target / RECORD).read_text("utf-8")) | changes
    record = {key: value for key, value in record.items() if value is not None}
    (target / RECORD).write_text(json.dumps(record), "utf-8")
    return target


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as refusal:
        load_model(folder)
    assert refusal.value.exit_code == 2
    return str(refusal.value).replace(str(folder), "X")


def test_what_is_no_model(folder: Path, tmp_path: Path) -> None:
    assert "X must be the folder of a model, but there is none" in refused(tmp_path / "none")
    with pytest.raises(ModelError, match="~nobody-here"):
        load_model("~nobody-here/model")
    assert "but it is a file" in refused(folder / RECORD)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has a record.json, but X has none; give the folder" in refused(empty)
    (empty / RECORD).write_text("{")
    assert "X/record.json cannot be read" in refused(empty)
    (empty / RECORD).write_text("[" * 200_000)
    assert "X/record.json cannot be read" in refused(empty)
    (empty / RECORD).write_text("[]")
    assert "must have a 'format', but it has none" in refused(empty)


def test_formats(folder: Path, tmp_path: Path) -> None:
    newer = edited(folder, tmp_path / "a", format=FORMAT + 1, versions={"autotune": "9.1"})
    said = refused(newer)
    assert "X was written by autotune 9.1, and cannot be read" in said
    assert f"it has format {FORMAT + 1}" in said and f"reads the format {FORMAT} of a" in said
    assert "refit the model" in refused(edited(folder, tmp_path / "b", format=None))


@pytest.mark.parametrize("key", ["plan", "classes", "preprocessing", "decode", "weights_sha256"])
def test_a_record_that_lacks_something(key: str, folder: Path, tmp_path: Path) -> None:
    said = refused(edited(folder, tmp_path / "model", **{key: None}))
    assert f"it is not (KeyError: '{key}')" in said


def test_weights_of_another_fit(folder: Path, tmp_path: Path) -> None:
    """A fit that was killed between its two files, or a copy that was cut."""
    torn = edited(folder, tmp_path / "model")
    shutil.copy(saved(tmp_path / "other", kept("test_resnet", 2)) / WEIGHTS, torn)
    assert "it is damaged, or of another refit" in refused(torn)
    (torn / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    assert "it is damaged, or of another refit" in refused(torn)
    (torn / WEIGHTS).unlink()
    assert "X/model.safetensors cannot be read (" in refused(torn)


@pytest.mark.parametrize(("form", "target"), [("timm", "."), ("torch-export", WEIGHTS)])
def test_an_export_does_not_replace_the_files_of_a_model(
    form: str, target: str, folder: Path
) -> None:
    model = load_model(folder)
    with pytest.raises(UserError, match="an export must not replace the files of a model"):
        export(model, FORMATS[form], folder / target, random_images(model))
    assert load_model(folder).digest == model.digest


def test_of_two_refits_that_end_at_once_the_second_waits(tmp_path: Path) -> None:
    """Each removes what a killed one has left; it must not be what the other one writes."""

    def write(text: str) -> None:
        with replace_files(tmp_path / "model") as new:
            (new / "a").write_text(text)

    pool = ThreadPoolExecutor(1)
    with replace_files(tmp_path / "model") as new:
        second = pool.submit(write, "second")
        with pytest.raises(TimeoutError):
            second.result(timeout=0.3)
        (new / "a").write_text("first")
        (new / "b").write_text("first")
    second.result(timeout=60)
    pool.shutdown()
    files = sorted((path.name, path.read_text()) for path in (tmp_path / "model").iterdir())
    assert files == [("a", "second"), ("b", "first")]


def test_what_cannot_be_built_here(folder: Path, tmp_path: Path) -> None:
    record = json.loads((folder / RECORD).read_text("utf-8"))
    foreign = {**record["plan"], "backbone": "future_net"}
    versions = {**record["versions"], "timm": "9.0"}
    said = refused(edited(folder, tmp_path / "a", plan=foreign, versions=versions))
    assert "has no backbone 'future_net'" in said
    assert said.endswith("it was made with timm 9.0; install these")
    said = refused(edited(folder, tmp_path / "b", classes=["one", "two"]))
    assert "cannot be built here" in said and said.endswith("; refit it")
