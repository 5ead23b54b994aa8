from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.std_conv import ScaledStdConv2d
from torch import Tensor, nn

from autotune.models.surgery.capabilities import channel_count
from autotune.models.surgery.channel_groups import ChannelGroup, Member
from autotune.models.surgery.widths import WidthChange, add_bridge, change_widths
from tests.support.models.backbones import same_state, state_of
from tests.support.models.surgery import (
    capabilities,
    each_family,
    group,
    member,
    pictures,
    seeded,
    source,
)


def norm(name: str, size: int) -> list[Member]:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return [member(f"{name}.{leaf}", "vector", size) for leaf in leaves]


def random(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5, generator=seeded(value.numel()))
    return model.eval().requires_grad_(False)


def chain() -> tuple[nn.Module, ChannelGroup]:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.Conv2d(16, 4, 1),
    )
    channels = group(
        8,
        member("0", "out", 8),
        *norm("1", 8),
        member("3", "vector", 16, (0, 1, 2)),
        member("4", "in", 16, (0, 1, 2)),
    )
    return random(model), channels


@pytest.mark.parametrize("count", [1, 3, 8, 11, 24])
def test_sizes_that_modules_state_are_those_of_their_tensors(count: int) -> None:
    model, channels = chain()
    change_widths(model, [WidthChange(channels, count)], "weights", seeded())
    first, batch_norm, _, depthwise, last = model.children()
    assert (first.in_channels, first.out_channels) == (3, count)
    assert batch_norm.num_features == count
    assert (depthwise.in_channels, depthwise.groups) == (count, count)
    assert depthwise.out_channels == last.in_channels == 2 * count
    assert first.weight.shape == (count, 3, 3, 3)
    assert {len(one) for one in (*batch_norm.parameters(), batch_norm.running_var)} == {count}
    assert depthwise.weight.shape == (2 * count, 1, 3, 3)
    assert last.weight.shape == (4, 2 * count, 1, 1)
    assert model(torch.randn(1, 3, 9, 9)).shape == (1, 4, 5, 5)


def test_the_same_number_is_no_change() -> None:
    model, channels = chain()
    for inherit in ("weights", "none"):
        change_widths(model, [WidthChange(channels, 8)], inherit, seeded())
    assert same_state(model, chain()[0])


def test_channels_that_stay_are_whole_and_in_order() -> None:
    model, channels = chain()
    with torch.no_grad():
        for index, strength in enumerate([1, 9, 1, 8, 1, 1, 7, 1]):
            model[0].weight[index] = strength  # type: ignore[index]
    before = state_of(model)
    change_widths(model, [WidthChange(channels, 3)], "weights", seeded())
    after = state_of(model)
    kept, doubled = [1, 3, 6], [2, 3, 6, 7, 12, 13]
    for key in ("0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var"):
        assert torch.equal(after[key], before[key][kept]), key
    assert torch.equal(after["3.weight"], before["3.weight"][doubled])
    assert torch.equal(after["4.weight"], before["4.weight"][:, doubled])
    assert torch.equal(after["4.bias"], before["4.bias"])


def test_one_tensor_can_hold_the_channels_of_several_groups() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return self.last(torch.cat([self.one(x), self.two(x), x], 1))

    model = Two()
    model.one, model.two = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 12, 1)
    model.last = nn.Conv2d(20 + 3, 4, 1)
    random(model)
    one = group(8, member("one", "out", 8), member("last", "in", 23, (0, 1, 1)))
    two = group(12, member("two", "out", 12), member("last", "in", 23, (8, 1, 1)))
    batch = torch.randn(2, 3, 5, 5, generator=seeded())
    expected = model(batch)
    grown = copy.deepcopy(model)
    change_widths(grown, [WidthChange(one, 13), WidthChange(two, 30)], "weights", seeded())
    assert grown.last.in_channels == 46  # type: ignore[union-attr]
    torch.testing.assert_close(grown(batch), expected)
    mixed = copy.deepcopy(model)
    change_widths(mixed, [WidthChange(two, 5), WidthChange(one, 9)], "weights", seeded())
    assert mixed(batch).shape == expected.shape
    # What belongs to neither keeps its weights.
    assert torch.equal(mixed.last.weight[:, -3:], model.last.weight[:, -3:])  # type: ignore


def test_a_grouped_convolution_takes_as_many_of_every_block() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 5, 1))
    random(model)
    before = group(8, member("0", "out", 8), member("1", "in", 8), unit=4)
    behind = group(12, member("1", "out", 12), member("2", "in", 12), unit=4)
    batch = torch.randn(2, 3, 6, 6, generator=seeded())
    expected = model(batch)
    change_widths(model, [WidthChange(before, 20), WidthChange(behind, 16)], "weights", seeded())
    assert model[1].weight.shape == (16, 5, 3, 3)  # type: ignore[union-attr]
    assert model[1].groups == 4  # type: ignore[union-attr]
    torch.testing.assert_close(model(batch), expected)


def test_a_weight_standardized_convolution_becomes_plain() -> None:
    model = nn.Sequential(ScaledStdConv2d(3, 8, 3), ScaledStdConv2d(8, 8, 3))
    with torch.no_grad():
        model[1].gain.uniform_(0.5, 1.5)
    model.eval()
    channels = group(8, member("0", "out", 8), member("1", "in", 8))
    batch = torch.randn(2, 3, 9, 9, generator=seeded())
    expected = model(batch)
    change_widths(model, [WidthChange(channels, 12)], "weights", seeded())
    assert not any(isinstance(module, ScaledStdConv2d) for module in model)
    torch.testing.assert_close(model(batch), expected)


