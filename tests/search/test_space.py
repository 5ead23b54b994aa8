from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from autotune.config.schema import BaselineConfig, SpaceConfig
from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrainingPolicy, TrialPlan
from autotune.search.backbone_limits import Candidate
from autotune.search.parameters.dimensions import contains, inactive_value, integer_values
from autotune.search.space import Params, Space, num_shaped_layers
from tests.support.models.spaces import (
    FULL,
    SHAPES,
    FakeCapabilities,
    check_canonical_form,
    check_json,
    space_of,
    spaces,
    with_two,
)


def test_every_key_is_either_searched_or_fixed_under_its_dotted_name() -> None:
    space = space_of(**FULL)
    assert list(space.distributions) == [
        "depth",
        "head.pool",
        "head.hidden_layers",
        "head.units.1",
        "head.dropout.1",
        "head.units.2",
        "head.dropout.2",
        "training.optimizer",
        "training.lr",
        "training.layer_decay",
        "training.weight_decay",
        "training.label_smoothing",
    ]
    off = {f"training.{name}": 0.0 for name in ("head_epochs", "l2_sp", "mixup", "cutmix")}
    off["training.head_start"] = "random"
    off |= {"training.momentum": 0.9, "training.backbone_lr": 1.0, "training.parameters": "all"}
    assert space.fixed == {"head.activation": "relu", "head.batch_norm": True, **off}
    plain = space_of()
    assert not plain.distributions
    assert plain.fixed == {
        "depth": 0,
        "head.pool": "keep",
        "head.hidden_layers": 0,
        "training.optimizer": "adamw",
        "training.lr": 3e-3,
        "training.layer_decay": 1.0,
        "training.weight_decay": 1e-4,
        "training.label_smoothing": 0.0,
        **off,
    }


@given(spaces)
def test_no_distribution_is_adjusted(space: Space) -> None:
    assert not space.fixed.keys() & space.distributions.keys()
    assert all(not found.single() for found in space.distributions.values())


# Layers


def test_layers_have_fields_up_to_the_last_one_of_the_file() -> None:
    space = space_of(["weights", "none"], **SHAPES)
    assert list(space.distributions)[:6] == [
        "depth",
        "layer.1.kernel",
        "layer.1.width",
        "layer.2.kernel",
        "layer.2.width",
        "inherit",
    ]
    assert (space.fixed["layer.1.pool"], space.fixed["layer.2.pool"]) == ("max2", "max2")
    assert not any(name.startswith("layer.3") for name in (*space.distributions, *space.fixed))


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (SHAPES, 2),
        ({"trainable_layers": 5, "layers": {"dropout": {"low": 0, "high": 0.5}}}, 5),
        ({"trainable_layers": [0, 20], "layers": {"kernel": 3}}, 8),
        ({"trainable_layers": [0, 20]}, 0),
        ({"trainable_layers": 5, "layers": {"width": ["keep"]}}, 0),
        ({"trainable_layers": 0, "layers": {"kernel": 3}}, 0),
    ],
)
def test_reach(config: dict[str, Any], count: int) -> None:
    assert num_shaped_layers(SpaceConfig.model_validate(config)) == count


def test_a_layer_has_only_the_values_that_it_can_take() -> None:
    of = (
        FakeCapabilities(1, present={"kernel": 3}, reasons={"pool": "it does not pool"}),
        FakeCapabilities(2, refused={"kernel": (5,), "width": (0.5,)}),
    )
    space = space_of(of=of, **SHAPES)
    assert space.distributions["layer.1.kernel"] == CategoricalDistribution(["keep", 5])
    assert space.distributions["layer.2.kernel"] == CategoricalDistribution(["keep", 3])
    assert "layer.1.pool" not in space.fixed
    assert space.fixed["layer.2.pool"] == "max2"
    assert "layer.1.width" in space.distributions
    assert "layer.2.width" not in {*space.distributions, *space.fixed}
    plan = space.plan({**_largest_params(space), "layer.2.kernel": 3})
    assert plan.layers == (
        LayerPlan(kernel=5, width=0.5),
        LayerPlan(kernel=3, pool="max2"),
        LayerPlan(),
    )


