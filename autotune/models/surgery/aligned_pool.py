"""A pooling of another type or window on the sampling grid of the pooling it replaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers.helpers import to_2tuple
from timm.layers.padding import get_same_padding
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from timm.models import register_notrace_module
from torch import Tensor, nn

from autotune.errors import PlanError, did_you_mean, join_sentences
from autotune.models.surgery.aligned_conv import Pair, fit_border

#: Name in a study file -> type and window of a pooling.
POOLS = {"max2": ("max", 2), "max3": ("max", 3), "avg2": ("avg", 2), "avg3": ("avg", 3)}


@dataclass(frozen=True)
class PoolGrid:
    """Where a pooling samples its input.

    Args:
        kernel: Sides of its window.
        stride: Pixels from window to window.
        dilation: Pixels from tap to tap.
        padding: Pixels it adds on either side, ``None`` for timm's dynamic 'SAME' padding.
        ceil_mode: Whether the last window may reach beyond the padded input.
    """

    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: Pair | None
    ceil_mode: bool

    @classmethod
    def from_module(cls, pool: nn.Module) -> PoolGrid:
        """Read the grid of a pooling; a :class:`GridAlignedPool2d` has that of its base."""
        if isinstance(pool, GridAlignedPool2d):
            return pool.base
        same = isinstance(pool, MaxPool2dSame | AvgPool2dSame)
        return cls(
            kernel=_pair(pool.kernel_size),
            stride=_pair(pool.stride),
            dilation=_pair(getattr(pool, "dilation", 1)),
            padding=None if same else _pair(pool.padding),
            ceil_mode=bool(pool.ceil_mode),
        )

    def windows(self, axis: int, size: int) -> Pair:
        """Return the number of windows on an input of this size, and the pixels before it.

        As torch counts them (``pooling_output_shape_pad_lr`` in aten/src/ATen/native/Pool.h): in
        ceil mode a last window that begins behind the input and its padding is left out.
        """
        kernel, stride, dilation = self.kernel[axis], self.stride[axis], self.dilation[axis]
        reach = dilation * (kernel - 1) + 1
        if self.padding is None:
            total = int(get_same_padding(size, kernel, stride, dilation))
            before, padded, last_start = total // 2, size + total, size + total
        else:
            before = self.padding[axis]
            padded, last_start = size + 2 * before, size + before
        count = (padded - reach + (stride - 1 if self.ceil_mode else 0)) // stride + 1
        if self.ceil_mode and (count - 1) * stride >= last_start:
            count -= 1
        return count, before


@register_notrace_module
class GridAlignedPool2d(nn.Module):
    """A max or average pooling instead of another pooling, with its stride and resolution.

    Its windows lie around the centers of the original ones, half a pixel later where they cannot.
    Pixels outside of the input are ignored. A window that would hold none inside (the original's
    ceil mode makes such) reads the last pixel of the input instead.

    Args:
        pool: The pooling whose grid to take.
        kind: ``max`` or ``avg``.
        window: Sides of the window; sides of 1 of the original stay 1.

    Shapes:
        input ``(N, C, H, W)`` or ``(C, H, W)``; output of the resolution of ``pool``.
    """

    def __init__(self, pool: nn.Module, kind: str, window: int) -> None:
        super().__init__()
        self.base = PoolGrid.from_module(pool)
        self.kind = kind
        self.kernel_size = _window(self.base, window)
        self.stride = self.base.stride

    def forward(self, input: Tensor) -> Tensor:
        """Pool to the resolution of the original."""
        needs = []
        for axis, size in enumerate(input.shape[-2:]):
            before, span, missing = self._border(axis, size)
            if missing:
                last = input.narrow(axis - 2, size - 1, 1)
                input = torch.cat([input, *[last] * missing], dim=axis - 2)
            needs.append((before, span - size - missing - before))
        if self.kind == "max":
            input, padding = fit_border(input, needs, self.stride, -torch.inf)
            return F.max_pool2d(input, self.kernel_size, self.stride, padding)
        means, padding = self._average(input, needs)
        if all(max(need) <= own for need, own in zip(needs, padding, strict=True)):
            return means
        inside = input.new_ones((1, *input.shape[-2:]))
        return means / self._average(inside, needs)[0]

    def extra_repr(self) -> str:
        """Show what it does and instead of what."""
        return f"{self.kind}, kernel_size={self.kernel_size}, base={self.base}"

    def _average(self, input: Tensor, needs: Sequence[Pair]) -> tuple[Tensor, Pair]:
        """Return means over windows with zeros for missing pixels, and the padding of torch.

        torch does not count what it pads itself; it counts the zeros of :func:`fit_border`.
        """
        padded, padding = fit_border(input, needs, self.stride)
        return F.avg_pool2d(
            padded, self.kernel_size, self.stride, padding, count_include_pad=False
        ), padding

    def _border(self, axis: int, size: int) -> tuple[int, int, int]:
        """Return what an input of this size needs.

        Returns:
            Pixels to add before it (negative ones to cut), pixels from the first window's start
            to the last one's end, and how often its last pixel has to be repeated for the last
            window to have one.
        """
        base, window = self.base, self.kernel_size[axis]
        count, before = base.windows(axis, size)
        reach = base.dilation[axis] * (base.kernel[axis] - 1)
        before = (2 * before - reach + window - 1) // 2  # half a pixel: rounded down
        last_start = (count - 1) * base.stride[axis]
        return before, last_start + window, max(0, last_start - before - size + 1)


def is_pool(module: nn.Module) -> bool:
    """Return whether :func:`change_pool` can change a module.

    Only torch's and timm's max and average poolings over windows, by class; no global, adaptive
    or blur pooling, and none that returns indices.
    """
    kinds = (nn.MaxPool2d, nn.AvgPool2d, MaxPool2dSame, AvgPool2dSame, GridAlignedPool2d)
    if type(module) not in kinds:
        return False
    # timm's MaxPool2dSame has its ceil mode under that name, and returns no indices.
    if type(module) is nn.MaxPool2d and module.return_indices:
        return False
    return max(_pair(module.kernel_size)) > 1


def change_pool(pool: nn.Module, to: str) -> nn.Module:
    """Return a pooling of a type and window of :data:`POOLS`, with the resolution of ``pool``.

    Returns:
        The new pooling in the same mode, or ``pool`` itself when it is of that type and window.

    Raises:
        PlanError: When the module is no such pooling, or there is no such type and window.
    """
    if to not in POOLS:
        message = f"a pooling can be changed to {', '.join(POOLS)}, but got {to!r}"
        raise PlanError(join_sentences(message, did_you_mean(to, POOLS)))
    if not is_pool(pool):
        raise PlanError(
            "only torch's and timm's max and average poolings over windows of several pixels can "
            f"be changed, but got {pool}; it must be kept"
        )
    kind, window = POOLS[to]
    is_max = isinstance(pool, nn.MaxPool2d)
    present = pool.kind if isinstance(pool, GridAlignedPool2d) else "max" if is_max else "avg"
    if present == kind and _pair(pool.kernel_size) == _window(PoolGrid.from_module(pool), window):
        return pool
    return GridAlignedPool2d(pool, kind, window).train(pool.training)


def _window(base: PoolGrid, window: int) -> Pair:
    """Return the sides of a window; sides of 1 of the original stay 1."""
    return (window if base.kernel[0] > 1 else 1, window if base.kernel[1] > 1 else 1)


def _pair(value: object) -> Pair:
    rows, columns = to_2tuple(value)
    return int(rows), int(columns)
