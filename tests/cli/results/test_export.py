"""``autotune export``: what is written is read by others and gives the same logits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from autotune.display import status
from autotune.plan import HeadPlan
from autotune.results.model.export import TOLERANCE
from autotune.results.model.model_folder import load_model
from tests.support.commands.inside import Ended, call
from tests.support.data.images import photo
from tests.support.models.surgery import CLASSES, RESHAPED, change, kept, saved

DOCS = Path(__file__).parents[3] / "docs/models.md"


@pytest.fixture(autouse=True)
def no_lines_about_a_long_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no line on standard error depend on how busy the machine is."""
    monkeypatch.setattr(status, "LINE_INTERVAL_S", 3600.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(5):
        photo(120, 90, number).save(folder / f"{number}.png")
    return folder


def exported(form: str, model: Path, photos: Path, *more: str) -> Ended:
    return call(
        *("export", str(model), "--format", form, "--images", str(photos), *more),
        cwd=model.parent,
    )


def difference(ended: Ended) -> float:
    """Read from the output how much the logits differ."""
    assert (ended.code, ended.err) == (0, ""), ended.err
    found = re.search(r"largest difference of a logit (\S+) \(allowed (\S+)\)", ended.out)
    assert found and "same class for 5 of 5" in ended.out
    assert float(found[1]) <= float(found[2])
    return float(found[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", RESHAPED)
def test_onnx(name: str, photos: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", RESHAPED[name])
    assert difference(exported("onnx", model, photos)) < 1e-4
    session = onnxruntime.InferenceSession(model / "model.onnx")
    loaded = load_model(model)
    images = torch.stack([loaded.read(path) for path in sorted(photos.iterdir())])
    for count in (1, 3, 5):
        logits = session.run(None, {"images": images[:count].numpy()})[0]
        with torch.no_grad():
            assert np.allclose(logits, loaded(images[:count]), atol=1e-4)
    told = json.loads(session.get_modelmeta().custom_metadata_map["autotune"])
    assert (tuple(told["classes"]), told["weights_sha256"]) == (CLASSES, loaded.digest)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESHAPED)
def test_torch_export(name: str, photos: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", RESHAPED[name])
    assert difference(exported("torch-export", model, photos)) < 1e-4
    program = torch.export.load(model / "model.pt2").module()
    loaded = load_model(model)
    images = torch.stack([loaded.read(path) for path in sorted(photos.iterdir())])
    with torch.no_grad():
        for count in (1, 5):
            assert torch.allclose(program(images[:count]), loaded(images[:count]), atol=1e-4)


@pytest.mark.parametrize("name", RESHAPED)
def test_timm(name: str, photos: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", kept(name))
    assert difference(exported("timm", model, photos, "-o", str(tmp_path / "a/b"))) < 1e-4
    found = timm.create_model(f"local-dir:{tmp_path / 'a/b'}", pretrained=True).eval()
    loaded = load_model(model)
    transform = create_transform(**resolve_model_data_config(found))
    for path in photos.iterdir():
        image = Image.open(path)
        assert torch.allclose(transform(image), loaded.transform(image), atol=1e-5)
        with torch.no_grad():
            logits = found(transform(image)[None])
            assert torch.allclose(logits, loaded(loaded.transform(image)[None]), atol=1e-4)
    assert found.pretrained_cfg["label_names"] == list(CLASSES)


def test_timm_with_another_pooling(photos: Path, tmp_path: Path) -> None:
    plan = change("test_resnet", {}, depth=1, head=HeadPlan(pool="max"))
    assert difference(exported("timm", saved(tmp_path / "model", plan), photos)) < 1e-4


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test_resnet", "layer 1 has another shape (kernel 5, width 0.5)"),
        ("levit_128s", "the classifier of levit_128s is not a linear layer"),
    ],
)
def test_timm_has_no_such_network(name: str, reason: str, photos: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", RESHAPED.get(name) or kept(name))
    ended = exported("timm", model, photos)
    assert (ended.code, ended.out) == (2, "")
    assert f"{reason}; export it as onnx or torch-export" in ended.err
    assert {one.name for one in model.iterdir()} == {"model.safetensors", "record.json"}


def test_images_that_were_made_up(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", kept("test_resnet"))
    ended = call("export", "model", "--format", "timm", cwd=tmp_path)
    assert ended.code == 0
    assert "compared with PyTorch on 16 made-up images (random pixels):" in ended.out
    assert ended.out.endswith("timm: model/timm\n")
    assert {one.name for one in (model / "timm").iterdir()} == {"config.json", "model.safetensors"}


def test_what_computes_something_else_is_not_kept(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(tmp_path / "model", RESHAPED["test_resnet"])
    before = {one.name for one in model.iterdir()}
    monkeypatch.setattr("autotune.results.model.export.TOLERANCE", -TOLERANCE)
    ended = exported("torch-export", model, photos)
    assert (ended.code, ended.out) == (1, "")
    assert "must give the logits of PyTorch to -" in ended.err
    assert "on 5 images is" in ended.err
    assert {one.name for one in model.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("model", "--format", "tflite"), "Invalid value for '--format'"),
        (("model", "-o", "no/x.onnx"), "must exist and be writable, to write no/x.onnx"),
        (("model", "--images", "none"), "there is no 'none'"),
        (("model", "--images", "model/record.json"), "0 of 1 can be read"),
        (
            ("none",),
            "'none' must be the folder of a model, or a study, but there is no such folder",
        ),
    ],
)
def test_mistakes(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", kept("test_resnet"))
    ended = call("export", *arguments, cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert {one.name for one in model.iterdir()} == {"model.safetensors", "record.json"}


@pytest.mark.slow
def test_the_ten_lines_of_the_docs(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ONNX Runtime alone gives what autotune does, image file to probability."""
    model = saved(tmp_path / "model", kept("test_resnet"))
    assert exported("onnx", model, photos, "-o", str(tmp_path / "model.onnx")).code == 0
    photo(150, 100, 8).save(tmp_path / "photo.jpg")
    (program,) = re.findall(r"```python\n(import json.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert len(program.splitlines()) <= 14
    monkeypatch.chdir(tmp_path)
    exec(compile(program, str(DOCS), "exec"), {})
    name, share = capsys.readouterr().out.rsplit(" ", 1)
    expected = load_model(model).predict([tmp_path / "photo.jpg"])[0]
    assert name == CLASSES[int(expected.argmax())]
    assert float(share) == pytest.approx(float(expected.max()), abs=1e-3)
