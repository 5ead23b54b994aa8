from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import RmsNorm
from torch import Tensor, nn

from autotune.models.surgery.inheritance import (
    activation_scores,
    channel_norms,
    magnitude_scores,
    reinitialize,
    select_channels,
    split_copies,
)
from tests.support.models.surgery import (
    capabilities,
    group,
    member,
    pictures,
    seeded,
    source,
)

# Which channels.


def test_fewer_channels_are_those_with_the_best_scores() -> None:
    scores = torch.tensor([0.1, 5.0, 3.0, 4.0, 0.2, 3.0])
    assert select_channels(scores, 3, 1, seeded()) == [1, 2, 3]  # of equal ones the first
    assert select_channels(scores, 6, 1, seeded()) == [0, 1, 2, 3, 4, 5]
    assert select_channels(scores, 4, 2, seeded()) == [1, 2, 3, 5]  # two of each half
    drawn = {tuple(select_channels(torch.zeros(20), 25, 1, seeded(seed))) for seed in range(8)}
    assert len(drawn) == 8  # doubled channels are random


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 30), st.integers(0, 99))
def test_as_many_from_every_block_and_none_thrice_before_all_twice(
    unit: int, size: int, wanted: int, seed: int
) -> None:
    scores = torch.randn(unit * size, generator=seeded(seed))
    found = select_channels(scores, wanted * unit, unit, seeded(seed))
    assert found == sorted(found)
    assert found == select_channels(scores, wanted * unit, unit, seeded(seed))
    for block in range(unit):
        own = [one - block * size for one in found if one // size == block]
        assert len(own) == wanted
        copies = torch.bincount(torch.tensor(own), minlength=size)
        if wanted < size:
            best = scores[block * size : (block + 1) * size].topk(wanted).values.min()
            assert scores[[block * size + one for one in own]].min() == best
            assert int(copies.max()) == 1
        else:
            assert int(copies.max()) - int(copies.min()) <= 1
            assert int(copies.min()) == wanted // size


# What is shared.


@given(st.integers(1, 5), st.lists(st.integers(1, 4), min_size=1, max_size=6), st.booleans())
def test_shares_sum_to_the_whole(outputs: int, counts: list[int], spatial: bool) -> None:
    copies = [index for index, count in enumerate(counts) for _ in range(count)]
    whole = torch.randn(outputs, len(counts), *([3, 3] if spatial else []), generator=seeded())
    found = split_copies(whole[:, copies], copies, seeded())
    assert found.shape == (outputs, len(copies), *whole.shape[2:])
    summed = torch.zeros_like(whole).index_add_(1, torch.tensor(copies), found)
    torch.testing.assert_close(summed, whole)
    for index, count in enumerate(counts):
        own = found[:, [place for place, copy in enumerate(copies) if copy == index]]
        if count == 1:
            assert torch.equal(own[:, 0], whole[:, index])
        else:
            shares = own / whole[:, index, None]
            # No share is small: each is between 0.25 / (0.25 + 0.75 n) and its opposite.
            assert float(shares.min()) > 0.25 / (0.25 + 0.75 * (count - 1)) - 1e-4
            assert not torch.allclose(own[:, 0], own[:, 1])


def test_every_output_has_shares_of_its_own_and_nothing_is_drawn_without_copies() -> None:
    assert len(split_copies(torch.ones(6, 2), [0, 0], seeded())[:, 0].unique()) == 6
    generator, weight = seeded(), torch.randn(4, 3)
    assert split_copies(weight, [4, 7, 2], generator) is weight
    assert torch.equal(generator.get_state(), seeded().get_state())


# How channels are judged.


def test_magnitude_sees_what_writes_scales_and_reads() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)).eval()
    channels = group(
        8,
        member("0", "out", 8),
        member("1.weight", "vector", 8),
        member("1.bias", "vector", 8),
        member("2", "in", 8),
    )
    with torch.no_grad():
        nn.init.ones_(model[0].weight)
        nn.init.ones_(model[2].weight)
    even = magnitude_scores(model, channels)
    assert even.shape == (8,)
    assert torch.allclose(even, even[:1])
    with torch.no_grad():
        model[0].weight[1] *= 2
        model[1].weight[3] *= 3  # type: ignore[index]
        model[2].weight[:, 5] *= 4
    scores = magnitude_scores(model, channels)
    assert set(scores.argsort(descending=True)[:3].tolist()) == {1, 3, 5}
    assert scores[[0, 2, 4, 6, 7]].std() < 1e-6


