"""Augmentation: what changes an image at random, from the smallest crop to TrivialAugment."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torchvision.transforms import v2  # type: ignore[import-untyped, unused-ignore]

from autotune.config.schema import AugmentConfig
from autotune.data.preprocessing import ImageSpec

#: Filters of tensors; those that only Pillow has are replaced by the next of the same width.
_INTERPOLATIONS = {
    "nearest": v2.InterpolationMode.NEAREST,
    "bilinear": v2.InterpolationMode.BILINEAR,
    "box": v2.InterpolationMode.BILINEAR,
    "hamming": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
    "lanczos": v2.InterpolationMode.BICUBIC,
}
#: Number of strengths that both policies tell apart, as published and as torchvision has it.
_STRENGTHS = 31
#: Limits a translation to a share of the side, which is that of RandAugment. TrivialAugment has 32
#: pixels whatever the size, which would leave nothing of an image of 32.
_MAX_TRANSLATION = 150 / 331
#: Keys that came after features were first cached; absent from their keys at these values.
_LATER = ("policy", "strength", "erasing")

#: Strengths of an operation for their number, the height and the width; None: it has none.
_Strengths = Callable[[int, int, int], torch.Tensor | None]


def describe_augmentation(augment: AugmentConfig) -> str:
    """Return a text that differs where views differ, for keys of caches.

    It is that of earlier versions for what these could do, so that their features are found.
    """
    hidden = _LATER if augment.policy == "none" and not augment.erasing else ()
    values = ", ".join(f"{name}={value!r}" for name, value in augment if name not in hidden)
    return f"AugmentConfig({values})"


@lru_cache(maxsize=32)
def make_augmentation(spec: ImageSpec, augment: AugmentConfig) -> v2.Compose:
    """Return the transform of a decoded image, uint8 ``(3, store_size, store_size)``, to a view.

    All of its random numbers come from torch's default generator.
    """
    mean = [float(round(255 * mean)) for mean in spec.mean]  # where there is no content
    steps: list[torch.nn.Module] = []
    if augment.rotate > 0:
        steps.append(v2.RandomRotation(augment.rotate, v2.InterpolationMode.BILINEAR, fill=mean))
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
    assert not isinstance(augment.strength, list), "which strength?"
    if augment.policy != "none" and augment.strength > 0:
        steps.append(_make_policy(augment.policy, augment.strength, mean))
    if augment.erasing > 0:
        steps.append(v2.RandomErasing(augment.erasing, value=mean))
    return v2.Compose(steps)


def _make_policy(name: str, strength: float, fill: list[float]) -> Any:
    """Return a policy at a strength; fill what moves into the image from outside."""
    options: dict[str, Any] = {"interpolation": v2.InterpolationMode.BILINEAR, "fill": fill}
    if name == "rand":
        magnitude = round(strength * (_STRENGTHS - 1))
        return v2.RandAugment(2, magnitude, _STRENGTHS, **options)
    policy = v2.TrivialAugmentWide(_STRENGTHS, **options)
    policy._AUGMENTATION_SPACE = {
        kind: (_up_to(strength, strengths, kind.startswith("Translate")), is_signed)
        for kind, (strengths, is_signed) in v2.TrivialAugmentWide._AUGMENTATION_SPACE.items()
    }
    return policy


def _up_to(strength: float, strengths: _Strengths, is_translation: bool) -> _Strengths:
    """Spread the strengths of an operation between none and a share of the greatest."""

    def weaker(count: int, height: int, width: int) -> torch.Tensor | None:
        values = strengths(count, height, width)
        if values is None:
            return None
        values = values[(torch.arange(count) * strength).round().long()]
        return (
            values.clamp(max=_MAX_TRANSLATION * min(height, width)) if is_translation else values
        )

    return weaker
