"""One view of one image, the same whenever and wherever it is made."""

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
    """Makes views; small enough to be sent to a data-loading process.

    Args:
        store: Decoded images.
        rows: int64, ``(N,)``: the rows of the store that are meant.
        spec: What the backbone wants.
        augment: What differs between views.
        seed: Seed of all views.
    """

    store: ImageStore
    rows: np.ndarray
    spec: ImageSpec
    augment: AugmentConfig
    seed: int

    def render(self, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Make views.

        Args:
            pairs: Positions in ``rows`` and numbers of views; view 0 is the evaluation transform.

        Returns:
            uint8, ``(len(pairs), 3, size, size)``. Neither the state of torch's generators nor
            its number of threads is changed.
        """
        size = self.spec.size
        made = torch.empty((len(pairs), 3, size, size), dtype=torch.uint8)
        # sums over pixels are rounded by how many threads share them
        with single_threaded(), torch.random.fork_rng(devices=[]):
            for place, (position, view) in enumerate(pairs):
                made[place] = self._one(position, view)
        return made

    def _one(self, position: int, view: int) -> torch.Tensor:
        row = self.rows[position]
        # a copy: torch warns about tensors over read-only memory
        image = torch.from_numpy(np.array(self.store.images[row]))
        if view == 0:
            size = self.spec.size
            edge = (self.spec.store_size - size) // 2
            return image[:, edge : edge + size, edge : edge + size]
        # torch.manual_seed would seed the accelerators as well, which nothing restores
        torch.default_generator.manual_seed(
            mix_seed(self.seed, int(self.store.indices[row]), view)
        )
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
        fill = [float(round(255 * mean)) for mean in spec.mean]  # corners that mean nothing
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
