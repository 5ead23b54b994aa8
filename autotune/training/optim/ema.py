"""A moving average of the weights, updated by two operations a step."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from autotune.models.network import Network

#: timm's warm-up: step ``n`` has a decay of at most ``1 - n ** -_POWER``.
_POWER = 2 / 3


class WeightAverage:
    """A moving average of the trainable tensors of a network, norm statistics included.

    Its values are those of timm's ``ModelEmaV3`` with ``use_warmup``. That one goes through two
    state dictionaries of the whole network in every step, and copies each counter of batches with
    its own operation. Here the tensors are listed once, and only those of trainable layers
    and head are averaged, all together (``torch._foreach_lerp_``). Frozen tensors do not change:
    they are their own average. Integer buffers (the counters of batch norms) are copied, by one
    more operation.

    Attributes:
        module: The network with averaged weights, in evaluation mode.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.module: Network = copy.deepcopy(network).eval()
        self.decay = decay
        self._averages, self._own_counters = _by_kind(self.module)
        self._weights, self._counters = _by_kind(network)

    def decay_at(self, step: int) -> float:
        """Return the share of the average that a step keeps, the first step being 1."""
        # max: the first step takes the weights as they are
        return min(self.decay, 1 - math.pow(max(1, step), -_POWER))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the weights of the network after a step, the first one being 1."""
        torch._foreach_lerp_(self._averages, self._weights, 1.0 - self.decay_at(step))
        self._copy_counters()

    @torch.no_grad()
    def reset(self) -> None:
        """Start over with the weights of the network."""
        torch._foreach_copy_(self._averages, self._weights)
        self._copy_counters()

    def _copy_counters(self) -> None:
        if self._counters:
            torch._foreach_copy_(self._own_counters, self._counters)


def _by_kind(network: Network) -> tuple[list[Tensor], list[Tensor]]:
    """List the trainable tensors of a network: floating ones, and counters."""
    tensors = list(network.trainable_state().values())
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    return floating, [tensor for tensor in tensors if not tensor.is_floating_point()]
