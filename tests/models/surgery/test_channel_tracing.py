"""Small networks whose right answer is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autotune.models.surgery.channel_tracing import ChannelTrace, trace_channels

IMAGE = (1, 3, 8, 8)


class Net(nn.Module):
    """Modules by name, and what is done with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.how: Any = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, image: Tensor) -> Any:
        return self.how(self, image)


def conv(inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)


def run(net: nn.Module, wanted: list[str] | None = None) -> ChannelTrace:
    net = net.eval().to("meta")
    if wanted is None:
        kinds = nn.Conv2d | nn.Linear
        wanted = [name for name, module in net.named_modules() if isinstance(module, kinds)]
    return trace_channels(net, torch.zeros(IMAGE, device="meta"), wanted)


def classes(found: ChannelTrace, name: str, side: str = "writes") -> list[int]:
    """Return the class of every channel that a module reads or writes."""
    numbers = getattr(found.layers[name], side)
    assert numbers is not None
    return [int(one) for one in found.classes[numbers.numpy()]]


def tensor(found: ChannelTrace, name: str) -> list[int]:
    return [int(one) for one in found.classes[found.tensors[name].numpy()].flatten()]


def reasons(found: ChannelTrace, name: str) -> set[str]:
    return {found.fixed.get(one, "") for one in classes(found, name)}


def test_a_chain() -> None:
    found = run(nn.Sequential(conv(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4)))
    assert classes(found, "3", "reads") == classes(found, "0")
    assert len(set(classes(found, "0"))) == 8
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        assert tensor(found, f"1.{leaf}") == classes(found, "0")
    assert reasons(found, "0") == {""}
    assert not set(classes(found, "0")) & found.inexact
    assert found.output == set(classes(found, "3"))
    assert found.layers["0"].reads is None  # channels of images are not traced
    assert found.layers["0"].extent == 64
    assert list(found.layers) == ["0", "3"]


def test_a_residual_sum_ties_what_it_adds() -> None:
    net = Net(
        lambda net, x: net.tail((y := net.stem(x)) + net.second(net.first(y))),
        stem=conv(3, 8),
        first=conv(8, 12, 3),
        second=conv(12, 8),
        tail=conv(8, 5),
    )
    found = run(net)
    assert classes(found, "stem") == classes(found, "second") == classes(found, "tail", "reads")
    assert not set(classes(found, "first")) & set(classes(found, "stem"))
    assert classes(found, "second", "reads") == classes(found, "first")
    # With the stem in an earlier layer, the channels added to it are fixed.
    fewer = run(net, ["first", "second", "tail"])
    assert reasons(fewer, "second") == {"they meet channels of earlier layers"}
    assert reasons(fewer, "first") == {""}


def test_concatenated_channels_stay_apart() -> None:
    net = Net(
        lambda net, x: net.tail(torch.cat([net.one(x), net.two(x)], 1)),
        one=conv(3, 8),
        two=conv(3, 12),
        tail=conv(20, 4),
    )
    found = run(net)
    assert classes(found, "tail", "reads") == classes(found, "one") + classes(found, "two")
    assert len(set(classes(found, "tail", "reads"))) == 20


def test_the_halves_of_a_gated_unit_change_together() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        value, gate = net.wide(x).chunk(2, 1)
        return net.tail(value * gate.sigmoid())

    found = run(Net(forward, wide=conv(3, 16), tail=conv(8, 4)))
    wide = classes(found, "wide")
    assert wide[:8] == wide[8:] == classes(found, "tail", "reads")
    assert len(set(wide)) == 8


def test_the_parts_of_a_split_go_their_ways() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        first, second = net.wide(x).split([8, 12], 1)
        return net.one(first) + net.two(second)

    found = run(Net(forward, wide=conv(3, 20), one=conv(8, 4), two=conv(12, 4)))
    wide = classes(found, "wide")
    assert len(set(wide)) == 20
    assert classes(found, "one", "reads") == wide[:8]
    assert classes(found, "two", "reads") == wide[8:]


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_depthwise_convolution_hands_channels_on(multiplier: int) -> None:
    out = 8 * multiplier
    found = run(nn.Sequential(conv(3, 8), conv(8, out, 3, groups=8), conv(out, 4)))
    assert found.layers["1"].is_depthwise and not found.layers["0"].is_depthwise
    expected = [one for one in classes(found, "0") for _ in range(multiplier)]
    assert classes(found, "1", "reads") == classes(found, "2", "reads") == expected


def test_a_grouped_convolution_reads_and_writes() -> None:
    found = run(nn.Sequential(conv(3, 8), conv(8, 16, 3, groups=4), conv(16, 4)))
    assert not found.layers["1"].is_depthwise
    assert classes(found, "1", "reads") == classes(found, "0")
    assert len(set(classes(found, "1"))) == 16
    assert not set(classes(found, "1")) & set(classes(found, "0"))


def test_squeeze_and_excitation() -> None:
    net = Net(
        lambda net, x: net.tail(
            (y := net.main(x)) * net.widen(net.squeeze(y.mean((2, 3), keepdim=True))).sigmoid()
        ),
        main=conv(3, 16),
        squeeze=conv(16, 4),
        widen=conv(4, 16),
        tail=conv(16, 2),
    )
    found = run(net)
    main = classes(found, "main")
    assert main == classes(found, "squeeze", "reads")
    assert main == classes(found, "widen") == classes(found, "tail", "reads")
    assert classes(found, "widen", "reads") == classes(found, "squeeze")
    assert reasons(found, "main") == {""}
    assert found.layers["squeeze"].extent == found.layers["widen"].extent == 1


