"""A network that learns from the probabilities of another one, or of an ensemble.

Hinton, Vinyals, Dean 2015: the probabilities of teacher and student are softened by a temperature,
and the loss is the weighted sum of their cross-entropy and of that of the labels. Both see the
same views of an image (Beyer et al. 2022, "a good teacher is patient and consistent").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from autotune.training.inputs.batches import Inputs

#: Divides the logits of both.
TEMPERATURE = 2.0
#: Weight of the teacher in the loss; the labels have the rest.
SHARE = 0.9


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network in evaluation mode that another one learns from.

    Args:
        network: Maps normalized images to logits, as the student does.
    """

    network: nn.Module

    def loss(self, images: Inputs, logits: Tensor, label_loss: Tensor) -> Tensor:
        """Return the mean loss of a batch.

        Args:
            images: The inputs of the student, ``(N, C, H, W)``.
            logits: Its logits ``(N, classes)``.
            label_loss: Its loss against the labels.
        """
        with torch.no_grad():
            targets = (self.network(images).float() / TEMPERATURE).softmax(dim=1)
        # Its gradients shrink with the square of the temperature.
        soft = TEMPERATURE**2 * cross_entropy(logits / TEMPERATURE, targets)
        return SHARE * soft + (1 - SHARE) * label_loss
