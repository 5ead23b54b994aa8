"""L2-SP: trainable layers are pulled towards what they start from."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from autotune.models.network import Network, build_network
from autotune.plan import TrialPlan
from autotune.training.optim.l2_sp import L2SP
from autotune.training.optim.optimizer import make_optimizer
from tests.support.models.backbones import (
    backbone,
    differing,
    network,
    plan,
    state_of,
    step,
    training,
)
from tests.support.models.surgery import change

OPTIMIZERS = ("sgd", "adagrad", "adamw")


def built(found: TrialPlan) -> Network:
    return build_network(backbone(found.backbone), found, 3, seed=0)


def trainable(net: Network) -> dict[str, Tensor]:
    return {key: one.detach() for key, one, layer in net.layer_of_parameters() if layer}


@torch.no_grad()
def displace(net: Network) -> None:
    """Move every trainable parameter, and give it a gradient."""
    generator = torch.Generator().manual_seed(3)
    for _, parameter, _ in net.layer_of_parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator))
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_one_step_by_hand(name: str, optimizer: str) -> None:
    """Coupled, it is part of the gradient; for AdamW it moves the weights beside Adam's step."""
    options: dict[str, Any] = {"optimizer": optimizer, "lr": 0.1, "momentum": 0.5}
    found = plan(name, 2, weight_decay=0.0, **options)
    pulled, plain = built(found), built(found)
    start = state_of(plain)
    policy = plan(name, 2, weight_decay=0.3, l2_sp=0.2, layer_decay=0.5, **options).policy
    optimizers = [
        make_optimizer(pulled, policy),
        make_optimizer(plain, plan(name, 2, weight_decay=0.0, layer_decay=0.5, **options).policy),
    ]
    displace(pulled)
    displace(plain)
    expected = {}
    for key, parameter, layer in plain.layer_of_parameters():
        away = parameter.detach() - start[key]
        if layer == 0:
            expected[key] = away * 0.0
        elif optimizer == "adamw":
            expected[key] = -0.1 * 0.5**layer * 0.2 * away
        else:
            assert parameter.grad is not None
            parameter.grad += 0.2 * away
            expected[key] = away * 0.0
    for one in optimizers:
        one.step()
    others = dict(plain.named_parameters())
    for key, parameter, layer in pulled.layer_of_parameters():
        if layer:
            found_step = parameter.detach() - others[key].detach()
            torch.testing.assert_close(found_step, expected[key], atol=1e-5, rtol=1e-4)
        else:
            decayed = parameter.ndim > 1
            assert torch.allclose(parameter, others[key], atol=1e-6) != decayed, key


@pytest.mark.parametrize(
    "found",
    [
        plan("test_vit", 3),
        change("test_resnet", {1: {"kernel": 5, "width": 0.5}, 2: {"bridge": 0.5}}),
        change("test_resnet", {1: {"width": 1.5}}, inherit="none", depth=2),
    ],
    ids=["as it is", "reshaped", "drawn anew"],
)
def test_where_it_pulls_to(found: TrialPlan) -> None:
    """With ``lr * l2_sp`` of 1 and no gradient, one step leads back to the very start."""
    net = built(found)
    start = state_of(net)
    policy = plan("r", 1, optimizer="sgd", lr=0.5, l2_sp=2.0, momentum=0.0).policy
    optimizer = make_optimizer(net, policy)
    displace(net)
    for parameter in net.parameters():
        parameter.grad = None if parameter.grad is None else torch.zeros_like(parameter)
    optimizer.step()
    for key, one in trainable(net).items():
        torch.testing.assert_close(one, start[key], atol=1e-5, rtol=1e-5)
    head = net.head[-1].weight.detach()
    assert not torch.allclose(head, start["head.0.weight"], atol=0.1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_training_pulls_to_the_start_and_not_to_the_checkpoint(optimizer: str) -> None:
    found = plan("test_resnet", 2, optimizer=optimizer, lr=0.02, l2_sp=0.5)
    first = training(found)
    start = state_of(first.network)
    list(first.run())
    second = training(found)
    second.load_state(copy.deepcopy(first.state()))
    (pull,) = second.optimizer._optimizer_step_pre_hooks.values()
    assert isinstance(pull, L2SP)
    assert pull.decoupled == (optimizer == "adamw")
    names = {key: one for key, one, layer in second.network.layer_of_parameters() if layer}
    assert len(pull.starts) == len(names)
    for key, parameter in names.items():
        assert torch.equal(pull.starts[parameter], start[key])
        assert parameter.ndim < 2 or not torch.equal(parameter, start[key])


def test_without_it_there_is_no_copy() -> None:
    assert L2SP.from_policy(network("test_resnet", 2), plan("test_resnet", 2).policy) is None
    assert L2SP.from_policy(network("test_resnet"), plan("test_resnet", l2_sp=0.1).policy) is None
    run = training(plan("test_resnet", 2))
    assert not run.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_has_no_gradient_stays(optimizer: str) -> None:
    net = network("test_resnet", 2)
    step = make_optimizer(net, plan("test_resnet", 2, optimizer=optimizer, l2_sp=0.5).policy)
    displace(net)
    for key, parameter, layer in net.layer_of_parameters():
        if layer == 2:
            parameter.grad = None
        assert key
    before = state_of(net)
    step.step()
    for key, parameter, layer in net.layer_of_parameters():
        assert torch.equal(parameter, before[key]) == (layer == 2), key


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_overflows_in_fp16_does_not_pull(optimizer: str) -> None:
    run = training(plan("test_resnet", 2, optimizer=optimizer, l2_sp=0.5), precision="fp16")
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    displace(run.network)
    before = state_of(run.network)
    run.network.eval()
    step(run, run.network(torch.randn(4, 3, 32, 32)).sum() * 1e30)
    assert differing(before, state_of(run.network)) == []


def test_clipping_does_not_touch_it() -> None:
    """However small the gradient is clipped, the pull is whole."""
    found = plan("test_resnet", 2, optimizer="sgd", lr=0.5, l2_sp=2.0, momentum=0.0)
    run = training(found, clip_grad_norm=1e-9, warmup=0.0)
    start = state_of(run.network)
    displace(run.network)
    step(run, run.network(torch.randn(4, 3, 32, 32)).pow(2).sum())
    for key, one in trainable(run.network).items():
        torch.testing.assert_close(one, start[key], atol=1e-5, rtol=1e-5)
