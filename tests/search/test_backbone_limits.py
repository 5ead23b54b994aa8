"""One static space for several backbones: each has the plans of its own study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from autotune.config.schema import SpaceConfig
from autotune.plan import HeadPlan, LayerPlan, TrialPlan
from autotune.search.backbone_limits import BackboneLimits, Candidate, shared_dimension
from autotune.search.parameters.dimensions import inactive_value
from autotune.search.space import Params, Space
from tests.support.models.spaces import (
    FakeCapabilities,
    check_canonical_form,
    check_json,
    dimension,
    fake_capabilities,
    layer_offers,
    names,
    params_in,
    rates,
)

CONFIG: dict[str, Any] = {
    "trainable_layers": {"low": 0, "high": 5},
    "layers": {"kernel": ["keep", 3, 5], "dropout": {"low": 0, "high": 0.5}, "max_layers": 2},
    "head": {"pool": ["keep", "avg", "max"]},
}


def refused_pools(*pools: str) -> Callable[[str], str]:
    return lambda pool: "cannot pool" if pool in pools else ""


SMALL = Candidate(
    "small",
    2,
    (
        FakeCapabilities(1, present={"kernel": 3}, reasons={"dropout": "it has none"}),  # type: ignore[arg-type]
        FakeCapabilities(2, refused={"kernel": (3, 5)}, reasons={"dropout": "it has none"}),
    ),
    refused_pools("max", "avgmax"),
)
LARGE = Candidate("large", 5, fake_capabilities(2))  # type: ignore[arg-type]


def both(inherit: Any = "weights", **config: Any) -> Space:
    return Space.from_candidates(
        [SMALL, LARGE], SpaceConfig.model_validate({**CONFIG, **config}), inherit
    )


def params(space: Space, **given: Any) -> Params:
    """Return parameters, by default the inert ones; a dot is given as two underscores."""
    plain = {name: inactive_value(found) for name, found in space.distributions.items()}
    return {**plain, **{name.replace("__", "."): value for name, value in given.items()}}


def test_the_backbone_is_the_first_parameter_and_values_are_those_of_any() -> None:
    space = both()
    assert space.backbones == ("small", "large")
    assert space.distributions == {
        "backbone": CategoricalDistribution(["small", "large"]),
        "depth": IntDistribution(0, 5),
        "layer.1.kernel": CategoricalDistribution(["keep", 3, 5]),
        "layer.1.dropout": FloatDistribution(0, 0.5),
        "layer.2.kernel": CategoricalDistribution(["keep", 3, 5]),
        "layer.2.dropout": FloatDistribution(0, 0.5),
        "head.pool": CategoricalDistribution(["keep", "avg", "max"]),
    }
    assert next(iter(space.distributions)) == "backbone"
    assert space.limits == {
        "small": BackboneLimits(
            2,
            {
                "layer.1.kernel": ("keep", 5),
                "layer.1.dropout": ("keep",),
                "layer.2.kernel": ("keep",),
                "layer.2.dropout": ("keep",),
                "head.pool": ("keep", "avg"),
            },
        ),
        "large": BackboneLimits(5, {}),
    }


def test_one_backbone_is_as_if_there_could_be_no_other() -> None:
    config = SpaceConfig.model_validate(CONFIG)
    alone = Space.from_candidates([LARGE], config, "weights")
    assert alone == Space.from_config("large", config, "weights", LARGE.offers)
    assert not alone.limits and alone.backbones == ("large",)
    assert set(alone.to_json()) == {"backbone", "fixed", "distributions"}


@pytest.mark.parametrize(
    ("given", "canonical", "plan"),
    [
        # All of its layers are two, and that is what more means.
        ({"depth": 5}, {"depth": 2}, TrialPlan("small", 2, (LayerPlan(),) * 2)),
        # It has this kernel already, and its second layer cannot have the other.
        (
            {"depth": 2, "layer__1__kernel": 3, "layer__2__kernel": 5},
            {"depth": 2},
            TrialPlan("small", 2, (LayerPlan(),) * 2),
        ),
        (
            {"depth": 1, "layer__1__kernel": 5, "layer__1__dropout": 0.2},
            {"depth": 1, "layer__1__kernel": 5},
            TrialPlan("small", 1, (LayerPlan(kernel=5),)),
        ),
        ({"head__pool": "max"}, {}, TrialPlan("small")),
        (
            {"head__pool": "avg"},
            {"head__pool": "avg"},
            TrialPlan("small", head=HeadPlan((), "avg")),
        ),
    ],
)
def test_what_a_backbone_cannot_take(
    given: dict[str, Any], canonical: dict[str, Any], plan: TrialPlan
) -> None:
    space = both()
    drawn = params(space, **{"backbone": "small", "depth": 0, **given})
    assert space.canonical(drawn) == params(
        space, **{"backbone": "small", "depth": 0, **canonical}
    )
    assert space.plan(drawn) == plan
    assert space.params(plan) == space.canonical(drawn)
    other = {**drawn, "backbone": "large"}
    assert space.plan(other) == replace(
        space.plan(space.canonical(other)), backbone="large", depth=other["depth"]
    )


def test_a_value_that_every_backbone_but_one_has_is_kept_by_that_one() -> None:
    space = both(layers={"kernel": 3, "max_layers": 1}, trainable_layers=1)
    assert space.fixed["layer.1.kernel"] == 3
    assert list(space.distributions) == ["backbone", "head.pool"]
    plans = [space.plan(params(space, backbone=name)) for name in space.backbones]
    assert [plan.layers for plan in plans] == [(LayerPlan(),), (LayerPlan(kernel=3),)]
    assert all(space.params(plan) is not None for plan in plans)


def test_where_keep_is_no_choice_the_first_possible_value_is_taken() -> None:
    picky = replace(
        SMALL,
        offers=(FakeCapabilities(1, refused={"kernel": (1,)}),),  # type: ignore[arg-type]
        pool_problem=refused_pools("keep", "max", "avgmax"),
    )
    space = Space.from_candidates(
        [picky, LARGE],
        SpaceConfig(
            trainable_layers=1,
            layers={"kernel": [1, 5], "max_layers": 1},
            head={"pool": ["max", "avg"]},
        ),  # type: ignore[arg-type]
        "weights",
    )
    found = space.canonical(params(space, backbone="small", layer__1__kernel=1, head__pool="max"))
    assert (found["layer.1.kernel"], found["head.pool"]) == (5, "avg")


@pytest.mark.parametrize(
    ("depth", "wanted", "written"),
    [
        ([1, 4, 8], 8, 4),
        ([1, 2, 8], 8, 2),
        ({"low": 0, "high": 9, "step": 3}, 9, 3),
        ({"low": 4, "high": 9}, 7, 4),
        ({"low": 1, "high": 8, "log": True}, 6, 2),
    ],
)
def test_all_layers_are_the_least_depth_that_asks_for_them(
    depth: Any, wanted: int, written: int
) -> None:
    space = both(trainable_layers=depth)
    drawn = params(space, backbone="small", depth=wanted)
    assert space.canonical(drawn)["depth"] == written
    assert space.plan(drawn).depth == 2
    assert space.params(space.plan(drawn)) == space.canonical(drawn)


def test_inherit_has_no_meaning_where_the_backbone_keeps_the_change() -> None:
    space = both(["none", "weights"])
    drawn = params(space, depth=2, layer__1__kernel=3, inherit="weights")
    assert space.canonical({**drawn, "backbone": "small"})["inherit"] == "none"
    assert space.canonical({**drawn, "backbone": "large"})["inherit"] == "weights"


def test_the_baseline_is_the_first_backbone() -> None:
    space = both()
    assert space.baseline().backbone == "small"
    found = space.params(space.baseline())
    assert found is not None
    assert (found["backbone"], found["depth"]) == ("small", 0)


@pytest.mark.parametrize(
    "plan",
    [
        TrialPlan("other"),
        TrialPlan("small", 3, (LayerPlan(),) * 3),
        TrialPlan("small", 1, (LayerPlan(kernel=3),)),
        TrialPlan("small", 2, (LayerPlan(), LayerPlan(kernel=5))),
        TrialPlan("small", head=HeadPlan((), "max")),
        TrialPlan("large", 1, (LayerPlan(),)),  # a dropout is never left as it is
    ],
)
def test_a_plan_outside_of_the_space_has_no_parameters(plan: TrialPlan) -> None:
    assert both().params(plan) is None


@pytest.mark.parametrize(
    ("dimension", "shared", "own"),
    [
        ([3, 5], ["keep", 3, 5], [("keep", 5), (3, 5)]),
        (3, [3], [("keep",), None]),
        ({"low": 3, "high": 5}, {"low": 3, "high": 5}, [None, None]),
        ([1], ["keep"], [None, None]),
        ([1, 5], [5], [None, None]),
        ({"low": 1, "high": 5}, "keep", [("keep",), ("keep",)]),
    ],
)
def test_share(dimension: Any, shared: Any, own: Any) -> None:
    """One has 3 already, and neither can be 1."""
    first, second = {3: "keep", 5: 5}, {3: 3, 5: 5}
    assert shared_dimension(dimension, [first.get, second.get]) == (shared, own)


# Whatever the study file and the backbones


configs = st.fixed_dictionaries(
    {
        "trainable_layers": dimension(0, 7, True),
        "layers": st.fixed_dictionaries(
            {"max_layers": st.integers(1, 3)},
            optional={
                "kernel": names("keep", 3, 5),
                "width": names("keep", 0.5, 64),
                "dropout": rates,
            },
        ),
        "head": st.fixed_dictionaries({"pool": names("keep", "avg", "max")}),
    }
).map(SpaceConfig.model_validate)


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    found = []
    for name in ("a", "b", "c")[: draw(st.integers(2, 3))]:
        layers = draw(st.integers(1, 6))
        refused = refused_pools(*draw(st.lists(st.sampled_from(("avg", "max")))))
        found.append(Candidate(name, layers, draw(layer_offers)[:layers], refused))
    return found


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Space, Params, Params, list[Candidate], SpaceConfig, Any]:
    of, config = draw(candidates()), draw(configs)
    inherit = draw(names("weights", "data", "none"))
    space = Space.from_candidates(of, config, inherit)
    return space, draw(params_in(space)), draw(params_in(space)), of, config, inherit


@given(drawn())
def test_canonical_form_and_json(given: tuple[Any, ...]) -> None:
    check_canonical_form(*given[:3])
    check_json(*given[:2])


@given(drawn())
def test_each_backbone_has_the_plans_of_a_study_of_its_own(given: tuple[Any, ...]) -> None:
    space, one, _, of, config, inherit = given
    plan = space.plan(one)
    (candidate,) = (one for one in of if one.name == plan.backbone)
    assert plan.depth <= candidate.layers
    # With the depth of the plan: deeper than its layers, no study of its own could go.
    alone = Space.from_candidates(
        [candidate], config.model_copy(update={"trainable_layers": plan.depth}), inherit
    )
    assert alone.params(plan) is not None
    for index, layer in enumerate(plan.layers, start=1):
        for name, value in layer.changes().items():
            assert candidate.resolve_layer_value(index, name, value) == value
    assert candidate.resolve_pool(plan.head.pool) or plan.head.pool == "keep"
