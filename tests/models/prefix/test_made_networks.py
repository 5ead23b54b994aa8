"""Networks made by hand, with one difficulty each, are split exactly or refused with a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional

from autotune.errors import SplitError
from autotune.models.layers import list_layers
from autotune.models.network import Head, Network
from autotune.models.prefix.batch_analysis import from_parts, to_parts
from autotune.models.prefix.split import _compare, split_network
from autotune.plan import HeadPlan
from tests.models.prefix.test_split import check_same, crossing, cut
from tests.support.cuda import OUT_OF_MEMORY
from tests.support.models.backbones import images


class Made(nn.Module):
    """A backbone of a stem, a middle and an end, which meet as a function says."""

    def __init__(
        self, flow: Callable[[Any, Tensor], Tensor], end: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.end = end or nn.Conv2d(8, 8, 3, padding=1)
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(self, x)


def made(flow: Callable[[Any, Tensor], Tensor], depth: int = 1, end: Any = None) -> Network:
    torch.manual_seed(0)
    module = Made(flow, end)
    return Network(module, list_layers(module), depth, Head(HeadPlan(), 8, 3))


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def noise(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def skip(self: Any, x: Tensor) -> Tensor:
    early = self.stem(x)
    late = self.middle(early.relu())
    return pooled(self.end(late) + early)


def relu_in_the_tail(self: Any, x: Tensor) -> Tensor:
    x = self.middle(self.stem(x))
    y = self.end(2 * x)
    return pooled(functional.relu_(x) + y)


def added_in_the_tail(self: Any, x: Tensor) -> Tensor:
    x = self.middle(self.stem(x))
    x += self.end(2 * x)
    return pooled(x)


def written_before_it_is_read(self: Any, x: Tensor) -> Tensor:
    early = self.stem(x)
    y = self.end(2 * early)
    early.relu_()
    return pooled(self.middle(early) * y)


def result_ignored(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    x.relu_()
    x = self.middle(x)
    y = self.end(2 * x)
    x.mul_(2)
    return pooled(x + y)


def view_written(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    half = x[:, :4]
    half.add_(1)
    x = self.middle(x)
    x[:, 0].zero_()
    y = self.end(x)
    return pooled(y + x)


def tail_writes_a_view(self: Any, x: Tensor) -> Tensor:
    x = self.middle(self.stem(x))
    y = self.end(x)
    z = x.clone()
    z[:, :4].copy_(y[:, :4])
    return pooled(z * x)


def in_windows(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    count, channels, height, width = x.shape
    x = x.view(count, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 1, 3, 5)
    x = self.end(self.middle(x.reshape(-1, channels, 4, 4)))
    return x.view(count, -1, channels, 4, 4).mean((1, 3, 4))


def windows_first(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    count, channels, height, width = x.shape
    x = x.view(count, channels, height // 4, 4, width).permute(2, 0, 1, 3, 4)
    x = self.end(self.middle(x.reshape(-1, channels, 4, width)))
    return x.view(-1, count, channels, 4, width).mean((0, 3, 4))


def batch_second(self: Any, x: Tensor) -> Tensor:
    x = self.middle(self.stem(x))
    tokens = x.flatten(2).permute(2, 0, 1)
    weights = tokens.softmax(0)
    count = tokens.shape[1]
    return self.end((weights * tokens).sum(0).reshape(count, 8, 1, 1)).flatten(1)


def constants(self: Any, x: Tensor) -> Tensor:
    x = self.middle(self.stem(x))
    table = torch.linspace(0, 1, x.shape[-1], device=x.device)
    ones = self.stem.weight.sum() * x.new_ones(1, 8, 1, 1)
    grid = table[None, :] * table[:, None]
    return pooled(self.end(x + grid) * ones + grid)


def constant_written(self: Any, x: Tensor) -> Tensor:
    x = self.middle(self.stem(x))
    table = torch.zeros(x.shape[2:], device=x.device)
    plain = self.end(x + table)
    table.narrow(0, 0, 4).add_(1)
    half = self.end(x + table)
    table.mul_(3)
    return pooled(plain + half * (table - 1))


class Table(nn.Module):
    """Adds a table that is no state: its layer's, but the same for all plans."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(8, 1, 1), persistent=False)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def table_of_a_trainable_layer(self: Any, x: Tensor) -> Tensor:
    x = self.middle(self.stem(x) + self.end.table)
    return pooled(self.end(x))


