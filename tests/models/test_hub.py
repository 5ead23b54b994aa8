"""Weights from a hub: a real server on loopback, real processes, the real download code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save
from torch import nn

from autotune.errors import BackboneError
from autotune.models.backbone import hash_weights, load_backbone
from tests.support.models.hub import Hub, Loader, loader, running_hub

RESNET, VIT, CONVNEXT, BYOBNET = (
    f"test_{one}.r160_in1k" for one in ("resnet", "vit", "convnext", "byobnet")
)
WAY_OUT = "give their file with weights=path/to/file.safetensors"


def content(name: str) -> tuple[nn.Module, bytes]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = timm.create_model(name.partition(".")[0])
    return model, save(model.state_dict())


#: A process that has loaded nothing yet asks a hub on loopback.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    files = {f"timm/{name}/model.safetensors": content(name)[1] for name in (RESNET, VIT)}
    files[f"timm/{BYOBNET}/model.safetensors"] = b"<html>please log in</html>"
    with running_hub(files) as running:
        yield running


@pytest.fixture(scope="module")
def process(hub: Hub, home: Path) -> Iterator[Loader]:
    with loader(hub.url, home) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(hub: Hub) -> None:
    hub.status = None
    hub.requests.clear()


def test_weights_are_downloaded_once_and_then_the_cache_is_enough(
    hub: Hub, process: Loader, home: Path, tmp_path: Path
) -> None:
    first = process.load(RESNET)
    model, _ = content(RESNET)
    model.reset_classifier(0)
    assert first.hash == hash_weights(model)
    assert f"GET /timm/{RESNET}/resolve/main/model.safetensors" in hub.requests
    resized = process.load(VIT, 96)
    assert resized.hash
    hub.requests.clear()
    assert process.load(RESNET).hash == first.hash
    assert hub.requests == []

    with running_hub() as gone:
        pass
    with loader(gone.url, home) as later:
        assert later.load(RESNET).hash == first.hash
        assert later.load(VIT, 96).hash == resized.hash
        refused = later.load(CONVNEXT)
    assert refused.refusal is not None
    assert "\n" not in refused.refusal
    assert f"weights of {CONVNEXT!r} from the hub (Connect" in refused.refusal
    assert WAY_OUT in refused.refusal

    # A file gives what the hub gives, its position table resized in the same way.
    file = tmp_path / "vit.safetensors"
    file.write_bytes(content(VIT)[1])
    assert load_backbone(VIT, str(file), 96).weights_hash == resized.hash


@pytest.mark.parametrize("status", [404, 500, 503])
@pytest.mark.parametrize("size", [None, 64])
def test_a_hub_that_fails(hub: Hub, process: Loader, status: int, size: int | None) -> None:
    hub.status = status
    answer = process.load(CONVNEXT, size)
    assert answer.refusal is not None
    assert str(status) in answer.refusal
    assert WAY_OUT in answer.refusal
    assert " px" not in answer.refusal
    if status >= 500:  # one request: with retries it would take most of a minute
        assert hub.requests == [f"HEAD /timm/{CONVNEXT}/resolve/main/model.safetensors"]


def test_a_wrong_size_is_refused_before_the_download(hub: Hub, process: Loader) -> None:
    answer = process.load(VIT, 100)
    assert answer.refusal is not None
    assert "cannot take images of 100 px" in answer.refusal
    assert hub.requests == []


def test_a_download_of_something_else(process: Loader) -> None:
    for _ in range(2):  # from the hub, then from the cache
        refusal = process.load(BYOBNET).refusal
        assert refusal is not None
        assert "from the hub (SafetensorError" in refusal


def test_a_repository_of_somebody(hub: Hub, process: Loader) -> None:
    """Its config.json says what it is; both files are downloaded once."""
    model, weights = content("test_resnet")
    config = json.dumps({"architecture": "test_resnet", "pretrained_cfg": {"num_classes": 1000}})
    hub.files["somebody/birds/config.json"] = config.encode()
    hub.files["somebody/birds/model.safetensors"] = weights
    model.reset_classifier(0)  # type: ignore[operator]
    assert process.load("hf-hub:somebody/birds").hash == hash_weights(model)
    hub.requests.clear()
    assert process.load("hf_hub:somebody/birds", 64).hash == hash_weights(model)
    assert hub.requests == []


@pytest.mark.parametrize("status", [None, 503])
def test_a_repository_that_cannot_be_had(hub: Hub, process: Loader, status: int | None) -> None:
    hub.status = status
    refusal = process.load("hf-hub:nobody/nothing").refusal
    assert refusal is not None
    assert "cannot get config.json of 'nobody/nothing' from the hub" in refusal
    assert "local-dir:FOLDER" in refusal


@pytest.mark.parametrize("name", [RESNET, f"timm/{RESNET}"])
def test_weights_of_the_hub_that_are_not_finite(name: str, hub: Hub, tmp_path: Path) -> None:
    model, _ = content(RESNET)
    state = model.state_dict()
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"] * float("nan")
    files = {f"timm/{RESNET}/model.safetensors": save(state)}
    with running_hub(files) as damaged, loader(damaged.url, tmp_path) as process:
        refusal = process.load(name).refusal
    assert refusal is not None
    assert "on the hub has values that are infinite or not a number" in refusal
    assert "layer1.0.conv1.weight" in refusal


def test_a_backbone_without_weights_on_the_hub() -> None:
    without = next(
        name for name in timm.list_models("*resnet*") if not timm.list_pretrained(name + ".*")
    )
    with pytest.raises(
        BackboneError, match=f"no pretrained weights for '{without}'.*weights=none"
    ):
        load_backbone(without)