def _largest_params(space: Space) -> Params:
    return {
        name: found.choices[-1] if isinstance(found, CategoricalDistribution) else found.high  # type: ignore[attr-defined]
        for name, found in space.distributions.items()
    }


@pytest.mark.parametrize(
    ("given", "present", "left"),
    [
        ([3, 5], 3, CategoricalDistribution(["keep", 5])),
        ([5, "keep", 3], 3, CategoricalDistribution([5, "keep"])),
        ([5, "keep"], 5, None),
        ([1, 3], 7, CategoricalDistribution([1, 3])),
    ],
)
def test_what_a_layer_has_already_is_called_keep(given: Any, present: int, left: Any) -> None:
    of = (FakeCapabilities(1, present={"kernel": present}),)
    space = space_of(of=of, trainable_layers=1, layers={"kernel": given})
    assert space.distributions.get("layer.1.kernel") == left
    assert "layer.1.kernel" not in space.fixed


@pytest.mark.parametrize("refused", [(), (0.1,)])
def test_a_range_is_taken_as_a_whole_or_not_at_all(refused: tuple[float, ...]) -> None:
    of = (FakeCapabilities(1, refused={"dropout": refused}),)
    space = space_of(of=of, trainable_layers=1, layers={"dropout": {"low": 0.1, "high": 0.5}})
    assert space.distributions.get("layer.1.dropout") == (
        None if refused else FloatDistribution(0.1, 0.5)
    )


def test_a_layer_without_an_offer_keeps_its_shape() -> None:
    assert space_of(of=(), **SHAPES).distributions == {"depth": IntDistribution(0, 3)}


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ({"width": 0.5}, True),
        ({"low_rank": ["keep", 0.5]}, True),
        ({"kernel": "keep", "activation": "elu", "pool": "max2", "dropout": 0.1}, False),
    ],
)
def test_what_is_inherited_matters_to_changed_weights_alone(
    layers: dict[str, Any], found: bool
) -> None:
    space = space_of(["weights", "none"], trainable_layers=1, layers=layers)
    assert ("inherit" in space.distributions) == found
    assert space.plan(_largest_params(space)).inherit == ("none" if found else "weights")


def test_inherit_has_no_meaning_while_no_trainable_layer_changes_weights() -> None:
    space = space_of(["none", "weights", "data"], **SHAPES)
    plain = {name: inactive_value(found) for name, found in space.distributions.items()}

    def canonical(**given: Any) -> Any:
        params = {**plain, **{name.replace("__", "."): one for name, one in given.items()}}
        return space.canonical(params)["inherit"], space.plan(params).inherit

    assert canonical(depth=1, inherit="data") == ("none", "weights")
    assert canonical(depth=0, layer__1__kernel=5, inherit="data") == ("none", "weights")
    assert canonical(depth=1, layer__2__width=0.5, inherit="data") == ("none", "weights")
    assert canonical(depth=2, layer__2__width=0.5, inherit="data") == ("data", "data")
    # Images choose channels; of a kernel they choose nothing.
    assert canonical(depth=1, layer__1__kernel=5, inherit="data") == ("weights", "weights")
    assert canonical(depth=1, layer__1__kernel=5, inherit="none") == ("none", "none")
    assert canonical(depth=3, inherit="weights") == ("none", "weights")


def test_a_linear_head_has_no_activation_and_no_batch_norm() -> None:
    head = {"hidden_layers": [0, 1], "activation": "gelu", "batch_norm": [False, True]}
    space = space_of(head=head)
    assert space.plan({"head.hidden_layers": 0, "head.batch_norm": True}).head == HeadPlan()
    assert space.plan({"head.hidden_layers": 1, "head.batch_norm": False}).head == HeadPlan(
        (HiddenLayer(256),), activation="gelu", batch_norm=False
    )
    linear = space_of(head={"activation": ["gelu", "relu"], "batch_norm": [True, False]})
    assert not linear.distributions


