from __future__ import annotations

import functools
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from autotune.errors import BackboneError
from autotune.models.backbone import build_backbone, classifier_keys, hash_weights, load_backbone
from autotune.models.pretrained.state_dict import find_state
from tests.support.models.surgery import FAMILIES, RESHAPED, built, change, kept, saved
from tests.support.pages.doc_commands import ROOT

State = dict[str, Tensor]
#: Architectures whose classifier is more than one linear layer, or has another name.
CLASSIFIERS = ("test_vit", "levit_128s", "repvit_m1", "efficientvit_m0", "shvit_s1")


def trained(name: str = "test_resnet", seed: int = 7, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(name, **options)


def expected_hash(model: nn.Module) -> str:
    model.reset_classifier(0)  # type: ignore[operator]
    return hash_weights(model)


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("options", [{"num_classes": 7}, {}], ids=["seven", "own"])
def test_the_whole_checkpoint_of_a_timm_model(
    name: str, options: dict[str, int], tmp_path: Path
) -> None:
    model = trained(name, **options)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_backbone(name, str(tmp_path / "w.safetensors"))
    assert (loaded.weights_hash, loaded.notes) == (expected_hash(model), ())


#: Family -> its smallest classification model, as benchmarks/coverage.py found it.
SMALLEST = dict(
    re.findall(r"^\| (\w+) \| (\w+) \| \d", (ROOT / "docs/coverage.md").read_text(), re.M)
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", timm.list_modules())
def test_the_whole_checkpoint_of_every_family(family: str) -> None:
    """On the meta device: some of the smallest models have hundreds of millions of weights."""
    name = SMALLEST.get(family) or timm.list_models(module=family)[0]
    model = build_backbone(name, None, device="meta")
    options: dict[str, int]
    for options in ({"num_classes": 7}, {}):
        with torch.device("meta"):
            state = timm.create_model(name, **options).state_dict()
        found = find_state(model, {"": dict(state)}, functools.partial(classifier_keys, name))
        assert (found.problems, found.extra, found.prefix) == ({}, (), ""), name


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def wrapped(state: State, wrapper: str) -> State:
    return {
        key.replace("layer1.0.", f"{wrapper}layer1.0.{wrapper}"): v for key, v in state.items()
    }


def forms(best: State, other: State) -> dict[str, tuple[Any, str]]:
    """Return checkpoints with the best weights, and what is said of them."""
    body = {key: value for key, value in best.items() if not key.startswith("fc.")}
    teacher = {**prefixed(best, "backbone."), "head.mlp.0.weight": torch.ones(2, 2)}
    return {
        "plain": (best, ""),
        "headless": (body, ""),
        "state_dict": ({"state_dict": best, "epoch": 3}, "took 'state_dict'"),
        "nested": ({"checkpoint": {"model": best}}, "took 'checkpoint.model'"),
        "parallel": ({"state_dict": prefixed(best, "module.")}, "took 'state_dict'"),
        "compiled": (prefixed(best, "_orig_mod."), ""),
        "encoder.": (prefixed(best, "encoder."), "removed the prefix 'encoder.'"),
        "module.model.": (prefixed(best, "module.model."), "removed the prefix 'model.'"),
        "lightning": (
            {"state_dict": {**prefixed(best, "net."), "criterion.weight": torch.ones(2)}},
            "took 'state_dict', removed the prefix 'net.'",
        ),
        "mmpretrain": (
            {
                "meta": {},
                "state_dict": prefixed(body, "backbone.") | {"head.fc.bias": best["fc.bias"]},
            },
            "took 'state_dict', removed the prefix 'backbone.'",
        ),
        "dino": (
            {"student": prefixed(other, "module.backbone."), "teacher": teacher},
            "took 'teacher', removed the prefix 'backbone.'",
        ),
        "moco": (
            {
                "state_dict": {
                    **prefixed(other, "module.encoder_k."),
                    **prefixed(best, "module.encoder_q."),
                    "module.queue": torch.ones(2, 2),
                }
            },
            "removed the prefix 'encoder_q.'",
        ),
        "timm ema": ({"state_dict": other, "state_dict_ema": best}, "took 'state_dict_ema'"),
        "ema inside": (
            {"state_dict": {**prefixed(other, "model."), **prefixed(best, "ema_model.module.")}},
            "removed the prefix 'ema_model.module.'",
        ),
        "averaged": (
            {"n_averaged": torch.tensor(3), **prefixed(best, "module.")},
            "left out n_av",
        ),
        "arrays": ({"model": {key: value.numpy() for key, value in best.items()}}, "took 'model'"),
        "class names": ({**best, "classes": np.array(["a", "b"])}, ""),
        "list": ({"models": [best, other]}, "took 'models.0'"),
        "deep": ({"a": {"b": {"c": {"d": best}}}}, "took 'a.b.c.d'"),
        "deep prefix": (prefixed(best, "a.b.c.d.e."), "removed the prefix 'a.b.c.d.e.'"),
        "wrapped layers": (wrapped(best, "_orig_mod."), ""),
        "fsdp": (wrapped(best, "_fsdp_wrapped_module._checkpoint_wrapped_module."), ""),
        "thop": ({**best, "total_ops": torch.ones(1), "conv1.total_params": torch.ones(1)}, ""),
        "other head": ({**body, "last_linear.weight": torch.ones(3, 3)}, "left out last_linear"),
        "average without buffers": (
            {"model": best, "ema": {k: v for k, v in other.items() if "running" not in k}},
            "took 'model', passed over ema (tensors are missing)",
        ),
    }


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    return trained(), trained(seed=8)


@pytest.mark.parametrize("form", forms({"fc.bias": torch.ones(1)}, {}))
def test_the_forms_of_a_checkpoint(
    form: str, models: tuple[nn.Module, nn.Module], tmp_path: Path
) -> None:
    content, taken = forms(*(dict(model.state_dict()) for model in models))[form]
    torch.save(content, tmp_path / "w.pth")
    loaded = load_backbone("test_resnet", str(tmp_path / "w.pth"))
    own = {k: v for k, v in models[0].state_dict().items() if not k.startswith("fc.")}
    assert all(torch.equal(own[k], v) for k, v in loaded.pretrained.state_dict().items())
    assert taken in "".join(loaded.notes) and bool(taken) == bool(loaded.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict of tensors, but a list"),
        ({"a": 1}, "holds no state dict of tensors, but a mapping with 'a'"),
        ({}, "but a mapping with nothing"),
        ({"optimizer": {"state": {0: {"step": torch.ones(1)}}}}, "a mapping with 'optimizer'"),
    ],
)
def test_a_file_without_a_state_dict(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=message):
        load_backbone("test_resnet", str(tmp_path / "w.pth"))


def test_a_larger_network_is_not_taken_for_a_smaller_one(tmp_path: Path) -> None:
    """All tensors of a ResNet-18 are in a ResNet-34."""
    torch.save(prefixed(trained("resnet34").state_dict(), "model."), tmp_path / "w.pth")
    with pytest.raises(
        BackboneError, match=r"removed the prefix 'model.'.*unknown: layer1.2.conv1"
    ):
        load_backbone("resnet18", str(tmp_path / "w.pth"))


def test_weights_in_half_precision(tmp_path: Path) -> None:
    model = trained().half()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    found = load_backbone("test_resnet", str(tmp_path / "w.safetensors"))
    assert found.weights_hash == expected_hash(model.float())


def damaged(value: Tensor, how: str) -> Tensor:
    return {
        "nan": value * float("nan"),
        "an infinity": value.index_fill(0, torch.tensor([0]), float("inf")),
        "half": (value * 1e9).half(),
        "double": value.double() * 1e300,
    }[how]


@pytest.mark.parametrize("how", ["nan", "an infinity", "half", "double"])
def test_values_that_are_not_finite(how: str, tmp_path: Path) -> None:
    state = dict(trained().state_dict())
    state["conv1.0.weight"] = damaged(state["conv1.0.weight"], how)
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"\(NaN\) in 1 tensor: conv1.0.weight; .*earlier"):
        load_backbone("test_resnet", str(tmp_path / "w.pth"))


