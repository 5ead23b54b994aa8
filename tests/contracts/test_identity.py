"""A plan in which everything is kept leaves the backbone as it is."""

from __future__ import annotations

import pytest
import torch

from autotune.models.layers import layers_of
from autotune.models.network import build_network
from tests.support.backbones import DROPPING, SMALL, backbone, images, plan


def depths(name: str) -> range:
    return range(len(layers_of(backbone(name).pretrained)) + 1)


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
