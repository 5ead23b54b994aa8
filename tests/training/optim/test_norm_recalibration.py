"""Norm statistics of reshaped layers are those of the images that they see."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from autotune.models.network import Network, build_network
from autotune.training.evaluation import SAMPLED_IMAGES
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.optim.norm_recalibration import recalibrate_batch_norms, sample_batches
from tests.support.models.backbones import (
    CPU,
    backbone,
    plan,
    same_state,
    some_digits,
    state_of,
    training,
)
from tests.support.models.surgery import built, change, pictures

PLAN = change("test_resnet", {1: {"width": 0.5}, 2: {"kernel": 5, "activation": "elu"}})


def batches(count: int = 3) -> list[Tensor]:
    return [pictures("test_resnet", 6, seed=seed) for seed in range(count)]


def inputs(net: Network, name: str, images: list[Tensor]) -> list[Tensor]:
    """Record what a module of the backbone sees."""
    seen: list[Tensor] = []
    hook = net.backbone.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach().clone())
    )
    with torch.no_grad():
        for image in images:
            net(image)
    hook.remove()
    return seen


def test_statistics_are_those_of_the_features() -> None:
    net = built(PLAN)
    # The first norm of layer 2 sees what the frozen layers give: no other norm lies between.
    expected = copy.deepcopy(net)
    name = "layer3.0.bn1"
    seen = inputs(expected, name, batches())
    recalibrate_batch_norms(net, batches())
    norm = net.backbone.get_submodule(name)
    means = torch.stack([one.mean((0, 2, 3)) for one in seen]).mean(0)
    variances = torch.stack([one.var((0, 2, 3)) for one in seen]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)
    assert int(norm.num_batches_tracked) == 3  # type: ignore[arg-type]


def test_norms_behind_see_features_that_are_normalised_by_the_batch() -> None:
    net = built(PLAN)
    twin = copy.deepcopy(net).eval()
    for module in twin.stale_norms:
        module.train()
    name = "layer4.0.bn2"
    seen = inputs(twin, name, batches())
    recalibrate_batch_norms(net, batches())
    norm = net.backbone.get_submodule(name)
    means = torch.stack([one.mean((0, 2, 3)) for one in seen]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)


def test_frozen_norms_and_weights_are_untouched_and_momenta_restored() -> None:
    net = built(PLAN)
    for place, module in enumerate(net.stale_norms):
        module.momentum = 0.1 + place / 100
    before = state_of(net)
    recalibrate_batch_norms(net, batches())
    after = state_of(net)
    stale = {
        f"{name}.{leaf}"
        for name, module in net.named_modules()
        if any(module is norm for norm in net.stale_norms)
        for leaf in ("running_mean", "running_var", "num_batches_tracked")
    }
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == stale
    assert not any("layer1" in key or "layer2" in key or "head" in key for key in changed)
    assert [module.momentum for module in net.stale_norms] == [
        0.1 + place / 100 for place in range(len(net.stale_norms))
    ]


def test_stale_norms_are_those_up_to_the_deepest_reshaped_layer() -> None:
    net = built(change("test_resnet", {2: {"kernel": 2}}, depth=4))
    names = {
        name
        for name, module in net.backbone.named_modules()
        if any(module is norm for norm in net.stale_norms)
    }
    assert names and all(name.startswith(("layer3.", "layer4.")) for name in names)
    expected = {
        name
        for name, module in net.backbone.named_modules()
        if isinstance(module, nn.BatchNorm2d) and name.startswith(("layer3.", "layer4."))
    }
    assert names == expected
    assert build_network(backbone("test_resnet"), plan("test_resnet", 3), 3, 0).stale_norms == ()
    assert built(change("test_vit", {1: {"width": 0.5}})).stale_norms == ()


def test_what_leaves_the_function_as_it_is_makes_no_norm_stale() -> None:
    grown = {"kernel": 5, "width": 1.5, "bridge": 1.0, "drop_path": 0.2}
    assert built(change("test_resnet", {1: grown, 2: grown})).stale_norms == ()
    assert built(change("test_resnet", {1: grown, 2: grown}, inherit="none")).stale_norms


def test_the_drawn_images_are_the_same_every_time() -> None:
    views = some_digits(30, views=3, seed=1)
    normalize = Normalizer.from_config(backbone("test_resnet").data_config, CPU)
    first = torch.cat(list(sample_batches(views, 12, normalize, 5)))
    torch.manual_seed(99)
    again = torch.cat(list(sample_batches(views, 12, normalize, 5)))
    assert torch.equal(first, again)
    assert first.shape == (12, 3, 32, 32)
    other = torch.cat(list(sample_batches(views, 12, normalize, 6)))
    assert not torch.equal(first, other)
    # They are evaluation views of these images, none of them twice.
    expected = torch.stack([views.view(i, 0) for i in range(30)])
    everything = normalize(expected)
    found = [(everything == one).flatten(1).all(1).nonzero().flatten().tolist() for one in first]
    assert all(found) and len({one[0] for one in found}) >= 11
    assert torch.cat(list(sample_batches(views, 99, normalize, 5))).shape[0] == 30


def test_a_training_measures_before_its_first_epoch() -> None:
    found = change("test_resnet", {1: {"width": 0.5}})
    whole = training(found, ema=0.9, epochs=1)
    expected = copy.deepcopy(whole.network)
    images = list(sample_batches(whole.train, SAMPLED_IMAGES, whole.normalize, whole.seed))
    assert sum(map(len, images)) == len(whole.train)
    recalibrate_batch_norms(expected, images)
    whole.recalibrate_norms()
    assert same_state(whole.network, expected) and same_state(whole.eval_model, expected)
