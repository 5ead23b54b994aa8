"""Limits and costs in words."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from autotune.search import ranking
from autotune.study.setup.initial_trials import best_plans
from autotune.study.state.constraints import format_cost, format_count, set_constraints, violations
from tests.support.study.studies import make_study


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (99_950, "100 k"),
        (999_499, "999 k"),
        (999_999, "1.00 M"),
        (21_284_672, "21.3 M"),
        (1_300_000_000, "1.30 G"),
    ],
)
def test_in_short(count: int, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("cost", "value", "text"),
    [
        ("parameters", 12_300_000, "12.3 M"),
        ("latency_ms", 0.8123, "0.812 ms"),
        ("latency_ms", 5.0, "5.00 ms"),
        ("latency_ms", 99.96, "100 ms"),
        ("latency_ms", 1234.5, "1,234 ms"),
        ("memory_mb", 56.78, "56.8 MB"),
    ],
)
def test_costs_have_units(cost: str, value: float, text: str) -> None:
    assert format_cost(cost, value) == text


@pytest.mark.parametrize(
    ("parameters", "latency", "text"),
    [
        (9_000_000, 5.0, ""),
        (10_000_000, 5.0, ""),
        (12_300_000, 5.0, "12.3 M parameters, at most 10.0 M"),
        (10_000_001, 5.0, "10,000,001 parameters, at most 10,000,000"),
        (
            12_300_000,
            5.00001,
            "12.3 M parameters, at most 10.0 M; 5.00001 ms latency, at most 5 ms",
        ),
    ],
)
def test_what_is_beyond_its_limit_is_said(parameters: int, latency: float, text: str) -> None:
    costs = {"parameters": parameters, "latency_ms": latency, "memory_mb": 1e9}
    assert violations(costs, {"parameters": 10_000_000, "latency_ms": 5.0}) == text


def test_limits_are_told_as_shares() -> None:
    study = optuna.create_study()
    trial = study.ask()
    costs = {"parameters": 12_000_000, "latency_ms": 4.0, "memory_mb": 8.0}
    set_constraints(trial, costs, {"parameters": 10_000_000, "latency_ms": 4.0})
    study.tell(trial, 1.0)
    assert study.trials[0].constraints == {
        "max_parameters": pytest.approx(0.2),
        "max_latency_ms": 0.0,
    }


def test_a_warm_start_takes_what_is_within_the_limits_of_the_other_study() -> None:
    limited = make_study(
        objectives=["log_loss", "latency_ms"], constraints={"max_latency_ms": 1.1}, trials=40
    )
    found = best_plans(limited, 3)
    assert len(found) == 3
    assert not any(ranking.is_infeasible(trial) for trial, _ in found)
    values = [trial.values[0] for trial, _ in found]
    allowed = [
        trial.values[0]
        for trial in limited.trials
        if trial.state == TrialState.COMPLETE and not ranking.is_infeasible(trial)
    ]
    assert values == sorted(values) and values[0] == min(allowed)
    hopeless = make_study(
        objectives=["accuracy", "latency_ms"], constraints={"max_latency_ms": 0.1}
    )
    assert best_plans(hopeless, 3) == []
