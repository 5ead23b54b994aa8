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
from tests.support.models.surgery import (
    FAMILIES,
    built,
    capabilities,
    change,
    difference,
    each_family,
    features,
    gives_features,
    growths,
    pictures,
    slow_unless_default,
)

#: Largest relative change of the features (Frobenius norm) in float32.
TOLERANCE = 1e-4
#: The only family here in which doubled channels change a norm over the channels.
INEXACT = "gmlp_ti16_224"
#: Fields that can grow in one of the last layers, for families without larger kernels.
FIELDS = {
    name: {"width", "bridge"}
    for name in ("test_vit", "test_convnext", "levit_128s", INEXACT, "eva02_tiny_patch14_224")
}


def growing(name: str) -> dict[int, dict[str, st.SearchStrategy[Any]]]:
    """Return by layer the fields that can grow while the number of features stays."""
    fields = {capability.index: growths(capability) for capability in capabilities(name)}
    if gives_features(capabilities(name)[0]):
        fields[1].pop("width", None)
    return fields


def is_exact(name: str, changes: dict[int, dict[str, Any]]) -> bool:
    groups = [one.groups for one in capabilities(name) if "width" in changes.get(one.index, {})]
    return all(group.exact for some in groups for group in some)


@each_family
@settings(max_examples=3)
@given(data=st.data())
def test_growth_leaves_the_function_as_it_is(name: str, data: st.DataObject) -> None:
    """Some layers, and in each of them some of the fields."""
    changes: dict[int, dict[str, Any]] = {}
    for index, possible in growing(name).items():
        if possible and data.draw(st.booleans(), label=f"layer {index}"):
            fields = data.draw(st.sets(st.sampled_from(sorted(possible)), min_size=1))
            changes[index] = {one: data.draw(possible[one], label=one) for one in sorted(fields)}
    inherit = data.draw(st.sampled_from(["weights", "data"]))
    plan = change(name, changes, inherit=inherit)
    net = built(plan, seed=data.draw(st.integers(0, 9)))
    is_preserved = all(
        capability.is_function_preserving(layer, inherit)
        for capability, layer in zip(capabilities(name), plan.layers, strict=False)
    )
    assert not is_preserved or not net.stale_norms
    if is_preserved or is_exact(name, changes):
        assert difference(net, plan) < TOLERANCE


@each_family
def test_every_field_grows_alone(name: str) -> None:
    """Twice as many channels, two taps more, a bridge half as wide again: in all layers."""
    tried = set()
    for field, value in (("width", 2.0), ("kernel", 7), ("bridge", 1.5)):
        changes = {
            one.index: {field: value}
            for one in capabilities(name)
            if field in growing(name)[one.index] and not one.reason_unsupported(field, value)
        }
        if changes:
            tried.add(field)
            plan = change(name, changes)
            assert difference(built(plan), plan) < TOLERANCE or not is_exact(name, changes)
    assert tried >= FIELDS.get(name, {"kernel", "width"})


def test_more_features_are_the_old_ones_some_of_them_twice() -> None:
    """Where the channels that grow are the features, the head reads more of them."""
    name = "mobilenetv3_small_050"
    assert gives_features(capabilities(name)[0])
    net = built(change(name, {1: {"width": 1.5}}))
    with torch.no_grad():
        found = net.backbone(pictures(name))
    expected = features(name)
    assert found.shape == (2, 1536) and expected.shape == (2, 1024)
    same = (found[:, :, None] - expected[:, None, :]).abs().amax(0) < 1e-5
    assert same.any(1).all()  # each is an old one
    assert same.any(0).all()  # and no old one is missing
    assert net(pictures(name)).shape == (2, 3)


def test_a_norm_over_the_channels_changes_with_them() -> None:
    groups = [group for capability in capabilities(INEXACT) for group in capability.groups]
    assert groups and not any(group.exact for group in groups)
    plan = change(INEXACT, {index: {"width": 1.3} for index in (1, 2)})
    assert 0 < difference(built(plan), plan) < 0.5
    for name in ("test_resnet", "test_vit"):
        assert all(group.exact for capability in capabilities(name) for group in capability.groups)


# Each of these errors is easily made; each must be noticed in every family that the contract
# covers, or the contract shows nothing there.


def _whole(weight: Tensor, copies: Any, generator: torch.Generator) -> Tensor:
    """Every copy is read in full."""
    return weight


def _split(weight: Tensor, copies: Any, share: float) -> Tensor:
    number = torch.tensor(copies)
    shares = torch.where(torch.bincount(number)[number] > 1, share, 1.0)
    return weight * shares.view(1, -1, *(1,) * (weight.ndim - 2))


