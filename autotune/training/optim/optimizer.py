"""Optimizer and learning-rate schedule of a trial."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from autotune.models.network import Network
from autotune.plan import TrainingPolicy
from autotune.training.optim.l2_sp import L2SP


def parameter_groups(network: Network, policy: TrainingPolicy) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay.

    The head trains with ``lr``, layer ``i`` with ``lr * backbone_lr * layer_decay ** i``. Vectors
    (norms, biases) and timm's ``no_weight_decay`` parameters are not decayed, and neither are
    layers that ``l2_sp`` pulls towards their initial weights.
    """
    rates = layer_rates(network, policy)
    listed: set[str] = getattr(network.backbone, "no_weight_decay", set)()
    exempt = {f"backbone.{name}" for name in listed}
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter, layer in network.layer_of_parameters():
        is_pulled = layer > 0 and policy.l2_sp > 0
        is_decayed = parameter.ndim > 1 and name not in exempt and not is_pulled
        groups[rates[layer], policy.weight_decay if is_decayed else 0.0].append(parameter)
    return [
        {"params": parameters, "lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]


def layer_rates(network: Network, policy: TrainingPolicy) -> dict[int, float]:
    """Return the peak of the learning rate of each layer that trains; the head is layer 0."""
    layers = sorted({layer for _, _, layer in network.layer_of_parameters()})
    ratio = {layer: policy.backbone_lr if layer else 1.0 for layer in layers}
    return {layer: policy.lr * ratio[layer] * policy.layer_decay**layer for layer in layers}


def make_optimizer(network: Network, policy: TrainingPolicy) -> Optimizer:
    """Make the optimizer of a policy.

    AdamW and Adagrad take their step in one kernel (``fused``), on two CPU cores in a quarter of
    the time; torch has none for Adagrad on GPUs. SGD does not: its kernel needs momentum of all
    parameters or of none, and layers that were frozen at first have none. Nor does an optimizer
    with L2-SP: a scaler leaves it to a fused kernel to skip a step that overflowed in fp16, and
    the pull comes before that.
    """
    groups = parameter_groups(network, policy)
    pull = L2SP.from_policy(network, policy)
    optimizer: Optimizer
    if policy.optimizer == "sgd":
        momentum = policy.momentum
        # torch refuses Nesterov's step without momentum; it would be the plain step.
        optimizer = torch.optim.SGD(groups, lr=policy.lr, momentum=momentum, nesterov=momentum > 0)
    elif policy.optimizer == "adagrad":
        on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
        optimizer = torch.optim.Adagrad(groups, lr=policy.lr, fused=on_cpu and pull is None)
    else:
        optimizer = torch.optim.AdamW(groups, lr=policy.lr, fused=pull is None)
    if pull is not None:
        optimizer.register_step_pre_hook(pull)
    return optimizer


def make_schedule(
    optimizer: Optimizer, steps: int, warmup: float, head_steps: int = 0
) -> LambdaLR:
    """Make the schedule: linear warm-up, then half a cosine to zero (Loshchilov, Hutter 2017).

    Head-only steps and the others each have their own schedule (see
    :class:`autotune.training.optim.phases.Phases`). So the head has settled when the layers are
    unfrozen, and the rate rises again while the optimizer, which has seen no gradient of these
    layers, adapts to them.
    """

    def factor(step: int) -> float:
        if step < head_steps:
            return _rise_and_fall(step, head_steps, warmup)
        return _rise_and_fall(step - head_steps, steps - head_steps, warmup)

    return LambdaLR(optimizer, factor)


def _rise_and_fall(step: int, steps: int, warmup: float) -> float:
    rising = round(steps * warmup)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
