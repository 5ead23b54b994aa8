"""Optimiser and learning-rate schedule of a trial."""

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


def parameter_groups(network: Network, policy: TrainingPolicy) -> list[dict[str, Any]]:
    """Group the tuned parameters by learning rate and weight decay.

    Layer ``i`` trains with ``lr * layer_decay ** i`` (the head is layer 0). Vectors (norms,
    biases) and what timm lists as ``no_weight_decay`` are not decayed.
    """
    listed: set[str] = getattr(network.backbone, "no_weight_decay", set)()
    spared = {f"backbone.{name}" for name in listed}
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter, layer in network.layer_of_parameters():
        decayed = parameter.ndim > 1 and name not in spared
        lr = policy.lr * policy.layer_decay**layer
        groups[lr, policy.weight_decay if decayed else 0.0].append(parameter)
    return [
        {"params": parameters, "lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]


def make_optimizer(network: Network, policy: TrainingPolicy) -> Optimizer:
    """Make the optimiser that a policy names."""
    groups = parameter_groups(network, policy)
    if policy.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=policy.lr, momentum=0.9, nesterov=True)
    if policy.optimizer == "adagrad":
        return torch.optim.Adagrad(groups, lr=policy.lr)
    return torch.optim.AdamW(groups, lr=policy.lr)


def make_schedule(optimizer: Optimizer, steps: int, warmup: float) -> LambdaLR:
    """Make the schedule: linear warm-up, then half a cosine to zero (Loshchilov, Hutter 2017).

    Args:
        optimizer: Whose groups hold the peak learning rates.
        steps: Steps of the whole training.
        warmup: Share of the steps in which the rate rises.
    """
    rising = round(steps * warmup)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return LambdaLR(optimizer, factor)
