from __future__ import annotations

from collections import defaultdict

import pytest
import timm
import torch
from torch import nn

from autotune.models.backbone import build_backbone, data_config
from autotune.models.layers import Layer, list_layers

FAMILIES = (
    "test_resnet",
    "test_vit",
    "test_convnext",
    "test_efficientnet",
    "test_byobnet",
    "mobilenetv3_small_050",
    "densenet121",
    "poolformer_s12",
)
#: Families whose parallel branches meet again at the output: timm orders them by depth.
BRANCHED = ("cait", "coat", "efficientvim")


def smallest_of_each_family() -> list[str]:
    """Return the model with the fewest parameters of each timm module, by their file sizes."""
    names = defaultdict(list)
    for name in timm.list_models():
        names[timm.models._registry._model_to_module[name]].append(name)
    return [min(one, key=_guess) for _, one in sorted(names.items())]


def _guess(name: str) -> tuple[int, int, str]:
    words = ("test_", "pico", "nano", "xxs", "xs", "tiny", "_ti", "small", "_s", "050", "18", "b0")
    rank = next((rank for rank, word in enumerate(words) if word in name), len(words))
    return rank, len(name), name


def meta(name: str) -> nn.Module:
    return build_backbone(name, None, device="meta")


def check_partition(model: nn.Module, layers: tuple[Layer, ...]) -> None:
    tensors = [*dict(model.named_parameters()), *dict(model.named_buffers())]
    named = [name for layer in layers for name in layer.names]
    assert sorted(named) == sorted(tensors)
    assert [layer.index for layer in layers] == list(range(1, len(layers) + 1))
    assert len(layers) >= 2
    modules = [name for layer in layers for name in layer.modules]
    assert len(modules) == len(set(modules))
    assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in model.parameters())
    assert all(layer.parameters for layer in layers)
    assert len({layer.label for layer in layers}) == len(layers)
    of = {name: layer.index for layer in layers for name in layer.modules}
    for layer in layers:
        for name in layer.names:
            # A norm goes into training mode with its layer: it holds what it normalizes with.
            holder = name.rpartition(".")[0]
            leaf = not any(model.get_submodule(holder).children())
            assert not leaf or of[holder] == layer.index, name


def backward_steps(model: nn.Module, layers: tuple[Layer, ...]) -> list[tuple[int, int]]:
    """Run the model; list where a layer is used after one that is nearer to the output."""
    index = {name: layer.index for layer in layers for name in layer.names}
    used: list[int] = []
    for name, module in model.eval().named_modules():
        own = [f"{name}.{key}" if name else key for key, _ in module.named_parameters("", False)]
        found = {index[key] for key in own}
        if name and found:
            module.register_forward_pre_hook(lambda *_, found=found: used.extend(found))
    with torch.no_grad(), torch.device("meta"):
        model(torch.zeros(1, *data_config(model)["input_size"]))
    steps = []
    nearest = len(layers) + 1
    for one in used:
        if one > nearest:
            steps.append((one, nearest))
        nearest = min(nearest, one)
    return steps


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_partition_a_backbone_in_the_order_of_the_network(name: str) -> None:
    model = meta(name)
    layers = list_layers(model)
    check_partition(model, layers)
    assert backward_steps(model, layers) == []


@pytest.mark.slow
def test_layers_partition_every_family() -> None:
    names = smallest_of_each_family()
    assert len(names) > 90
    wrong = {}
    for name in names:
        model = meta(name)
        layers = list_layers(model)
        check_partition(model, layers)
        family = timm.models._registry._model_to_module[name]
        if (steps := backward_steps(model, layers)) and family not in BRANCHED:
            wrong[name] = steps
    assert wrong == {}


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("resnet18", 9, "layer4.1", "conv1, bn1"),
        ("test_vit", 7, "blocks.5, norm", "cls_token, pos_embed, patch_embed"),
        ("test_convnext", 10, "stages.3.blocks.1, head", "stem"),
        ("csatv2", 5, "stages.3, head", "stem_dct"),
        ("poolformer_s12", 5, "stages.3, head", "stem"),
        ("pit_ti_224", 4, "transformers.2, norm", "pos_embed, cls_token, patch_embed"),
        (
            "densenet121",
            59,
            "features.denseblock4.denselayer16, features.norm5",
            "features.conv0, features.norm0",
        ),
        (
            "hrnet_w18_small",
            6,
            "incre_modules, downsamp_modules, final_layer",
            "conv1, bn1, conv2 and 1 more",
        ),
    ],
)
def test_known_layers(name: str, count: int, first: str, last: str) -> None:
    layers = list_layers(meta(name))
    assert (len(layers), layers[0].label, layers[-1].label) == (count, first, last)
    assert layers[0].to_json() == {
        "index": 1,
        "label": first,
        "parameters": layers[0].parameters,
    }
    # A norm between two groups belongs to its neighbor: it is nothing to search over.
    assert all(layer.parameters > 100 for layer in layers)


def test_a_norm_goes_with_its_layer() -> None:
    """The matcher of cait knows ``norm.weight`` but not ``norm``."""
    last = list_layers(meta("cait_xxs24_224"))[0]
    assert {"norm.weight", "norm.bias"} <= set(last.names)
    assert "norm" in last.modules
    assert "blocks.23.attn.proj_drop" in last.modules
