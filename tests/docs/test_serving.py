"""The programs of docs/serving.md, each where its package is installed."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from autotune.results.model.export import FORMATS, export, random_images
from autotune.results.model.model_folder import load_model
from tests.support.data.images import photo
from tests.support.models.surgery import RESHAPED, saved

PAGE = Path(__file__).parents[2] / "docs/serving.md"
#: Package -> program; "serve.py" is the beginning of each.
PROGRAMS = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as after refit and export, with a network of another shape."""
    root = tmp_path_factory.mktemp("serving")
    model = root / "storage/autotune.files/models/digits"
    model.parent.mkdir(parents=True)
    loaded = load_model(saved(model, RESHAPED["test_resnet"]))
    export(loaded, FORMATS["onnx"], model / "model.onnx", random_images(loaded))
    (root / "studies/samples").mkdir(parents=True)
    photo(90, 60, 3).save(root / "studies/samples/3.png")
    return root


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # converters warn about their own code
@pytest.mark.parametrize("package", [name for name in PROGRAMS if name != "serve.py"])
def test_a_runtime_gives_the_logits_of_autotune(
    package: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(folder)
    exec(compile(PROGRAMS["serve.py"] + PROGRAMS[package], str(PAGE), "exec"), {})


def test_the_page_says_what_is_tested() -> None:
    assert set(PROGRAMS) == {
        *("serve.py", "onnxruntime", "openvino", "litert_torch", "coremltools")
    }
    for name in PROGRAMS.keys() - {"serve.py"}:
        assert f"pip install {name.replace('_', '-')}" in PAGE.read_text("utf-8")
    assert PAGE.read_text("utf-8").count("**not run**") == 2
