"""Another spatial kernel for a convolution, at exactly the resolution of the old one.

The new kernel samples the input on the grid of the old one: tap 0 of the new kernel lies at tap
``offset`` of the old one, which is negative for a larger kernel. What that needs at the borders
of the image is worked out per input, because ``floor`` and dynamic 'SAME' padding depend on it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from timm.layers.std_conv import (
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    StdConv2d,
    StdConv2dSame,
)
from timm.models import register_notrace_module
from torch import Tensor, nn

from autotune.errors import PlanError

Pair = tuple[int, int]

#: Correlation of neighbouring taps' inputs that a smaller kernel is fitted to. The best of twelve
#: values from 0 to 0.99 on the depthwise 3x3 convolutions of MobileNetV2's last 8 blocks at 48
#: photographs, whose measured correlation is 0.36 to 0.50 (see :func:`_project`).
CORRELATION = 0.4

#: Window energies that differ by less than this share are equal: what is left is rounding.
_TIE = 1e-6

_STANDARDISED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


@dataclass(frozen=True)
class Grid:
    """Where a convolution samples its input.

    Args:
        kernel: Sides of its kernel.
        border: Pixels it adds ``(before, after)`` per dimension, ``None`` for dynamic 'SAME'
            padding, which depends on the size of the input.
    """

    kernel: Pair
    border: tuple[Pair, Pair] | None

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Grid:
        """Read the grid of a convolution; that of a :class:`ShiftedConv2d` is its base's."""
        if isinstance(conv, ShiftedConv2d):
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
class ShiftedConv2d(nn.Conv2d):
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
        self.base = Grid.of(base)
        self.kernel_size, self.padding = base.kernel_size, base.padding
        before = base.offset if isinstance(base, ShiftedConv2d) else (0, 0)
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


def is_spatial(conv: nn.Conv2d) -> bool:
    """Say whether a convolution looks at more than one pixel."""
    return max(conv.weight.shape[-2:]) > 1


def kernel_problem(conv: nn.Conv2d) -> str:
    """Say why the kernel of a convolution cannot be changed.

    Returns:
        The reason as a sentence, or an empty string when it can be changed.
    """
    known = (nn.Conv2d, ShiftedConv2d, Conv2dSame, *_STANDARDISED)
    computed = (type(conv).forward, type(conv)._conv_forward)
    if computed not in [(one.forward, one._conv_forward) for one in known]:
        return (
            "a kernel can be changed in torch's and timm's own convolutions, but "
            f"{type(conv).__name__!r} computes in a way of its own; its kernel must be kept"
        )
    if "weight" not in dict(conv.named_parameters(recurse=False)):
        return (
            "a kernel can be changed where it is a parameter, but that of this "
            f"{type(conv).__name__!r} is computed from others; its kernel must be kept"
        )
    return ""


