"""What a training goes through: images in batches, or features of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

#: What a network takes: normalized images ``(N, C, H, W)``, or features of images, each
#: ``(N, *shape)``.
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
        """Go through images in batches, see :meth:`Views.batches`.

        Yields:
            uint8 images ``(B, C, H, W)`` or features, and labels, int64 ``(B,)``.
        """


class SubsetBatches:
    """Some images of a set, which share what is kept of them with the others.

    Args:
        whole: The set, or features of it.
        positions: int64, ``(N,)``: which of its images.

    Attributes:
        labels: int64 tensor, ``(N,)``.
        whole: The set.
        positions: Which of its images.
    """

    def __init__(self, whole: Batches, positions: Tensor) -> None:
        self.labels = whole.labels[positions]
        self.whole = whole
        self.positions = positions

    def __len__(self) -> int:
        return len(self.labels)

    def views_for_epoch(self, epoch: int | None) -> Tensor:
        """Choose a view of each image of the whole set, as what is kept of an epoch has all."""
        return self.whole.views_for_epoch(epoch)

    def batches(
        self, order: Tensor, views: Tensor, batch_size: int, num_workers: int = 0
    ) -> Iterator[tuple[Any, Tensor]]:
        """Go through some of the images in batches, see :meth:`Views.batches`.

        Args:
            order: int64, ``(M,)``: positions among these images, in the order wanted.
            views: What :meth:`views_for_epoch` returned.
            batch_size: Images in a batch.
            num_workers: Processes that prepare images.

        Yields:
            What those of the whole set are.
        """
        return self.whole.batches(self.positions[order], views, batch_size, num_workers)


def to_channels_last(tensor: Tensor) -> Tensor:
    """Lay the channels of images side by side: convolutions are up to twice as fast (oneDNN).

    Their values are the same, and so is the shape; tensors of other shapes stay as they are.
    """
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def micro_batches(inputs: Inputs, parts: int) -> list[Inputs]:
    """Cut what a network takes for a batch into nearly equal parts."""
    if isinstance(inputs, tuple):
        return list(zip(*(one.tensor_split(parts) for one in inputs), strict=True))
    return list(inputs.tensor_split(parts))
