"""Frozen layers get no gradient, no change of norm statistics and no dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autotune.models.network import Network, build_network
from autotune.training.optim.norm_recalibration import recalibrate_batch_norms
from tests.support.models.backbones import (
    DROPPING,
    SMALL,
    backbone,
    depths,
    images,
    plan,
    state_of,
)
from tests.support.models.surgery import (
    built,
    capabilities,
    change,
    each_family,
    pictures,
    slow_unless_default,
    source,
    values,
)

each_dropping = pytest.mark.parametrize("name", slow_unless_default(DROPPING))


def train(net: Network, batches: list[Tensor], lr: float = 0.05) -> None:
    trainable = [parameter for _, parameter, _ in net.layer_of_parameters()]
    optimizer = torch.optim.SGD(trainable, lr=lr, momentum=0.9, weight_decay=0.05)
    for batch in batches:
        net.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch), torch.arange(len(batch)) % 3).backward()
        optimizer.step()
        net.eval()


def check_frozen(net: Network, pretrained: nn.Module, depth: int) -> None:
    expected, found = state_of(pretrained), state_of(net.backbone)
    for layer in net.layers[depth:]:
        for key in layer.names:
            assert torch.equal(found[key], expected[key]), f"{key} is frozen but changed"


@each_dropping
def test_training_changes_the_trainable_layers_and_no_others(name: str) -> None:
    source = backbone(name, True)
    for depth in depths(name) if name in SMALL else (0, 2):
        torch.manual_seed(0)
        net = build_network(source, plan(name, depth, 8, dropout=0.5), 3, seed=0)
        before = state_of(net.backbone)
        train(net, [images(name, 6, seed=step) for step in range(3)])
        check_frozen(net, source.pretrained, depth)
        after = state_of(net.backbone)
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        for layer in net.layers[:depth]:
            counted = ("running_mean", "running_var", "num_batches_tracked")
            statistics = {key for key in layer.names if key.endswith(counted)}
            assert statistics <= changed
            weights = {
                key
                for key in layer.names
                if key.endswith("weight") and before[key].ndim > 1 and before[key].numel() > 1
            }
            assert weights <= changed or name == "levit_128s"
            assert weights & changed


@each_dropping
def test_trainable_layers_are_frozen_while_only_the_head_trains(name: str) -> None:
    torch.manual_seed(0)
    for depth in (2, depths(name)[-1]):
        net = build_network(backbone(name, True), plan(name, depth, 8, dropout=0.5), 3, seed=0)
        net.train()
        modes = {key: module.training for key, module in net.named_modules()}
        trained = {key: one.requires_grad for key, one in net.named_parameters()}
        before = state_of(net)
        assert net.freeze_all_but_head(True) is net
        optimizer = torch.optim.SGD(
            [one for _, one, _ in net.layer_of_parameters()], lr=0.05, weight_decay=0.05
        )
        for step in range(2):
            net.eval()
            net.train()  # as after a validation
            assert not any(module.training for module in net.backbone.modules())
            assert all(module.training for module in net.head.modules())
            features = net.backbone(images(name, 6, seed=step))
            assert not features.requires_grad
            assert torch.equal(features, net.backbone(images(name, 6, seed=step)))
            net.head(features).pow(2).sum().backward()
            optimizer.step()
        after = state_of(net)
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed and all(key.startswith("head.") for key in changed)
        net.freeze_all_but_head(False)
        assert {key: module.training for key, module in net.named_modules()} == modes
        assert {key: one.requires_grad for key, one in net.named_parameters()} == trained


@each_dropping
def test_the_frozen_part_stays_in_evaluation_mode(name: str) -> None:
    deepest = depths(name)[-1]
    for depth in (0, 1, 2, deepest):
        net = build_network(backbone(name, True), plan(name, depth, 8), 3, seed=0).train()
        index = {key: layer.index for layer in net.layers for key in layer.modules}
        for key, module in net.backbone.named_modules():
            assert module.training == (0 < index.get(key, 10**6) <= depth or depth == deepest), key
        assert all(module.training for module in net.head.modules())
        assert depth < deepest or all(parameter.requires_grad for parameter in net.parameters())
        assert not any(module.training for module in net.eval().modules())


@each_dropping
def test_nothing_is_dropped_in_the_frozen_part(name: str) -> None:
    """The outputs of frozen modules are the same every time, those behind them are not."""
    torch.manual_seed(0)
    batch = images(name)
    net = build_network(backbone(name, True), plan(name), 3, seed=0).train()
    with torch.no_grad():
        assert torch.equal(net.backbone(batch), backbone(name).pretrained(batch))
    net = build_network(backbone(name, True), plan(name, 2, 8, dropout=0.5), 3, seed=0).train()
    frozen = {key for layer in net.layers[2:] for key in layer.modules}
    seen: dict[str, list[Tensor]] = {}

    def note(key: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen.setdefault(key, []).extend(o for o in tree_leaves(output) if torch.is_tensor(o))

        return hook

    for key, module in net.backbone.named_modules():
        if key in frozen:
            module.register_forward_hook(note(key))
    batch = images(name, 16)
    first, second = net(batch), net(batch)
    assert not torch.equal(first, second)
    assert seen
    for outputs in seen.values():
        half = len(outputs) // 2
        assert all(map(torch.equal, outputs[:half], outputs[half:]))


@each_family
def test_training_reshaped_layers_leaves_the_others_alone(name: str) -> None:
    """Weights, buffers and norm statistics of the frozen layers are the pretrained ones."""
    torch.manual_seed(0)
    reshaping = {"kernel": 2, "width": 0.5, "bridge": 0.5, "activation": "mish", "pool": "avg3"}
    changes = {
        one.index: {field: reshaping[field] for field in reshaping if field in values(one)}
        for one in capabilities(name)[:3]
    }
    assert any(changes.values())
    net = built(change(name, changes, inherit="data"))
    pretrained = source(name).pretrained
    before = state_of(net.backbone)
    check_frozen(net, pretrained, 3)
    recalibrate_batch_norms(net, [pictures(name, 4, seed=seed) for seed in range(2)])
    check_frozen(net, pretrained, 3)
    assert all(int(module.num_batches_tracked) == 2 for module in net.stale_norms)
    train(net, [pictures(name, 4, seed=seed) for seed in range(2)], lr=1e-3)
    check_frozen(net, pretrained, 3)
    trainable = [key for layer in net.layers[:3] for key in layer.names]
    matrices = [key for key in trainable if before[key].ndim > 1 and key.endswith("weight")]
    after = state_of(net.backbone)
    moved = [key for key in matrices if not torch.equal(before[key], after[key])]
    assert len(moved) > 0.7 * len(matrices)
    assert all(net.backbone.get_parameter(key).requires_grad for key in matrices)


@each_family
def test_the_frozen_part_of_reshaped_networks_stays_in_evaluation_mode(name: str) -> None:
    changes = {
        capability.index: dict.fromkeys({"drop_path", "dropout"} & values(capability).keys(), 0.5)
        for capability in capabilities(name)[:2]
    }
    net = built(change(name, changes, depth=2)).train()
    index = {key: layer.index for layer in net.layers for key in layer.modules}
    for key, module in net.backbone.named_modules():
        assert module.training == (index.get(key, 10**6) <= 2), key
