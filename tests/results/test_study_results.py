"""A study that is read once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import TrialState, create_trial
from sqlalchemy import event

from autotune.results.report.formats import render
from autotune.results.study_results import StudyResults
from autotune.search import ranking
from autotune.search.backbone_limits import BackboneLimits
from autotune.search.space import Space, has_effect
from autotune.storage.rdb.connection import open_storage
from autotune.study.state import attrs
from autotune.study.state.budget import STOPPED, TRIALS, StopReason
from tests.support.study.studies import make_results, make_study

pytestmark = pytest.mark.usefixtures("closed_connections")
TWO = ("accuracy", "latency_ms")


def test_a_reading_does_not_change() -> None:
    study = make_study()
    results = StudyResults.from_study(study)
    count = len(study.trials)
    study.add_trial(create_trial(value=1.0))
    study.set_user_attr(attrs.BUDGET, {"trials": 1})
    assert len(study.trials) == count + 1
    assert len(results.trials) == len(results.study.trials) == count
    assert results.study.user_attrs[attrs.BUDGET]["trials"] == results.progress.budget == 40
    assert results.study.get_trials(states=(TrialState.RUNNING,)) == [
        trial for trial in results.trials if trial.state == TrialState.RUNNING
    ]
    later = replace(results, trials=tuple(study.trials))
    assert later.best is later.trials[-1] is not results.best


@pytest.mark.parametrize(
    ("kind", "queued"), [(TRIALS, "2 not started"), (STOPPED, "2 waiting"), (None, "2 waiting")]
)
def test_the_queue_of_an_ended_study_is_not_waiting(kind: str | None, queued: str) -> None:
    study = make_study(trials=3, running=0, failed=0, retried=0, waiting=2)
    if kind:
        study.set_user_attr(attrs.ENDED, StopReason(kind, "").to_json())
    counts = StudyResults.from_study(study).format_counts()
    assert counts.endswith(f"0 failed, {queued}")


def test_values_follow_from_the_trials() -> None:
    results = make_results(objectives=("accuracy", "parameters"))
    assert results.cost is not None
    assert list(results.front) == ranking.pareto_front(results.trials, results.direction)
    assert results.best is ranking.best_trial(results.trials, results.direction)
    assert results.baseline is attrs.find_baseline(results.trials)
    assert results.superseded == attrs.retried_numbers(results.trials) != set()
    assert len(results.last_attempts) == len(results.trials) - len(results.superseded)
    assert results.space is not None
    assert results.parameter_names == tuple(results.space.distributions)
    assert results.stop_reason is None  # a trial runs


@pytest.mark.parametrize("format", ["html", "md", "json", "csv"])
def test_a_report_reads_the_study_once(tmp_path: Path, format: str) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    assert isinstance(storage, RDBStorage)
    results = StudyResults.from_study(make_study(storage=storage))
    statements: list[str] = []
    event.listen(storage.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    render(results, format)
    assert statements == []


@pytest.mark.parametrize(
    ("options", "baseline", "difference"),
    [
        ({}, "84.2 %", "+7.5 points"),
        ({"objective": "log_loss"}, "0.4000", "0.1800 lower"),
        ({"gain": -0.05}, "84.2 %", "no trial is better"),
        ({"objectives": TWO}, "84.2 % at 0.800 ms", "+11.1 points, 0.321 ms higher"),
    ],
)
def test_values_and_their_difference(
    options: dict[str, Any], baseline: str, difference: str
) -> None:
    results = make_results(**options)
    assert results.format_values(results.trials[0]) == baseline
    assert results.difference == difference
    assert make_results(trials=0).difference == ""


def test_where_nothing_is_within_the_limits_the_closest_trial_is_named() -> None:
    results = make_results(constraints={"max_latency_ms": 0.5}, trials=20, failed=0)
    closest = results.closest_to_feasible
    assert results.best is None
    assert closest is not None and closest.number == 0  # the baseline costs least
    assert results.explain_no_best().startswith(
        "no complete trial within the limits; the nearest is trial 0, 0.800 ms latency, at most"
    )
    assert make_results(trials=0).explain_no_best() == "no complete trial yet"


@pytest.mark.parametrize("others", [None, {"small": 3}], ids=["one backbone", "two"])
def test_a_parameter_is_active_where_its_value_changes_the_plan(
    others: dict[str, int] | None,
) -> None:
    results = make_results(trials=60, others=others)
    space = results.space
    assert space is not None
    inactive = set()
    for trial in results.trials:
        if trial.state != TrialState.COMPLETE or not trial.params:
            continue
        for name, distribution in space.distributions.items():
            values: list[object] = (
                list(distribution.choices)
                if isinstance(distribution, CategoricalDistribution)
                else [distribution.low, distribution.high]  # type: ignore[attr-defined]
            )
            forms = [space.canonical({**trial.params, name: value}) for value in values]
            expected = any(form != forms[0] for form in forms)
            assert results.is_active(trial, name) == expected, name
            inactive |= set() if expected else {name}
    assert len(inactive) >= 3


def test_values_that_mean_the_same_to_a_backbone_do_not_hide_the_others() -> None:
    kernel = CategoricalDistribution(["keep", 3, 5])
    limits = {"a": BackboneLimits(2, {"layer.1.kernel": ("keep", 3)}), "b": BackboneLimits(2, {})}
    fixed = {"depth": 1, "head.hidden_layers": 0, "training.optimizer": "adamw"}
    searched = {"backbone": CategoricalDistribution(["a", "b"]), "layer.1.kernel": kernel}
    trial = create_trial(
        value=0.5, params={"backbone": "a", "layer.1.kernel": 3}, distributions=searched
    )
    assert has_effect(Space("a", fixed, searched, limits), trial.params, "layer.1.kernel")


@pytest.mark.parametrize("stored", [None, {"color": 3}, {"backbone": "r", "fixed": 3}])
def test_a_space_that_cannot_be_read_hides_no_parameter(stored: object) -> None:
    study: Study = make_study()
    study.set_user_attr(attrs.SPACE, stored)
    results = StudyResults.from_study(study)
    assert results.space is None
    trial = results.trials[7]
    assert results.active_params(trial) == trial.params != {}
