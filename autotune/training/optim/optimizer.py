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

    Layer ``i`` trains with ``lr * layer_decay ** i`` (the head is layer 0). Vectors (norms,
    biases) and what timm lists as ``no_weight_decay`` are not decayed, and neither are layers that
    ``l2_sp`` pulls towards what they started from.
    """
    listed: set[str] = getattr(network.backbone, "no_weight_decay", set)()
    spared = {f"backbone.{name}" for name in listed}
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter, layer in network.layer_of_parameters():
        pulled = layer > 0 and policy.l2_sp > 0
        decayed = parameter.ndim > 1 and name not in spared and not pulled
        lr = policy.lr * policy.layer_decay**layer
        groups[lr, policy.weight_decay if decayed else 0.0].append(parameter)
    return [
        {"params": parameters, "lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]


def make_optimizer(network: Network, policy: TrainingPolicy) -> Optimizer:
    """Make the optimizer that a policy names.

    AdamW and Adagrad take their step in one kernel (``fused``), on two CPU cores in a quarter of
    the time; torch has none for Adagrad on GPUs. SGD does not: its kernel wants momentum of all
    parameters or of none, and layers that were frozen at first have none. Nor does what is pulled:
    a scaler leaves a step that overflowed in fp16 to such a kernel, which the pull comes before.

    Args:
        network: The network before its training: with ``l2_sp``, its trainable layers are pulled
            towards the weights that they have now.
        policy: The policy.
    """
    groups = parameter_groups(network, policy)
    pull = L2SP.from_policy(network, policy)
    optimizer: Optimizer
    if policy.optimizer == "sgd":
        momentum = policy.momentum
        # torch refuses Nesterov's step where there is no momentum; it would be the plain step.
        optimizer = torch.optim.SGD(groups, lr=policy.lr, momentum=momentum, nesterov=momentum > 0)
    elif policy.optimizer == "adagrad":
        on_cpu = all(one.device.type == "cpu" for group in groups for one in group["params"])
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

    Where the head trains alone at first, its steps and the others each have such a schedule of
    their own (see :class:`autotune.training.optim.phases.Phases`). So the head has come to rest
    when the layers are unfrozen, and the rate rises anew while the optimizer, which has seen no
    gradient of these layers, gets to know them.

    Args:
        optimizer: Whose groups hold the peak learning rates.
        steps: Steps of the whole training.
        warmup: Share of the steps in which the rate rises; of each of the two parts.
        head_steps: Steps at the start in which the head trains alone; fewer than ``steps``.
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
