"""Another pooling in place of a given one, at exactly its resolution."""

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

#: What a pooling can be changed to: the name of each type and window.
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
        """Read the grid of a pooling; that of a :class:`GridAlignedPool2d` is its original's."""
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
        """Return how many windows fit to an input of this size, and the pixels added before it.

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
    """A max or average pooling in place of another pooling, with its stride and resolution.

    Its windows lie around the centres of the original ones, half a pixel later where no window
    can. Pixels that are not there count in no way. A window that would have none at all (the
    original's ceil mode makes such) sees the last pixel of the input instead.

    Args:
        pool: The pooling whose grid to take.
        kind: ``max`` or ``avg``.
        window: Sides of the window; sides of 1 of the original stay 1.

    Shapes:
        input ``(N, C, H, W)`` or ``(C, H, W)``; output of the resolution that ``pool`` gives.
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
        there = input.new_ones((1, *input.shape[-2:]))
        return means / self._average(there, needs)[0]

    def extra_repr(self) -> str:
        """Show what it does and in place of what."""
        return f"{self.kind}, kernel_size={self.kernel_size}, base={self.base}"

    def _average(self, input: Tensor, needs: Sequence[Pair]) -> tuple[Tensor, Pair]:
        """Average over windows with zeros in place of what is missing, and say what torch padded.

        What torch pads by itself it does not count; zeros of :func:`fit_border` it does.
        """
        padded, padding = fit_border(input, needs, self.stride)
        means = F.avg_pool2d(
            padded, self.kernel_size, self.stride, padding, count_include_pad=False
        )
        return means, padding

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
    """Say whether a module is a pooling that :func:`change_pool` can change.

    Decided by class: torch's and timm's max and average poolings over windows. Global, adaptive
    and blur poolings are none, and one that returns indices too.
    """
    known = (nn.MaxPool2d, nn.AvgPool2d, MaxPool2dSame, AvgPool2dSame, GridAlignedPool2d)
    if type(module) not in known:
        return False
    # timm's MaxPool2dSame has its ceil mode under that name, and returns no indices.
    if type(module) is nn.MaxPool2d and module.return_indices:
        return False
    return max(_pair(module.kernel_size)) > 1


def change_pool(pool: nn.Module, to: str) -> nn.Module:
    """Return a pooling of another type or window, with the resolution of the given one.

    Args:
        pool: The pooling, one that :func:`is_pool` knows.
        to: One of :data:`POOLS`.

    Returns:
        The new pooling in the same mode, or ``pool`` itself when it is of that type and window.

    Raises:
        PlanError: When the module is no such pooling, or there is no such type and window.
    """
    if to not in POOLS:
        raise PlanError(
            join_sentences(
                f"a pooling can be changed to {', '.join(POOLS)}, but got {to!r}",
                did_you_mean(to, POOLS),
            )
        )
    if not is_pool(pool):
        raise PlanError(
            "only torch's and timm's max and average poolings over windows of several pixels can "
            f"be changed, but got {pool}; it must be kept"
        )
    kind, window = POOLS[to]
    if _kind(pool) == kind and _pair(pool.kernel_size) == _window(
        PoolGrid.from_module(pool), window
    ):
        return pool
    return GridAlignedPool2d(pool, kind, window).train(pool.training)


def _kind(pool: nn.Module) -> str:
    """Return the type of a pooling, ``max`` or ``avg``."""
    if isinstance(pool, GridAlignedPool2d):
        return pool.kind
    return "max" if isinstance(pool, nn.MaxPool2d) else "avg"


def _window(base: PoolGrid, window: int) -> Pair:
    """Return the sides of a window, 1 where the original's are."""
    return (window if base.kernel[0] > 1 else 1, window if base.kernel[1] > 1 else 1)


def _pair(value: object) -> Pair:
    """Return a side for rows and columns, as torch's modules take one number for both."""
    rows, columns = to_2tuple(value)
    return int(rows), int(columns)