def several_outputs(self: Any, x: Tensor) -> Tensor:
    first, second = self.middle(self.stem(x)).chunk(2, 1)
    return pooled(self.end(torch.cat([second, first], 1)) * torch.cat([first, first], 1))


def straight(self: Any, x: Tensor) -> Tensor:
    x = self.middle(self.stem(x))
    return pooled(self.end(x))


class Centered(nn.Module):
    """Subtracts a mean that it follows by itself, with no module of torch."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.5).add_(x.detach().mean((0, 2, 3)), alpha=0.5)
            return x - x.mean((0, 2, 3), keepdim=True)
        return x - self.mean[None, :, None, None]


FLOWS = (
    *(skip, relu_in_the_tail, added_in_the_tail, written_before_it_is_read, result_ignored),
    *(view_written, tail_writes_a_view, in_windows, windows_first, batch_second, constants),
    *(constant_written, several_outputs),
)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("flow", "end"),
    [
        *((flow, None) for flow in FLOWS),
        (straight, [nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1)]),
        (straight, [nn.Dropout(0.5, inplace=True), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)]),
        (straight, [nn.Conv2d(8, 8, 1), Centered()]),
        (straight, [DropPath(0.5), nn.Conv2d(8, 8, 1), nn.Dropout2d(0.5)]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_networks_made_by_hand(
    flow: Callable[[Any, Tensor], Tensor], end: list[nn.Module] | None, depth: int
) -> None:
    net = made(flow, 0, None if end is None else nn.Sequential(*copy.deepcopy(end)))
    layers = list_layers(net.backbone)
    net = Network(net.backbone, layers, min(depth, len(layers)), net.head)
    check_same(net, cut(net, noise(2)), noise(5))


@pytest.mark.parametrize(
    ("flow", "depth", "shapes"),
    [
        (skip, 1, ((8, 8, 8), (8, 8, 8))),  # one of them skips the middle
        (skip, 3, ((3, 16, 16),)),
        (in_windows, 1, ((4, 8, 4, 4),)),
        (windows_first, 1, ((2, 8, 4, 8),)),
    ],
)
def test_tensors_that_cross(flow: Any, depth: int, shapes: tuple[tuple[int, ...], ...]) -> None:
    found = cut(made(flow, depth), noise())
    assert [torch.Size(one).numel() for one in found.shapes] == [
        torch.Size(one).numel() for one in shapes
    ]
    assert found.is_trivial == (depth == 3)
    if found.is_trivial:
        assert torch.equal(crossing(found, noise())[0], noise())


def test_dropout_that_drops_nothing_does_not_move_the_cut() -> None:
    """BEiT's layers call one, behind the position table, their own."""
    options = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32}
    module = timm.create_model("beit_base_patch16_224", num_classes=0, **options)
    net = Network(module, list_layers(module), 1, Head(HeadPlan(), 48, 3))
    assert "pos_drop" in net.layers[0].modules
    found = cut(net, images("test_resnet", 2))
    assert found.shapes == ((5, 48),)
    check_same(net, found, images("test_resnet", 3))


