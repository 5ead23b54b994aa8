"""Rendering of views: each depends on its seed, image and number alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torchvision.transforms import v2  # type: ignore[import-untyped, unused-ignore]

from autotune.config.schema import AugmentConfig
from autotune.data.cache.decoded_images import ImageStore
from autotune.data.preprocessing import ImageSpec
from autotune.runtime import single_threaded

#: Filters of tensors; those that only Pillow has are replaced by the next of the same width.
_INTERPOLATIONS = {
    "nearest": v2.InterpolationMode.NEAREST,
    "bilinear": v2.InterpolationMode.BILINEAR,
    "box": v2.InterpolationMode.BILINEAR,
    "hamming": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
    "lanczos": v2.InterpolationMode.BICUBIC,
}


@dataclass(frozen=True, eq=False)
class ViewRenderer:
    """Renders views; small enough to be sent to a data-loading process.

    Args:
        store: Decoded images.
        rows: int64, ``(N,)``: rows of the store.
        spec: What the backbone expects.
        augment: The augmentation.
        seed: Seed of all views.
    """

    store: ImageStore
    rows: np.ndarray
    spec: ImageSpec
    augment: AugmentConfig
    seed: int

    def render(self, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Render views: pairs of a position in ``rows`` and a number.

        Returns:
            uint8, ``(len(pairs), 3, size, size)``. Neither the state of torch's generators nor
            its number of threads is changed.
        """
        size = self.spec.size
        views = torch.empty((len(pairs), 3, size, size), dtype=torch.uint8)
        # sums over pixels are rounded by how many threads share them
        with single_threaded(), torch.random.fork_rng(devices=[]):
            for index, (position, number) in enumerate(pairs):
                views[index] = self._render(position, number)
        return views

    def _render(self, position: int, number: int) -> torch.Tensor:
        row = self.rows[position]
        # a copy: torch warns about tensors over read-only memory
        image = torch.from_numpy(np.array(self.store.images[row]))
        if number == 0:
            size = self.spec.size
            edge = (self.spec.store_size - size) // 2
            return image[:, edge : edge + size, edge : edge + size]
        # torch.manual_seed would seed the accelerators as well, which nothing restores
        seed = mix_seed(self.seed, int(self.store.indices[row]), number)
        torch.default_generator.manual_seed(seed)
        result: torch.Tensor = _augmentation(self.spec, self.augment)(image)
        return result


def mix_seed(*values: int) -> int:
    """Mix whole numbers into one seed, the same in every process."""
    text = "/".join(str(value) for value in values)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


@lru_cache(maxsize=8)
def _augmentation(spec: ImageSpec, augment: AugmentConfig) -> v2.Compose:
    steps: list[torch.nn.Module] = []
    if augment.rotate > 0:
        fill = [float(round(255 * mean)) for mean in spec.mean]  # corners without content
        steps.append(v2.RandomRotation(augment.rotate, v2.InterpolationMode.BILINEAR, fill=fill))
    steps.append(
        v2.RandomResizedCrop(
            spec.size,
            scale=(augment.crop, 1.0),
            ratio=(3.0 / 4.0, 4.0 / 3.0),
            interpolation=_INTERPOLATIONS[spec.interpolation],
            antialias=True,
        )
    )
    if augment.flip > 0:
        steps.append(v2.RandomHorizontalFlip(augment.flip))
    if augment.jitter > 0:
        steps.append(v2.ColorJitter(augment.jitter, augment.jitter, augment.jitter))
    return v2.Compose(steps)