def change_kernel(
    conv: nn.Conv2d, kernel: int, inherit: bool, generator: torch.Generator | None = None
) -> nn.Conv2d:
    """Return a convolution with another kernel and the resolution of the given one.

    Sides of 1 stay 1. A larger kernel that inherits is the old one with zeros around it, so it
    computes the same. A smaller one is the window of the old one with the most energy, with the
    taps that go projected on those that stay (see :func:`_project`); the mean of its output
    differs, so norm statistics behind it have to be measured anew.

    The weights of weight-standardised convolutions are standardised once and for all: the result
    computes the same and is no longer standardised as it trains.

    Args:
        conv: The convolution; it is not changed.
        kernel: The new side.
        inherit: Whether to start from the old weights; otherwise from He's normal distribution
            (He et al. 2015, section 2.2, https://arxiv.org/abs/1502.01852) with the fan-out of
            each group, around the centre of the old kernel, and from a bias of zero.
        generator: Where the random weights come from.

    Returns:
        A new convolution with the same device, type, mode and ``requires_grad``, or ``conv``
        itself when it has that kernel already.

    Raises:
        PlanError: When the kernel of such a convolution cannot be changed.
    """
    if kernel < 1:
        raise PlanError(f"a kernel must have at least 1 tap a side, but got {kernel}")
    old = (conv.weight.shape[-2], conv.weight.shape[-1])
    new = (kernel if old[0] > 1 else 1, kernel if old[1] > 1 else 1)
    if new == old:
        return conv
    problem = kernel_problem(conv)
    if problem:
        raise PlanError(problem)
    bias = None if conv.bias is None else conv.bias.detach().clone()
    with torch.no_grad():
        if inherit:
            weight, offset = _inherited(effective_weight(conv), new, conv.dilation)
        else:
            shape = (*conv.weight.shape[:2], *new)
            if conv.weight.is_meta:
                weight = torch.empty(shape, device="meta")
            else:
                weight = he_normal(shape, conv.groups, generator)
            offset = _centre(old, new)
            bias = None if bias is None else torch.zeros_like(bias)
    if conv.weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.contiguous(memory_format=torch.channels_last)
    changed = ShiftedConv2d(conv, weight.to(conv.weight), bias, offset)
    changed.train(conv.training)
    changed.weight.requires_grad_(conv.weight.requires_grad)
    if changed.bias is not None and conv.bias is not None:
        changed.bias.requires_grad_(conv.bias.requires_grad)
    return changed


def effective_weight(conv: nn.Conv2d) -> Tensor:
    """Return the kernel ``(out, in / groups, kh, kw)`` that a convolution convolves with.

    It is the parameter itself but for timm's weight-standardised convolutions, where this does
    what their ``forward`` does (timm/layers/std_conv.py).
    """
    if not isinstance(conv, _STANDARDISED):
        return conv.weight.detach()
    gain = None
    if isinstance(conv, ScaledStdConv2d | ScaledStdConv2dSame):
        gain = (conv.gain * conv.scale).view(-1)
    rows = conv.weight.reshape(1, conv.out_channels, -1)
    standardised = F.batch_norm(
        rows, None, None, weight=gain, training=True, momentum=0.0, eps=conv.eps
    )
    return standardised.reshape_as(conv.weight).detach()


def _centre(old: Pair, new: Pair) -> Pair:
    """Return the offset of a kernel around the centre of another one."""
    rows, columns = (
        (k - n) // 2 if n < k else -((n - k) // 2) for k, n in zip(old, new, strict=True)
    )
    return rows, columns


