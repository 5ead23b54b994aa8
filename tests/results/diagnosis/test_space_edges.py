"""Whether the best plan lies at the edge of the space."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import create_trial

from autotune.plan import LayerPlan, TrialPlan
from autotune.results.diagnosis.space_edges import space_edges
from autotune.study.state import attrs
from tests.support.study.studies import make_results


@pytest.mark.parametrize(
    ("name", "found", "value", "side", "can_be_widened"),
    [
        ("training.lr", FloatDistribution(1e-4, 1.0, log=True), 1.4e-4, "lower", True),
        ("training.lr", FloatDistribution(1e-4, 1.0, log=True), 3e-4, "", True),
        ("training.lr", FloatDistribution(1e-4, 1.0, log=True), 0.7, "upper", True),
        ("training.lr", FloatDistribution(0.1, 1.0), 0.14, "lower", True),
        ("training.lr", FloatDistribution(0.1, 1.0), 0.2, "", True),
        ("training.layer_decay", FloatDistribution(0.5, 1.0), 0.99, "upper", False),
        ("training.weight_decay", FloatDistribution(0.0, 0.1), 0.0, "lower", False),
        ("training.momentum", FloatDistribution(0.0, 0.9), 0.9, "upper", True),
        ("training.mixup", FloatDistribution(0.0, 0.4), 0.0, "lower", False),
        ("training.l2_sp", FloatDistribution(1e-4, 0.1, log=True), 1e-4, "lower", True),
        ("training.head_epochs", IntDistribution(0, 5), 5, "upper", True),
        ("training.head_epochs", IntDistribution(0, 9), 9, "upper", False),  # of ten epochs
        ("head.dropout.1", FloatDistribution(0.0, 0.8, step=0.1), 0.8, "upper", True),
        ("head.units.1", CategoricalDistribution([64, 128, 256]), 256, "upper", True),
        ("head.units.1", CategoricalDistribution([64, 128, 256]), 128, "", True),
        ("head.units.1", CategoricalDistribution([64, 128]), 128, "", True),
        ("head.pool", CategoricalDistribution(["avg", "max", "avgmax"]), "avgmax", "", True),
        ("depth", IntDistribution(0, 3), 3, "upper", True),
        ("depth", IntDistribution(0, 5), 5, "upper", False),  # the backbone has five layers
        ("depth", IntDistribution(0, 5), 0, "lower", False),
        ("depth", IntDistribution(0, 1), 1, "", True),
        ("head.hidden_layers", IntDistribution(0, 3), 3, "upper", False),
        ("layer.1.dropout", FloatDistribution(0.0, 0.5), 0.5, "upper", True),
        ("layer.1.drop_path", FloatDistribution(0.0, 0.9), 0.9, "upper", False),
        ("layer.2.width", CategoricalDistribution([0.5, 1.5, 2.0]), 2.0, "upper", True),
        ("layer.2.width", CategoricalDistribution(["keep", 1.5, 2.0]), 2.0, "", True),
        ("layer.2.kernel", CategoricalDistribution([3, 5, 7]), 7, "upper", False),
    ],
)
def test_edges(
    name: str, found: BaseDistribution, value: Any, side: str, can_be_widened: bool
) -> None:
    results = make_results(trials=1, running=0, failed=0)
    trial = create_trial(value=0.5, params={name: value}, distributions={name: found})
    edges = space_edges(results, trial)
    assert [(edge.side, edge.can_be_widened) for edge in edges] == (
        [(side, can_be_widened)] if side else []
    )


@pytest.mark.parametrize(
    ("found", "depth", "edges"),
    [
        (IntDistribution(0, 8), 3, [("3", "upper", False)]),  # all of its layers
        (IntDistribution(0, 8), 2, []),
        (CategoricalDistribution([0, 2, 8]), 8, [("3", "upper", False)]),
        (CategoricalDistribution([0, 8]), 8, []),
    ],
)
def test_depth_ends_at_the_layers_of_the_backbone(
    found: BaseDistribution, depth: int, edges: list[Any]
) -> None:
    results = make_results(trials=1, running=0, failed=0, layers=8, others={"small": 3})
    plan = TrialPlan("small", min(depth, 3), (LayerPlan(),) * min(depth, 3))
    trial = create_trial(
        value=0.5,
        params={"depth": depth},
        distributions={"depth": found},
        user_attrs={attrs.PLAN: plan.to_json()},
    )
    shown = [(edge.value, edge.side, edge.can_be_widened) for edge in space_edges(results, trial)]
    assert shown == edges


def test_an_inactive_value_is_at_no_edge() -> None:
    results = make_results()
    linear = next(trial for trial in results.trials if trial.params.get("head.hidden_layers") == 0)
    names = {edge.parameter for edge in space_edges(results, linear)}
    assert not names & {"head.units.1", "head.dropout.1", "head.units.2", "head.dropout.2"}
