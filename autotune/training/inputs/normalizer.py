"""Normalizing images for a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autotune.training.inputs.batches import Inputs, to_channels_last


@dataclass(frozen=True)
class Normalizer:
    """Normalizes uint8 images for the backbone; ``(1, C, 1, 1)`` each, between 0 and 255."""

    mean: Tensor
    std: Tensor

    @staticmethod
    def from_config(data_config: Mapping[str, Any], device: torch.device) -> Normalizer:
        """Take mean and std from timm's data configuration."""
        mean, std = (
            torch.tensor(data_config[key], device=device).view(1, -1, 1, 1) * 255.0
            for key in ("mean", "std")
        )
        return Normalizer(mean, std)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize ``(N, C, H, W)`` uint8 images on their way to the device."""
        images = images.to(self.mean.device, non_blocking=True)
        return to_channels_last((images.float() - self.mean) / self.std)

    def to_inputs(self, batch: Inputs) -> Inputs:
        """Return a network's inputs for a batch: normalized images, or features as they are."""
        return batch if isinstance(batch, tuple) else self(batch)