def he_normal(
    shape: Sequence[int], groups: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Draw weights from He's normal distribution (He et al. 2015, section 2.2).

    For one group the same as ``nn.init.kaiming_normal_(mode="fan_out", nonlinearity="relu")``,
    which counts the outputs of all groups and would leave a depthwise kernel far too small.

    Args:
        shape: ``(out, in / groups, kh, kw)`` of a convolution, ``(out, in)`` of a linear layer.
        groups: Of the convolution.
        generator: Where the numbers come from.
    """
    fan_out = shape[0] // groups * math.prod(shape[2:])
    device = torch.device("cpu") if generator is None else generator.device
    drawn = torch.empty(tuple(shape), device=device)
    return drawn.normal_(std=math.sqrt(2 / fan_out), generator=generator)


def _inherited(weight: Tensor, new: Pair, dilation: Sequence[int]) -> tuple[Tensor, Pair]:
    """Make a kernel from another one.

    Args:
        weight: ``(out, in / groups, kh, kw)``.
        new: Sides of the new kernel; one may grow while the other shrinks.
        dilation: Pixels between taps.

    Returns:
        The new kernel ``(out, in / groups, *new)`` and its offset.
    """
    old = (weight.shape[-2], weight.shape[-1])
    kept = (min(old[0], new[0]), min(old[1], new[1]))
    offset: Pair = (0, 0)
    if kept != old:
        offset = _window(weight, kept)
        weight = _project(weight, kept, offset, dilation)
    grown = _centre(kept, new)
    (top, left) = (-grown[0], -grown[1])
    below, right = new[0] - kept[0] - top, new[1] - kept[1] - left
    padded = F.pad(weight, (left, right, top, below))
    return padded, (offset[0] + grown[0], offset[1] + grown[1])


def _window(weight: Tensor, kept: Pair) -> Pair:
    """Return the offset of the window with the most energy, of equal ones the most central.

    Without values, on the meta device, that is the most central of all.
    """
    old = (weight.shape[-2], weight.shape[-1])

    def off_centre(offset: Pair) -> tuple[float, Pair]:
        sides = zip(offset, old, kept, strict=True)
        return sum((o - (k - n) / 2) ** 2 for o, k, n in sides), offset

    starts = itertools.product(*(range(k - n + 1) for k, n in zip(old, kept, strict=True)))
    offsets: list[Pair] = sorted(((y, x) for y, x in starts), key=off_centre)
    if weight.is_meta:
        return offsets[0]
    energy = weight.to("cpu", torch.float64).square().sum((0, 1))
    held = [float(energy[y : y + kept[0], x : x + kept[1]].sum()) for y, x in offsets]
    return next(o for o, e in zip(offsets, held, strict=True) if e >= max(held) * (1 - _TIE))


def _project(weight: Tensor, kept: Pair, offset: Pair, dilation: Sequence[int]) -> Tensor:
    """Move the taps that go on to those that stay, and keep the variance of the response.

    Least squares for inputs whose correlation is ``CORRELATION ** distance`` within a channel,
    with none between channels: ``W' = W C_all,kept C_kept,kept^-1``, then one factor per output
    channel that makes the variance ``W' C W'^T`` that of ``W C W^T``.

    Measured as said at :data:`CORRELATION`: each channel's response against that of the old
    kernel, means over the convolutions, in comparison with cutting the window out and scaling it
    by the square root of all energy over the energy kept:

    ================================  ===========  =========  ===========  =========
    mean of                           3->2 energy  3->2 this  3->1 energy  3->1 this
    ================================  ===========  =========  ===========  =========
    1 - squared correlation           0.324        0.290      0.607        0.605
    error with fitted mean, variance  0.400        0.341      0.945        0.881
    share of opposite sign            0.005        0.001      0.093        0.038
    abs(log(ratio of deviations))     0.131        0.067      0.268        0.115
    ================================  ===========  =========  ===========  =========

    Args:
        weight: ``(out, in / groups, kh, kw)``.
        kept: Sides of the window that stays.
        offset: Where it begins.
        dilation: Pixels between taps.

    Returns:
        ``(out, in / groups, *kept)``, on the device of ``weight``.
    """
    height, width = weight.shape[-2:]
    if weight.is_meta:
        return weight.new_empty((*weight.shape[:2], *kept))
    old = weight.to("cpu", torch.float64).flatten(2)  # float64: not every device has it
    rows = torch.arange(height, dtype=torch.float64) * dilation[0]
    columns = torch.arange(width, dtype=torch.float64) * dilation[1]
    taps = torch.cartesian_prod(rows, columns)
    correlation = CORRELATION ** torch.cdist(taps, taps)
    index = torch.arange(height * width).view(height, width)
    index = index[offset[0] : offset[0] + kept[0], offset[1] : offset[1] + kept[1]].flatten()
    inner = correlation[index][:, index]
    new: Tensor = torch.linalg.solve(inner, old @ correlation[:, index], left=False)
    wanted = (old @ correlation * old).sum((1, 2))
    found = (new @ inner * new).sum((1, 2))
    # A channel with nothing to be kept stays zero.
    scale = (wanted / found).sqrt().where(found > 0, 1.0)
    return (new * scale[:, None, None]).view(*weight.shape[:2], *kept).to(weight)


def plain(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a weight-standardised convolution as the plain one that it amounts to.

    Any other convolution is returned as it is.
    """
    if not isinstance(conv, _STANDARDISED):
        return conv
    bias = None if conv.bias is None else conv.bias.detach().clone()
    same = ShiftedConv2d(conv, effective_weight(conv).clone(), bias, (0, 0))
    for parameter in same.parameters():
        parameter.requires_grad_(conv.weight.requires_grad)
    return same.train(conv.training)
