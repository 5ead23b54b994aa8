from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from autotune.models.network import Network, build_network
from autotune.plan import TrialPlan
from autotune.training.optim.optimizer import make_optimizer, make_schedule, parameter_groups
from tests.support.models.backbones import SMALL, backbone, plan


def built(found: TrialPlan) -> Network:
    return build_network(backbone(found.backbone), found, 3, seed=0)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("l2_sp", [0.0, 0.1])
def test_groups_have_the_rates_of_their_layers(name: str, l2_sp: float) -> None:
    """Layers that are pulled towards their start are not decayed."""
    rates: dict[str, Any] = {"lr": 0.1, "layer_decay": 0.5, "backbone_lr": 0.25}
    found = plan(name, 3, 8, weight_decay=0.01, l2_sp=l2_sp, **rates)
    net = built(found)
    groups = parameter_groups(net, found.policy)
    settings = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    trainable = list(net.layer_of_parameters())
    assert len(settings) == len(trainable) == sum(len(group["params"]) for group in groups)
    for key, parameter, layer in trainable:
        exempt = parameter.ndim < 2 or key in ("backbone.pos_embed", "backbone.cls_token")
        exempt = exempt or (layer > 0 and l2_sp > 0)
        rate = 0.1 * (0.25 if layer else 1.0) * 0.5**layer
        assert settings[id(parameter)] == (rate, 0.0 if exempt else 0.01), key
    assert len({(group["lr"], group["weight_decay"]) for group in groups}) == len(groups)


def test_what_timm_never_decays_is_not_decayed() -> None:
    found = plan("test_vit", 7, lr=0.1, weight_decay=0.01)
    net = built(found)
    groups = parameter_groups(net, found.policy)
    free = {id(one) for group in groups if not group["weight_decay"] for one in group["params"]}
    assert {id(net.backbone.pos_embed), id(net.backbone.cls_token)} <= free
    assert id(net.backbone.patch_embed.proj.weight) not in free


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW), ("adagrad", torch.optim.Adagrad)],
)
def test_the_optimizer_of_a_policy(name: str, kind: type[torch.optim.Optimizer]) -> None:
    found = plan("test_resnet", 1, optimizer=name, lr=0.2, momentum=0.3)
    optimizer = make_optimizer(built(found), found.policy)
    assert type(optimizer) is kind
    assert optimizer.defaults["lr"] == 0.2
    momentum = (optimizer.defaults.get("momentum"), optimizer.defaults.get("nesterov"))
    assert momentum == ((0.3, True) if name == "sgd" else (None, None))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_two_steps_of_sgd_by_hand(momentum: float) -> None:
    """Nesterov's momentum as torch has it; without momentum the plain step."""
    found = plan("test_resnet", optimizer="sgd", lr=0.1, momentum=momentum, weight_decay=0.0)
    net = built(found)
    optimizer = make_optimizer(net, found.policy)
    bias = net.head[-1].bias
    expected, velocity = bias.detach().clone(), torch.zeros(3)
    for gradient in (torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 0.5, 0.0])):
        bias.grad = gradient.clone()
        optimizer.step()
        velocity = momentum * velocity + gradient
        expected = expected - 0.1 * (gradient + momentum * velocity)
        torch.testing.assert_close(bias.detach(), expected)


def rates_of(steps: int, warmup: float, head_steps: int = 0) -> list[float]:
    """Return the rate of each step, and that after the last one."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=2.0)
    schedule = make_schedule(optimizer, steps, warmup, head_steps)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
def test_the_schedule_rises_falls_and_ends_at_zero(steps: int, warmup: float) -> None:
    *rates, end = rates_of(steps, warmup)
    rising = round(steps * warmup)
    assert rates[:rising] == pytest.approx([2.0 * (i + 1) / (rising + 1) for i in range(rising)])
    if rising < steps:
        assert rates[rising] == 2.0 == max(rates)
        for i in range(rising, steps):
            share = (i - rising) / (steps - rising)
            assert rates[i] == pytest.approx(1 + math.cos(math.pi * share))
    assert all(rate > 0 for rate in rates)
    assert end == pytest.approx(0.0 if rising < steps else 2.0)


@pytest.mark.parametrize(("head_steps", "more"), [(1, 1), (10, 30), (30, 10), (3, 100)])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_each_phase_has_the_schedule_that_it_would_have_alone(
    head_steps: int, more: int, warmup: float
) -> None:
    *rates, end = rates_of(head_steps + more, warmup, head_steps)
    assert rates == rates_of(head_steps, warmup)[:-1] + rates_of(more, warmup)[:-1]
    assert end == pytest.approx(0.0)
