"""The studies of the paper fit their real architectures: every plan they can draw can be built."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn

from autotune.config.loading import load_study_file, presets
from autotune.models.backbone import build_backbone, data_config
from autotune.models.layers import list_layers
from autotune.models.surgery.apply import apply_layer_plans, validate_plans
from autotune.models.surgery.capabilities import LayerCapabilities
from autotune.models.surgery.probing import probe_layers
from autotune.plan import TrialPlan
from autotune.search.greedy import list_stages
from autotune.search.space import Space, num_shaped_layers
from tests.support.marks import slow

PAPER = ("paper-densenet121", "paper-resnet50", "paper-vgg16")
ACTIVATIONS = {"keep", "relu", "sigmoid", "tanh", "elu", "selu"}


@cache
def parts(name: str) -> tuple[nn.Module, tuple[LayerCapabilities, ...], Space]:
    """Build the backbone of a study on the meta device, with its offers and its space."""
    config = load_study_file(name, ["weights=none"])
    model = build_backbone(config.backbone, None, device="meta").eval()
    layers = list_layers(model)[: num_shaped_layers(config.space)]
    offers = probe_layers(model, layers, data_config(model)["input_size"])
    return model, offers, Space.from_config(config.backbone, config.space, "none", offers)


def draw(space: Space, seed: int) -> TrialPlan:
    """Draw a plan of a space at random, as deep as it can be."""
    generator = random.Random(seed)
    params: dict[str, Any] = {}
    for name, distribution in space.distributions.items():
        if isinstance(distribution, CategoricalDistribution):
            params[name] = generator.choice(distribution.choices)
        elif isinstance(distribution, IntDistribution):
            params[name] = generator.randint(distribution.low, distribution.high)
        else:
            assert isinstance(distribution, FloatDistribution)
            params[name] = distribution.low
    return space.plan(params | {"depth": 6})


def test_the_papers_three_networks_have_a_study_each() -> None:
    assert tuple(name for name in presets() if name.startswith("paper-")) == PAPER


@pytest.mark.parametrize("name", PAPER)
def test_the_operators_are_those_of_the_paper(name: str) -> None:
    config = load_study_file(name, ["weights=none"])
    layers, head = config.space.layers, config.space.head
    few, many = {"keep", 2, 3, 5}, {"keep", 1, 2, 3, 5}
    assert set(layers.kernel) == (many if name.endswith("vgg16") else few)  # type: ignore[arg-type]
    assert set(layers.width) >= {"keep", 64, 128, 256, 512}  # type: ignore[arg-type]
    assert set(layers.activation) == ACTIVATIONS  # type: ignore[arg-type]
    assert head.units == [64, 128, 256, 512, 1024]
    assert head.dropout == {"low": 0.0, "high": 0.9, "step": 0.1}
    assert head.hidden_layers == {"low": 0, "high": 2}
    assert config.init == "random"
    assert config.space.training.optimizer == "adagrad"
    assert config.space.training.lr == 0.01
    assert config.training.batch_size == 8
    assert (config.search.strategy, config.search.sampler) == ("greedy", "gp")
    assert config.search.greedy.trials_per_stage == 25


@pytest.mark.parametrize("name", PAPER)
def test_the_order_is_that_of_the_paper(name: str) -> None:
    _, _, space = parts(name)
    stages = list_stages(space)
    assert [stage.name for stage in stages] == [*(f"layer {i}" for i in range(1, 7)), "head"]
    assert load_study_file(name, ["weights=none"]).search.trials == 1 + 25 * len(stages)


def test_what_changed_layers_start_from_is_part_of_the_name() -> None:
    assert load_study_file("paper-vgg16", ["init=pretrained"]).name == "paper-vgg16-weights"
    assert load_study_file("paper-vgg16", ["init=random"]).name == "paper-vgg16"
    assert load_study_file("digits", ["init=pretrained"]).name == "digits"
    assert load_study_file("digits", ["init=random"]).name == "digits-none"


@pytest.mark.parametrize("name", PAPER)
def test_every_layer_can_change_its_kernel_its_filters_and_its_activation(name: str) -> None:
    _, offers, space = parts(name)
    assert len(offers) == 6
    for index in range(1, 7):
        for field in ("kernel", "width", "activation"):
            assert f"layer.{index}.{field}" in space.distributions


@pytest.mark.parametrize("seed", [0, slow(1), slow(2)])
@pytest.mark.parametrize("name", PAPER)
def test_plans_of_the_space_are_built_with_the_real_architecture(name: str, seed: int) -> None:
    model, offers, space = parts(name)
    plan = draw(space, seed)
    assert plan.reshaped
    validate_plans(plan, offers)
    changed = build_backbone(plan.backbone, None, device="meta").eval()
    apply_layer_plans(changed, plan, offers, seed)
    image = torch.zeros(1, 3, 224, 224, device="meta")
    with torch.no_grad():
        before, after = model(image), changed(image)
    # VGG's last layer writes the features themselves; elsewhere the stream keeps its width.
    assert after.ndim == 2 and (after.shape == before.shape or name.endswith("vgg16"))
    shapes = {key: value.shape for key, value in changed.state_dict().items()}
    assert shapes != {key: value.shape for key, value in model.state_dict().items()}
