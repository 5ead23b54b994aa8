from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from autotune.errors import BackboneError
from autotune.models.backbone import (
    Backbone,
    build_backbone,
    hash_weights,
    load_backbone,
)
from tests.support.models.backbones import state_of

# no weights


def test_none_gives_every_process_the_same_weights() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = load_backbone("test_resnet", "none")
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert load_backbone("test_resnet.r160_in1k", "none").weights_hash == first.weights_hash


def test_a_loaded_backbone_is_frozen_and_copied() -> None:
    backbone = load_backbone("test_resnet", "none", 64)
    assert isinstance(backbone, Backbone)
    assert not any(parameter.requires_grad for parameter in backbone.pretrained.parameters())
    assert not any(module.training for module in backbone.pretrained.modules())
    assert backbone.data_config["input_size"] == (3, 64, 64)
    with torch.no_grad():
        next(backbone.fresh().parameters()).zero_()
    assert hash_weights(backbone.pretrained) == backbone.weights_hash


# files


def test_a_file_under_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(build_backbone("test_resnet", None).state_dict(), tmp_path / "w.safetensors")
    load_backbone("test_resnet", "~/w.safetensors")


@pytest.mark.parametrize(
    ("source", "name", "parts"),
    [
        (
            "test_convnext",
            "test_resnet",
            ("missing: conv1.0.weight", "unknown: stem.0.weight", " more"),
        ),
        ("test_resnet", "test_vit", ("missing: cls_token, pos_embed", "unknown: conv1.0.weight")),
        ("resnet10t", "resnet14t", ("missing: ", "other shapes: layer", " instead of (")),
    ],
)
def test_the_weights_of_another_architecture(
    source: str, name: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    torch.save(timm.create_model(source).state_dict(), tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=f"does not belong to the backbone '{name}'") as caught:
        load_backbone(name, str(tmp_path / "w.pth"))
    assert all(part in str(caught.value) for part in parts), caught.value


# sizes


@pytest.mark.parametrize(
    ("name", "size", "device"),
    [
        ("test_vit", 100, "cpu"),
        ("test_vit", 100, "meta"),
        ("test_vit", 8, "cpu"),
        ("test_convnext", 8, "cpu"),
        ("vgg11", 16, "meta"),
    ],
)
def test_an_impossible_size(name: str, size: int, device: str) -> None:
    with pytest.raises(
        BackboneError, match=f"'{name}' cannot take images of {size} px .*own size"
    ):
        build_backbone(name, size, device=device)


def test_trying_a_size_leaves_nothing_behind() -> None:
    """Attention biases are kept in evaluation mode; those of the random weights must not be."""
    model = build_backbone("levit_128s", 224, device="meta")
    caches = [getattr(module, "attention_bias_cache", None) for module in model.modules()]
    assert {} in caches and not any(caches)


# fingerprint


def test_the_fingerprint_depends_on_every_tensor() -> None:
    model = build_backbone("test_resnet", None)
    first = hash_weights(model)
    assert len(first) == 32
    for name, value in state_of(model).items():
        own = model.state_dict()[name]
        own.view(-1)[-1] += 1
        assert hash_weights(model) != first, name
        own.copy_(value)
    assert hash_weights(model) == first
