"""Half precision that is compared with float32, operation by operation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from autotune.training.compute.amp import AmpPolicy, is_kept_fp32
from autotune.training.compute.half_precision_check import (
    Operation,
    _Form,
    is_inaccurate,
    keep_inaccurate_fp32,
    operation_id,
    record_operations,
)
from tests.support.models.backbones import CPU

BF16, FP16 = AmpPolicy(CPU, torch.bfloat16), AmpPolicy(CPU, torch.float16)


class Attention(nn.Module):
    """Products in its own code, beside those of its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).chunk(3, -1)
        return F.scaled_dot_product_attention(query, key, value)


class Mixed(nn.Module):
    """Every kind of product that networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.transposed = nn.ConvTranspose2d(8, 8, 2, 2)
        self.dropout = nn.Dropout(0.5)
        self.attention = Attention()
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.transposed(self.depthwise(self.grouped(self.norm(self.plain(images)))))
        tokens = self.attention(self.dropout(maps).flatten(2).mT)
        return self.head(torch.einsum("btc,bt->bc", tokens, tokens.softmax(1)[..., 0]))


def named(network: nn.Module, amp: AmpPolicy) -> dict[str, list[str]]:
    names = {module: name for name, module in network.named_modules()}
    return {
        names[module]: [one.function._schema.name for one in operation]
        for module, operation in record_operations(network, (3, 8, 8), amp).items()
    }


@pytest.mark.parametrize("amp", [BF16, FP16])
def test_the_products_of_a_network_are_found(amp: AmpPolicy) -> None:
    network = Mixed().train()
    network.norm.eval()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    found = named(network, amp)
    for name in ("plain", "grouped", "depthwise", "transposed"):
        assert found[name] == ["aten::convolution"]
    assert found["attention.qkv"] == found["head"] == ["aten::addmm"]
    (attention,) = found["attention"]
    assert "scaled_dot_product" in attention
    assert "aten::bmm" in found[""]  # of the einsum
    # And nothing has changed.
    assert all(torch.equal(one, before[name]) for name, one in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training and network.dropout.training and not network.norm.training
    assert not any(module._forward_hooks for module in network.modules())


def test_equal_operations_have_one_name() -> None:
    def names(size: int) -> list[str]:
        found = record_operations(Mixed(), (3, size, size), BF16)
        return [operation_id(one) for some in found.values() for one in some]

    assert names(8) == names(8)
    assert len(set(names(8))) == len(names(8))
    assert len(set(names(8)) & set(names(16))) <= 1  # the head


def injected(backward: Callable[[int, Tensor], Tensor]) -> Operation:
    """Make an operation, the gradient of which is given in half precision: told the call."""
    calls: list[int] = []

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: Tensor) -> Tensor:
            return 2 * values

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            (grad,) = grads
            if grad.dtype == torch.float32:
                return 2 * grad
            calls.append(1)
            return backward(len(calls), 2 * grad)

    form = _Form((4, 6), (6, 1), torch.bfloat16)
    return Operation(Twice.apply, (form,), {}, torch.bfloat16)


@pytest.mark.parametrize(
    ("wrong", "backward"),
    [
        (False, lambda call, right: right),
        (False, lambda call, right: right * 1.002),
        (True, lambda call, right: torch.zeros_like(right)),
        (True, lambda call, right: right * 1.1),
        (True, lambda call, right: torch.full_like(right, torch.nan)),
        (True, lambda call, right: right.index_fill(0, torch.tensor([1]), torch.inf)),
        # Memory as it was, perhaps with the right result of the last time.
        (True, lambda call, right: torch.empty(right.shape, dtype=right.dtype)),
        # Right by chance, twice.
        (True, lambda call, right: right if call < 3 else -right),
    ],
)
def test_a_gradient_that_is_off(wrong: bool, backward: Callable[[int, Tensor], Tensor]) -> None:
    assert is_inaccurate(injected(backward)) == wrong


@pytest.mark.parametrize("strides", [(6, 1), (1, 4), (0, 1), (12, 2), (1, 1)])
def test_tensors_of_every_layout(strides: tuple[int, int]) -> None:
    form = _Form((4, 6), strides, torch.bfloat16)
    other = _Form((6, 3), (3, 1), torch.bfloat16)
    assert not is_inaccurate(
        Operation(torch.ops.aten.mm.default, (form, other), {}, torch.bfloat16)
    )


@pytest.mark.parametrize("groups", [1, 4, 32])
@pytest.mark.parametrize("size", [1, 2])
def test_gradients_of_small_maps_are_those_of_float32(groups: int, size: int) -> None:
    """torch 2.15 has garbage for the weights where bf16 is in hardware, at a size of 1."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1, groups=groups), nn.Flatten())
    network.to(memory_format=torch.channels_last)
    single = copy.deepcopy(network)
    amp = keep_inaccurate_fp32(network, (32, size, size), BF16)
    assert amp == BF16
    images = torch.randn(16, 32, size, size).contiguous(memory_format=torch.channels_last)
    single(images).square().mean().backward()
    for _ in range(10):
        blocks = [torch.full((32 * 32 // groups * 9,), torch.nan) for _ in range(8)]
        del blocks
        with amp.autocast():
            output = network(images)
        network.zero_grad()
        output.float().square().mean().backward()
        for parameter, other in zip(network.parameters(), single.parameters(), strict=True):
            assert parameter.grad is not None and other.grad is not None
            assert (parameter.grad - other.grad).norm() < 0.03 * other.grad.norm()


def test_only_what_is_wrong_stays_in_single_precision() -> None:
    network = Mixed()
    amp = keep_inaccurate_fp32(
        network, (3, 8, 8), BF16, lambda one: "shape=(8, 4, 3, 3)" in one.key
    )
    assert amp == BF16
    kept = {name for name, one in network.named_modules() if is_kept_fp32(one)}
    assert kept == {"grouped"}
    assert set(named(network, BF16)) == set(named(Mixed(), BF16)) - kept


def test_a_network_with_a_wrong_product_of_its_own_trains_in_float32() -> None:
    """Its graph has no module there that could be left out."""
    network = Mixed()
    amp = keep_inaccurate_fp32(
        network, (3, 8, 8), BF16, lambda one: "scaled_dot_product" in one.key
    )
    assert amp == AmpPolicy(CPU, None)


@pytest.mark.parametrize(
    "amp", [AmpPolicy(CPU, None), AmpPolicy(torch.device("cuda", 0), torch.bfloat16)]
)
def test_nothing_is_compared_elsewhere(amp: AmpPolicy) -> None:
    def compared(_: Operation) -> bool:
        raise AssertionError("compared")

    assert keep_inaccurate_fp32(Mixed(), (3, 8, 8), amp, compared) == amp
