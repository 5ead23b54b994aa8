"""What a training goes through: images in batches, or features of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

#: What a network takes: normalised images ``(N, C, H, W)``, or features of images, each
#: ``(N, *shape)``.
Inputs = Tensor | tuple[Tensor, ...]


class Batches(Protocol):
    """Images in batches, or features of them: :class:`Views`, or what stands for them."""

    @property
    def labels(self) -> Tensor:
        """int64, ``(N,)``."""

    def __len__(self) -> int: ...

    def plan_views(self, epoch: int) -> Tensor:
        """Choose a view of each image for an epoch, see :meth:`Views.plan_views`."""

    def batches(
        self, order: Tensor, views: Tensor, batch_size: int, num_workers: int = 0
    ) -> Iterator[tuple[Any, Tensor]]:
        """Go through images in batches, see :meth:`Views.batches`.

        Yields:
            uint8 images ``(B, C, H, W)`` or features, and labels, int64 ``(B,)``.
        """


def in_channels_last(tensor: Tensor) -> Tensor:
    """Lay the channels of images side by side: convolutions are up to twice as fast (oneDNN).

    Their values are the same, and so is the shape; tensors of other shapes stay as they are.
    """
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def in_parts(inputs: Inputs, parts: int) -> list[Inputs]:
    """Cut what a network takes for a batch into nearly equal parts."""
    if isinstance(inputs, tuple):
        return list(zip(*(one.tensor_split(parts) for one in inputs), strict=True))
    return list(inputs.tensor_split(parts))
