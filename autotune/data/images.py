"""How a backbone wants its images, and one decoded image of that kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision import transforms  # type: ignore[import-untyped, unused-ignore]

from autotune.data.reading import UnreadableImageError
from autotune.errors import BackboneError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
#: Twice Pillow's own limit: what it calls a decompression bomb.
_MAX_PIXELS = 2 * (1 << 30) // 12


@dataclass(frozen=True)
class ImageSpec:
    """What a backbone wants to see.

    Args:
        size: Side of the network's input, in pixels.
        store_size: Side of a decoded image; its centre crop of ``size`` is the input.
        interpolation: Name of the resampling filter, as timm writes it.
        crop_pct: Share of the resized short side that the input covers.
        crop_mode: timm's ``center``, ``squash`` or ``border``.
        mean: Mean of each channel, of values between 0 and 1.
        std: Standard deviation of each channel.
    """

    size: int
    store_size: int
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_data_config(cls, config: Mapping[str, Any], image_size: int | None) -> ImageSpec:
        """Read what timm knows about a backbone.

        Args:
            config: What ``timm.data.resolve_model_data_config`` returns.
            image_size: Side of the input in pixels, or None for the backbone's own.

        Returns:
            The specification; its stored images are larger than the input where the backbone's
            evaluation transform cuts a border off, so that augmented views can use the border.

        Raises:
            BackboneError: When the backbone wants something else than square colour images.
        """
        channels, height, width = config["input_size"]
        if channels != 3:
            raise BackboneError(
                f"autotune feeds images with 3 channels, but the backbone takes {channels}; "
                "choose another backbone"
            )
        if image_size is None and height != width:
            raise BackboneError(
                f"autotune feeds square images, but the backbone takes {height}x{width}; set "
                "data.image_size to one side, or choose another backbone"
            )
        size = int(height if image_size is None else image_size)
        crop_mode = str(config.get("crop_mode") or "center")
        interpolation = str(config["interpolation"])
        for name, value, known in (
            ("crop modes", crop_mode, CROP_MODES),
            ("interpolations", interpolation, INTERPOLATIONS),
        ):
            if value not in known:
                raise BackboneError(
                    f"the {name} of images are {', '.join(known)}, but the backbone wants "
                    f"{value!r}; choose another backbone"
                )
        crop_pct = float(config["crop_pct"])
        return cls(
            size=size,
            store_size=_store_size(size, crop_pct) if crop_mode == "center" else size,
            interpolation=interpolation,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
            mean=tuple(float(value) for value in config["mean"]),
            std=tuple(float(value) for value in config["std"]),
        )


def decode(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """Resize and crop an image as timm does for evaluation, but keep the border it can spare.

    Args:
        image: An image in mode RGB.
        spec: What the backbone wants.

    Returns:
        An array of uint8, ``(3, store_size, store_size)``, whose centre crop of ``size`` equals
        timm's evaluation transform bit for bit.

    Raises:
        UnreadableImageError: When one side is so much longer than the other that resizing would
            take gigabytes or leave no pixel of the shorter one.
    """
    short, long = sorted(image.size)
    side = spec.size / spec.crop_pct
    problem = f"too long for its width: {image.width}x{image.height}"
    if spec.crop_mode == "center" and side * side * long / short > _MAX_PIXELS:
        raise UnreadableImageError(problem)
    if spec.crop_mode == "border" and round(short / (long / math.floor(side))) < 1:
        raise UnreadableImageError(problem)
    array: np.ndarray = _transform(spec)(image).numpy()
    return array


def _store_size(size: int, crop_pct: float) -> int:
    """Return the largest side whose centre crop composes exactly with a centre crop of ``size``.

    torchvision puts a crop at ``round((side - size) / 2)``, and Python rounds halves to even: a
    difference divisible by four shifts every such half by an even number, so the two roundings
    add up to the one of a direct crop.
    """
    resized = math.floor(size / crop_pct)
    return size + 4 * max(0, (resized - size) // 4)


@lru_cache(maxsize=8)
def _transform(spec: ImageSpec) -> Any:
    transform = create_transform(
        input_size=(3, spec.size, spec.size),
        is_training=False,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        normalize=False,
    )
    if spec.store_size == spec.size:
        return transform
    crop = transforms.CenterCrop(spec.store_size)
    steps = [
        crop if isinstance(step, transforms.CenterCrop) else step for step in transform.transforms
    ]
    return transforms.Compose(steps)
