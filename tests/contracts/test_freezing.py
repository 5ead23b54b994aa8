"""Frozen means frozen: no gradient, no change of norm statistics, no dropout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autotune.models.layers import list_layers
from autotune.models.network import Network, build_network
from autotune.training.optim.norm_recalibration import recalibrate_batch_norms
from tests.support.backbones import DROPPING, SMALL, backbone, images, plan, state_of
from tests.support.surgery import FAMILIES, built, change, offers, pictures, source, values


def depths(name: str) -> range:
    return range(len(list_layers(backbone(name).pretrained)) + 1)


def train(net: Network, name: str, steps: int = 3) -> None:
    trainable = [parameter for _, parameter, _ in net.layer_of_parameters()]
    optimizer = torch.optim.SGD(trainable, lr=0.05, momentum=0.9, weight_decay=0.05)
    for step in range(steps):
        net.train()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(
            net(images(name, 6, seed=step)), torch.arange(6) % net.head[-1].out_features
        )
        loss.backward()
        optimizer.step()
        net.eval()


@pytest.mark.parametrize(
    ("name", "depth"), [(name, depth) for name in SMALL for depth in depths(name)]
)
def test_training_changes_the_trainable_layers_and_no_others(name: str, depth: int) -> None:
    check(name, depth)


@pytest.mark.parametrize("name", [name for name in DROPPING if name not in SMALL])
@pytest.mark.parametrize("depth", [0, 2])
def test_training_changes_the_trainable_layers_of_more_families(name: str, depth: int) -> None:
    check(name, depth)


def check(name: str, depth: int) -> None:
    torch.manual_seed(0)
    source = backbone(name, True)
    net = build_network(source, plan(name, depth, 8, dropout=0.5), 3, seed=0)
    before = state_of(net)
    train(net, name)
    after = state_of(net)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    frozen = {f"backbone.{key}" for layer in net.layers[depth:] for key in layer.names}
    assert changed & frozen == set()
    pretrained = state_of(source.pretrained)
    for key in frozen:
        assert torch.equal(after[key], pretrained[key.removeprefix("backbone.")]), key
    for layer in net.layers[:depth]:
        names = {f"backbone.{key}" for key in layer.names}
        statistics = {
            key for key in names if "running_" in key or key.endswith("num_batches_tracked")
        }
        assert statistics <= changed
        weights = {
            key
            for key in names
            if key.endswith("weight") and before[key].ndim > 1 and before[key].numel() > 1
        }
        assert weights <= changed or name == "levit_128s"
        assert weights & changed


@pytest.mark.parametrize("name", DROPPING)
def test_trainable_layers_are_frozen_while_the_head_trains_alone(name: str) -> None:
    torch.manual_seed(0)
    deepest = depths(name)[-1]
    for depth in (2, deepest):
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
        # And unfrozen again, everything is as the plan says.
        net.freeze_all_but_head(False)
        assert {key: module.training for key, module in net.named_modules()} == modes
        assert {key: one.requires_grad for key, one in net.named_parameters()} == trained


@pytest.mark.parametrize("name", DROPPING)
def test_the_frozen_part_stays_in_evaluation_mode(name: str) -> None:
    for depth in (0, 1, 2):
        net = build_network(backbone(name, True), plan(name, depth, 8), 3, seed=0).train()
        index = {key: layer.index for layer in net.layers for key in layer.modules}
        for key, module in net.backbone.named_modules():
            assert module.training == (0 < index.get(key, 10**6) <= depth), key
        assert all(module.training for module in net.head.modules())
        assert not any(module.training for module in net.eval().modules())


@pytest.mark.parametrize("name", SMALL)
def test_everything_trains_when_every_layer_is_trainable(name: str) -> None:
    net = build_network(backbone(name, True), plan(name, depths(name)[-1]), 3, seed=0).train()
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("name", DROPPING)
def test_nothing_is_dropped_in_the_frozen_part(name: str) -> None:
    net = build_network(backbone(name, True), plan(name), 3, seed=0).train()
    batch = images(name)
    first, second = net.backbone(batch), net.backbone(batch)
    assert torch.equal(first, second)
    with torch.no_grad():
        assert torch.equal(first, backbone(name).pretrained(batch))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_what_reaches_the_first_trainable_layer_is_the_same_every_time(name: str) -> None:
    """At depth 2 the inputs of every frozen module are deterministic, the output is not."""
    torch.manual_seed(0)
    net = build_network(backbone(name, True), plan(name, 2, 8, dropout=0.5), 3, seed=0).train()
    frozen = {key for layer in net.layers[2:] for key in layer.modules}
    seen: dict[str, list[Tensor]] = {}
    for key, module in net.backbone.named_modules():
        if key in frozen:
            module.register_forward_hook(
                lambda _module, _inputs, output, key=key: seen.setdefault(key, []).append(output)
            )
    batch = images(name, 16)
    first, second = net(batch), net(batch)
    assert not torch.equal(first, second)
    assert seen
    assert all(torch.equal(*outputs) for outputs in seen.values())


#: Field -> a value that every layer can take which has the field at all.
RESHAPING = {"kernel": 2, "width": 0.5, "bridge": 0.5, "activation": "mish", "pool": "avg3"}


@pytest.mark.parametrize("name", FAMILIES)
def test_training_reshaped_layers_leaves_the_others_alone(name: str) -> None:
    """Weights, buffers and norm statistics of the frozen layers are the pretrained ones."""
    torch.manual_seed(0)
    changes = {
        offer.index: {field: RESHAPING[field] for field in RESHAPING if field in values(offer)}
        for offer in offers(name)[:3]
    }
    assert any(changes.values())
    net = built(change(name, changes, inherit="data"))
    pretrained = state_of(source(name).pretrained)
    before = state_of(net)
    trainable = {f"backbone.{key}" for layer in net.layers[:3] for key in layer.names}

    def check_frozen() -> None:
        after = state_of(net)
        for key in after.keys() - trainable:
            if key.startswith("backbone."):
                assert torch.equal(after[key], pretrained[key.removeprefix("backbone.")]), key

    check_frozen()
    recalibrate_batch_norms(net, [pictures(name, 4, seed=seed) for seed in range(2)])
    check_frozen()
    for module in net.stale_norms:
        assert int(module.num_batches_tracked) == 2
    optimizer = torch.optim.SGD(
        [one for _, one, _ in net.layer_of_parameters()], lr=1e-3, momentum=0.9, weight_decay=0.05
    )
    for step in range(2):
        net.train()
        optimizer.zero_grad()
        batch = pictures(name, 4, seed=step)
        nn.functional.cross_entropy(net(batch), torch.arange(4) % 3).backward()
        optimizer.step()
        net.eval()
    check_frozen()
    after = state_of(net)
    matrices = [key for key in trainable if before[key].ndim > 1 and key.endswith("weight")]
    moved = [key for key in matrices if not torch.equal(before[key], after[key])]
    assert len(moved) > 0.7 * len(matrices)
    assert set(matrices) <= {f"backbone.{one}" for one, _ in net.backbone.named_parameters()}
    assert all(net.get_parameter(key).requires_grad for key in matrices)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_frozen_part_of_reshaped_networks_stays_in_evaluation_mode(name: str) -> None:
    changes = {
        offer.index: {"drop_path": 0.5, "dropout": 0.5} & values(offer).keys()
        for offer in offers(name)[:2]
    }
    plans = {index: dict.fromkeys(fields, 0.5) for index, fields in changes.items()}
    net = built(change(name, plans, depth=2)).train()
    index = {key: layer.index for layer in net.layers for key in layer.modules}
    for key, module in net.backbone.named_modules():
        assert module.training == (index.get(key, 10**6) <= 2), key
