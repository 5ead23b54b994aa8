from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import assume, given
from hypothesis import strategies as st
from timm.layers.blur_pool import BlurPool2d
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from timm.models import create_feature_extractor
from timm.models.metaformer import Pooling
from torch import Tensor, nn

from autotune.errors import PlanError
from autotune.models.surgery.aligned_pool import POOLS, GridAlignedPool2d, change_pool, is_pool
from tests.support.models.backbones import backbone, images
from tests.support.models.surgery import seeded

TARGETS = st.sampled_from(sorted(POOLS))


def ramp(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, height, width, generator=seeded(seed))


@st.composite
def pools(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Draw a pooling and an input that is large enough for it."""
    kernel = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    assume(max(kernel) > 1)
    stride = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = tuple(draw(st.integers(0, side // 2)) for side in kernel)
    ceil = draw(st.booleans())
    pool: nn.Module = draw(
        st.sampled_from(
            (
                nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil),
                nn.AvgPool2d(kernel, stride, padding, ceil, draw(st.booleans())),
                MaxPool2dSame(kernel, stride, dilation=dilation, ceil_mode=ceil),
                AvgPool2dSame(kernel, stride, ceil_mode=ceil),
            )
        )
    )
    input = ramp(draw(st.integers(1, 17)), draw(st.integers(1, 17)))
    try:
        pool(input)
    except RuntimeError:  # the window is larger than the input
        assume(False)
    return pool, input


@given(pools(), TARGETS, TARGETS)
def test_the_resolution_is_kept(drawn: tuple[nn.Module, Tensor], to: str, second: str) -> None:
    pool, input = drawn
    shape = pool(input).shape
    once = change_pool(pool, to)
    twice = change_pool(once, second)
    assert once(input).shape == twice(input).shape == once(input.to("meta")).shape == shape
    assert is_pool(twice) and (to != second or twice is once)
    changed = GridAlignedPool2d(pool, *POOLS[to])
    output = changed(input)
    assert output.shape == shape and changed(input[0]).shape == shape[1:]
    # A window gives values between those of the input; what is outside of it does not count.
    assert (output <= input.amax((2, 3), keepdim=True) + 1e-6).all()
    assert (output >= input.amin((2, 3), keepdim=True) - 1e-6).all()
    assert torch.allclose(changed(torch.full_like(input, -3.0)), torch.tensor(-3.0))


@given(
    st.integers(2, 3),
    st.integers(1, 3),
    st.integers(0, 1),
    st.booleans(),
    st.integers(3, 17),
    st.integers(3, 17),
)
def test_the_same_type_and_window_give_the_same_values(
    kernel: int, stride: int, padding: int, ceil: bool, height: int, width: int
) -> None:
    input = ramp(height, width)
    biggest = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
    assert torch.equal(GridAlignedPool2d(biggest, "max", kernel)(input), biggest(input))
    mean = nn.AvgPool2d(kernel, stride, padding, ceil, count_include_pad=False)
    assert torch.allclose(GridAlignedPool2d(mean, "avg", kernel)(input), mean(input), atol=1e-6)
    dynamic = MaxPool2dSame(kernel, stride)
    assert torch.equal(GridAlignedPool2d(dynamic, "max", kernel)(input), dynamic(input))


@given(pools(), st.integers(2, 3))
def test_windows_lie_around_the_centers_of_the_original(
    drawn: tuple[nn.Module, Tensor], window: int
) -> None:
    """On coordinates as input, means are centers; the original may not reach beyond its input."""
    pool, input = drawn
    kernel, stride, dilation, padding = (
        (getattr(pool, key, 1),) * 2
        if isinstance(getattr(pool, key, 1), int)
        else getattr(pool, key)
        for key in ("kernel_size", "stride", "dilation", "padding")
    )
    assume(not isinstance(pool, MaxPool2dSame | AvgPool2dSame))
    width = input.shape[-1]
    side = window if kernel[1] > 1 else 1
    columns = torch.arange(width, dtype=torch.float32).expand(1, 1, input.shape[-2], width)
    found = GridAlignedPool2d(pool, "avg", window)(columns)[0, 0, 0]
    for index, center in enumerate(found.tolist()):
        first = index * stride[1] - padding[1]
        wanted = first + dilation[1] * (kernel[1] - 1) / 2
        if side / 2 <= wanted <= width - 1 - side / 2:
            assert -1e-4 <= center - wanted <= 0.5 + 1e-4


def test_known_values() -> None:
    input = torch.arange(16.0).view(1, 1, 4, 4)
    stem = nn.MaxPool2d(3, 2, 1)
    assert change_pool(stem, "max2")(input).flatten().tolist() == [5, 7, 13, 15]
    assert change_pool(stem, "avg2")(input).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert change_pool(stem, "avg3")(input).flatten().tolist() == [2.5, 4, 8.5, 10]
    half = nn.AvgPool2d(2)
    assert change_pool(half, "max3")(input).flatten().tolist() == [10, 11, 14, 15]
    means = change_pool(half, "avg3")(input).flatten().tolist()
    assert means == pytest.approx([5, 6.5, 11, 12.5])


def test_a_window_beyond_the_input_sees_its_last_pixel() -> None:
    input = torch.arange(1.0, 9.0).view(1, 1, 1, 8)
    pool = nn.MaxPool2d((1, 7), ceil_mode=True)
    assert pool(input).flatten().tolist() == [7, 8]
    for to in POOLS:
        assert change_pool(pool, to)(input).flatten().tolist()[1] == 8


def test_the_same_object_when_nothing_changes() -> None:
    for pool, to in (
        (nn.MaxPool2d(2, dilation=2), "max2"),
        (nn.AvgPool2d((3, 1)), "avg3"),
        (MaxPool2dSame(3, 2), "max3"),
    ):
        assert change_pool(pool, to) is pool
        others = [change_pool(pool, other) for other in POOLS if other != to]
        assert all(type(other) is GridAlignedPool2d for other in others)


def test_what_is_a_pooling() -> None:
    yes = [nn.MaxPool2d(2), nn.AvgPool2d((1, 2)), MaxPool2dSame(3, 2), AvgPool2dSame(2, 2)]
    yes += [GridAlignedPool2d(nn.MaxPool2d(2), "avg", 3), Pooling(3).pool]
    assert all(is_pool(one) for one in yes)
    no: list[nn.Module] = [
        nn.MaxPool2d(1, 2),
        nn.AvgPool2d(1),
        nn.MaxPool2d(2, return_indices=True),
        nn.AdaptiveAvgPool2d(1),
        BlurPool2d(4),
        Pooling(3),
        nn.Conv2d(1, 1, 3),
        nn.AvgPool1d(2),
        nn.Identity(),
    ]
    assert not any(is_pool(one) for one in no)


def test_what_is_none_is_refused() -> None:
    with pytest.raises(PlanError, match=r"be changed, but got Identity\(\); it must be kept"):
        change_pool(nn.Identity(), "max2")
    with pytest.raises(PlanError, match=r"max2, max3, avg2, avg3, but got 'max4'; did you mean"):
        change_pool(nn.MaxPool2d(2), "max4")


def test_mode_and_state() -> None:
    changed = change_pool(nn.MaxPool2d(2).eval(), "avg3")
    assert not changed.training
    assert change_pool(nn.MaxPool2d(2), "avg3").training
    assert changed.state_dict() == {}
    assert repr(changed).startswith("GridAlignedPool2d(avg, kernel_size=(3, 3), base=PoolGrid(")
    copied = copy.deepcopy(changed)
    assert torch.equal(copied(ramp(9, 8)), changed(ramp(9, 8)))


@pytest.mark.parametrize("to", POOLS)
def test_memory_format_type_and_gradients(to: str) -> None:
    input = ramp(9, 8).to(torch.bfloat16, memory_format=torch.channels_last)
    output = GridAlignedPool2d(nn.MaxPool2d(3, 2, 1), *POOLS[to])(input)
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    pool = GridAlignedPool2d(nn.AvgPool2d(2, ceil_mode=True), *POOLS[to])
    assert torch.autograd.gradcheck(pool, (ramp(5, 6).double().requires_grad_(),))


@pytest.mark.parametrize("to", ["max2", "avg2", "avg3"])
def test_a_backbone_keeps_its_resolution_and_can_be_traced(to: str) -> None:
    source: Any = backbone("test_resnet").pretrained
    model = copy.deepcopy(source)
    found = [name for name, module in model.named_modules() if is_pool(module)]
    assert found
    for name in found:
        model.set_submodule(name, change_pool(model.get_submodule(name), to))
    with torch.no_grad():
        wanted = source.forward_features(images("test_resnet"))
        output = model.forward_features(images("test_resnet"))
        traced = create_feature_extractor(model, {found[-1]: "out"})
        assert traced(images("test_resnet"))["out"].ndim == 4
    assert output.shape == wanted.shape
    assert not torch.equal(output, wanted)
    assert F.cosine_similarity(output.flatten(1), wanted.flatten(1)).min() > 0.1
