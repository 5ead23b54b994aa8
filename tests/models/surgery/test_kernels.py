from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import assume, given
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame, Conv2dSameExport
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn

from autotune.errors import PlanError
from autotune.models.surgery.aligned_conv import GridAlignedConv2d
from autotune.models.surgery.kernels import (
    CORRELATION,
    change_kernel,
    effective_weight,
    is_spatial,
    kernel_problem,
)
from tests.support.models.surgery import seeded

# What torch says of padding='same' with an even kernel in the base convolution.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

SIDES = st.sampled_from((1, 2, 3, 5, 7))
KERNELS = st.sampled_from((1, 2, 3, 4, 5, 7))
STANDARDIZED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


def sides_of(conv: nn.Conv2d) -> tuple[int, int]:
    return conv.weight.shape[-2], conv.weight.shape[-1]


def fill(conv: nn.Conv2d, seed: int = 0) -> nn.Conv2d:
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.normal_(generator=generator)
    return conv


def make(
    kernel: Any, padding: Any = 0, *, kind: type[nn.Conv2d] = nn.Conv2d, **geometry: Any
) -> nn.Conv2d:
    return fill(kind(4, 8, kernel, padding=padding, **geometry))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor]:
    """Draw a convolution and an input that is large enough for it."""
    kernel = (draw(SIDES), draw(SIDES))
    assume(max(kernel) > 1)
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = draw(st.sampled_from(("numbers", "same", "valid", "dynamic")))
    stride = (1, 1) if padding == "same" else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    border = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    modes = ("zeros", "replicate", "circular", "reflect")
    geometry = {
        "stride": stride,
        "dilation": dilation,
        "groups": draw(st.sampled_from((1, 2, 4))),
        "bias": draw(st.booleans()),
    }
    size = (draw(st.integers(5, 17)), draw(st.integers(5, 17)))
    if padding == "dynamic":
        conv = make(kernel, kind=Conv2dSame, **geometry)
    else:
        given_ = border if padding == "numbers" else padding
        conv = make(kernel, given_, padding_mode=draw(st.sampled_from(modes)), **geometry)
    input = torch.randn(2, 4, *size, generator=seeded(1))
    try:
        conv(input)
    except RuntimeError:  # the kernel is larger than the input, or the border is
        assume(False)
    return conv, input


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max().clamp_min(1e-6))


def at_old_taps(conv: nn.Conv2d, changed: nn.Conv2d) -> nn.Conv2d:
    """Return ``conv`` with the taps of a smaller kernel at their places and zeros elsewhere."""
    assert isinstance(changed, GridAlignedConv2d)
    same = copy.deepcopy(conv)
    (y, x), (kh, kw) = changed.offset, sides_of(changed)
    with torch.no_grad():
        same.weight.zero_()
        same.weight[..., y : y + kh, x : x + kw] = changed.weight
    return same


@given(convolutions(), KERNELS, KERNELS, st.booleans())
def test_the_resolution_is_kept(
    drawn: tuple[nn.Conv2d, Tensor], kernel: int, second: int, inherit: bool
) -> None:
    conv, input = drawn
    changed = change_kernel(conv, kernel, inherit, seeded())
    if kernel > 1:
        again = change_kernel(changed, second, inherit=True)
        assert again(input).shape == conv(input).shape
        assert second < kernel or close(again(input), changed(input))
    assert changed(input).shape == conv(input).shape
    assert changed(input[0]).shape == conv(input[0]).shape
    assert sides_of(changed) == tuple(kernel if side > 1 else 1 for side in conv.kernel_size)
    assert changed.kernel_size == conv.kernel_size  # some networks pad by it
    assert (changed is conv) == (sides_of(changed) == sides_of(conv))
    meta = change_kernel(copy.deepcopy(conv).to("meta"), kernel, inherit, seeded())
    assert meta.weight.is_meta
    assert meta(input.to("meta")).shape == conv(input).shape


@given(convolutions(), st.integers(1, 4))
def test_a_larger_kernel_computes_the_same(drawn: tuple[nn.Conv2d, Tensor], more: int) -> None:
    conv, input = drawn
    changed = change_kernel(conv, max(conv.kernel_size) + more, inherit=True)
    assert isinstance(changed, GridAlignedConv2d)
    assert close(changed(input), conv(input))


@given(convolutions(), KERNELS)
def test_a_smaller_kernel_lies_where_its_taps_lay(
    drawn: tuple[nn.Conv2d, Tensor], kernel: int
) -> None:
    conv, input = drawn
    assume(kernel < min(side for side in conv.kernel_size if side > 1))
    changed = change_kernel(conv, kernel, inherit=True)
    assert close(changed(input), at_old_taps(conv, changed)(input))