# Canonical form and JSON


@given(with_two)
def test_canonical_form_and_json(given: tuple[Space, Params, Params]) -> None:
    check_canonical_form(*given)
    check_json(*given[:2])


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"backbone": "r", "fixed": {}},
        {"backbone": "r", "fixed": {}, "distributions": {"depth": {"name": "Odd"}}},
    ],
)
def test_from_json_refuses_what_is_no_space(values: dict[str, Any]) -> None:
    with pytest.raises((KeyError, ValueError)):
        Space.from_json(values)


def test_what_has_no_meaning_takes_its_inert_value() -> None:
    space = space_of(**FULL)
    params = {
        "depth": 0,
        "head.pool": "max",
        "head.hidden_layers": 1,
        "head.units.1": 64,
        "head.dropout.1": 0.3,
        "head.units.2": 128,
        "head.dropout.2": 0.5,
        "training.optimizer": "sgd",
        "training.lr": 0.1,
        "training.layer_decay": 0.4,
        "training.weight_decay": 0.1,
        "training.label_smoothing": 0.1,
    }
    inert = {"head.units.2": 64, "head.dropout.2": 0.8, "training.layer_decay": 1.0}
    assert space.canonical(params) == {**params, **inert}
    assert space.canonical({**params, "depth": 1, "head.hidden_layers": 2}) == {
        **params,
        "depth": 1,
        "head.hidden_layers": 2,
    }
    assert inactive_value(space.distributions["head.pool"]) == "keep"


#: Spaces in which all of the policy is searched.
POLICY: dict[str, Any] = {
    "trainable_layers": {"low": 0, "high": 3},
    "training": {
        "optimizer": ["sgd", "adamw"],
        "layer_decay": {"low": 0.3, "high": 1},
        "momentum": {"low": 0.0, "high": 0.99},
        "head_only_epochs": {"low": 0, "high": 4},
        "l2_sp": {"low": 1e-4, "high": 1, "log": True},
        "mixup": [0, 0.2],
        "cutmix": [0, 1],
    },
}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("depth", [0, 2])
def test_policy_that_means_nothing_has_its_default(optimizer: str, depth: int) -> None:
    space = space_of(**POLICY)
    params = {
        "depth": depth,
        "training.optimizer": optimizer,
        "training.layer_decay": 0.5,
        "training.momentum": 0.3,
        "training.head_epochs": 2,
        "training.l2_sp": 0.01,
        "training.mixup": 0.2,
        "training.cutmix": 1,
    }
    plan = space.plan(params)
    expected = TrainingPolicy(optimizer, mixup=0.2, cutmix=1)
    if optimizer == "sgd":
        expected = replace(expected, momentum=0.3)
    if depth:
        expected = replace(expected, layer_decay=0.5, head_epochs=2, l2_sp=0.01)
    assert plan.policy == expected
    canonical = space.params(plan)
    assert canonical is not None and canonical == space.canonical(params)
    assert space.plan(canonical) == plan
    ends = {"layer_decay": 1.0, "head_epochs": 4, "l2_sp": 1.0}
    inert = {} if depth else ends
    if optimizer != "sgd":
        inert["momentum"] = 0.99
    assert canonical == {**params, **{f"training.{name}": one for name, one in inert.items()}}


def outside(*layers: LayerPlan) -> tuple[dict[str, Any], TrialPlan]:
    return SHAPES, TrialPlan("resnet18", len(layers), layers)


