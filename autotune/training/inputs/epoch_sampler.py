"""Which images an epoch goes through, and in which order."""

from __future__ import annotations

import torch
from torch import Tensor


def epoch_order(labels: Tensor, sampling: str) -> Tensor:
    """Draw the order of an epoch from torch's generator, which the caller has seeded.

    Args:
        labels: int64, ``(N,)``: the class of every image.
        sampling: ``plain`` takes each image once. ``balanced`` draws ``N`` images with
            replacement, on average equally many of every class: some images are left out, and
            those of a small class come several times.

    Returns:
        int64, ``(N,)``: positions of the images.
    """
    if sampling == "balanced":
        weights = 1.0 / torch.bincount(labels).double()[labels]
        return torch.multinomial(weights, len(labels), replacement=True)
    return torch.randperm(len(labels))
