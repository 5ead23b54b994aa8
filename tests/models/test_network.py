from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from autotune.errors import PlanError
from autotune.models.network import Head, Network, build_network, feature_count
from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrialPlan
from tests.support.models.backbones import (
    SMALL,
    backbone,
    images,
    network,
    plan,
    same_state,
    state_of,
)


@pytest.mark.parametrize("units", [(), (8,), (8, 16), (8, 16, 4)])
def test_the_head_has_the_hidden_layers_of_its_plan(units: tuple[int, ...]) -> None:
    head = Head(HeadPlan(tuple(HiddenLayer(one, 0.25) for one in units)), 12, 5)
    linear = [module for module in head if isinstance(module, nn.Linear)]
    assert [module.out_features for module in linear] == [*units, 5]
    assert [module.in_features for module in linear] == [12, *units]
    kinds = [type(module) for module in head]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout] * len(units) + [nn.Linear]
    assert all(module.p == 0.25 for module in head if isinstance(module, nn.Dropout))
    assert [module.bias is None for module in linear] == [True] * len(units) + [False]
    assert head(torch.randn(6, 12)).shape == (6, 5)


def test_a_hidden_layer_takes_any_activation_and_goes_without_batch_norm() -> None:
    plan_of_head = HeadPlan((HiddenLayer(8, 0.25),), activation="gelu", batch_norm=False)
    linear, activation, dropout, output = Head(plan_of_head, 12, 5)
    assert isinstance(linear, nn.Linear) and linear.bias is not None
    assert isinstance(activation, nn.GELU)
    assert isinstance(dropout, nn.Dropout) and dropout.p == 0.25
    assert isinstance(output, nn.Linear) and output.out_features == 5


