"""Heat maps: which places of an image speak for a class, by Grad-CAM (Selvaraju et al. 2017).

The method and its gradients are captum's (https://captum.ai). It weighs the channels of the last
map of features by how much each raises the logit. Of a transformer that is the input of its last
attention: behind it a class token may have everything, and the places nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from autotune.models.network import Network
from autotune.text import error_line

#: Least side of a map: a smaller one, of images of a few pixels, is all one color.
MIN_SIDE = 3


class NoHeatMapError(Exception):
    """A network has no heat map; the message says why."""


def can_draw() -> bool:
    """Tell whether captum is installed."""
    return find_spec("captum") is not None


def heat_maps(network: Network, images: Tensor, classes: Sequence[int]) -> Tensor:
    """Compute how much the places of images speak for a class each.

    Images go through the network one by one, which takes less memory than its training.

    Args:
        network: The network; its mode and its gradients stay as they are.
        images: Normalized images ``(N, 3, size, size)``, on the device of the network.
        classes: A class of each.

    Returns:
        float32 ``(N, h, w)`` on the CPU, each map between 0 and 1; the side is that of the last
        map of features.

    Raises:
        NoHeatMapError: When the network has no map of places that decides.
    """
    from captum.attr import LayerGradCam

    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.enable_grad(), _with_map(network, images[:1]) as (forward, layer):
            method = LayerGradCam(forward, layer)
            maps = []
            for image, label in zip(images, classes, strict=True):
                map = method.attribute(image[None], target=label, relu_attributions=True)[0, 0]
                if min(map.shape) < MIN_SIDE:  # those of the other images would be as small
                    height, width = map.shape
                    raise NoHeatMapError(f"its last map of features is {height} x {width}")
                maps.append(map)
    except NoHeatMapError:
        raise
    except Exception as error:  # each architecture fails in its own way
        raise NoHeatMapError(error_line(error)) from error
    finally:
        for module, mode in modes:
            module.training = mode
    found = torch.stack([one.detach().float().cpu() for one in maps])
    largest = found.amax(dim=(1, 2), keepdim=True)
    if not bool(found.isfinite().all()) or not bool(largest.any()):
        raise NoHeatMapError("no place of its last map of features speaks for the class")
    return found / largest.clamp_min(torch.finfo(found.dtype).tiny)


@contextmanager
def _with_map(
    network: Network, image: Tensor
) -> Iterator[tuple[Callable[[Tensor], Tensor], nn.Module]]:
    """Yield the network as a function, and a module whose output ``(N, C, h, w)`` is its map."""
    backbone = network.backbone
    with torch.no_grad():
        features = backbone.forward_features(image)  # type: ignore[operator]
        expected = network(image)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise NoHeatMapError("its features are no map")
    layer = nn.Identity()
    if features.ndim == 3:
        block: Any = backbone.blocks[-1]  # type: ignore[index]
        norm = block.norm1
        block.norm1 = _Mapped(norm, layer)
        try:
            yield network, layer
        finally:
            block.norm1 = norm
        return
    # (N, h, w, C) of Swin and its like
    is_last = features.shape[1] == features.shape[2] != features.shape[3]

    def forward(images: Tensor) -> Tensor:
        features = backbone.forward_features(images)  # type: ignore[operator]
        features = layer(features.permute(0, 3, 1, 2) if is_last else features)
        features = features.permute(0, 2, 3, 1) if is_last else features
        logits: Tensor = network.head(backbone.forward_head(features))  # type: ignore[operator]
        return logits

    with torch.no_grad():
        if not torch.allclose(forward(image), expected, rtol=1e-3, atol=1e-3):
            raise NoHeatMapError("its last map of features is not all that decides")
    yield forward, layer


class _Mapped(nn.Module):
    """A norm of tokens ``(N, tokens, C)``, those of places as a map ``(N, C, h, w)`` in between.

    The places of a square image are the largest square of tokens; class token and registers are
    before them.
    """

    def __init__(self, norm: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.layer = layer

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the normalized tokens."""
        tokens = self.norm(tokens)
        side = math.isqrt(tokens.shape[1])
        first, places = tokens.tensor_split([tokens.shape[1] - side**2], dim=1)
        mapped = self.layer(places.mT.reshape(*places.mT.shape[:2], side, side))
        return torch.cat([first, mapped.flatten(2).mT], dim=1)
