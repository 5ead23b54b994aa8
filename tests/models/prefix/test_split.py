from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from autotune.models.network import Network, build_network
from autotune.models.prefix.split import PrefixSplit, split_network
from autotune.plan import HeadPlan, LayerPlan, TrialPlan
from autotune.training.optim.norm_recalibration import recalibrate_batch_norms
from tests.support.marks import slow
from tests.support.models import surgery
from tests.support.models.backbones import SMALL, backbone, images, network, state_of

DEPTHS = [0, 1, 2, 99]


def cut(net: Network, shown: Tensor) -> PrefixSplit:
    """Split a network and attach the split, and check that nothing else of the network changed."""

    def facts() -> list[Any]:
        modes = [(name, module.training) for name, module in net.named_modules()]
        return [[*net.state_dict()], [*state_of(net)], modes, torch.get_rng_state().tolist()]

    before, expected = state_of(net), facts()
    found = split_network(net, shown)
    net.attach(found)
    assert facts() == expected
    assert all(torch.equal(value, before[name]) for name, value in state_of(net).items())
    return found


def crossing(found: PrefixSplit, shown: Tensor) -> tuple[Tensor, ...]:
    prefix = found.prefix()
    assert prefix is not None and prefix.needs == ()
    kept = shown.clone()
    parts = prefix(shown)
    assert torch.equal(shown, kept)
    assert tuple(one.shape[1:] for one in parts) == found.shapes
    assert tuple(one.dtype for one in parts) == found.dtypes
    assert all(len(one) == len(shown) and not one.requires_grad for one in parts)
    return parts


