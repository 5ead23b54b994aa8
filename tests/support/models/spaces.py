"""Spaces to test with, and what layers can become without a backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from autotune.config.schema import SpaceConfig
from autotune.config.validation import validate
from autotune.plan import KEEP
from autotune.search.parameters.dimensions import contains
from autotune.search.samplers import CanonicalSampler, make_sampler
from autotune.search.space import KEY_NAMES, LAYER_FIELDS, Params, Space

Value = int | float | str


@dataclass(frozen=True)
class FakeCapabilities:
    """Stands for a ``LayerCapabilities``.

    Args:
        index: The layer, counted from the output.
        present: What the layer has already, by field.
        refused: Values that the layer cannot take, by field.
        reasons: Why nothing can change, for the fields of which this is so.
    """

    index: int
    present: Mapping[str, Value] = field(default_factory=dict)
    refused: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def reason_unsupported(self, name: str, value: Value) -> str:
        if value == KEEP:
            return ""
        if name in self.reasons:
            return f"must be keep, but got {value!r}: {self.reasons[name]}"
        return f"cannot be {value!r}" if value in self.refused.get(name, ()) else ""

    def is_noop(self, name: str, value: Value) -> bool:
        assert not self.reason_unsupported(name, value)
        return value == KEEP or self.present.get(name) == value


def fake_capabilities(count: int) -> tuple[FakeCapabilities, ...]:
    """Return layers that can take everything and have none of it."""
    return tuple(FakeCapabilities(index) for index in range(1, count + 1))


FULL: dict[str, Any] = {
    "trainable_layers": {"low": 0, "high": 5},
    "head": {
        "hidden_layers": {"low": 0, "high": 2},
        "units": [64, 128],
        "dropout": {"low": 0, "high": 0.8, "step": 0.1},
        "pool": ["avg", "keep", "max"],
    },
    "training": {
        "optimizer": ["adamw", "sgd"],
        "lr": {"low": 1e-4, "high": 1, "log": True},
        "layer_decay": {"low": 0.3, "high": 1},
        "weight_decay": [0, 0.1],
        "label_smoothing": [0.0, 0.1],
    },
}


#: What layers change in the spaces below.
SHAPES: dict[str, Any] = {
    "trainable_layers": {"low": 0, "high": 3},
    "layers": {"kernel": ["keep", 3, 5], "width": ["keep", 0.5], "pool": "max2", "max_layers": 2},
}


def space_of(inherit: Any = "weights", of: Any = None, **config: Any) -> Space:
    found = fake_capabilities(8) if of is None else of
    return Space.from_config("resnet18", SpaceConfig.model_validate(config), inherit, found)


def space_of_three(inherit: Any = ("weights", "none"), **config: Any) -> Space:
    """Make a space of a backbone with three layers."""
    return space_of(list(inherit), fake_capabilities(3), **config)


def start_of(space: Space) -> Params:
    return space.nearest(space.baseline())


def sampler_of(space: Space, seed: int = 0, **search: Any) -> CanonicalSampler:
    study = {"dataset": "digits", "backbone": "resnet18", "search": search}
    return make_sampler(validate(study, "test"), space, seed)


def dimension(low: float, high: float, integer: bool) -> st.SearchStrategy[Any]:
    """Fixed values, choices and ranges, with or without steps."""
    grid = [low + (high - low) * i / 4 for i in range(5)]
    one = st.sampled_from([round(x) for x in grid] if integer else grid)
    ends = st.tuples(one, one).map(sorted)
    return (
        one
        | st.lists(one, min_size=1, max_size=3, unique=True)
        | ends.map(lambda pair: {"low": pair[0], "high": pair[1]})
        | ends.map(
            lambda pair: {
                "low": pair[0],
                "high": pair[1],
                **({"log": True} if pair[0] > 0 else {"step": pair[1] or 1}),
            }
        )
    )


def names(*allowed: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(allowed) | st.lists(st.sampled_from(allowed), min_size=1, unique=True)


VALUES: dict[str, tuple[Any, ...]] = {
    "kernel": (1, 3, 5),
    "width": (0.5, 1.0, 64),
    "bridge": (0.5, 64),
    "activation": ("relu", "elu"),
    "pool": ("max2", "avg3"),
    "dropout": (0.0, 0.5),
    "drop_path": (0.0, 0.2),
}
#: Layers that have some values already and cannot take some others.
layer_offers = st.tuples(
    *(
        st.builds(
            FakeCapabilities,
            index=st.just(index),
            present=st.fixed_dictionaries(
                {}, optional={name: st.sampled_from(one) for name, one in VALUES.items()}
            ),
            refused=st.fixed_dictionaries(
                {},
                optional={
                    name: st.lists(st.sampled_from(one), max_size=3).map(tuple)
                    for name, one in VALUES.items()
                },
            ),
            reasons=st.dictionaries(
                st.sampled_from(LAYER_FIELDS), st.just("it has none"), max_size=2
            ),
        )
        for index in (1, 2, 3)
    )
)
rates = names("keep", 0.0, 0.5) | dimension(0, 0.8, False)
spaces = st.fixed_dictionaries(
    {
        "trainable_layers": dimension(0, 8, True),
        "layers": st.fixed_dictionaries(
            {"max_layers": st.integers(1, 4)},
            optional={
                **{KEY_NAMES.get(name, name): names("keep", *one) for name, one in VALUES.items()},
                "dropout": rates,
                "drop_path": rates,
            },
        ),
        "head": st.fixed_dictionaries(
            {
                "hidden_layers": dimension(0, 3, True),
                "units": dimension(1, 512, True),
                "activation": names("relu", "tanh"),
                "batch_norm": names(True, False),
                "dropout": dimension(0, 0.9, False),
                "pool": names("keep", "avg", "max", "avgmax"),
            }
        ),
        "training": st.fixed_dictionaries(
            {
                "optimizer": names("adamw", "sgd", "adagrad"),
                "lr": dimension(1e-4, 1, False),
                "layer_decay": dimension(0.2, 1, False),
                "weight_decay": dimension(0, 1, False),
                "momentum": dimension(0, 0.9, False),
                "label_smoothing": dimension(0, 0.5, False),
                "head_only_epochs": dimension(0, 8, True),
                "l2_sp": dimension(0, 1, False),
                "mixup": dimension(0, 0.4, False),
                "cutmix": dimension(0, 1, False),
            }
        ),
        "inherit": names("weights", "data", "none"),
        "of": layer_offers,
    }
).map(lambda values: space_of(**values))


def value_in(found: BaseDistribution) -> st.SearchStrategy[Any]:
    if isinstance(found, CategoricalDistribution):
        return st.sampled_from(found.choices)
    assert isinstance(found, IntDistribution | FloatDistribution)
    if found.step is not None:
        count = round((found.high - found.low) / found.step)
        return st.integers(0, count).map(lambda i: min(found.low + i * found.step, found.high))
    return st.floats(found.low, found.high)


def params_in(space: Space) -> st.SearchStrategy[Params]:
    return st.fixed_dictionaries(
        {name: value_in(found) for name, found in space.distributions.items()}
    )


with_two = spaces.flatmap(
    lambda space: st.tuples(st.just(space), params_in(space), params_in(space))
)


def check_canonical_form(space: Space, params: Params, other: Params) -> None:
    """Parameters in canonical form and plans correspond one to one."""
    canonical, plan = space.canonical(params), space.plan(params)
    assert list(canonical) == list(space.distributions)
    assert space.canonical(canonical) == canonical
    assert all(contains(space.distributions[name], value) for name, value in canonical.items())
    assert space.plan(canonical) == plan
    assert space.params(plan) == canonical
    assert (canonical == space.canonical(other)) == (plan == space.plan(other))


def check_json(space: Space, params: Params) -> None:
    """A space comes back from JSON as it was, in the same order."""
    again = Space.from_json(json.loads(json.dumps(space.to_json())))
    assert again == space
    assert list(again.limits) == list(space.limits)
    assert list(again.distributions) == list(space.distributions)
    assert json.dumps(again.to_json()) == json.dumps(space.to_json())
    assert again.plan(params) == space.plan(params)
