"""Which images an epoch goes through, and in which order."""

from __future__ import annotations

import torch
from torch import Tensor


def epoch_order(labels: Tensor, sampling: str) -> Tensor:
    """Draw the order of an epoch from torch's generator, which its caller has seeded.

    Args:
        labels: int64, ``(N,)``: the class of every image.
        sampling: ``uniform`` takes each image once. ``balanced`` draws ``N`` images with
            replacement, of every class equally many on average: some are left out, and those of a
            small class come several times.

    Returns:
        int64, ``(N,)``: positions of the images.
    """
    if sampling == "uniform":
        return torch.randperm(len(labels))
    weights = 1.0 / torch.bincount(labels).double()[labels]
    return torch.multinomial(weights, len(labels), replacement=True)
