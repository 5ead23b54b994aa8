"""L2-SP: trainable layers are pulled towards their initial weights.

Li et al. 2018, Explicit Inductive Bias for Transfer Learning with Convolutional Networks: the
penalty ``l2_sp / 2 * ||w - w0||^2`` takes the place of weight decay, which pulls towards zero and
so away from what was pretrained. As in its section 3, ``w`` are all parameters that are adapted,
norms and biases included: that zero means nothing to them speaks against decay, not against this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from autotune.models.network import Network
from autotune.plan import TrainingPolicy


@dataclass(frozen=True, eq=False)
class L2SP:
    """The L2-SP penalty, applied before every step of an optimizer (a hook of torch's).

    It enters where the optimizer's own weight decay does: after clipping, which bounds what a
    batch says and not a term that is known exactly, and not in a step that fp16 skips. For SGD and
    Adagrad it changes the gradient. For AdamW it changes the weight itself, decoupled: divided by
    the size of a parameter's gradients, the pull would be weakest where the data push hardest
    (Loshchilov and Hutter 2019, section 2, who say it of decay).

    Args:
        strength: ``l2_sp``.
        starts: Initial values of each pulled parameter: one copy of the trainable layers.
        decoupled: Whether it moves the weights, by ``lr * strength``, and not the gradients.
    """

    strength: float
    starts: Mapping[nn.Parameter, Tensor]
    decoupled: bool

    @staticmethod
    def from_policy(network: Network, policy: TrainingPolicy) -> L2SP | None:
        """Make the penalty of a policy for a network that has not been trained yet.

        A resumed training builds its network first and loads it then, so a checkpoint needs no
        copy of the initial weights.

        Returns:
            The penalty, or ``None`` if there is none, which costs no memory.
        """
        if not policy.l2_sp:
            return None
        starts = {
            parameter: parameter.detach().clone()
            for _, parameter, layer in network.layer_of_parameters()
            if layer > 0
        }
        return L2SP(policy.l2_sp, starts, policy.optimizer == "adamw") if starts else None

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Pull every parameter that the step is going to change."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                start = self.starts.get(parameter)
                if start is None or parameter.grad is None:  # in head-only epochs
                    continue
                if self.decoupled:
                    parameter.lerp_(start, group["lr"] * self.strength)
                else:
                    parameter.grad.add_(parameter - start, alpha=self.strength)