def logits(net: Network, shown: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = net.eval()(shown)
    return found


def step(net: Network, shown: Any) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Train a copy of a network on one batch; return logits, gradients and the state after it."""
    own = copy.deepcopy(net).train()
    torch.manual_seed(3)
    found = own(shown)
    found.square().sum().backward()
    gradients = {n: p.grad for n, p in own.named_parameters() if p.grad is not None}
    return found.detach(), gradients, state_of(own)


def check_same(net: Network, found: PrefixSplit, shown: Tensor) -> None:
    """Check that prefix and tail do what the whole network does, and write to nothing given."""
    parts = crossing(found, shown)
    kept = [one.clone() for one in parts]
    assert torch.allclose(logits(net, parts), logits(net, shown), rtol=1e-4, atol=1e-5)
    whole, gradients, state = step(net, shown)
    also, others, after = step(net, parts)
    assert torch.allclose(also, whole, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == others.keys()
    for name, value in gradients.items():
        assert torch.allclose(others[name], value, rtol=1e-3, atol=1e-5), name
    for name, value in state.items():
        assert torch.allclose(after[name].float(), value.float(), rtol=1e-4, atol=1e-6), name
    assert all(torch.equal(one, before) for one, before in zip(parts, kept, strict=True))


CASES = [(name, depth) for name in (*SMALL, "levit_128s", "pit_ti_224") for depth in DEPTHS]
QUICK = {
    *(("test_resnet", depth) for depth in DEPTHS),
    ("test_vit", 2),
}


@pytest.mark.parametrize(
    ("name", "depth"),
    [case if case in QUICK else slow(*case) for case in CASES],
)
def test_prefix_and_tail_are_the_network(name: str, depth: int) -> None:
    """With the same random numbers: each network here drops what it can."""
    net = network(name, min(depth, len(network(name).layers)), dropping=True)
    found = cut(net, images(name, 2, seed=5))
    assert found.is_trivial == (depth == 99)
    for count in (2, 5):
        check_same(net, found, images(name, count))
    assert logits(net, crossing(found, images(name, 1))).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("test_resnet", {1: {"kernel": 5, "dropout": 0.2}, 2: {"width": 1.5, "drop_path": 0.3}}),
        ("test_efficientnet", {1: {"width": 0.5}, 2: {"kernel": 5, "activation": "elu"}}),
        slow("test_convnext", {1: {"bridge": 1.5}, 2: {"kernel": 3, "drop_path": 0.3}}),
        slow("vgg11", {1: {"width": 0.5}, 2: {"kernel": 5, "pool": "avg3"}}),
        slow("densenet121", {1: {"kernel": 5}, 2: {"activation": "gelu"}}),
    ],
)
def test_reshaped_layers(name: str, changes: dict[int, dict[str, Any]]) -> None:
    capabilities = surgery.capabilities(name)
    changes = {
        index: {
            key: value
            for key, value in fields.items()
            if key not in capabilities[index - 1].reasons
        }
        for index, fields in changes.items()
    }
    shown = surgery.pictures(name, 4)
    plain = cut(surgery.built(surgery.change(name, {}, depth=2)), shown)
    net = surgery.built(surgery.change(name, changes))
    found = cut(net, shown)
    check_same(net, found, shown)
    assert found.keys == plain.keys  # what changed lies behind the cut


def test_norms_are_measured_from_features() -> None:
    shown = surgery.pictures("test_resnet", 6)
    plan = surgery.change("test_resnet", {2: {"width": 0.5}})
    net, other = surgery.built(plan), surgery.built(plan)
    parts = crossing(cut(net, shown), shown)
    assert net.stale_norms
    recalibrate_batch_norms(other, [shown])
    recalibrate_batch_norms(net, [parts])  # type: ignore[list-item]
    after = state_of(other)
    for name, value in state_of(net).items():
        assert torch.allclose(value.float(), after[name].float(), rtol=1e-5, atol=1e-6), name


def test_the_tail_is_in_evaluation_mode_while_only_the_head_trains() -> None:
    net = network("test_vit", 2, dropping=True)
    shown = images("test_vit", 4)
    parts = crossing(cut(net, shown), shown)
    net.freeze_all_but_head(True)
    assert torch.equal(net(parts), net(shown))
    assert torch.equal(net(parts), logits(net, parts))
    net.freeze_all_but_head(False)
    assert not torch.equal(net(parts), net(parts))  # drops


def test_a_copy_has_a_tail_of_its_own() -> None:
    net = network("test_resnet", 2)
    shown = images("test_resnet", 4)
    parts = crossing(cut(net, shown), shown)
    before = logits(net, parts)
    average = ModelEmaV3(net, decay=0.5)
    with torch.no_grad():
        for name, parameter in average.module.named_parameters():
            if name in average.module.trainable_state() and not name.startswith("head."):
                parameter.mul_(1.3)
    assert torch.equal(logits(net, parts), before)
    assert not torch.allclose(logits(average.module, parts), before)
    assert torch.allclose(logits(average.module, parts), logits(average.module, shown))


def test_the_prefix_stays_the_same_while_the_network_trains() -> None:
    net = network("test_byobnet", 2)
    shown = images("test_byobnet", 4)
    found = cut(net, shown)
    before = crossing(found, shown)
    net.train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        net(before).square().sum().backward()
        optimizer.step()
        modes = [module.training for module in net.modules()]
        assert all(map(torch.equal, crossing(found, shown), before))
        assert [module.training for module in net.modules()] == modes
    with torch.inference_mode():
        assert all(map(torch.equal, crossing(found, shown), before))


# Keys.


def test_what_lies_behind_the_cut_does_not_change_the_keys() -> None:
    source, shown = backbone("test_resnet"), images("test_resnet", 2)
    kept = cut(network("test_resnet", 1), shown)
    for changes in ({"drop_path": 0.2}, {"kernel": 5}, {"width": 0.5}):
        plan = TrialPlan("test_resnet", 1, (LayerPlan(**changes),), HeadPlan(pool="max"))
        assert cut(build_network(source, plan, 3, seed=1), shown).keys == kept.keys


def test_keys_differ_where_the_features_do() -> None:
    shown = images("test_resnet", 2)
    keys = cut(network("test_resnet", 1), shown).keys
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)
    assert cut(network("test_resnet", 2), shown).keys != keys
    assert cut(network("test_resnet", 1), torch.randn(2, 3, 48, 48)).keys != keys
    changed = network("test_resnet", 1)
    norm = next(one for one in changed.backbone.modules() if isinstance(one, nn.BatchNorm2d))
    norm.eps = 0.1
    assert cut(changed, shown).keys != keys
    pooled = [
        cut(build_network(backbone("test_resnet"), plan, 3, 0), shown).keys
        for plan in (
            TrialPlan("test_resnet", head=HeadPlan(pool="avg")),
            TrialPlan("test_resnet", head=HeadPlan(pool="max")),
        )
    ]
    assert pooled[0] != pooled[1]


@pytest.mark.slow
def test_keys_are_the_same_in_every_process() -> None:
    code = """
import torch
from autotune.models.backbone import load_backbone
from autotune.models.network import build_network
from autotune.models.prefix.split import split_network
from autotune.plan import LayerPlan, TrialPlan
for name in ("test_resnet", "test_vit"):
    source = load_backbone(name, "none", 32)
    net = build_network(source, TrialPlan(name, 2, (LayerPlan(),) * 2), 3, seed=0)
    keys.append(split_network(net, torch.ones(2, 3, 32, 32)).keys)
"""
    done = subprocess.run(
        [sys.executable, "-c", f"keys = []{code}print(keys)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    names: dict[str, Any] = {"keys": []}
    exec(code, names)
    assert done.stdout.strip() == str(names["keys"])


# From what is known.


@pytest.mark.parametrize("name", ["test_resnet", slow("test_vit"), slow("pit_ti_224")])
def test_features_of_a_deeper_cut_are_enough(name: str) -> None:
    shown = images(name, 3)
    deep, shallow = (cut(network(name, depth), shown) for depth in (3, 1))
    prefix = shallow.prefix(("0" * 32, *reversed(deep.keys)))
    assert prefix is not None
    assert sorted(prefix.needs) == sorted(deep.keys)
    features = dict(zip(deep.keys, crossing(deep, shown), strict=True))
    found = prefix(*(features[key] for key in prefix.needs))
    assert all(map(torch.equal, found, crossing(shallow, shown)))
    assert deep.prefix(shallow.keys) is None
    again = shallow.prefix(shallow.keys)
    assert again is not None and again.needs == shallow.keys


def test_poolings_share_what_they_pool() -> None:
    shown = images("test_resnet", 3)
    features = cut(network("test_resnet", 1), shown)
    for pool in ("avg", "max"):
        plan = TrialPlan("test_resnet", head=HeadPlan(pool=pool))
        net = build_network(backbone("test_resnet"), plan, 3, 0)
        found = cut(net, shown)
        prefix = found.prefix(features.keys)
        assert prefix is not None
        parts = prefix(*crossing(features, shown))
        assert torch.allclose(logits(net, parts), logits(net, shown))


# Networks made by hand.