def test_a_classifier_that_is_not_finite_does_not_matter(tmp_path: Path) -> None:
    state = OrderedDict(trained().state_dict())
    state["fc.bias"] = state["fc.bias"] * float("nan")
    torch.save(state, tmp_path / "w.pth")
    load_backbone("test_resnet", str(tmp_path / "w.pth"))


def test_a_fitted_model_is_the_start_of_a_study(tmp_path: Path) -> None:
    plan = kept("test_resnet")
    folder = saved(tmp_path / "model", plan)
    for path in (folder, folder / "model.safetensors"):
        loaded = load_backbone("test_resnet.letters", str(path))
        assert loaded.weights_hash == hash_weights(built(plan).backbone)
        assert "took the backbone of a model that autotune fitted (test_resnet)" in loaded.notes[0]
    with pytest.raises(BackboneError, match="it is a fit of the backbone 'test_resnet'"):
        load_backbone("test_vit", str(folder))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_reshaped_fit_is_refused_with_its_changes(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", RESHAPED[name])
    with pytest.raises(
        BackboneError, match=r"a fit with other shapes in layer 1 \(.*width 0.5.*weights=hub"
    ):
        load_backbone(name, str(folder), FAMILIES[name].size)


def test_changes_without_weights_are_named(tmp_path: Path) -> None:
    plan = change("test_resnet", {1: {"activation": "elu"}})
    folder = saved(tmp_path / "model", plan)
    (note,) = load_backbone("test_resnet", str(folder)).notes
    assert "without its changes of layer 1 (activation elu)" in note


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("how", "kind"),
    [
        (lambda value: value.to(torch.int8), "int8"),
        (lambda value: value > 0, "bool"),
        (lambda value: value.to(torch.complex64), "complex64"),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "qint8"),
        (lambda value: value.to_sparse(), "sparse_coo"),
        (lambda value: value.to("meta"), "without values"),
    ],
)
def test_tensors_that_are_no_weights(
    how: Callable[[Tensor], Tensor], kind: str, tmp_path: Path
) -> None:
    state = dict(trained().state_dict())
    state["conv1.0.weight"] = how(state["conv1.0.weight"])
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=f"type that is not trained: conv1.0.weight is {kind}"):
        load_backbone("test_resnet", str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("rename", "hint"),
    [
        (lambda key: key.replace("conv1", "conv1.lora_A"), "LoRA adapters .*merge"),
        (lambda key: key.replace("weight", "weight_orig"), "stored as something else"),
        (
            lambda key: key.replace("layer1", "encoder.layer.1.attention"),
            "a model of transformers",
        ),
        (lambda key: f"features{key.replace('.', '_')}.weight", r"under other names.*torchvision"),
    ],
)
def test_keys_tell_where_a_file_is_from(
    rename: Callable[[str], str], hint: str, tmp_path: Path
) -> None:
    state = {rename(key): value for key, value in trained().state_dict().items()}
    torch.save({"conv1.0.bias": torch.ones(1), **state}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=f"does not belong to the backbone .*{hint}"):
        load_backbone("test_resnet", str(tmp_path / "w.pth"))