def test_parameters_and_layer_norms_follow() -> None:
    model = nn.Module()
    model.first, model.norm, model.last = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)
    model.gamma = nn.Parameter(torch.arange(8.0).view(1, 8, 1))
    channels = group(
        8,
        member("first", "out", 8),
        member("norm.weight", "vector", 8),
        member("norm.bias", "vector", 8),
        member("gamma", "vector", 8, dim=1),
        member("last", "in", 8),
    )
    norms = {"last": torch.tensor([0.0, 1, 0, 0, 1, 0, 0, 1])}
    change_widths(model, [WidthChange(channels, 3)], "data", seeded(), norms)
    assert model.norm.normalized_shape == (3,)
    assert model.gamma.flatten().tolist() == [1, 4, 7]  # the active ones
    assert (model.first.out_features, model.last.in_features) == (3, 3)
    assert model.norm(model.first(torch.randn(2, 4))).shape == (2, 3)


def test_nothing_is_inherited_where_nothing_is_to_be() -> None:
    model, channels = chain()
    before = state_of(model)
    change_widths(model, [WidthChange(channels, 5)], "none", seeded(1))
    after = state_of(model)
    assert not after["1.running_mean"].any() and bool((after["1.running_var"] == 1).all())
    assert bool((after["1.weight"] == 1).all())
    assert not after["0.bias"].any() and not after["4.bias"].any()
    for key in ("0.weight", "3.weight"):
        assert not torch.isin(after[key], before[key]).any()
    again, _ = chain()
    change_widths(again, [WidthChange(channels, 5)], "none", seeded(1))
    assert same_state(model, again)


@each_family
@pytest.mark.parametrize("ratio", [0.3, 1.7])
def test_nothing_but_the_members_is_touched(name: str, ratio: float) -> None:
    groups = [
        one for offer in capabilities(name) for one in offer.groups if ratio < 1 or offer.can_grow
    ]
    if not groups:
        return
    model = copy.deepcopy(source(name).pretrained)
    widths = [WidthChange(group, channel_count(ratio, group.size, group.unit)) for group in groups]
    change_widths(model, widths, "weights", seeded())
    touched = {member.name for group in groups for member in group.members}
    expected = state_of(source(name).pretrained)
    for key, value in state_of(model).items():
        if key in touched or key.rpartition(".")[0] in touched:
            assert value.requires_grad is False
        else:
            assert torch.equal(value, expected[key]), key
    with torch.no_grad():
        assert bool(torch.isfinite(model(pictures(name, 1))).all())


# Bridges.


def _ends() -> dict[str, tuple[nn.Module, Tensor]]:
    return {
        "convolution": (
            nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=True),
            torch.randn(2, 6, 9, 9, generator=seeded()),
        ),
        "pointwise": (nn.Conv2d(12, 10, 1, bias=False), torch.randn(2, 12, 5, 5)),
        "linear": (nn.Linear(7, 10), torch.randn(2, 3, 7, generator=seeded())),
        "standardized": (ScaledStdConv2d(6, 10, 3), torch.randn(2, 6, 9, 9)),
    }


def bridged(kind: str, count: int, inherit: str = "weights") -> tuple[nn.Module, nn.Module, Any]:
    end, given_ = _ends()[kind]
    model = nn.Sequential(end).eval().requires_grad_(False)
    changed = copy.deepcopy(model)
    add_bridge(changed, "0", count, inherit, seeded())
    return model, changed, given_


@pytest.mark.parametrize("kind", _ends())
@settings(max_examples=15)
@given(count=st.integers(10, 40))
def test_a_wide_bridge_computes_the_same(kind: str, count: int) -> None:
    model, changed, batch = bridged(kind, count)
    torch.testing.assert_close(changed(batch), model(batch), rtol=1e-4, atol=1e-5)
    first, second = changed[0]
    assert first.weight.shape[0] == second.weight.shape[1] == count
    assert first.bias is None
    if isinstance(first, nn.Linear):
        assert (first.out_features, second.in_features, second.out_features) == (count, count, 10)
    else:
        assert (first.out_channels, second.in_channels, second.out_channels) == (count, count, 10)
        assert second.kernel_size == (1, 1)


@pytest.mark.parametrize("kind", ["convolution", "pointwise", "linear"])
@pytest.mark.parametrize("count", [1, 3, 7, 9])
def test_a_narrow_bridge_is_the_best_approximation(kind: str, count: int) -> None:
    """Eckart and Young: the error is what the singular values that go leave."""
    model, changed, _ = bridged(kind, count)
    old = model[0].weight.flatten(1)
    first, second = changed[0]
    product = second.weight.flatten(1) @ first.weight.flatten(1)
    values = torch.linalg.svdvals(old)
    expected = values[count:].square().sum().sqrt()
    torch.testing.assert_close((product - old).norm(), expected, rtol=1e-3, atol=1e-4)
    # Neither of the two carries all of the scale.
    torch.testing.assert_close(first.weight.norm(), second.weight.norm(), rtol=1e-3, atol=1e-4)


def test_the_bias_of_a_bridge_and_one_that_inherits_nothing() -> None:
    model, changed, _ = bridged("linear", 4)
    assert torch.equal(changed[0][1].bias, model[0].bias)
    assert bridged("pointwise", 4)[1][0][1].bias is None
    model, changed, batch = bridged("convolution", 4, "none")
    first, second = changed[0]
    assert not second.bias.any()
    assert not torch.isin(first.weight, model[0].weight).any()
    assert changed(batch).shape == model(batch).shape
    again = bridged("convolution", 4, "none")[1]
    assert torch.equal(again[0][0].weight, first.weight)
