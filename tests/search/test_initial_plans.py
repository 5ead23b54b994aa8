"""Known-good plans, and plans of other studies that fit or do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from autotune.config.loading import load_study_file
from autotune.config.schema import BaselineConfig, SpaceConfig
from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrainingPolicy, TrialPlan
from autotune.search.backbone_limits import Candidate
from autotune.search.initial_plans import (
    InitialPlan,
    SkippedPlan,
    adapt_plan,
    default_plans,
    drop_duplicates,
    misfit_reason,
)
from autotune.search.space import Space
from tests.support.models.spaces import fake_capabilities, space_of, spaces

DEPTH = {"low": 0, "high": 5}
LR = {"low": 1e-5, "high": 1.0, "log": True}


def short(starts: tuple[InitialPlan, ...]) -> list[tuple[str, int, float, float, int]]:
    """Title, depth, learning rate, layer decay and head epochs of every plan."""
    return [
        (
            one.title.removeprefix("known good: "),
            one.plan.depth,
            one.plan.policy.lr,
            one.plan.policy.layer_decay,
            one.plan.policy.head_epochs,
        )
        for one in starts
    ]


def test_the_plans_of_the_digits_study() -> None:
    config = load_study_file("digits")
    space = space_of(**config.space.model_dump())
    found = default_plans(space, config.baseline, config.training.epochs)
    assert short(found) == [
        ("last layer trainable", 1, 0.009, 1.0, 0),
        ("last 5 layers trainable with layer-wise decay", 5, 0.003, 0.7, 0),
        ("last 5 layers trainable at a low rate", 5, 0.003, 1.0, 0),
    ]
    for start in found:
        assert start.plan.reshaped == ()
        assert start.plan.head == HeadPlan()
        assert set(start.params) == set(space.distributions)


def test_the_head_first_where_the_space_has_head_epochs() -> None:
    title = "linear probing, then fine-tuning"
    training = {"lr": LR, "layer_decay": {"low": 0.5, "high": 1.0}}
    searched = space_of(
        trainable_layers=DEPTH,
        training={**training, "head_only_epochs": {"low": 0, "high": 4, "step": 2}},
    )
    assert short(default_plans(searched, epochs=20))[3] == (title, 5, 9e-4, 0.7, 4)
    assert short(default_plans(searched, epochs=8))[3] == (title, 5, 9e-4, 0.7, 2)
    fixed = space_of(trainable_layers=DEPTH, training={**training, "head_only_epochs": 3})
    assert [one[4] for one in short(default_plans(fixed, epochs=20))] == [3, 3, 3, 3]
    without = space_of(trainable_layers=DEPTH, training=training)
    assert len(default_plans(without, epochs=20)) == 3


def test_a_solved_head_comes_before_all_layers() -> None:
    space = space_of(
        trainable_layers=DEPTH,
        training={
            "lr": LR,
            "layer_decay": {"low": 0.5, "high": 1.0},
            "head_start": ["random", "solved"],
        },
    )
    trained = short(default_plans(space))
    assert trained[3:] == [
        ("solved head, last 5 layers trainable with layer-wise decay", 5, 3e-4, 0.7, 0),
        ("solved head", 0, 3e-3, 1.0, 0),
    ]
    solved = default_plans(space, BaselineConfig(head_start="solved"))
    assert short(solved) == trained[:4]  # the baseline is the fifth
    assert [one.plan.policy.head_start for one in solved] == [*["random"] * 3, "solved"]


def test_the_head_keeps_its_rate_where_the_layers_have_their_own() -> None:
    space = space_of(
        trainable_layers={"low": 0, "high": 18},
        training={
            "lr": LR,
            "layer_decay": {"low": 0.5, "high": 1.0},
            "backbone_lr": {"low": 0.01, "high": 1.0, "log": True},
            "head_only_epochs": [0, 5],
        },
    )
    plans = default_plans(space, BaselineConfig(lr=0.02), epochs=20)
    rates = [(one.plan.depth, one.plan.policy.layer_decay) for one in plans]
    assert rates == [(1, 1.0), (18, 0.7), (18, 1.0), (18, 0.7)]
    assert [one.plan.policy.lr for one in plans] == [0.006, 0.02, 0.02, 0.02]
    assert [one.plan.policy.backbone_lr for one in plans] == [1.0, 0.1, 0.1, 0.1]
    assert [one.plan.policy.head_epochs for one in plans] == [0, 0, 0, 5]


@pytest.mark.parametrize(
    ("optimizer", "baseline", "lr"),
    [
        ("adamw", {}, 3e-4),
        ("sgd", {}, 1e-2),
        ("adagrad", {}, 1e-2),
        (["adamw", "sgd"], {}, 3e-4),
        ("adamw", {"lr": 0.05}, 0.005),
        # The rate of another optimiser says nothing.
        ("sgd", {"lr": 0.05, "optimizer": "adamw"}, 1e-2),
        (["sgd", "adamw"], {"lr": 0.05, "optimizer": "sgd"}, 0.005),
    ],
)
def test_learning_rates_follow_optimiser_and_baseline(
    optimizer: Any, baseline: dict[str, Any], lr: float
) -> None:
    space = space_of(trainable_layers=DEPTH, training={"optimizer": optimizer, "lr": LR})
    config = BaselineConfig.model_validate(baseline)
    first, *_ = plans = default_plans(space, config)
    # Those of a further optimizer are in test_by_optimizer.py.
    own = [one for one in plans if one.plan.policy.optimizer == first.plan.policy.optimizer]
    assert [one[2] for one in short(tuple(own))] == [pytest.approx(3 * lr), lr]


def test_values_that_the_space_does_not_have_become_the_nearest() -> None:
    space = space_of(
        trainable_layers=[0, 2, 3],
        layers={"kernel": [3, 5], "width": ["keep", 0.5], "max_layers": 1},
        head={"hidden_layers": [1, 2], "units": [64, 512], "pool": ["max", "avg"]},
        training={"lr": [1e-3, 1e-2], "layer_decay": [0.5, 0.8], "weight_decay": 0.1},
    )
    found = default_plans(space)
    assert short(found) == [
        ("last 2 layers trainable with layer-wise decay", 2, 1e-3, 0.8, 0),
        ("last 3 layers trainable with layer-wise decay", 3, 1e-3, 0.8, 0),
    ]
    assert found[0].plan.layers == (LayerPlan(kernel=3), LayerPlan())
    assert found[0].plan.head.pool == "max"
    assert found[0].plan.policy.weight_decay == 0.1


@pytest.mark.parametrize("depth", [0, [0], {"low": 0, "high": 0}])
def test_nothing_is_known_where_no_layer_is_trainable(depth: Any) -> None:
    assert default_plans(space_of(trainable_layers=depth, training={"lr": LR})) == ()


def test_equal_plans_are_queued_once() -> None:
    (only,) = default_plans(space_of(trainable_layers=1))
    assert only.title == "known good: last layer trainable"
    two = [
        InitialPlan("a", {}, only.plan),
        InitialPlan("b", {}, replace(only.plan, depth=0, layers=())),
    ]
    kept, dropped = drop_duplicates(two, [only.plan])
    assert [one.title for one in kept] == ["b"]
    assert dropped == [SkippedPlan("a", "the same plan is queued already")]


@given(spaces)
def test_plans_are_canonical_points_of_any_space(space: Space) -> None:
    found = default_plans(space, epochs=20)
    plans = [space.baseline(), *(one.plan for one in found)]
    assert len(set(plans)) == len(plans)
    for start in found:
        assert start.plan.depth > 0
        assert space.params(start.plan) == start.params
        assert misfit_reason(space, start.plan) == ""


# Plans of other studies

FIXED = Space.from_config(
    "resnet18",
    SpaceConfig.model_validate(
        {
            "trainable_layers": {"low": 0, "high": 3},
            "layers": {"kernel": ["keep", 5], "max_layers": 2},
            "head": {"hidden_layers": [0, 1], "units": 64, "dropout": [0.0, 0.5]},
            "training": {"lr": {"low": 1e-3, "high": 0.1, "log": True}, "layer_decay": 0.7},
        }
    ),
    "weights",
    fake_capabilities(3),
)
GOOD = TrialPlan(
    "resnet18",
    depth=2,
    layers=(LayerPlan(kernel=5), LayerPlan()),
    policy=TrainingPolicy(lr=0.01, layer_decay=0.7),
)


def with_policy(**values: Any) -> TrialPlan:
    return replace(GOOD, policy=replace(GOOD.policy, **values))


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (GOOD, ""),
        (replace(GOOD, head=HeadPlan((HiddenLayer(64, 0.5),))), ""),
        # Without trainable layers a layer decay means nothing.
        (TrialPlan("resnet18", policy=TrainingPolicy(lr=0.01)), ""),
        (
            replace(GOOD, backbone="resnet50"),
            "backbone is resnet50, and this study has resnet18",
        ),
        (
            replace(GOOD, depth=4, layers=(LayerPlan(),) * 4),
            "depth is 4, and this study has 0 to 3",
        ),
        (
            replace(GOOD, layers=(LayerPlan(), LayerPlan(kernel=7))),
            "layer.2.kernel is 7, and this study has keep, 5",
        ),
        (
            replace(GOOD, layers=(LayerPlan(width=0.5), LayerPlan())),
            "layer.1.width is 0.5, and this study keeps that of this layer",
        ),
        (
            replace(GOOD, head=HeadPlan((HiddenLayer(128),))),
            "head.units.1 is 128, and this study has it fixed at 64",
        ),
        (with_policy(lr=0.2), "training.lr is 0.2, and this study has 0.001 to 0.1, log"),
        (with_policy(mixup=0.2), "training.mixup is 0.2, and this study has it fixed at 0"),
    ],
)
def test_the_first_parameter_that_does_not_fit_is_named(plan: TrialPlan, reason: str) -> None:
    found = adapt_plan(FIXED, "warm start: trial 3 of study dogs", plan)
    assert found.title == "warm start: trial 3 of study dogs"
    if reason:
        assert isinstance(found, SkippedPlan) and found.reason.startswith(reason)
        assert FIXED.params(plan) is None
    else:
        assert isinstance(found, InitialPlan) and found.plan == plan
        assert found.params == FIXED.params(plan)


def test_a_plan_of_any_of_several_backbones_fits() -> None:
    both = [Candidate(name, 3, fake_capabilities(3)) for name in ("resnet18", "resnet34")]
    config = SpaceConfig.model_validate({"trainable_layers": {"low": 0, "high": 3}})
    space = Space.from_candidates(both, config, "weights")
    for backbone in ("resnet18", "resnet34"):
        plan = space.plan({"backbone": backbone, "depth": 2})
        assert isinstance(adapt_plan(space, "there", plan), InitialPlan)
    other = replace(space.plan({"backbone": "resnet18", "depth": 2}), backbone="resnet50")
    assert (
        misfit_reason(space, other)
        == "backbone is resnet50, and this study has resnet18, resnet34"
    )


@pytest.mark.parametrize("sizes", [[224, 128, 160], {"low": 128, "high": 224, "step": 32}])
def test_of_several_image_sizes_one_plan_tries_the_smallest(sizes: Any) -> None:
    config = SpaceConfig.model_validate({"trainable_layers": {"low": 0, "high": 5}})
    candidate = Candidate("resnet18", 8, fake_capabilities(8))  # type: ignore[arg-type]
    space = Space.from_candidates([candidate], config, "weights", {"image_size": sizes})
    plans = default_plans(space, epochs=10)
    small = [one for one in plans if one.plan.image_size == 128]
    assert [one.title for one in small] == [
        "known good: last 5 layers trainable at a low rate, images of 128 px"
    ]
    assert len(plans) > 1 and {one.plan.image_size for one in plans} == {128, 224}