@given(convolutions(), KERNELS, st.integers(0, 5), st.integers(0, 5))
def test_zero_taps_go_without_a_trace(
    drawn: tuple[nn.Conv2d, Tensor], kernel: int, y: int, x: int
) -> None:
    conv, input = drawn
    sides = [min(kernel, side) for side in conv.kernel_size]
    assume(tuple(sides) != conv.kernel_size)
    y, x = min(y, conv.kernel_size[0] - sides[0]), min(x, conv.kernel_size[1] - sides[1])
    taps = torch.zeros(conv.kernel_size)
    taps[y : y + sides[0], x : x + sides[1]] = 1
    with torch.no_grad():
        conv.weight *= taps
    changed = change_kernel(conv, kernel, inherit=True)
    assert close(changed(input), conv(input))


@pytest.mark.parametrize("kind", STANDARDIZED)
@pytest.mark.parametrize("stride", [1, 2])
def test_weight_standardization_is_folded(kind: type[nn.Conv2d], stride: int) -> None:
    conv = fill(kind(4, 8, 3, stride=stride, bias=True))
    input = torch.randn(2, 4, 10, 11, generator=seeded(1))
    changed = change_kernel(conv, 5, inherit=True)
    assert type(changed) is GridAlignedConv2d
    assert close(changed(input), conv(input))
    assert torch.equal(changed.weight[..., 1:4, 1:4], effective_weight(conv))
    assert not torch.equal(effective_weight(conv), conv.weight)
    smaller = change_kernel(conv, 2, inherit=True)
    assert smaller(input).shape == conv(input).shape


def test_random_weights_come_from_the_generator_alone() -> None:
    conv = make(3, 1)
    before = torch.get_rng_state()
    one, two = (change_kernel(conv, 5, inherit=False, generator=seeded()) for _ in range(2))
    inherited = change_kernel(conv, 5, inherit=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.weight, two.weight)
    assert not torch.equal(one.weight, inherited.weight)
    assert one.bias is not None and not one.bias.any()


def test_a_random_kernel_lies_around_the_center() -> None:
    for old, new, offset in ((7, 3, 2), (7, 2, 2), (3, 7, -2), (2, 5, -1), (3, 2, 0)):
        changed = change_kernel(make(old), new, inherit=False, generator=seeded())
        assert isinstance(changed, GridAlignedConv2d)
        assert changed.offset == (offset, offset)


def test_the_window_with_the_most_energy_is_kept_of_equal_ones_the_most_central() -> None:
    conv = make(5, 2)
    nn.init.ones_(conv.weight)
    for kernel, offset in ((1, (2, 2)), (2, (1, 1)), (3, (1, 1)), (4, (0, 0))):
        assert change_kernel(conv, kernel, inherit=True).offset == offset  # type: ignore
    with torch.no_grad():
        conv.weight[..., 0:2, 3:5] *= 10
    assert change_kernel(conv, 2, inherit=True).offset == (0, 3)  # type: ignore


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("old", "new"), [(3, 2), (3, 1), (7, 3), ((1, 5), 2)])
def test_variance_is_kept_for_inputs_of_the_model(old: Any, new: int, dilation: int) -> None:
    """The model's covariance as an exact quadratic form of both kernels on the taps' grid."""
    conv = make(old, bias=False, dilation=dilation)
    changed = change_kernel(conv, new, inherit=True)
    same = at_old_taps(conv, changed)
    height, width = conv.kernel_size
    taps = torch.tensor([(y, x) for y in range(height) for x in range(width)]) * float(dilation)
    correlation = CORRELATION ** torch.cdist(taps, taps)

    def covariance(one: Tensor, other: Tensor) -> Tensor:
        return (one.flatten(2) @ correlation * other.flatten(2)).sum((1, 2))

    wanted = covariance(conv.weight, conv.weight)
    assert torch.allclose(covariance(same.weight, same.weight), wanted, rtol=1e-4)
    # No multiple of the cut-out window explains as much of the old response.
    assert isinstance(changed, GridAlignedConv2d)
    (y, x), (kh, kw) = changed.offset, sides_of(changed)
    cut = torch.zeros_like(conv.weight)
    cut[..., y : y + kh, x : x + kw] = conv.weight[..., y : y + kh, x : x + kw]
    explained = covariance(same.weight, conv.weight) / wanted
    by_cut = covariance(cut, conv.weight) / (covariance(cut, cut) * wanted).sqrt()
    assert (explained >= by_cut - 1e-5).all()


def test_a_channel_of_zeros_stays_zero() -> None:
    conv = make(3, 1, bias=False)
    with torch.no_grad():
        conv.weight[2] = 0
    changed = change_kernel(conv, 2, inherit=True)
    assert changed.weight.isfinite().all()
    assert changed.weight[2].abs().max() == 0
    assert changed.weight[3].abs().max() > 0


