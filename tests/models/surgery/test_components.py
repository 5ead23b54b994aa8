from __future__ import annotations

import pytest
import timm
import torch
from timm import layers as timm_layers
from timm.layers.drop import DropPath
from timm.models.nfnet import GammaAct
from torch import nn

from autotune.models.surgery.components import (
    ACTIVATIONS,
    ScaledActivation,
    activation_name,
    find_drop_paths,
    find_dropouts,
    is_activation,
    set_activation,
    set_drop_path,
    set_dropout,
)
from tests.support.models.surgery import source, stir


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_known_by_its_name(name: str) -> None:
    module = ACTIVATIONS[name]()
    assert activation_name(module) == name
    assert is_activation(module) == (name not in ("sigmoid", "tanh"))  # gates
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)).eval()
    set_activation(model, "1", name)
    assert activation_name(model[1]) == name
    assert not model[1].training
    batch = torch.randn(3, 4)
    torch.testing.assert_close(model(batch), module(model[0](batch)))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (timm_layers.GELU(), "gelu"),
        (timm_layers.Swish(), "silu"),
        (timm_layers.Mish(), "mish"),
        (timm_layers.HardSwish(), "hardswish"),
        (nn.GELU(approximate="tanh"), ""),
        (nn.ReLU6(), ""),
        (GammaAct("relu"), ""),
        (nn.PReLU(), ""),
    ],
)
def test_other_classes_of_activations(module: nn.Module, name: str) -> None:
    assert is_activation(module)
    assert activation_name(module) == name
    if name:
        batch = torch.randn(50)
        torch.testing.assert_close(module(batch), ACTIVATIONS[name]()(batch))


def test_gates_are_no_activations() -> None:
    gates = (nn.Sigmoid(), nn.Softmax(1), nn.Hardsigmoid(), nn.Identity())
    assert not any(map(is_activation, gates))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("inplace", [False, True])
def test_the_factor_behind_an_activation_stays(name: str, inplace: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 6), GammaAct("relu", 1.7, inplace))
    old = model[1]
    set_activation(model, "1", name)
    assert isinstance(model[1], ScaledActivation) and model[1].training
    batch = torch.randn(3, 6)
    with torch.no_grad():
        expected = ACTIVATIONS[name]()(model[0](batch)) * 1.7
        torch.testing.assert_close(model(batch), expected)
        torch.testing.assert_close(old(batch.clone()), batch.relu() * 1.7)  # is left as it was
    model(batch).sum().backward()
    assert model[0].weight.grad is not None


def test_dropout_of_attention_maps_is_left_out() -> None:
    model = timm.create_model("test_vit", num_classes=0)
    found = list(find_dropouts(model, [name for name, _ in model.named_modules()]))
    assert "blocks.0.attn.proj_drop" in found and "blocks.0.mlp.drop1" in found
    assert not any("attn_drop" in name for name in found)
    set_dropout(model, "blocks.0.mlp.drop1", 0.3)
    assert model.get_submodule("blocks.0.mlp.drop1").p == 0.3
    assert model.get_submodule("blocks.0.mlp.drop2").p == 0.0


@pytest.mark.parametrize(
    ("name", "options"),
    [("test_resnet", {}), ("test_vit", {}), ("test_vit", {"drop_path_rate": 0.3})],
)
def test_drop_paths_that_are_none_identities_or_in_use(
    name: str, options: dict[str, float]
) -> None:
    model = timm.create_model(name, num_classes=0, **options).eval()
    stir(model)  # the last norm of a branch starts at zero
    found = list(find_drop_paths(model, [one for one, _ in model.named_modules()]))
    assert found
    for path in found:
        set_drop_path(model, path, 0.25)
        module = model.get_submodule(path)
        assert isinstance(module, DropPath)
        assert module.drop_prob == 0.25 and not module.training
    batch = torch.randn(8, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(model(batch), model(batch))
        assert not torch.equal(model.train()(batch), model(batch))


def test_a_drop_path_of_no_share_changes_nothing() -> None:
    model = source("test_resnet").fresh()
    batch = torch.randn(2, 3, 64, 64)
    expected = model(batch)
    for path in list(find_drop_paths(model, [one for one, _ in model.named_modules()])):
        set_drop_path(model, path, 0.0)
        model.get_submodule(path).train()
    assert torch.equal(model(batch), expected)
