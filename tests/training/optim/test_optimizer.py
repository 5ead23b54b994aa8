from __future__ import annotations

import math

import pytest
import torch

from autotune.models.network import build_network
from autotune.training.optim.optimizer import make_optimizer, make_schedule, parameter_groups
from tests.support.backbones import SMALL, backbone, plan


@pytest.mark.parametrize("name", SMALL)
def test_groups_have_the_rates_of_their_layers(name: str) -> None:
    policy = plan(name, 3, 8, lr=0.1, layer_decay=0.5, weight_decay=0.01)
    net = build_network(backbone(name), policy, 3, seed=0)
    groups = parameter_groups(net, policy.policy)
    settings = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    trainable = list(net.layer_of_parameters())
    assert len(settings) == len(trainable) == sum(len(group["params"]) for group in groups)
    for key, parameter, layer in trainable:
        spared = parameter.ndim < 2 or key in ("backbone.pos_embed", "backbone.cls_token")
        assert settings[id(parameter)] == (0.1 * 0.5**layer, 0.0 if spared else 0.01), key
    assert len({(group["lr"], group["weight_decay"]) for group in groups}) == len(groups)


def test_what_timm_never_decays_is_not_decayed() -> None:
    policy = plan("test_vit", 7, lr=0.1, weight_decay=0.01)
    net = build_network(backbone("test_vit"), policy, 3, seed=0)
    groups = parameter_groups(net, policy.policy)
    free = {id(one) for group in groups if not group["weight_decay"] for one in group["params"]}
    assert {id(net.backbone.pos_embed), id(net.backbone.cls_token)} <= free
    assert id(net.backbone.patch_embed.proj.weight) not in free


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("adamw", torch.optim.AdamW),
        ("adagrad", torch.optim.Adagrad),
    ],
)
def test_the_optimizer_of_a_policy(name: str, kind: type[torch.optim.Optimizer]) -> None:
    policy = plan("test_resnet", 1, optimizer=name, lr=0.2).policy
    net = build_network(backbone("test_resnet"), plan("test_resnet", 1), 3, seed=0)
    optimizer = make_optimizer(net, policy)
    assert type(optimizer) is kind
    assert optimizer.defaults["lr"] == 0.2
    if name == "sgd":
        assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, True)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_two_steps_of_sgd_by_hand(momentum: float) -> None:
    """Nesterov's momentum as torch has it; without momentum the plain step."""
    found = plan("test_resnet", optimizer="sgd", lr=0.1, momentum=momentum, weight_decay=0.0)
    net = build_network(backbone("test_resnet"), found, 3, seed=0)
    optimizer = make_optimizer(net, found.policy)
    bias = net.head[-1].bias
    expected, velocity = bias.detach().clone(), torch.zeros(3)
    for gradient in (torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 0.5, 0.0])):
        bias.grad = gradient.clone()
        optimizer.step()
        velocity = momentum * velocity + gradient
        expected = expected - 0.1 * (gradient + momentum * velocity)
        torch.testing.assert_close(bias.detach(), expected)


@pytest.mark.parametrize("name", ["adamw", "adagrad"])
def test_momentum_is_for_sgd_alone(name: str) -> None:
    policy = plan("test_resnet", optimizer=name, momentum=0.3).policy
    net = build_network(backbone("test_resnet"), plan("test_resnet"), 3, seed=0)
    assert "momentum" not in make_optimizer(net, policy).defaults


@pytest.mark.parametrize("name", SMALL)
def test_layers_that_are_pulled_are_not_decayed(name: str) -> None:
    found = plan(name, 3, 8, lr=0.1, weight_decay=0.01, layer_decay=0.5, l2_sp=0.1)
    net = build_network(backbone(name), found, 3, seed=0)
    decays = {
        id(parameter): group["weight_decay"]
        for group in parameter_groups(net, found.policy)
        for parameter in group["params"]
    }
    for key, parameter, layer in net.layer_of_parameters():
        decayed = layer == 0 and parameter.ndim > 1
        assert decays[id(parameter)] == (0.01 if decayed else 0.0), key


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
def test_the_schedule_rises_falls_and_ends_at_zero(steps: int, warmup: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = make_schedule(optimizer, steps, warmup)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    rising = round(steps * warmup)
    assert rates[:rising] == pytest.approx([2.0 * (i + 1) / (rising + 1) for i in range(rising)])
    if rising < steps:
        assert rates[rising] == 2.0 == max(rates)
        for i in range(rising, steps):
            share = (i - rising) / (steps - rising)
            assert rates[i] == pytest.approx(1 + math.cos(math.pi * share))
    assert all(rate > 0 for rate in rates)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0 if rising < steps else 2.0)


@pytest.mark.parametrize(("head_steps", "more"), [(1, 1), (10, 30), (30, 10), (3, 100)])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_each_phase_has_the_schedule_that_it_would_have_alone(
    head_steps: int, more: int, warmup: float
) -> None:
    def rates(steps: int, first: int = 0) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=2.0)
        schedule = make_schedule(optimizer, steps, warmup, first)
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
        return found

    assert rates(head_steps + more, head_steps) == rates(head_steps) + rates(more)
