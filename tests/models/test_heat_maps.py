"""Heat maps of networks of several kinds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autotune.models.backbone import load_backbone
from autotune.models.heat_maps import NoHeatMapError, heat_maps
from autotune.models.network import Network, build_network
from autotune.plan import TrialPlan

captum = pytest.importorskip("captum")


def network_of(name: str) -> tuple[Network, torch.Tensor]:
    backbone = load_backbone(name, "none")
    network = build_network(backbone, TrialPlan(name), 3, 0)
    nn.init.normal_(network.head[-1].weight)
    torch.manual_seed(0)
    return network, torch.randn(3, *backbone.data_config["input_size"])


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_efficientnet"])
def test_a_heat_map_leaves_the_network_as_it_was(name: str) -> None:
    network, images = network_of(name)
    network.train()
    names, state = [*network.state_dict()], [module.training for module in network.modules()]
    maps = heat_maps(network, images, [0, 1, 2])
    assert maps.shape[0] == 3 and maps.shape[1] == maps.shape[2] > 1
    assert float(maps.min()) >= 0 and float(maps.max()) == 1
    assert [*network.state_dict()] == names
    assert [module.training for module in network.modules()] == state
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_network_without_a_map_says_so() -> None:
    network, images = network_of("test_resnet")
    with pytest.raises(NoHeatMapError, match="is 1 x 1"):
        heat_maps(network, images[..., :32, :32], [0, 1, 2])
    nn.init.zeros_(network.head[-1].weight)
    with pytest.raises(NoHeatMapError, match="speaks for the class"):
        heat_maps(network, images, [0, 1, 2])
    network.backbone.forward_features = None
    with pytest.raises(NoHeatMapError):
        heat_maps(network, images, [0, 1, 2])
