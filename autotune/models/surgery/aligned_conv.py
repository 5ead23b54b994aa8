"""A convolution with another kernel in place of a given one, at exactly its resolution.

The new kernel samples the input on the grid of the old one: tap 0 of the new kernel lies at tap
``offset`` of the old one, which is negative for a larger kernel. What that needs at the borders
of the image is worked out per input, because ``floor`` and dynamic 'SAME' padding depend on it.
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
            padding, which depends on the size of the input.
    """

    kernel: Pair
    border: tuple[Pair, Pair] | None

    @classmethod
    def from_module(cls, conv: nn.Conv2d) -> ConvGrid:
        """Read the grid of a convolution; that of a :class:`GridAlignedConv2d` is its base's."""
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
            return cls(kernel, (rows, columns))
        rows_, columns_ = (int(side) for side in conv.padding)
        return cls(kernel, ((rows_, rows_), (columns_, columns_)))

    def border_at(self, axis: int, size: int, stride: int, dilation: int) -> Pair:
        """Return the pixels added before and after an input of this size."""
        if self.border is not None:
            return self.border[axis]
        total = int(get_same_padding(size, self.kernel[axis], stride, dilation))
        return total // 2, total - total // 2


@register_notrace_module
class GridAlignedConv2d(nn.Conv2d):
    """A convolution with another kernel in place of a given one, on the grid of that one.

    Its state is ``weight`` and ``bias``, as that of any convolution. ``kernel_size`` and
    ``padding`` stay those of the base, because some networks pad by them before they convolve
    (DaViT); the kernel's own sides are those of ``weight``. Beyond the border that a
    base convolution with another padding mode than zeros adds in its mode, there are zeros.

    Args:
        base: The convolution whose grid, stride, dilation and groups to take.
        weight: Kernel ``(out, in / groups, kh, kw)``; it becomes a parameter.
        bias: ``(out,)`` or ``None``.
        offset: Taps of ``base`` per dimension by which the new kernel begins later.

    Shapes:
        input ``(N, C, H, W)`` or ``(C, H, W)``; output of the resolution that ``base`` gives.
    """

    def __init__(self, base: nn.Conv2d, weight: Tensor, bias: Tensor | None, offset: Pair) -> None:
        height, width = weight.shape[-2:]
        super().__init__(
            weight.shape[1] * base.groups,
            weight.shape[0],
            (height, width),
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
        borders, needs = [], []
        for axis, size in enumerate(input.shape[-2:]):
            border, need = self._border(axis, size)
            borders.append(border)
            needs.append(need)
        if self.padding_mode != "zeros":
            (top, bottom), (left, right) = borders
            input = F.pad(input, (left, right, top, bottom), mode=self.padding_mode)
            needs = [(n[0] - b[0], n[1] - b[1]) for n, b in zip(needs, borders, strict=True)]
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
        """Return what the base adds to an input of this size, and what is needed here."""
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

    What an operation can pad by itself is left to it: a copy of the input costs as much memory as
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
        alone = after <= both < after + step
        padding.append(both if alone else 0)
        added.append((0, 0) if alone else (both, max(after, 0)))
        cut.append((max(-before, 0), 0 if alone else max(-after, 0)))
    if any(map(any, added)):
        (top, bottom), (left, right) = added
        input = F.pad(input, (left, right, top, bottom), value=value)
    for dim, (first, last) in zip((-2, -1), cut, strict=True):
        # After the padding: a window can lie in the padding alone.
        if first or last:
            input = input.narrow(dim, first, input.shape[dim] - first - last)
    return input, (padding[0], padding[1])


def kernel_offsets(model: nn.Module) -> dict[str, Pair]:
    """Return where the kernels of shifted convolutions begin, by name of the module.

    Which part of a larger kernel is kept depends on its weights; it is no part of the state.
    """
    return {
        name: module.offset
        for name, module in model.named_modules()
        if isinstance(module, GridAlignedConv2d)
    }


def set_kernel_offsets(model: nn.Module, offsets: Mapping[str, Sequence[int]]) -> None:
    """Put back what :func:`kernel_offsets` returned.

    Raises:
        ValueError: When the shifted convolutions of the model are others.
    """
    if offsets.keys() != (own := kernel_offsets(model)).keys():
        differing = sorted(offsets.keys() ^ own.keys())
        raise ValueError(f"kernel offsets belong to other modules, {differing[0]} first")
    for name, (down, right) in offsets.items():
        module = model.get_submodule(name)
        assert isinstance(module, GridAlignedConv2d)
        module.offset = (int(down), int(right))
