"""Another spatial kernel for a convolution: what it keeps of the old one, or a random start."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import (
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    StdConv2d,
    StdConv2dSame,
)
from torch import Tensor, nn

from autotune.errors import PlanError
from autotune.models.surgery.aligned_conv import GridAlignedConv2d, Pair

#: Correlation of neighbouring taps' inputs that a smaller kernel is fitted to. The best of twelve
#: values from 0 to 0.99 on the depthwise 3x3 convolutions of MobileNetV2's last 8 blocks at 48
#: photographs, whose measured correlation is 0.36 to 0.50 (see :func:`_project`).
CORRELATION = 0.4

#: Window energies that differ by less than this share are equal: what is left is rounding.
_TIE = 1e-6

_STANDARDISED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


def is_spatial(conv: nn.Conv2d) -> bool:
    """Say whether a convolution looks at more than one pixel."""
    return max(conv.weight.shape[-2:]) > 1


def kernel_problem(conv: nn.Conv2d) -> str:
    """Say why the kernel of a convolution cannot be changed.

    Returns:
        The reason as a sentence, or an empty string when it can be changed.
    """
    known = (nn.Conv2d, GridAlignedConv2d, Conv2dSame, *_STANDARDISED)
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
    changed = GridAlignedConv2d(conv, weight.to(conv.weight), bias, offset)
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


def without_standardization(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a weight-standardised convolution as the plain one that it amounts to.

    Any other convolution is returned as it is.
    """
    if not isinstance(conv, _STANDARDISED):
        return conv
    bias = None if conv.bias is None else conv.bias.detach().clone()
    same = GridAlignedConv2d(conv, effective_weight(conv).clone(), bias, (0, 0))
    for parameter in same.parameters():
        parameter.requires_grad_(conv.weight.requires_grad)
    return same.train(conv.training)