@pytest.mark.parametrize(
    ("config", "plan"),
    [
        outside(LayerPlan(pool="max2", kernel=3), LayerPlan()),
        outside(LayerPlan(pool="max2", kernel=1)),
        outside(LayerPlan(pool="max2", dropout=0.1)),
        outside(LayerPlan(pool="max2"), LayerPlan(pool="max2"), LayerPlan(pool="max2")),
        outside(LayerPlan(pool="max2", width="0.5")),
        *[
            (FULL, plan)
            for plan in (
                TrialPlan("resnet34"),
                TrialPlan("resnet18", 6, (LayerPlan(),) * 6),
                TrialPlan("resnet18", head=HeadPlan((HiddenLayer(65),))),
                TrialPlan("resnet18", policy=TrainingPolicy("adagrad")),
                TrialPlan("resnet18", policy=TrainingPolicy(weight_decay=1e-4)),
                TrialPlan(
                    "resnet18", 1, (LayerPlan(kernel=3),), policy=TrainingPolicy(weight_decay=0)
                ),
                TrialPlan("resnet18", 2, (LayerPlan(),), policy=TrainingPolicy(weight_decay=0)),
                TrialPlan("resnet18", 1, (LayerPlan(),), inherit="none"),
                TrialPlan("resnet18", head=HeadPlan((HiddenLayer(64),), activation="gelu")),
            )
        ],
        # Spaces without the baseline.
        *[
            (config, TrialPlan("resnet18"))
            for config in (
                {"trainable_layers": 2},
                {"trainable_layers": {"low": 1, "high": 8, "log": True}},
                {"head": {"hidden_layers": [1, 2], "units": [8, 16]}},
            )
        ],
    ],
)
def test_a_plan_outside_of_the_space_has_no_parameters(
    config: dict[str, Any], plan: TrialPlan
) -> None:
    assert space_of(**config).params(plan) is None


# Baseline


@pytest.mark.parametrize(
    ("training", "given", "expected"),
    [
        ({"optimizer": "sgd", "momentum": 0.5}, {}, TrainingPolicy("sgd", momentum=0.5)),
        ({"momentum": 0.5}, {}, TrainingPolicy()),
        ({"lr": 0.5}, {"weight_decay": 0.0}, TrainingPolicy(lr=0.5, weight_decay=0.0)),
        (
            {"lr": [0.01, 1.0], "weight_decay": [0, 0.1]},
            {},
            TrainingPolicy(lr=0.01, weight_decay=0),
        ),
        ({"momentum": 0.5}, {"optimizer": "sgd"}, TrainingPolicy("sgd", momentum=0.5)),
        ({"momentum": 0.5}, {"momentum": 0.3}, TrainingPolicy()),
        ({"optimizer": "sgd"}, {"momentum": 0.0}, TrainingPolicy("sgd", momentum=0.0)),
        (
            {"optimizer": "sgd", "momentum": {"low": 0.0, "high": 0.5}},
            {},
            TrainingPolicy("sgd", momentum=0.5),
        ),
        ({"head_only_epochs": 3, "l2_sp": 0.1, "layer_decay": 0.5}, {}, TrainingPolicy()),
        ({"backbone_lr": 0.1, "parameters": ["norms", "all"]}, {}, TrainingPolicy()),
        (
            {"optimizer": "sgd", "lr": 0.5, "mixup": 0.2, "label_smoothing": 0.1},
            {"head_start": "solved", "lr": 0.1},
            TrainingPolicy(head_start="solved"),
        ),
        ({"mixup": 0.2, "cutmix": [1, 0.5]}, {}, TrainingPolicy(mixup=0.2, cutmix=0.5)),
        ({"mixup": [0, 0.2], "cutmix": {"low": 0, "high": 1}}, {}, TrainingPolicy()),
    ],
)
def test_the_policy_of_the_baseline(
    training: dict[str, Any], given: dict[str, Any], expected: TrainingPolicy
) -> None:
    space = space_of(trainable_layers=[0, 1], training=training)
    baseline = space.baseline(BaselineConfig(**given))
    assert baseline.policy == expected
    # Where the study fixes another value, the given one is outside of the space.
    assert (space.params(baseline) is None) == (expected != space.baseline().policy)