def test_shuffled_channels_are_traced_to_their_new_places() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.first(x)
        y = y.view(1, 2, 4, 8, 8).transpose(1, 2).reshape(1, 8, 8, 8)
        return net.second(y)

    found = run(Net(forward, first=conv(3, 8), second=conv(8, 4)))
    first = classes(found, "first")
    assert classes(found, "second", "reads") == [first[one] for one in (0, 4, 1, 5, 2, 6, 3, 7)]


def test_channels_that_attention_mixes_are_fixed() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        query, key, value = net.qkv(tokens).chunk(3, -1)
        return net.proj((query @ key.transpose(1, 2)).softmax(-1) @ value)

    found = run(
        Net(forward, stem=conv(3, 8), qkv=nn.Linear(8, 24, bias=False), proj=nn.Linear(8, 8))
    )
    assert reasons(found, "qkv") == {"bmm mixes them"}
    assert classes(found, "qkv", "reads") == classes(found, "stem")
    assert reasons(found, "stem") == {""}


def test_layer_norm_and_group_norm_are_inexact() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        return net.second(net.norm(net.first(tokens)))

    norm = nn.LayerNorm(16)
    net = Net(forward, stem=conv(3, 8), first=nn.Linear(8, 16), norm=norm, second=nn.Linear(16, 4))
    found = run(net)
    assert tensor(found, "norm.weight") == tensor(found, "norm.bias") == classes(found, "first")
    assert classes(found, "second", "reads") == classes(found, "first")
    assert set(classes(found, "first")) <= found.inexact
    assert not set(classes(found, "stem")) & found.inexact
    found = run(nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8), conv(8, 4)))
    assert set(classes(found, "0")) <= found.inexact
    assert tensor(found, "1.weight") == classes(found, "0") == classes(found, "2", "reads")


def test_a_scale_of_a_block_goes_with_its_channels() -> None:
    net = Net(
        lambda net, x: net.tail(net.first(x) * net.gamma.view(1, -1, 1, 1) * net.scalar),
        first=conv(3, 8),
        tail=conv(8, 4),
    )
    net.gamma, net.scalar = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(()))
    found = run(net)
    assert tensor(found, "gamma") == classes(found, "first") == classes(found, "tail", "reads")
    assert "scalar" not in found.tensors
    assert reasons(found, "first") == {""}


def test_a_module_that_is_used_twice_ties_what_it_reads() -> None:
    net = Net(
        lambda net, x: net.both(net.one(x)) + net.both(net.two(x)),
        one=conv(3, 8),
        two=conv(3, 8),
        both=conv(8, 4),
    )
    found = run(net)
    assert classes(found, "one") == classes(found, "two") == classes(found, "both", "reads")
    assert len(set(classes(found, "both"))) == 4


def test_a_linear_layer_behind_a_flattened_map_reads_every_channel_many_times() -> None:
    net = Net(
        lambda net, x: net.head(torch.flatten(net.pool(net.first(x)), 1)),
        first=conv(3, 8),
        pool=nn.AvgPool2d(4),
        head=nn.Linear(32, 5),
    )
    found = run(net)
    assert classes(found, "head", "reads") == [
        one for one in classes(found, "first") for _ in range(4)
    ]
    assert found.output == set(classes(found, "head"))


def test_a_linear_layer_over_tokens_leaves_channels_alone() -> None:
    net = Net(
        lambda net, x: net.second(net.tokens(net.first(x).flatten(2)).mean(-1)),
        first=conv(3, 8),
        tokens=nn.Linear(64, 10),
        second=nn.Linear(8, 4),
    )
    found = run(net)
    assert classes(found, "second", "reads") == classes(found, "first")
    assert "tokens" not in found.layers


def test_branches_that_are_weighed_change_together() -> None:
    """Selective kernels: stacked, softmax over the branches, summed."""

    def forward(net: Any, x: Tensor) -> Any:
        paths = torch.stack([net.one(x), net.two(x)], 1)
        weights = net.gate(paths.sum(1).mean((2, 3), keepdim=True)).view(1, 2, 8, 1, 1)
        return net.tail((paths * weights.softmax(1)).sum(1))

    found = run(Net(forward, one=conv(3, 8), two=conv(3, 8), gate=conv(8, 16), tail=conv(8, 4)))
    one = classes(found, "one")
    assert one == classes(found, "two") == classes(found, "tail", "reads")
    assert classes(found, "gate") == one + one
    assert reasons(found, "one") == {""}


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda net, x: net.tail(net.first(x).softmax(1)), "_softmax runs along them"),
        (lambda net, x: net.first(x).sum(1), "they are summed"),
    ],
)
def test_channels_with_a_fixed_number(forward: Any, reason: str) -> None:
    net = Net(forward, first=conv(3, 16), tail=conv(16, 4))
    assert reasons(run(net), "first") == {reason}


def test_padding_fits_to_any_number() -> None:
    """A shortcut with fewer channels is padded with zeros, as in pyramid networks."""
    pad = nn.functional.pad
    net = Net(
        lambda net, x: net.tail(
            pad(pad(net.short(x), (0, 0, 0, 0, 0, 4)) + net.long(x), (1, 2, 1, 2))
        ),
        short=conv(3, 8),
        long=conv(3, 12),
        tail=conv(12, 4),
    )
    found = run(net)
    assert classes(found, "long")[:8] == classes(found, "short")
    assert len(set(classes(found, "long"))) == 12
    assert reasons(found, "long") == {""}


def test_what_recurrent_and_attention_modules_read_is_fixed() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        return net.mixer(tokens, tokens, tokens)[0]

    net = Net(forward, stem=conv(3, 8), mixer=nn.MultiheadAttention(8, 2, batch_first=True))
    found = run(net, ["stem"])
    assert reasons(found, "stem") == {"MultiheadAttention mixes them"}
