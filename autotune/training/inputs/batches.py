"""Batches of images or of their features: their order, micro-batches, mixing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.transforms import v2

from autotune.plan import TrainingPolicy

#: The inputs of a network: normalized images ``(N, C, H, W)``, or features, each ``(N, *shape)``.
Inputs = Tensor | tuple[Tensor, ...]


class Batches(Protocol):
    """Images in batches, or features of them: :class:`Views`, or what stands for them."""

    @property
    def labels(self) -> Tensor:
        """int64, ``(N,)``."""

    def __len__(self) -> int: ...

    def views_for_epoch(self, epoch: int | None) -> Tensor:
        """Choose a view of each image for an epoch, see :meth:`Views.views_for_epoch`."""

    def batches(
        self, order: Tensor, views: Tensor, batch_size: int, num_workers: int = 0
    ) -> Iterator[tuple[Any, Tensor]]:
        """Iterate over batches, see :meth:`Views.batches`."""


class SubsetBatches:
    """A subset of images, int64 positions ``(N,)``, that shares the cache of the full set."""

    def __init__(self, whole: Batches, positions: Tensor) -> None:
        self.labels = whole.labels[positions]
        self.whole = whole
        self.positions = positions

    def __len__(self) -> int:
        return len(self.labels)

    def views_for_epoch(self, epoch: int | None) -> Tensor:
        """Choose a view of each image of the full set: a cached epoch has all images."""
        return self.whole.views_for_epoch(epoch)

    def batches(
        self, order: Tensor, views: Tensor, batch_size: int, num_workers: int = 0
    ) -> Iterator[tuple[Any, Tensor]]:
        """Iterate over batches, see :meth:`Views.batches`; ``order`` counts within the subset."""
        return self.whole.batches(self.positions[order], views, batch_size, num_workers)


def to_channels_last(tensor: Tensor) -> Tensor:
    """Lay the channels of images side by side: convolutions are up to twice as fast (oneDNN).

    Their values are the same, and so is the shape; tensors of other shapes stay as they are.
    """
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def micro_batches(inputs: Inputs, count: int) -> list[Inputs]:
    """Split the inputs of a batch into nearly equal micro-batches."""
    if isinstance(inputs, tuple):
        return list(zip(*(tensor.tensor_split(count) for tensor in inputs), strict=True))
    return list(inputs.tensor_split(count))


def num_batches(images: int, batch_size: int) -> int:
    """Count the batches of an epoch: a single image left over joins the batch before it."""
    batches = math.ceil(images / batch_size)
    left_over = images - (batches - 1) * batch_size
    return batches - (batches > 1 and left_over == 1)


def num_micro_batches(images: int, micro_batch_size: int) -> int:
    """Count the micro-batches of a batch: none has a single image, which batch norm refuses."""
    return max(1, min(math.ceil(images / micro_batch_size), images // 2))


def epoch_order(labels: Tensor, sampling: str) -> Tensor:
    """Draw the order of an epoch from torch's generator, which the caller has seeded.

    Args:
        labels: int64, ``(N,)``: the class of every image.
        sampling: ``uniform`` takes each image once. ``balanced`` draws ``N`` images with
            replacement, on average equally many of every class: some images are left out, and
            those of a small class come several times.

    Returns:
        int64, ``(N,)``: positions of the images.
    """
    if sampling == "balanced":
        weights = 1.0 / torch.bincount(labels).double()[labels]
        return torch.multinomial(weights, len(labels), replacement=True)
    return torch.randperm(len(labels))


def make_mixing(policy: TrainingPolicy, classes: int) -> v2.Transform | None:
    """Make the transform that mixes a batch with itself, shifted by one image.

    It takes normalized images ``(N, C, H, W)`` and labels ``(N,)``, and returns images and the
    share of each class in them ``(N, classes)``. If mixup (Zhang et al. 2018) and CutMix (Yun et
    al. 2019) are both on, one of them is drawn for every batch. All draws (which of the two, the
    share, the box) come from torch's global generator of the CPU, wherever the images are: the
    seed of an epoch decides them, and no device waits for them.

    Returns:
        The transform, or ``None`` if nothing is mixed.
    """
    kinds = ((v2.MixUp, policy.mixup), (v2.CutMix, policy.cutmix))
    chosen = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
    return v2.RandomChoice(chosen) if chosen else None
