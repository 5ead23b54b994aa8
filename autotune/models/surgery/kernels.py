"""Give a convolution another spatial kernel, inherited from the old one or drawn anew."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn

from autotune.errors import PlanError
from autotune.models.surgery.aligned_conv import GridAlignedConv2d, Pair

#: Correlation of neighboring taps' inputs that a smaller kernel is fitted to. The best of twelve
#: values from 0 to 0.99 on the depthwise 3x3 convolutions of MobileNetV2's last 8 blocks at 48
#: photographs, whose measured correlation is 0.36 to 0.50 (see :func:`_project`).
CORRELATION = 0.4

#: Relative difference below which window energies are equal: it is rounding.
_TIE = 1e-6

_STANDARDIZED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


def is_spatial(conv: nn.Conv2d) -> bool:
    """Return whether a convolution reads more than one pixel."""
    return max(conv.weight.shape[-2:]) > 1


def kernel_problem(conv: nn.Conv2d) -> str:
    """Return why the kernel of a convolution cannot be changed, "" if it can."""
    kinds = (nn.Conv2d, GridAlignedConv2d, Conv2dSame, *_STANDARDIZED)
    computed = (type(conv).forward, type(conv)._conv_forward)
    if computed not in [(kind.forward, kind._conv_forward) for kind in kinds]:
        return (
            "a kernel can be changed in torch's and timm's own convolutions, but "
            f"{type(conv).__name__!r} computes in a special way; its kernel must be kept"
        )
    if "weight" not in dict(conv.named_parameters(recurse=False)):
        return (
            "a kernel can be changed where it is a parameter, but that of this "
            f"{type(conv).__name__!r} is computed from others; its kernel must be kept"
        )
    return ""


def replace_kernel(
    model: nn.Module, name: str, kernel: int, inherit: bool, generator: torch.Generator
) -> None:
    """Change the kernel of a convolution in a model, see :func:`change_kernel`."""
    conv = model.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    model.set_submodule(name, change_kernel(conv, kernel, inherit, generator))


def change_kernel(
    conv: nn.Conv2d, kernel: int, inherit: bool, generator: torch.Generator | None = None
) -> nn.Conv2d:
    """Return a convolution with another kernel and the resolution of the given one.

    Sides of 1 stay 1. A larger kernel that inherits is the old one with zeros around it, so it
    computes the same. A smaller one is the window of the old one with the most energy, with the
    other taps projected on those that stay (see :func:`_project`); the mean of its output
    differs, so norm statistics behind it have to be measured anew.

    The weights of weight-standardized convolutions are standardized once: the result computes the
    same and is no longer standardized as it trains.

    Args:
        conv: The convolution; it is not changed.
        kernel: The new side.
        inherit: Whether to start from the old weights; otherwise from He's normal distribution
            around the center of the old kernel, and from a bias of zero.
        generator: Source of the random weights.

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
    if problem := kernel_problem(conv):
        raise PlanError(problem)
    bias = None if conv.bias is None else conv.bias.detach().clone()
    with torch.no_grad():
        if inherit:
            weight, offset = _inherited(effective_weight(conv), new, conv.dilation)
        else:
            shape = (*conv.weight.shape[:2], *new)
            is_meta = conv.weight.is_meta
            weight = (
                torch.empty(shape, device="meta")
                if is_meta
                else he_normal(shape, conv.groups, generator)
            )
            offset = _centered(old, new)
            bias = None if bias is None else torch.zeros_like(bias)
    if conv.weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.contiguous(memory_format=torch.channels_last)
    changed = GridAlignedConv2d(conv, weight.to(conv.weight), bias, offset)
    for name, parameter in changed.named_parameters():
        parameter.requires_grad_(conv.get_parameter(name).requires_grad)
    return changed.train(conv.training)


