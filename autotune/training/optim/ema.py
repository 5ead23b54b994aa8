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
    """A moving average of what training changes of a network, norm statistics included.

    Its values are those of timm's ``ModelEmaV3`` with ``use_warmup``. That one goes through two
    state dictionaries of the whole network in every step, and copies each counter of batches with
    an operation of its own. Here the tensors are listed once, only those of trainable layers and
    head are averaged, and all of them together (``torch._foreach_lerp_``). What is frozen does
    not change: its average is the tensor itself.

    Integer buffers (the counters of batch norms) are not averaged but copied, all of them by one
    more operation.

    Args:
        network: The network; its tensors must stay the same objects.
        decay: Share of the average that a step leaves, at most.

    Attributes:
        module: The network with averaged weights, in evaluation mode.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.module: Network = copy.deepcopy(network).eval()
        self.decay = decay
        self._mine, self._my_counters = _by_kind(self.module)
        self._theirs, self._their_counters = _by_kind(network)

    def decay_of(self, step: int) -> float:
        """Return the share of the average that a step leaves, the first step being 1."""
        # max: the first step takes the weights as they are
        return min(self.decay, 1 - math.pow(max(1, step), -_POWER))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights of the network in after a step, the first one being 1."""
        torch._foreach_lerp_(self._mine, self._theirs, 1.0 - self.decay_of(step))
        self._copy_counters()

    @torch.no_grad()
    def set(self) -> None:
        """Begin anew with the weights of the network."""
        torch._foreach_copy_(self._mine, self._theirs)
        self._copy_counters()

    def _copy_counters(self) -> None:
        if self._my_counters:
            torch._foreach_copy_(self._my_counters, self._their_counters)


def _by_kind(network: Network) -> tuple[list[Tensor], list[Tensor]]:
    """List what training changes of a network: what has a mean, and what counts."""
    tensors = list(network.trainable_state().values())
    floating = [one for one in tensors if one.is_floating_point()]
    return floating, [one for one in tensors if not one.is_floating_point()]