def test_a_position_table_is_resized(tmp_path: Path) -> None:
    """Weights of one input size serve another, as timm does it for its own."""
    model = trained("test_vit", img_size=160)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    found = load_backbone("test_vit", str(tmp_path / "w.pth"), 96)
    assert "resized pos_embed" in found.notes[0]
    before, after = model.state_dict(), found.pretrained.state_dict()
    assert {key for key in after if not torch.equal(before[key], after[key])} == {"pos_embed"}
    assert after["pos_embed"].shape[1] == (96 // 16) ** 2 + model.num_prefix_tokens
    assert torch.allclose(before["pos_embed"].mean(), after["pos_embed"].mean(), atol=1e-3)


def test_the_filter_of_a_family_may_have_another_name() -> None:
    """VGG's authors have hidden layers in their classifier, which timm keeps in the backbone."""
    model = build_backbone("vgg11", None, device="meta")
    with torch.device("meta"):
        state = dict(timm.create_model("vgg11").state_dict())
    for number, layer in (("0", "fc1"), ("3", "fc2")):
        weight = state.pop(f"pre_logits.{layer}.weight")
        state[f"classifier.{number}.weight"] = weight.flatten(1)
        state[f"classifier.{number}.bias"] = state.pop(f"pre_logits.{layer}.bias")
    state = {key.replace("head.fc", "classifier.6"): value for key, value in state.items()}
    keys = functools.partial(classifier_keys, "vgg11")
    assert find_state(model, {"": state}, keys).problems == {}


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
def test_an_efficientnet_with_the_names_of_its_package(name: str) -> None:
    """Its tensors are in the order of timm; a state dict in another order is refused."""
    model = build_backbone(name, None, "meta")
    own = model.state_dict()
    names = {key: f"_{i}.{key.rpartition('.')[2]}" for i, key in enumerate(own)}
    names["conv_stem.weight"] = "_conv_stem.weight"
    theirs = {names[key]: tensor.clone() for key, tensor in own.items()}
    theirs["_fc.weight"] = torch.empty(1000, 1280, device="meta")
    found = find_state(model, {"": theirs}, frozenset)
    assert not found.problems
    assert all(found.state[key] is theirs[names[key]] for key in own)
    first, second, *others = theirs.items()
    assert find_state(model, {"": dict([second, first, *others])}, frozenset).problems