def test_tables_that_are_no_state_are_frozen_wherever_they_are() -> None:
    shown = noise()
    keys = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        net = made(table_of_a_trainable_layer, end=Table())
        torch.manual_seed(seed)
        net.backbone.end.table.normal_()  # type: ignore[union-attr, operator]
        found = cut(net, shown)
        assert found.shapes == ((8, 8, 8),) and not found.is_trivial
        check_same(net, found, shown)
        keys.append(found.keys)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("between", "shape"),
    [
        (lambda x: functional.max_pool2d(x, 2), (8, 4, 4)),
        (lambda x: functional.interpolate(x.relu(), scale_factor=2), (8, 8, 8)),
        (lambda x: (x > 0).to(x.dtype), (8, 8, 8)),
    ],
    ids=["pooled before", "enlarged behind", "bits"],
)
def test_the_fewest_bytes_cross(
    between: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    def flow(self: Any, x: Tensor) -> Tensor:
        return pooled(self.end(between(self.middle(self.stem(x)))))

    net = made(flow)
    found = cut(net, noise())
    assert found.shapes == (shape,)
    if found.dtypes == (torch.bool,):
        assert "to" in found._evaluation.source
    check_same(net, found, noise(3))


def branch(self: Any, x: Tensor) -> Tensor:
    x = self.middle(self.stem(x))
    return pooled(self.end(x if x.sum() > 0 else -x))


def mixing(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    return pooled(self.end(self.middle(x - x.mean(0, keepdim=True))))


def draws(self: Any, x: Tensor) -> Tensor:
    x = self.middle(self.stem(x))
    return pooled(self.end(x * float(torch.rand(()))))


def noisy(self: Any, x: Tensor) -> Tensor:
    x = self.middle(self.stem(x))
    return pooled(self.end(x + torch.randn_like(x)))


def shapeless(self: Any, x: Tensor) -> Tensor:
    return pooled(self.end(torch.zeros(2, 8, 4, 4)))


@pytest.mark.parametrize(
    ("flow", "reason"),
    [
        (branch, "cannot be traced"),
        (mixing, "mixes the images of a batch"),
        (draws, "draws random numbers"),
        (noisy, "differ from the whole"),
        (shapeless, "does not depend on the images"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_reasons_why_a_network_cannot_be_split(
    flow: Callable[[Any, Tensor], Tensor], reason: str
) -> None:
    with pytest.raises(SplitError, match=reason):
        split_network(made(flow), noise())


def test_errors_of_a_device_are_raised_as_they_are() -> None:
    """It would train whole, and be as slow as that, because of a moment without memory."""
    error = torch.OutOfMemoryError(OUT_OF_MEMORY)

    def fails(self: Any, x: Tensor) -> Tensor:
        raise error

    with pytest.raises(torch.OutOfMemoryError) as raised:
        split_network(made(fails), noise())
    assert raised.value is error


@pytest.mark.parametrize(
    ("dtype", "largest"), [(None, 9e-4), (torch.float16, 4e-3), (torch.bfloat16, 1.5e-2)]
)
def test_what_a_precision_rounds_is_no_difference(
    dtype: torch.dtype | None, largest: float
) -> None:
    """A tail may go on in another layout, and its kernels add in another order."""
    whole = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        _compare(whole * (1 + largest), whole)
        with pytest.raises(SplitError, match="differ from the whole backbone by"):
            _compare(whole * (1 + 2 * largest), whole)


@pytest.mark.parametrize("before", [1, 2, 3, 6])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_parts_go_back_to_where_they_were(dim: int, before: int) -> None:
    shape = [2, 3, 4]
    shape[dim] = 5 * 6
    tensor = torch.randn(shape)
    parts = to_parts(tensor, dim, before, 6)
    assert parts.shape[0] == 5
    assert torch.equal(from_parts(parts, dim, before, 6), tensor)
    alone = to_parts(tensor.narrow(dim, 0, 5), dim, 1, 1)
    assert torch.equal(alone, tensor.narrow(dim, 0, 5).movedim(dim, 0))
    assert torch.equal(from_parts(alone, dim, 1, 1), tensor.narrow(dim, 0, 5))