def test_sides_of_one_stay_and_one_side_can_grow_while_the_other_shrinks() -> None:
    input = torch.randn(1, 4, 9, 12, generator=seeded(1))
    conv = make((1, 7), (0, 3))
    for kernel in (1, 3, 9):
        changed = change_kernel(conv, kernel, inherit=True)
        assert sides_of(changed) == (1, kernel)
        assert changed(input).shape == conv(input).shape
    point = make(1)
    assert change_kernel(point, 3, inherit=True) is point
    assert not is_spatial(point)
    assert is_spatial(conv)
    conv = make((3, 7), (1, 3), stride=2)
    changed = change_kernel(conv, 5, inherit=True)
    assert sides_of(changed) == (5, 5)
    assert changed(input).shape == conv(input).shape


def test_windows_can_lie_in_the_padding_alone() -> None:
    conv = make(7, 3, bias=True)
    with torch.no_grad():
        conv.weight[..., 1:, :] = 0
        conv.weight[..., 1:] = 0
    input = torch.randn(1, 4, 1, 2, generator=seeded(1))
    changed = change_kernel(conv, 1, inherit=True)
    assert close(changed(input), conv(input))


def test_an_input_that_is_too_small_is_refused_as_before() -> None:
    conv = make(7)
    for kernel in (3, 9):
        with pytest.raises(RuntimeError):
            change_kernel(conv, kernel, inherit=True)(torch.zeros(1, 4, 5, 5))


@pytest.mark.parametrize(("kernel", "inherit"), [(2, True), (5, True), (5, False)])
@pytest.mark.parametrize("trains", [True, False])
def test_mode_type_and_requires_grad_are_kept(kernel: int, inherit: bool, trains: bool) -> None:
    conv = make(3, 1).to(torch.bfloat16).train(trains)
    conv.weight.requires_grad_(trains)
    changed = change_kernel(conv, kernel, inherit, seeded())
    assert (changed.training, changed.weight.requires_grad) == (trains, trains)
    assert changed.weight.dtype == torch.bfloat16 and changed.weight.is_leaf
    assert changed.bias is not None and changed.bias is not conv.bias
    assert changed.bias.requires_grad


def test_copies_compute_the_same_and_share_nothing() -> None:
    changed = change_kernel(make(3, 1, stride=2), 5, inherit=True)
    copied = copy.deepcopy(changed)
    assert list(changed.state_dict()) == ["weight", "bias"]
    assert "kernel=(5, 5), base_border=((1, 1), (1, 1)), offset=(-1, -1)" in repr(changed)
    input = torch.randn(1, 4, 9, 8, generator=seeded(1))
    assert torch.equal(copied(input), changed(input))
    with torch.no_grad():
        copied.weight.zero_()
    assert changed.weight.abs().max() > 0
    changed(input).square().sum().backward()
    assert changed.weight.grad is not None and (changed.weight.grad != 0).all()  # new taps too


@pytest.mark.parametrize("kernel", [2, 5])
def test_channels_last(kernel: int) -> None:
    conv = make(3, 1).to(memory_format=torch.channels_last)
    input = torch.randn(2, 4, 9, 9, generator=seeded(1))
    changed = change_kernel(conv, kernel, inherit=True)
    assert changed.weight.is_contiguous(memory_format=torch.channels_last)
    output = changed(input.to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert close(output, change_kernel(make(3, 1), kernel, inherit=True)(input))


class Doubling(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(2 * input, self.weight)


class Halving(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(input / 2, weight, bias)


class Named(nn.Conv2d):
    """A class of its own that computes as torch does."""


@pytest.mark.parametrize("kind", [Doubling, Halving, Conv2dSameExport])
def test_what_computes_in_another_way_is_refused(kind: type[nn.Conv2d]) -> None:
    conv = kind(4, 8, 3)
    message = (
        "a kernel can be changed in torch's and timm's own convolutions, but "
        f"'{kind.__name__}' computes in a special way; its kernel must be kept"
    )
    assert kernel_problem(conv) == message
    with pytest.raises(PlanError) as caught:
        change_kernel(conv, 5, inherit=True)
    assert str(caught.value) == message
    assert change_kernel(conv, 3, inherit=True) is conv


def test_no_kernel_and_a_computed_one_are_refused() -> None:
    with pytest.raises(PlanError, match="at least 1 tap a side, but got 0"):
        change_kernel(make(3), 0, inherit=True)
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3))
    assert "is computed from others" in kernel_problem(conv)
    with pytest.raises(PlanError, match="must be kept"):
        change_kernel(conv, 5, inherit=True)


def test_what_can_be_changed_has_no_problem() -> None:
    kinds = (Named, Conv2dSame, *STANDARDIZED)
    convs = [make(3), change_kernel(make(3), 5, inherit=True), *(kind(4, 8, 3) for kind in kinds)]
    assert [kernel_problem(conv) for conv in convs] == [""] * len(convs)
