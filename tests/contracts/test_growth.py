"""More channels, larger kernels and wide bridges leave the function of a network as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autotune.models.network import Network
from autotune.models.surgery import widths
from autotune.models.surgery.capabilities import channel_count
from autotune.models.surgery.channel_groups import ChannelGroup
from tests.support.surgery import (
    FAMILIES,
    built,
    change,
    difference,
    features,
    gives_features,
    growths,
    offers,
    pictures,
)

#: Largest relative change of the features (Frobenius norm) in float32.
TOLERANCE = 1e-4
#: What every family must be able to grow in one of its last layers; a test of nothing is none.
FIELDS = {
    "test_vit": {"width", "bridge"},
    "test_convnext": {"width", "bridge"},  # its kernels are of 7 pixels
    "levit_128s": {"width", "bridge"},
    "gmlp_ti16_224": {"width", "bridge"},
    "eva02_tiny_patch14_224": {"width", "bridge"},
}


def is_exact(name: str, index: int) -> bool:
    return all(group.exact for group in offers(name)[index - 1].groups)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=4)
@given(data=st.data())
def test_growth_leaves_the_function_as_it_is(name: str, data: st.DataObject) -> None:
    """Some layers, and in each of them some of the fields."""
    changes: dict[int, dict[str, Any]] = {}
    for offer in offers(name):
        possible = growths(offer)
        if gives_features(offer):
            possible.pop("width", None)
        if possible and data.draw(st.booleans(), label=f"layer {offer.index}"):
            fields = data.draw(st.sets(st.sampled_from(sorted(possible)), min_size=1))
            changes[offer.index] = {
                field: data.draw(possible[field], label=field) for field in sorted(fields)
            }
    inherit = data.draw(st.sampled_from(["weights", "data"]))
    plan = change(name, changes, inherit=inherit)
    net = built(plan, seed=data.draw(st.integers(0, 9)))
    off = difference(net, plan)
    kept = all(
        offer.is_function_preserving(layer, inherit)
        for offer, layer in zip(offers(name), plan.layers, strict=False)
    )
    assert off < TOLERANCE or not kept
    assert not net.stale_norms or not kept
    if all(is_exact(name, index) for index, one in changes.items() if "width" in one):
        assert off < TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_grows_alone(name: str) -> None:
    """Twice as many channels, two taps more, a bridge half as wide again: in all layers."""
    tried = set()
    for field, value in (("width", 2.0), ("kernel", 7), ("bridge", 1.5)):
        chosen = [
            offer.index
            for offer in offers(name)
            if field in growths(offer)
            and not offer.reason_unsupported(field, value)
            and not (field == "width" and gives_features(offer))
        ]
        if chosen:
            tried.add(field)
            plan = change(name, {index: {field: value} for index in chosen})
            off = difference(built(plan), plan)
            if field != "width" or all(is_exact(name, index) for index in chosen):
                assert off < TOLERANCE
    assert tried >= FIELDS.get(name, {"kernel", "width"})


def test_more_features_are_the_old_ones_some_of_them_twice() -> None:
    """Where the channels that grow are the features, the head reads more of them."""
    name = "mobilenetv3_small_050"
    assert gives_features(offers(name)[0])
    net = built(change(name, {1: {"width": 1.5}}))
    with torch.no_grad():
        found = net.backbone(pictures(name))
    expected = features(name)
    assert found.shape == (2, 1536) and expected.shape == (2, 1024)
    same = (found[:, :, None] - expected[:, None, :]).abs().amax(0) < 1e-5
    assert same.any(1).all()  # each is an old one
    assert same.any(0).all()  # and each old one is there
    assert net(pictures(name)).shape == (2, 3)


def test_a_norm_over_the_channels_sees_others() -> None:
    """Groups that promise nothing are told from those that do."""
    groups = [group for offer in offers("gmlp_ti16_224") for group in offer.groups]
    assert groups and not any(group.exact for group in groups)
    plan = change("gmlp_ti16_224", {index: {"width": 1.3} for index in range(1, 6)})
    assert 0 < difference(built(plan), plan) < 0.5
    assert all(
        group.exact
        for name in ("test_resnet", "test_vit", "test_convnext", "test_nfnet")
        for offer in offers(name)
        for group in offer.groups
    )


# Each of these errors is in reach of a slip of the pen; each must be noticed in every family
# that the contract covers, or the contract shows nothing there.


def _whole(weight: Tensor, copies: Any, generator: torch.Generator) -> Tensor:
    """Every copy is read in full."""
    return weight


def _eighth_off(weight: Tensor, copies: Any, generator: torch.Generator) -> Tensor:
    """Shares of copies that do not add up."""
    number = torch.tensor(copies)
    double = torch.bincount(number)[number] > 1
    shares = torch.where(double, 0.45, 1.0).view(1, -1, *(1,) * (weight.ndim - 2))
    return weight * shares


def _scrambled(scores: Tensor, count: int, unit: int, generator: torch.Generator) -> list[int]:
    """Doubled channels that are other ones for every tensor that is asked."""
    return torch.randint(len(scores), (count,), generator=generator).tolist()


@pytest.mark.parametrize("name", [name for name in FAMILIES if is_exact(name, 2)])
@pytest.mark.parametrize("error", [_whole, _eighth_off])
def test_a_wrong_split_is_noticed(name: str, error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widths, "split_copies", error)
    index = next(
        offer.index
        for offer in offers(name)
        if "width" in growths(offer) and not gives_features(offer)
    )
    plan = change(name, {index: {"width": 2.0}})
    assert difference(built(plan), plan) > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnext50_32x4d"])
def test_a_forgotten_member_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms that are cut to the new size instead of following the channels."""
    right = widths._positions

    def wrong(parts: Any) -> list[int]:
        positions = right(parts)
        member = parts[0][0]
        if member.side == "vector" and "running_mean" in member.name:
            return [position % member.length for position in range(len(positions))]
        return positions

    monkeypatch.setattr(widths, "_positions", wrong)
    plan = change(name, {1: {"width": 2.0}})
    assert difference(built(plan), plan) > 10 * TOLERANCE