def test_magnitude_counts_the_halves_of_a_gated_unit_as_one() -> None:
    model = nn.Sequential(nn.Linear(4, 16, bias=False), nn.Identity(), nn.Linear(8, 4))
    channels = group(8, member("0", "out", 16, (0, 2, 1)), member("2", "in", 8))
    with torch.no_grad():
        nn.init.ones_(model[0].weight)
        nn.init.ones_(model[2].weight)
        model[0].weight[8 + 6] *= 5  # the gate of channel 6
        model[0].weight[2] *= 3  # the value of channel 2
    scores = magnitude_scores(model, channels)
    assert scores.shape == (8,)
    assert scores.argsort(descending=True)[:2].tolist() == [6, 2]


def test_activity_is_the_norm_of_what_a_channel_contributes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    channels = group(8, member("0", "out", 8), member("2", "in", 8))
    batch = torch.randn(5, 3, 9, 9, generator=seeded())
    norms = channel_norms(model, ["2"], batch)
    with torch.no_grad():
        inside = model[1](model[0](batch))
    expected = inside.square().mean((0, 2, 3)).sqrt()
    torch.testing.assert_close(norms["2"], expected)
    weights = model[2].weight.detach().square().sum((0, 2, 3)).sqrt()
    torch.testing.assert_close(activation_scores(model, channels, norms), weights * expected)


def test_activity_sums_over_readers_groups_and_places() -> None:
    model = nn.ModuleDict(
        {
            "grouped": nn.Conv2d(8, 4, 3, groups=2),
            "linear": nn.Linear(16, 5),  # every channel twice in a row
            "glu": nn.Linear(8, 3),
        }
    )
    channels = group(
        8,
        member("grouped", "in", 8),
        member("linear", "in", 16, (0, 1, 2)),
        member("glu", "in", 8),
    )
    norms = {name: torch.rand(size) for name, size in (("grouped", 8), ("linear", 16))}
    weight = model["grouped"].weight.detach()
    expected = torch.zeros(8)
    for channel in range(8):
        own = weight[channel // 4 * 2 : channel // 4 * 2 + 2, channel % 4]
        expected[channel] += float(own.square().sum()) * norms["grouped"][channel] ** 2
        for place in (2 * channel, 2 * channel + 1):
            column = model["linear"].weight.detach()[:, place]
            expected[channel] += float(column.square().sum()) * norms["linear"][place] ** 2
    torch.testing.assert_close(activation_scores(model, channels, norms), expected.sqrt())


def test_activity_falls_back_on_magnitude() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    channels = group(8, member("0", "out", 8))
    assert torch.equal(activation_scores(model, channels, {}), magnitude_scores(model, channels))


def test_channel_norms_of_tokens_and_nothing_stays_behind() -> None:
    found = source("test_vit").pretrained
    name = capabilities("test_vit")[0].groups[0].readers[0]
    seen: list[Tensor] = []
    hook = found.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    norms = channel_norms(found, [name], pictures("test_vit"))
    hook.remove()
    torch.testing.assert_close(norms[name], seen[0].square().mean((0, 1)).sqrt())
    assert not any(module._forward_pre_hooks for module in found.modules())


# New weights.


@pytest.mark.parametrize(
    ("module", "fan_out"),
    [
        (nn.Conv2d(40, 60, 5), 60 * 25),
        (nn.Conv2d(64, 64, 7, groups=64), 49),
        (nn.Conv2d(64, 96, 3, groups=4), 24 * 9),
        (nn.Linear(100, 80), 80),
    ],
)
def test_he_statistics(module: nn.Module, fan_out: int) -> None:
    with torch.no_grad():
        module.bias.fill_(7)  # type: ignore[operator, union-attr]
    reinitialize(module, seeded())
    weight = module.get_parameter("weight").detach()
    assert abs(float(weight.std()) / math.sqrt(2 / fan_out) - 1) < 0.05
    assert abs(float(weight.mean())) < 0.1 * math.sqrt(2 / fan_out)
    assert not module.bias.any()  # type: ignore[operator, union-attr]
    first = weight.clone()
    reinitialize(module, seeded())
    assert torch.equal(weight, first)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6), nn.GroupNorm(2, 6), RmsNorm(6)])
def test_norms_start_as_identities(norm: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*norm.parameters(), *norm.buffers()):
            tensor.fill_(3)
    reinitialize(norm, seeded())
    assert torch.equal(norm.weight, torch.ones(6))  # type: ignore[arg-type]
    assert isinstance(norm, RmsNorm) or torch.equal(norm.bias, torch.zeros(6))
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_mean is not None and not norm.running_mean.any()
        assert norm.running_var is not None and bool((norm.running_var == 1).all())
        assert int(norm.num_batches_tracked or 0) == 0


def test_what_is_no_norm_keeps_its_weights() -> None:
    """A block that holds its own scale, and an activation with a slope."""
    slope = nn.PReLU(4)
    reinitialize(slope, seeded())
    assert bool((slope.weight == 0.25).all())
    block = nn.Module()
    block.gamma = nn.Parameter(torch.full((4,), 3.0))
    block.bias = False
    reinitialize(block, seeded())
    assert bool((block.gamma == 3).all())
