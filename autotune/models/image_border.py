"""Find the border of an image that a backbone does not see.

A patch or a stride that does not divide the side of an image leaves rows at the bottom and columns
at the right that reach no feature: of 96 px, patches of 14 px see 84.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from autotune.errors import BackboneError
from autotune.models.backbone import Backbone, build_backbone, data_config

#: Larger images are not tried: it takes long, and their border is a small share.
MAX_SIZE = 768
#: Share of the side that may be unseen without a word, and one row.
MAX_SHARE = 0.01


@torch.no_grad()
def unseen_border(model: nn.Module, size: int) -> int:
    """Return how many rows at the bottom of an image change nothing in the features.

    Returns:
        0 where the last row matters. Columns at the right are treated alike by all backbones.
    """
    generator = torch.Generator().manual_seed(0)
    image, other = (torch.randn(1, 3, size, size, generator=generator) for _ in range(2))
    other *= 10  # or the maximum of a window could be among the rows that stay

    def is_unseen(rows: int) -> bool:
        changed = image.clone()
        changed[:, :, size - rows :] = other[:, :, size - rows :]
        result: Tensor = model(changed)
        return torch.equal(result, features)

    unseen, seen = 0, 1  # bounds: nothing changes with `unseen` rows, something with `seen`
    with _without_zeros(model):
        features = model(image)
        while seen < size and is_unseen(seen):
            unseen, seen = seen, min(2 * seen, size)
        while seen - unseen > 1:
            middle = (unseen + seen) // 2
            unseen, seen = (middle, seen) if is_unseen(middle) else (unseen, middle)
    return unseen


@contextmanager
def _without_zeros(model: nn.Module) -> Iterator[None]:
    """Fill parameters that are all zero: a branch that starts so hides what it will see."""
    zeros = [parameter for parameter in model.parameters() if not parameter.any()]
    for parameter in zeros:
        parameter.fill_(0.5)
    try:
        yield
    finally:
        for parameter in zeros:
            parameter.zero_()


def describe_unseen_border(backbone: Backbone, image_size: int | None) -> str:
    """Return a sentence on the border that a backbone does not see; empty where it sees all.

    Args:
        backbone: The backbone with its weights.
        image_size: Side of the images in pixels; ``None`` for the own size of the backbone, which
            is not tried.
    """
    model = backbone.pretrained
    if image_size is None or image_size > MAX_SIZE:
        return ""
    unseen = unseen_border(model, image_size)
    if unseen <= max(1, MAX_SHARE * image_size):
        return ""
    # Sizes that differ from the own one by whole strides are divided as that is.
    own, stride = int(data_config(model)["input_size"][-1]), _stride(model)
    lower = image_size - (image_size - own) % stride
    sizes = [
        str(size)
        for size in (lower, lower + stride)
        if size > 0 and _sees_all(backbone.name, size)
    ]
    hint = f"; data.image_size {' or '.join(sizes)} loses none" if sizes else ""
    return (
        f"backbone: of images of {image_size} px, {backbone.name!r} does not see the last "
        f"{unseen} rows and columns{hint}"
    )


def _stride(model: nn.Module) -> int:
    """Return how many pixels of a side become one feature, as far as the model states it."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch:
        return int(patch[0] if isinstance(patch, tuple | list) else patch)
    reductions = [info["reduction"] for info in getattr(model, "feature_info", None) or ()]
    return max((int(value) for value in reductions), default=32)


def _sees_all(name: str, size: int) -> bool:
    with suppress(BackboneError):
        return unseen_border(build_backbone(name, size).eval(), size) == 0
    return False
