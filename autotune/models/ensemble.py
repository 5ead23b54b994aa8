"""Several networks as one: their probabilities, averaged.

The networks may have different backbones. Each gets the images as its own backbone expects them:
they are normalized again, and resized where its size is another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, log_softmax


class InputFormat(Protocol):
    """The images that a network takes, see :class:`autotune.data.preprocessing.ImageSpec`."""

    @property
    def size(self) -> int:
        """Side in pixels."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean that was subtracted from each channel, of values between 0 and 1."""

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation by which each channel was divided."""


class InputAdapter(nn.Module):
    """Turns normalized images of one format into those of another.

    Resizing is bilinear with antialiasing where images become smaller, so nearly what a smaller
    input of the same picture would be.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, given: InputFormat, wanted: InputFormat) -> None:
        super().__init__()
        mean, std, new_mean, new_std = (
            torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
            for values in (given.mean, given.std, wanted.mean, wanted.std)
        )
        # They follow from the formats, which are stored: not part of the weights.
        self.register_buffer("scale", (std / new_std).float(), persistent=False)
        self.register_buffer("shift", ((mean - new_mean) / new_std).float(), persistent=False)
        self.size = wanted.size
        self.is_same = (given.mean, given.std) == (wanted.mean, wanted.std)
        self.resizes = given.size != wanted.size
        self.shrinks = given.size > wanted.size

    def forward(self, images: Tensor) -> Tensor:
        """Return images ``(N, C, size, size)``."""
        if not self.is_same:
            images = images * self.scale + self.shift
        if self.resizes:
            size = (self.size, self.size)
            images = interpolate(images, size, mode="bilinear", antialias=self.shrinks)
        return images


class Ensemble(nn.Module):
    """Networks whose probabilities are averaged, with a weight for each.

    Args:
        members: The networks; each maps the images of its format to logits ``(N, classes)``.
        weights: A positive number for each; only their ratios count.
        formats: What each of them takes.
        given: What the ensemble takes.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        weights: Sequence[float],
        formats: Sequence[InputFormat],
        given: InputFormat,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.adapters = nn.ModuleList(InputAdapter(given, wanted) for wanted in formats)
        self.log_shares = tuple(math.log(weight / sum(weights)) for weight in weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithms of the averaged probabilities, ``(N, classes)``.

        They are logits as well: their softmax gives the probabilities.
        """
        logs = [
            log_softmax(member(adapter(images)).float(), dim=1) + log_share
            for member, adapter, log_share in zip(
                self.members, self.adapters, self.log_shares, strict=True
            )
        ]
        return torch.logsumexp(torch.stack(logs), dim=0)
