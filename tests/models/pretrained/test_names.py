from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from autotune.config.schema import StudyConfig
from autotune.errors import BackboneError
from autotune.models.backbone import hash_weights, load_backbone
from autotune.models.network import build_network
from autotune.models.pretrained.names import _former_names, check_name, describe_former, resolve
from autotune.plan import TrialPlan
from autotune.results.model.model import ModelSpec
from autotune.results.model.model_folder import load_model, save_model


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5", "no backbone 'resnet5'; did you mean 'resnet50'"),
        ("test_resnett.letters", r"did you mean 'test_resnet.letters'\?"),
        ("resnett18.a1_in1k", r"did you mean 'resnet18.a1_in1k'\?"),
        ("zzzzzzzz", "no backbone 'zzzzzzzz'; .*list_models"),
        ("", "no backbone ''"),
        ("resnet50.a1_in1", "no pretrained tag 'a1_in1'; it has a1_in1k.*did you mean 'a1_in1k'"),
        ("test_resnet.lettters", "did you mean 'letters'"),
        ("resnet18.", "'resnet18' has no pretrained tag ''"),
        ("hf-hub:timm/resnet5", r"no backbone 'hf-hub:timm/resnet5'; .*hf-hub:OWNER/NAME"),
        ("facebook/dinov2-small", "is given as hf-hub:facebook/dinov2-small"),
        ("local-dir:/nowhere", "'/nowhere' has none; give the architecture as the backbone"),
        ("~no-such-user/dino", "is given as hf-hub:~no-such-user/dino"),
        ("local-dir:~no-such-user/dino", "'~no-such-user/dino' has none; give the architecture"),
        (f"{'x' * 300}/dino", "is given as hf-hub:xxx"),
        ("vit_base_patch16_224_in21k.a1_in1k", "no pretrained tag 'a1_in1k'"),
    ],
)
def test_a_name_that_timm_does_not_know(name: str, message: str) -> None:
    for use in (check_name, load_backbone):
        with pytest.raises(BackboneError, match=message):
            use(name)


@pytest.mark.parametrize(
    ("name", "current"),
    [
        ("test_resnet", "test_resnet"),
        ("test_resnet.letters", "test_resnet.letters"),
        ("timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("hf-hub:timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("hf_hub:timm/resnet18", "resnet18"),
        ("https://huggingface.co/timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("vit_base_patch16_224_in21k", "vit_base_patch16_224.augreg_in21k"),
        ("tf_efficientnet_b0_ns", "tf_efficientnet_b0.ns_jft_in1k"),
        ("timm/tf_efficientnet_b0_ns", "tf_efficientnet_b0.ns_jft_in1k"),
        ("convnext_tiny_in22ft1k", "convnext_tiny.fb_in22k_ft_in1k"),
    ],
)
def test_other_names_of_a_backbone(name: str, current: str) -> None:
    check_name(name)
    assert resolve(name) == current


def test_every_former_name_is_one_of_a_backbone() -> None:
    for name, current in _former_names().items():
        assert current is not None and resolve(name) == current
        assert timm.is_model(resolve(name).partition(".")[0])


def test_a_former_name_is_loaded_and_said() -> None:
    loaded = load_backbone("tf_efficientnet_b0_ns", "none", 32)
    assert "'tf_efficientnet_b0_ns' 'tf_efficientnet_b0.ns_jft_in1k' now" in loaded.notes[0]
    assert loaded.weights_hash == load_backbone("tf_efficientnet_b0", "none", 32).weights_hash
    assert describe_former("timm/resnet18") == ""


@pytest.mark.parametrize("backbone", ["timm/test_resnet", ["hf-hub:timm/test_resnet", "test_vit"]])
def test_an_address_of_timm_is_no_other_study(backbone: str | list[str]) -> None:
    config = StudyConfig.model_validate({"dataset": "digits", "backbone": backbone})
    assert config.backbones[0] == "test_resnet"


def timm_folder(folder: Path, **config: Any) -> Path:
    """Write a model as ``timm.models.push_to_hf_hub`` and ``save_for_hf`` do."""
    torch.manual_seed(5)
    model = timm.create_model("test_vit", num_classes=5, img_size=32)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    pretrained = {"input_size": [3, 32, 32], "fixed_input_size": True, "mean": [0.1, 0.2, 0.3]}
    values = {"architecture": "test_vit", "num_classes": 5, "pretrained_cfg": pretrained, **config}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_a_folder_of_timm(tmp_path: Path) -> None:
    """Its model is built, fitted, loaded where the folder is gone, and exported."""
    folder = timm_folder(tmp_path / "mine")
    name = f"local-dir:{folder}"
    check_name(name)
    loaded = load_backbone(name)
    expected = timm.create_model(name, pretrained=True)
    expected.reset_classifier(0)
    assert loaded.weights_hash == hash_weights(expected)
    assert loaded.data_config["mean"] == (0.1, 0.2, 0.3)
    assert loaded.data_config["input_size"] == (3, 32, 32)
    assert load_backbone(name, image_size=48).data_config["input_size"] == (3, 48, 48)

    network = build_network(loaded, TrialPlan(name), 3, seed=0)
    spec = ModelSpec(TrialPlan(name), ("a", "b", "c"), loaded.data_config)
    save_model(tmp_path / "model", network, spec, {"study": "made"})
    folder.rename(tmp_path / "elsewhere")
    model = load_model(tmp_path / "model")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), network.eval()(images))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "dinov2"}', r"a model of transformers \(dinov2\)"),
        ('{"architecture": "resnet_of_tomorrow"}', "which timm .* does not have"),
        ("[1]", "names no architecture"),
        ("<html>", "cannot be read"),
    ],
)
def test_a_folder_that_timm_did_not_write(config: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(BackboneError, match=f"{message}.*; give the architecture"):
        check_name(f"local-dir:{tmp_path}")