@given(spaces)
def test_the_baseline_is_the_untouched_backbone_with_a_linear_head(space: Space) -> None:
    baseline = space.baseline()
    assert (baseline.depth, baseline.layers, baseline.head) == (0, (), HeadPlan())
    off = baseline.policy
    assert (off.layer_decay, off.head_epochs, off.l2_sp) == (1.0, 0, 0.0)
    assert off.optimizer == "sgd" or off.momentum == 0.9
    params = space.params(baseline)
    if params is not None:
        assert space.plan(params) == baseline
    inside = all(
        contains(space.distributions[name], wanted)
        if name in space.distributions
        else space.fixed[name] == wanted
        for name, wanted in {"depth": 0, "head.hidden_layers": 0, "head.pool": "keep"}.items()
    )
    assert inside == (params is not None)


@pytest.mark.parametrize(
    ("asked", "layers", "depths"),
    [
        ("all", 5, [5]),
        ({"low": 0, "high": "all"}, 5, [0, 1, 2, 3, 4, 5]),
        ({"low": 0, "high": "all", "step": 3}, 8, [0, 3, 6]),
        ({"low": 1, "high": "all", "log": True}, 3, [1, 2, 3]),
        ([0, 2, "all"], 18, [0, 2, 18]),
        ([0, 5, "all"], 5, [0, 5]),
        (["all"], 1, [1]),
    ],
)
def test_all_layers_are_those_of_the_backbone(asked: Any, layers: int, depths: list[int]) -> None:
    config = SpaceConfig.model_validate({"trainable_layers": asked})
    space = Space.from_candidates([Candidate("any", layers, ())], config, "weights")
    searched = space.distributions.get("depth")
    assert list(integer_values(searched) if searched else [space.fixed["depth"]]) == depths
    assert space.max_depth == max(depths)
    both = [Candidate("small", 1, ()), Candidate("any", layers, ())]
    shared = Space.from_candidates(both, config, "weights")
    plans = [shared.plan({"backbone": one.name, "depth": layers}) for one in both]
    assert [plan.depth for plan in plans] == [1, layers]


def test_a_backbone_without_norms_trains_all_parameters() -> None:
    config = SpaceConfig.model_validate(
        {"trainable_layers": 2, "training": {"parameters": ["norms", "all"]}}
    )
    both = [Candidate("bn", 2, ()), Candidate("vgg", 2, (), parameters=("all", "biases"))]
    space = Space.from_candidates(both, config, "weights")
    asked = {"training.parameters": "norms"}
    plans = [space.plan({"backbone": name, **asked}) for name in ("bn", "vgg")]
    assert [plan.policy.parameters for plan in plans] == ["norms", "all"]
    alone = Space.from_candidates(both[1:], config, "weights")
    assert "training.parameters" not in alone.distributions


def test_a_solved_head_on_frozen_layers_is_one_plan() -> None:
    """Nothing trains, so no rate and no regularization makes another plan of it."""
    space = space_of(
        trainable_layers={"low": 0, "high": 2},
        head={"hidden_layers": [0, 1], "units": 8},
        training={
            "optimizer": ["sgd", "adamw"],
            "lr": {"low": 1e-3, "high": 0.1},
            "mixup": [0.0, 0.2],
            "head_start": ["random", "solved"],
        },
    )

    def planned(**values: Any) -> TrialPlan:
        given = {"depth": 0, "head.hidden_layers": 0, "training.head_start": "solved", **values}
        drawn = {name: inactive_value(one) for name, one in space.distributions.items()}
        return space.plan({**drawn, **given})

    rates: list[dict[str, Any]] = [
        {"training.lr": 0.01},
        {"training.mixup": 0.2},
        {"training.optimizer": "sgd"},
    ]
    assert {planned(**values) for values in rates} == {
        TrialPlan("resnet18", policy=TrainingPolicy(head_start="solved"))
    }
    assert planned(depth=1, **rates[0]) != planned(depth=1, **rates[1])
    hidden = planned(**{"head.hidden_layers": 1, "training.lr": 0.01})
    assert (hidden.policy.head_start, hidden.policy.lr) == ("random", 0.01)
