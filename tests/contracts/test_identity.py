"""A plan in which everything is kept leaves the backbone as it is."""

from __future__ import annotations

import pytest
import torch

from autotune.models.layers import list_layers
from autotune.models.network import build_network
from autotune.plan import LayerPlan, TrialPlan
from tests.support.backbones import DROPPING, SMALL, backbone, images, plan, state_of
from tests.support.surgery import FAMILIES, built, features, pictures, source


def depths(name: str) -> range:
    return range(len(list_layers(backbone(name).pretrained)) + 1)


@pytest.mark.parametrize(
    ("name", "depth"), [(name, depth) for name in SMALL for depth in depths(name)]
)
def test_features_are_bit_identical_at_every_depth(name: str, depth: int) -> None:
    check(name, depth)


@pytest.mark.parametrize("name", [name for name in DROPPING if name not in SMALL])
def test_features_are_bit_identical_in_more_families(name: str) -> None:
    check(name, 1)


def check(name: str, depth: int) -> None:
    source = backbone(name, True)
    batch = images(name)
    with torch.no_grad():
        expected = source.pretrained(batch)
        net = build_network(source, plan(name, depth, 8), 3, seed=0)
        net.train()
        net(batch.flip(0))  # what training mode leaves behind must not show
        net = build_network(source, plan(name, depth, 8), 3, seed=0)
        found = net.eval().backbone(batch)
        assert torch.equal(found, expected)
        assert torch.equal(net(batch), net.head(expected))
        # The pretrained backbone of the next trial is untouched.
        assert torch.equal(source.pretrained(batch), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_that_keep_everything_are_no_surgery(name: str) -> None:
    """Said in so many words, at no depth, a middle one and all."""
    keep = LayerPlan("keep", "keep", "keep", "keep", "keep", "keep", "keep")
    count = len(list_layers(source(name).pretrained))
    for depth, inherit in ((0, "weights"), (count // 2, "data"), (count, "none")):
        plan = TrialPlan(name, depth, (keep,) * depth, inherit=inherit)
        assert not plan.reshaped
        net = built(plan)
        assert net.stale_norms == ()
        with torch.no_grad():
            assert torch.equal(net.backbone(pictures(name)), features(name))
        assert [type(one) for one in net.backbone.modules()] == [
            type(one) for one in source(name).pretrained.modules()
        ]
        expected = state_of(source(name).pretrained)
        found = state_of(net.backbone)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
