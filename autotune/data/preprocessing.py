"""The images that a backbone expects, and the preprocessing that makes them."""

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

from autotune.data.image_files import UnreadableImageError
from autotune.errors import BackboneError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
#: Least size, as a multiple of the resized image, at which a JPEG is decoded at a part of its
#: size. Images then differ by less than half a level of 255 from those that are decoded in full,
#: one by less than a whole one (``benchmarks/decoding.py``); with 2 instead of 2.5 they do not.
DRAFT_MIN_RATIO = 2.5
#: Limits the pixels of a resized image: twice Pillow's own limit for decompression bombs.
_MAX_PIXELS = 2 * (1 << 30) // 12


@dataclass(frozen=True)
class ImageSpec:
    """The images that a backbone expects.

    Args:
        size: Side of the network's input, in pixels.
        store_size: Side of a decoded image; its center crop of ``size`` is the input.
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
        """Return the specification of a backbone from timm's ``resolve_model_data_config``.

        Its stored images are larger than the input where the backbone's evaluation transform cuts
        a border off, so that augmented views can use the border.

        Raises:
            BackboneError: When the backbone expects anything but square color images.
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
        for name, value, choices in (
            ("crop modes", crop_mode, CROP_MODES),
            ("interpolations", interpolation, INTERPOLATIONS),
        ):
            if value not in choices:
                raise BackboneError(
                    f"the {name} of images are {', '.join(choices)}, but the backbone expects "
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


def to_store_array(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """Resize and crop an RGB image as timm does for evaluation, but keep a border where possible.

    Returns:
        An array of uint8, ``(3, store_size, store_size)``, whose center crop of ``size`` equals
        timm's evaluation transform bit for bit.

    Raises:
        UnreadableImageError: When one side is so much longer than the other that resizing would
            take gigabytes or leave no pixel of the shorter one.
    """
    short, long = sorted(image.size)
    side = spec.size / spec.crop_pct
    is_too_large = spec.crop_mode == "center" and side * side * long / short > _MAX_PIXELS
    is_too_thin = spec.crop_mode == "border" and round(short / (long / math.floor(side))) < 1
    if is_too_large or is_too_thin:
        raise UnreadableImageError(f"too long for its width: {image.width}x{image.height}")
    array: np.ndarray = _transform(spec)(image).numpy()
    return array


def draft_decode(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Decode a large JPEG at a half, a quarter or an eighth of its size, and resize it from there.

    The JPEG library leaves high frequencies out of the inverse transform, several times faster
    than making all pixels and averaging them.

    Returns:
        An image of the size to which the evaluation transform resizes; the image itself where
        that is not known, or not much smaller.
    """
    size = _resized(image.size, spec)
    if size is None or image.mode not in ("RGB", "L"):
        return image
    width, height = image.size
    # Where the size is no multiple of 8, the last pixels hold less than the others: the box. Other
    # formats than JPEG know no draft.
    least = (math.ceil(DRAFT_MIN_RATIO * size[0]), math.ceil(DRAFT_MIN_RATIO * size[1]))
    if image.draft(None, least) is None or image.size == (width, height):
        return image
    scale = round(width / image.width)
    resample = Image.Resampling[spec.interpolation.upper()]
    return image.resize(size, resample, box=(0, 0, width / scale, height / scale))


def _resized(size: tuple[int, int], spec: ImageSpec) -> tuple[int, int] | None:
    """Return the size to which the evaluation transform resizes an image before it crops."""
    side = math.floor(spec.size / spec.crop_pct)
    if spec.crop_mode == "squash":
        return side, side
    if spec.crop_mode != "center":
        return None
    width, height = size
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _store_size(size: int, crop_pct: float) -> int:
    """Return the largest side whose center crop composes exactly with a center crop of ``size``.

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
    steps = (
        crop if isinstance(step, transforms.CenterCrop) else step for step in transform.transforms
    )
    return transforms.Compose(list(steps))
