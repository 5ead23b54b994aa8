"""A plan in which everything is kept leaves the backbone as it is."""

from __future__ import annotations

import pytest
import torch

from autotune.models.layers import list_layers
from autotune.models.network import build_network
from autotune.plan import LayerPlan, TrialPlan
from tests.support.models.backbones import (
    DROPPING,
    SMALL,
    backbone,
    depths,
    images,
    plan,
    same_state,
)
from tests.support.models.surgery import (
    built,
    each_family,
    features,
    pictures,
    slow_unless_default,
    source,
)


@pytest.mark.parametrize("name", slow_unless_default(DROPPING))
def test_features_are_bit_identical_at_every_depth(name: str) -> None:
    pretrained = backbone(name, True)
    batch = images(name)
    with torch.no_grad():
        expected = pretrained.pretrained(batch)
        for depth in depths(name) if name in SMALL else (1,):
            net = build_network(pretrained, plan(name, depth, 8), 3, seed=0)
            net.train()
            net(batch.flip(0))  # what training mode leaves behind must not show
            net = build_network(pretrained, plan(name, depth, 8), 3, seed=0).eval()
            assert torch.equal(net.backbone(batch), expected)
            assert torch.equal(net(batch), net.head(expected))
            # The pretrained backbone of the next trial is untouched.
            assert torch.equal(pretrained.pretrained(batch), expected)


@each_family
def test_layers_that_keep_everything_are_no_surgery(name: str) -> None:
    """With every field set to keep, at no depth, a middle one and all."""
    keep = LayerPlan("keep", "keep", "keep", "keep", "keep", "keep", "keep")
    pretrained = source(name).pretrained
    count = len(list_layers(pretrained))
    for depth, inherit in ((0, "weights"), (count // 2, "data"), (count, "none")):
        plan = TrialPlan(name, depth, (keep,) * depth, inherit=inherit)
        assert not plan.reshaped
        net = built(plan)
        assert net.stale_norms == ()
        with torch.no_grad():
            assert torch.equal(net.backbone(pictures(name)), features(name))
        assert [*map(type, net.backbone.modules())] == [*map(type, pretrained.modules())]
        assert same_state(net.backbone, pretrained)