# Fewer channels: exactly those that were chosen are gone.


def _silence(net: Network, group: ChannelGroup, gone: list[int]) -> None:
    """Have every reader of a group see zeros in place of some of its channels."""
    for member in group.members:
        if member.side != "in":
            continue
        mask = torch.ones(member.length)
        for start, blocks, run in member.segments:
            stretch = mask[start : start + blocks * group.size * run].view(blocks, group.size, run)
            stretch[:, gone] = 0
        module = net.backbone.get_submodule(member.name)

        def hook(module: nn.Module, args: Any, mask: Tensor = mask) -> Any:
            shape = (-1,) if isinstance(module, nn.Linear) else (1, -1, 1, 1)
            return (args[0] * mask.view(shape),)

        module.register_forward_pre_hook(hook)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("inherit", "ratio"), [("weights", 0.6), ("data", 0.3)])
def test_shrinking_is_exact_selection(
    name: str, inherit: str, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[tuple[int, list[int]]] = []
    right = widths.select_channels

    def note(scores: Tensor, *rest: Any) -> list[int]:
        chosen.append((len(scores), right(scores, *rest)))
        return chosen[-1][1]

    monkeypatch.setattr(widths, "select_channels", note)
    indices = [
        offer.index for offer in offers(name) if offer.groups and is_exact(name, offer.index)
    ]
    if name == "gmlp_ti16_224":
        assert not indices  # its norms see which channels are there
        return
    small = built(change(name, {index: {"width": ratio} for index in indices}, inherit=inherit))
    groups = [group for index in indices for group in offers(name)[index - 1].groups]
    kept = [selection for _, selection in chosen]
    assert [size for size, _ in chosen] == [group.size for group in groups]
    silent = built(change(name, {}))
    for group, selection in zip(groups, kept, strict=True):
        assert len(selection) == channel_count(ratio, group.size, group.unit)
        assert len(set(selection)) == len(selection)
        _silence(silent, group, sorted(set(range(group.size)) - set(selection)))
    with torch.no_grad():
        found, expected = small.backbone(pictures(name)), silent.backbone(pictures(name))
    if gives_features(offers(name)[0]) and 1 in indices:
        expected = expected[:, kept[0]]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    assert (silent.backbone(pictures(name)) - features(name)).abs().max() > 1e-3


# Copies of a channel become channels of their own.


@pytest.mark.parametrize("name", FAMILIES)
def test_one_step_tells_copies_apart(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Adam's first step goes by signs: of the copies whose gradients come from few places, some
    # move alike at first. What reads them has differed before.
    assert min(_apart(name, monkeypatch)) > 0.5


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "regnetx_002"])
def test_halves_would_stay_copies_for_ever(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def halves(weight: Tensor, copies: Any, generator: torch.Generator) -> Tensor:
        number = torch.tensor(copies)
        shares = 1 / torch.bincount(number)[number]
        return weight * shares.view(1, -1, *(1,) * (weight.ndim - 2))

    monkeypatch.setattr(widths, "split_copies", halves)
    assert max(_apart(name, monkeypatch)) < 0.2  # that it is not 0 is rounding


def _apart(name: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Double the channels of a layer and train a step; return the shares of pairs that differ."""
    chosen: list[list[int]] = []
    right = widths.select_channels

    def note(*args: Any) -> list[int]:
        chosen.append(right(*args))
        return chosen[-1]

    monkeypatch.setattr(widths, "select_channels", note)
    index = next(offer.index for offer in offers(name) if "width" in growths(offer))
    groups = offers(name)[index - 1].groups
    net = built(change(name, {index: {"width": 2.0}}))
    optimizer = torch.optim.AdamW([one for one in net.parameters() if one.requires_grad], lr=1e-3)
    before = [_written(net, group) for group in groups]
    net.train()
    nn.functional.cross_entropy(net(pictures(name, 6)), torch.arange(6) % 3).backward()
    optimizer.step()
    shares = []
    for group, selection, old in zip(groups, chosen, before, strict=True):
        pairs = torch.tensor(selection).argsort(stable=True).view(group.size, 2)
        assert torch.equal(old[pairs[:, 0]], old[pairs[:, 1]])
        new = _written(net, group)
        # Where the activation is dead for all images no gradient comes.
        alive = (new != old).any(1)[pairs].any(1)
        assert alive.float().mean() > 0.5
        gap = (new[pairs[:, 0]] - new[pairs[:, 1]]).abs().amax(1)[alive]
        shares.append(float((gap > 1e-5).float().mean()))
    return shares


def _written(net: Network, group: ChannelGroup) -> Tensor:
    """Return what the producers of a group write its channels with, ``(channels, weights)``."""
    for member in group.members:
        if member.side == "out" and len(member.segments) == 1 and member.segments[0][1:] == (1, 1):
            weight = net.backbone.get_parameter(f"{member.name}.weight").detach().clone()
            return weight.flatten(1)
    member = group.members[0]
    weight = net.backbone.get_parameter(f"{member.name}.weight").detach().clone()
    return weight.flatten(1)[: 2 * group.size]