def test_the_head_depends_on_the_seed_alone() -> None:
    source = backbone("test_resnet")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_network(source, plan("test_resnet", 0, 8), 3, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    again = build_network(source, plan("test_resnet", 2, 8), 3, seed=1)
    other = build_network(source, plan("test_resnet", 0, 8), 3, seed=2)
    assert torch.equal(first.head[0].weight, again.head[0].weight)
    assert not torch.equal(first.head[0].weight, other.head[0].weight)


@pytest.mark.parametrize("name", SMALL[:2])
def test_a_new_network_knows_nothing(name: str) -> None:
    """The output layer starts near zero: the first loss is that of a guess."""
    net = network(name).eval()
    with torch.no_grad():
        probabilities = net(images(name)).softmax(1)
    assert (probabilities - 1 / 3).abs().max() < 0.2


@pytest.mark.parametrize("pool", ["keep", "avg", "max", "avgmax"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_pooling(name: str, pool: str) -> None:
    source = backbone(name)
    found = TrialPlan(name, 1, (LayerPlan(),), HeadPlan((HiddenLayer(8, 0.1),), pool))
    net = build_network(source, found, 3, seed=0)
    side = 32 if name == "test_vit" else 96  # more than one position must be left to pool
    batch = torch.randn(4, 3, side, side)
    assert net(batch).shape == (4, 3)
    kept = build_network(source, plan(name), 3, seed=0)
    with torch.no_grad():
        pooled, old = (one.eval().backbone(batch) for one in (net, kept))
    assert torch.equal(pooled, old) == (pool in ("keep", "token" if name == "test_vit" else "avg"))
    assert same_state(net.backbone, source.pretrained)


@pytest.mark.parametrize("pool", ["max", "avgmax"])
def test_pooling_that_an_architecture_does_not_offer(pool: str) -> None:
    found = TrialPlan("levit_128s", head=HeadPlan(pool=pool))
    with pytest.raises(PlanError, match=rf"head.pool: the backbone 'levit_128s' .*'{pool}'.*keep"):
        build_network(backbone("levit_128s"), found, 3, seed=0)


@pytest.mark.parametrize(
    ("depth", "layers", "message"),
    [
        (-1, 0, "between 0 and the 5 layers.*but got depth -1"),
        (6, 6, "between 0 and the 5 layers.*but got depth 6"),
        (2, 1, "with one layer plan each, but got depth 2 with 1 layer plans"),
    ],
)
def test_a_plan_of_a_wrong_depth(depth: int, layers: int, message: str) -> None:
    wrong = TrialPlan("test_resnet", depth, (LayerPlan(),) * layers)
    with pytest.raises(PlanError, match=message):
        build_network(backbone("test_resnet"), wrong, 3, seed=0)


def test_features_must_be_vectors() -> None:
    maps = timm.create_model("test_resnet", num_classes=0, global_pool="")
    with pytest.raises(PlanError, match=r"must pool to \(N, features\)"):
        feature_count(maps, (3, 32, 32))


@pytest.mark.parametrize("name", SMALL[:2])
def test_trainable_parameters_know_their_layer(name: str) -> None:
    net = network(name, 2)
    listed = list(net.layer_of_parameters())
    assert {layer for *_, layer in listed} == {0, 1, 2}
    for key, parameter, layer in listed:
        assert parameter.requires_grad
        if layer == 0:
            assert key.startswith("head.")
        else:
            assert key.removeprefix("backbone.") in net.layers[layer - 1].names
    everything = sum(parameter.numel() for _, parameter, _ in listed)
    head = sum(parameter.numel() for parameter in net.head.parameters())
    assert everything == head + sum(layer.parameters for layer in net.layers[:2])


@pytest.mark.parametrize("depth", [0, 2, 5])
def test_the_trainable_state_goes_round(depth: int) -> None:
    net = build_network(backbone("test_resnet"), plan("test_resnet", depth, 8), 3, seed=0)
    with torch.no_grad():
        for value in net.trainable_state().values():
            value.copy_(torch.randn(value.shape) if value.is_floating_point() else value + 3)
    state = copy.deepcopy(net.trainable_state())
    assert all(key.startswith("head.") for key in state) == (depth == 0)
    other = build_network(backbone("test_resnet"), plan("test_resnet", depth, 8), 3, seed=1)
    other.load_trainable_state(state)
    assert same_state(net, other)


@pytest.mark.parametrize(
    "foreign",
    [plan("test_resnet", 3, 8), plan("test_resnet", 2), plan("test_resnet", 2, 16)],
    ids=["deeper", "no hidden layer", "other units"],
)
def test_the_state_of_another_plan_is_refused(foreign: TrialPlan) -> None:
    net = build_network(backbone("test_resnet"), plan("test_resnet", 2, 8), 3, seed=0)
    before = state_of(net)
    state = build_network(backbone("test_resnet"), foreign, 3, seed=1).trainable_state()
    match = r"another plan: 6 of their .* head\.0\.weight first"
    with pytest.raises(
        PlanError, match=match if foreign.head.hidden == (HiddenLayer(16),) else "another plan"
    ):
        net.load_trainable_state(state)
    assert all(torch.equal(before[key], value) for key, value in state_of(net).items())


@pytest.mark.parametrize("depth", [0, 2, 5])
def test_a_copy_is_frozen_as_the_original(depth: int) -> None:
    """The moving average of the weights is a copy."""
    net = network("test_resnet", depth).train()
    twin = copy.deepcopy(net)
    assert isinstance(twin, Network)
    for one in (net.eval(), twin.eval(), net.train(), twin.train()):
        own = {id(module) for module in one.modules()}
        assert all(id(module) in own for module in one.frozen)
    assert _modes(twin) == _modes(net)
    twin.backbone.requires_grad_(True)
    assert not any(one.requires_grad for one in net.backbone.conv1.parameters()) or depth == 5


def _modes(net: Network) -> dict[str, bool]:
    return {name: module.training for name, module in net.named_modules()}


def test_no_graph_is_kept_for_the_frozen_part() -> None:
    held: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        held[-1] += tensor.numel()
        return tensor

    for depth in range(6):
        net = network("test_resnet", depth).train()
        features = net.backbone(images("test_resnet"))
        assert (features.grad_fn is None) == (depth == 0)
        held.append(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            net(images("test_resnet"))
    assert held == sorted(held)
    assert held[0] < 1000 < held[1] < held[5] / 2


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", ["norms", "biases"])
def test_norms_or_biases_train_alone(name: str, kind: str) -> None:
    """Of layers that keep their shape; a changed layer trains whole."""
    whole = build_network(backbone(name), plan(name, 3), 3, seed=0)
    few = build_network(backbone(name), plan(name, 3, parameters=kind), 3, seed=0)
    trained = {key for key, _, layer in few.layer_of_parameters() if layer}
    assert trained < {key for key, _, layer in whole.layer_of_parameters() if layer}
    assert trained and all(few.get_parameter(key).ndim == 1 for key in trained)
    if kind == "biases":
        assert all(key.endswith("bias") for key in trained)
    else:
        assert any(key.endswith("weight") for key in trained)
    assert trained == {
        key
        for key, one in few.named_parameters()
        if one.requires_grad and key.startswith("backbone.")
    }
    assert few.trainable_state().keys() == whole.trainable_state().keys()
    few.freeze_all_but_head(True).freeze_all_but_head(False)
    assert all(few.get_parameter(key).requires_grad for key in trained)


def test_a_changed_layer_trains_whole() -> None:
    changed = replace(
        plan("test_resnet", 2, parameters="norms"), layers=(LayerPlan(kernel=1), LayerPlan())
    )
    net = build_network(backbone("test_resnet"), changed, 3, seed=0)
    dimensions = {
        layer: max(one.ndim for _, one, index in net.layer_of_parameters() if index == layer)
        for layer in (1, 2)
    }
    assert dimensions == {1: 4, 2: 1}
