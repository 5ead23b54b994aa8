"""A convolution with a new kernel on the sampling grid of the convolution it replaces.

Tap 0 of the new kernel lies at tap ``offset`` of the old one, which is negative for a larger
kernel. The padding is computed for each input: ``floor`` and dynamic 'SAME' padding depend on its
size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from timm.models import register_notrace_module
from torch import Tensor, nn

Pair = tuple[int, int]


@dataclass(frozen=True)
class ConvGrid:
    """Where a convolution samples its input.

    Args:
        kernel: Sides of its kernel.
        border: Pixels it adds ``(before, after)`` per dimension, ``None`` for dynamic 'SAME'
            padding.
    """

    kernel: Pair
    border: tuple[Pair, Pair] | None

    @classmethod
    def from_module(cls, conv: nn.Conv2d) -> ConvGrid:
        """Read the grid of a convolution; a :class:`GridAlignedConv2d` has that of its base."""
        if isinstance(conv, GridAlignedConv2d):
            return conv.base
        kernel = (conv.kernel_size[0], conv.kernel_size[1])
        if isinstance(conv, Conv2dSame) or getattr(conv, "same_pad", False):
            return cls(kernel, None)
        if conv.padding == "valid":
            return cls(kernel, ((0, 0), (0, 0)))
        if conv.padding == "same":  # torch adds the odd pixel at the end
            spans = [d * (k - 1) for k, d in zip(kernel, conv.dilation, strict=True)]
            rows, columns = ((span // 2, span - span // 2) for span in spans)
        else:
            rows, columns = ((int(side), int(side)) for side in conv.padding)
        return cls(kernel, (rows, columns))

    def border_at(self, axis: int, size: int, stride: int, dilation: int) -> Pair:
        """Return the pixels added before and after an input of this size."""
        if self.border is not None:
            return self.border[axis]
        total = int(get_same_padding(size, self.kernel[axis], stride, dilation))
        return total // 2, total - total // 2


@register_notrace_module
class GridAlignedConv2d(nn.Conv2d):
    """A convolution with another kernel on the grid of a given one.

    Its state is ``weight`` and ``bias``, as for any convolution. ``kernel_size`` and ``padding``
    stay those of the base, because some networks pad by them before they convolve (DaViT); the
    kernel's own sides are those of ``weight``. A base with another padding mode than zeros adds
    its border in that mode; beyond it, there are zeros.

    Args:
        base: The convolution whose grid, stride, dilation and groups to take.
        weight: Kernel ``(out, in / groups, kh, kw)``; it becomes a parameter.
        bias: ``(out,)`` or ``None``.
        offset: Taps of ``base`` per dimension by which the new kernel begins later.

    Shapes:
        input ``(N, C, H, W)`` or ``(C, H, W)``; output of the resolution of ``base``.
    """

    def __init__(self, base: nn.Conv2d, weight: Tensor, bias: Tensor | None, offset: Pair) -> None:
        super().__init__(
            weight.shape[1] * base.groups,
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            stride=(base.stride[0], base.stride[1]),
            dilation=(base.dilation[0], base.dilation[1]),
            groups=base.groups,
            bias=False,
            padding_mode=base.padding_mode,
            device="meta",  # draws no random numbers for weights that are replaced at once
        )
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.base = ConvGrid.from_module(base)
        self.kernel_size, self.padding = base.kernel_size, base.padding
        before = base.offset if isinstance(base, GridAlignedConv2d) else (0, 0)
        self.offset: Pair = (before[0] + offset[0], before[1] + offset[1])

    def forward(self, input: Tensor) -> Tensor:
        """Convolve at the resolution of the base convolution."""
        pairs = [self._border(axis, size) for axis, size in enumerate(input.shape[-2:])]
        needs = [need for _, need in pairs]
        if self.padding_mode != "zeros":
            (top, bottom), (left, right) = (border for border, _ in pairs)
            input = F.pad(input, (left, right, top, bottom), mode=self.padding_mode)
            needs = [(need[0] - border[0], need[1] - border[1]) for border, need in pairs]
        input, padding = fit_border(input, needs, self.stride)
        return F.conv2d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )

    def extra_repr(self) -> str:
        """Add what :class:`nn.Conv2d` does not know."""
        border = "same" if self.base.border is None else self.base.border
        return (
            f"{super().extra_repr()}, "  # type: ignore[no-untyped-call]
            f"kernel={tuple(self.weight.shape[-2:])}, base_border={border}, "
            f"offset={self.offset}"
        )

    def _border(self, axis: int, size: int) -> tuple[Pair, Pair]:
        """Return the pixels that the base adds to an input of this size, and those needed here."""
        stride, dilation = self.stride[axis], self.dilation[axis]
        before, after = self.base.border_at(axis, size, stride, dilation)
        reach = dilation * (self.base.kernel[axis] - 1) + 1
        steps = (size + before + after - reach) // stride
        need = before - self.offset[axis] * dilation
        span = steps * stride + dilation * (self.weight.shape[2 + axis] - 1) + 1
        return (before, after), (need, span - size - need)


def fit_border(
    input: Tensor, needs: Sequence[Pair], stride: Sequence[int], value: float = 0.0
) -> tuple[Tensor, Pair]:
    """Add and cut pixels at the borders of an input.

    Padding that the operation can add is left to it: a copy of the input costs as much memory as
    the input. More pixels at the end than needed do no harm below one stride.

    Args:
        input: ``(..., H, W)``.
        needs: Pixels to add before and after, for rows and columns; negative ones are cut.
        stride: Stride of the operation that follows, for rows and columns.
        value: Value of the pixels added.

    Returns:
        The input ``(..., H', W')``, and the symmetric padding that the operation has to add.
    """
    padding, added, cut = [], [], []
    for (before, after), step in zip(needs, stride, strict=True):
        both = max(before, 0)
        is_symmetric = after <= both < after + step
        padding.append(both if is_symmetric else 0)
        added.append((0, 0) if is_symmetric else (both, max(after, 0)))
        cut.append((max(-before, 0), 0 if is_symmetric else max(-after, 0)))
    if any(map(any, added)):
        (top, bottom), (left, right) = added
        input = F.pad(input, (left, right, top, bottom), value=value)
    for dim, (first, last) in zip((-2, -1), cut, strict=True):
        # After the padding: a window can lie in the padding alone.
        if first or last:
            input = input.narrow(dim, first, input.shape[dim] - first - last)
    return input, (padding[0], padding[1])


def _aligned_convs(model: nn.Module) -> dict[str, GridAlignedConv2d]:
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, GridAlignedConv2d)}


def kernel_offsets(model: nn.Module) -> dict[str, Pair]:
    """Return the offsets of grid-aligned convolutions, by name of the module.

    Which part of a larger kernel is kept depends on its weights; it is not in the state dict.
    """
    return {name: module.offset for name, module in _aligned_convs(model).items()}


def set_kernel_offsets(model: nn.Module, offsets: Mapping[str, Sequence[int]]) -> None:
    """Put back what :func:`kernel_offsets` returned.

    Raises:
        ValueError: When the grid-aligned convolutions of the model are others.
    """
    convs = _aligned_convs(model)
    if differing := sorted(offsets.keys() ^ convs.keys()):
        raise ValueError(f"kernel offsets belong to other modules, {differing[0]} first")
    for name, (down, right) in offsets.items():
        convs[name].offset = (int(down), int(right))