def effective_weight(conv: nn.Conv2d) -> Tensor:
    """Return the kernel ``(out, in / groups, kh, kw)`` that a convolution convolves with.

    It is the parameter itself except for timm's weight-standardized convolutions, where this does
    what their ``forward`` does (timm/layers/std_conv.py).
    """
    if not isinstance(conv, _STANDARDIZED):
        return conv.weight.detach()
    gain = None
    if isinstance(conv, ScaledStdConv2d | ScaledStdConv2dSame):
        gain = (conv.gain * conv.scale).view(-1)
    rows = conv.weight.reshape(1, conv.out_channels, -1)
    standardized = F.batch_norm(
        rows, None, None, weight=gain, training=True, momentum=0.0, eps=conv.eps
    )
    return standardized.reshape_as(conv.weight).detach()


def without_standardization(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a weight-standardized convolution as an equal plain one, others as they are."""
    if not isinstance(conv, _STANDARDIZED):
        return conv
    bias = None if conv.bias is None else conv.bias.detach().clone()
    same = GridAlignedConv2d(conv, effective_weight(conv).clone(), bias, (0, 0))
    return same.requires_grad_(conv.weight.requires_grad).train(conv.training)


def he_normal(
    shape: Sequence[int], groups: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Draw weights from He's normal distribution (He et al. 2015, section 2.2).

    See https://arxiv.org/abs/1502.01852. For one group the same as
    ``nn.init.kaiming_normal_(mode="fan_out", nonlinearity="relu")``, which counts the outputs of
    all groups and would leave a depthwise kernel far too small.

    Args:
        shape: ``(out, in / groups, kh, kw)`` of a convolution, ``(out, in)`` of a linear layer.
        groups: Groups of the convolution.
        generator: Source of the numbers.
    """
    fan_out = shape[0] // groups * math.prod(shape[2:])
    device = torch.device("cpu") if generator is None else generator.device
    weight = torch.empty(tuple(shape), device=device)
    return weight.normal_(std=math.sqrt(2 / fan_out), generator=generator)


def _centered(old: Pair, new: Pair) -> Pair:
    """Return the offset of a kernel around the center of another one."""
    return int((old[0] - new[0]) / 2), int((old[1] - new[1]) / 2)  # towards zero


def _inherited(weight: Tensor, new: Pair, dilation: Sequence[int]) -> tuple[Tensor, Pair]:
    """Return a kernel ``(out, in / groups, *new)`` made from another one, and its offset.

    One side may grow while the other shrinks.
    """
    old = (weight.shape[-2], weight.shape[-1])
    kept = (min(old[0], new[0]), min(old[1], new[1]))
    offset: Pair = (0, 0)
    if kept != old:
        offset = _best_window(weight, kept)
        weight = _project(weight, kept, offset, dilation)
    top, left = _centered(kept, new)
    below, right = new[0] - kept[0] + top, new[1] - kept[1] + left
    return F.pad(weight, (-left, right, -top, below)), (offset[0] + top, offset[1] + left)


def _best_window(weight: Tensor, kept: Pair) -> Pair:
    """Return the offset of the window with the most energy, of equal ones the most central.

    Without values, on the meta device, that is the most central of all.
    """
    old = (weight.shape[-2], weight.shape[-1])

    def off_center(offset: Pair) -> tuple[float, Pair]:
        sides = zip(offset, old, kept, strict=True)
        return sum((o - (k - n) / 2) ** 2 for o, k, n in sides), offset

    starts = itertools.product(*(range(k - n + 1) for k, n in zip(old, kept, strict=True)))
    offsets: list[Pair] = sorted(((y, x) for y, x in starts), key=off_center)
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

    Measured as described at :data:`CORRELATION`: each channel's response against that of the old
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
    present = (new @ inner * new).sum((1, 2))
    # A channel of zeros stays zero.
    scale = (wanted / present).sqrt().where(present > 0, 1.0)
    return (new * scale[:, None, None]).view(*weight.shape[:2], *kept).to(weight)