def _eighth_off(weight: Tensor, copies: Any, generator: torch.Generator) -> Tensor:
    """Shares of copies that do not add up."""
    return _split(weight, copies, 0.45)


def _halves(weight: Tensor, copies: Any, generator: torch.Generator) -> Tensor:
    return _split(weight, copies, 0.5)


@pytest.mark.parametrize("name", slow_unless_default(one for one in FAMILIES if one != INEXACT))
@pytest.mark.parametrize("error", [_whole, _eighth_off])
def test_a_wrong_split_is_noticed(name: str, error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    index = next(index for index, fields in growing(name).items() if "width" in fields)
    monkeypatch.setattr(widths, "split_copies", error)
    plan = change(name, {index: {"width": 2.0}})
    assert difference(built(plan), plan) > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_forgotten_member_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms that are cut to the new size instead of following the channels."""
    capabilities(name)  # probed before anything is replaced
    right = widths._positions

    def wrong(parts: Any) -> list[int]:
        positions, member = right(parts), parts[0][0]
        if member.side == "vector" and "running_mean" in member.name:
            return [position % member.length for position in range(len(positions))]
        return positions

    monkeypatch.setattr(widths, "_positions", wrong)
    plan = change(name, {1: {"width": 2.0}})
    assert difference(built(plan), plan) > 10 * TOLERANCE


# Fewer channels: exactly those that were not chosen are gone.


@pytest.fixture
def selections(name: str, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Record what is chosen of each group."""
    capabilities(name)  # probed before anything is replaced
    chosen: list[list[int]] = []
    right = widths.select_channels

    def note(*args: Any) -> list[int]:
        chosen.append(right(*args))
        return chosen[-1]

    monkeypatch.setattr(widths, "select_channels", note)
    return chosen


def _silence(net: Network, group: ChannelGroup, gone: list[int]) -> None:
    """Make every reader of a group read zeros instead of some of its channels."""
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


@pytest.mark.parametrize("name", slow_unless_default(one for one in FAMILIES if one != INEXACT))
@pytest.mark.parametrize(("inherit", "ratio"), [("weights", 0.6), ("data", 0.3)])
def test_shrinking_is_exact_selection(
    name: str, inherit: str, ratio: float, selections: list[list[int]]
) -> None:
    shrinking = [
        one for one in capabilities(name) if one.groups and all(each.exact for each in one.groups)
    ]
    changes = {one.index: {"width": ratio} for one in shrinking}
    small = built(change(name, changes, inherit=inherit))
    groups = [group for one in shrinking for group in one.groups]
    silent = built(change(name, {}))
    for group, selection in zip(groups, selections, strict=True):
        assert len(selection) == channel_count(ratio, group.size, group.unit)
        assert len(set(selection)) == len(selection)
        _silence(silent, group, sorted(set(range(group.size)) - set(selection)))
    with torch.no_grad():
        found, expected = small.backbone(pictures(name)), silent.backbone(pictures(name))
    assert (expected - features(name)).abs().max() > 1e-3
    if gives_features(shrinking[0]):
        expected = expected[:, selections[0]]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


# Copies of a channel become channels of their own.


@each_family
def test_one_step_tells_copies_apart(name: str, selections: list[list[int]]) -> None:
    # Adam's first step goes by signs: of the copies whose gradients come from few places, some
    # move alike at first. What reads them has differed before.
    assert min(_apart(name, selections)) > 0.5


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_halves_would_stay_copies_for_ever(
    name: str, selections: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widths, "split_copies", _halves)
    assert max(_apart(name, selections)) < 0.2  # that it is not 0 is rounding


def _apart(name: str, selections: list[list[int]]) -> list[float]:
    """Double the channels of a layer and train a step; return the shares of pairs that differ."""
    index = next(one.index for one in capabilities(name) if "width" in growths(one))
    groups = capabilities(name)[index - 1].groups
    net = built(change(name, {index: {"width": 2.0}}))
    optimizer = torch.optim.AdamW([one for one in net.parameters() if one.requires_grad], lr=1e-3)
    before = [_written(net, group) for group in groups]
    net.train()
    nn.functional.cross_entropy(net(pictures(name, 6)), torch.arange(6) % 3).backward()
    optimizer.step()
    shares = []
    for group, selection, old in zip(groups, selections, before, strict=True):
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
    """Return the weights with which the producers of a group write its channels."""
    plain = (
        member
        for member in group.members
        if member.side == "out" and [segment[1:] for segment in member.segments] == [(1, 1)]
    )
    member = next(plain, None)
    name = (member or group.members[0]).name
    weight = net.backbone.get_parameter(f"{name}.weight").detach().clone().flatten(1)
    return weight if member else weight[: 2 * group.size]
