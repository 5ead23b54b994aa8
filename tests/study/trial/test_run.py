"""Trials of studies with limits, and of two objectives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState

from autotune.plan import TrialPlan
from autotune.results.study_results import StudyResults
from autotune.search import ranking
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from autotune.study.trial import build
from autotune.study.trial.context import build_context
from tests.support.commands.inline import run
from tests.support.pages.page import page_of
from tests.support.study.small import open_small
from tests.support.study.studies import untimed_curves

TWO = ["accuracy", "latency_ms"]


@pytest.fixture(scope="module")
def limit(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return how many parameters the baseline has."""
    handle = open_small(tmp_path_factory.mktemp("limit"), search__trials=1, training__epochs=1)
    run(handle)
    return int(handle.study.trials[0].user_attrs[attrs.COSTS]["parameters"])


def test_parameters_are_recorded_without_being_asked_for(tmp_path: Path) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=1)
    run(handle)
    ctx = build_context(handle)
    (trial,) = handle.study.trials
    plan = attrs.trial_plan(trial)
    assert plan is not None
    network = build.build_trainer(plan, ctx).network
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert trial.user_attrs[attrs.COSTS] == {"parameters": parameters}
    assert trial.constraints == {}


def test_an_infeasible_plan_is_not_trained_and_never_best(tmp_path: Path, limit: int) -> None:
    # A hidden layer has more parameters than the linear head that it replaces; nothing else has.
    handle = open_small(
        tmp_path,
        constraints={"max_parameters": limit, "max_latency_ms": 10_000.0},
        space__head__hidden_layers=[0, 1],
        space__head__units=64,
        space__layers={},
        search__sampler="random",
        search__trials=8,
    )
    events = run(handle)
    trials = handle.study.trials
    # Every trial has told how it lies to every limit, in the same order: the samplers need them.
    keys = ["max_parameters", "max_latency_ms"]
    assert sorted(keys) == sorted(trials[0].constraints)
    assert len({tuple(trial.constraints) for trial in trials}) == 1
    beyond = [trial for trial in trials if ranking.is_infeasible(trial)]
    within = [trial for trial in trials if not ranking.is_infeasible(trial)]
    assert beyond and len(within) > 1
    for trial in beyond:
        has = trial.user_attrs[attrs.COSTS]["parameters"]
        assert trial.constraints["max_parameters"] == pytest.approx(has / limit - 1)
        assert trial.state == TrialState.PRUNED
        assert (trial.values, trial.intermediate_values) == (None, {})
        assert trial.user_attrs[attrs.EPOCHS] == 0
        assert trial.user_attrs[attrs.REASON].startswith("infeasible: ")
        assert get_all_artifact_meta(trial, storage=handle.storage) == []
        of_trial = [event["event"] for event in events if event.get("trial") == trial.number]
        assert of_trial == ["start", "end"]
    ends = {event["trial"]: event["state"] for event in events if event["event"] == "end"}
    assert {ends[one.number] for one in beyond} == {"infeasible"}
    progress = handle.progress()
    assert (progress.infeasible, progress.finished) == (len(beyond), 8)
    ended = StopReason.from_attributes(handle.study.user_attrs)
    assert ended is not None and ended.kind == "trials"
    best = ranking.best_trial(trials, attrs.metric_direction(handle.study))
    assert best is not None and best in within


def test_a_study_without_a_plan_within_its_limits_ends_and_says_so(tmp_path: Path) -> None:
    handle = open_small(tmp_path, constraints={"max_parameters": 1000}, search__trials=4)
    run(handle)
    trials = handle.study.trials
    # The baseline is what everything is compared with: it is trained, and is not the best.
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] + [TrialState.PRUNED] * 3
    assert trials[0].user_attrs[attrs.REASON].endswith("k parameters, at most 1.00 k")
    names = [one.filename for one in get_all_artifact_meta(trials[0], storage=handle.storage)]
    assert "weights.safetensors" not in names
    assert StopReason.from_attributes(handle.study.user_attrs) == StopReason(
        "trials", "4 finished trials"
    )
    results = StudyResults.from_study(handle.study)
    closest = results.closest_to_feasible
    assert results.best is None and closest is not None
    least = min(trials, key=lambda one: float(one.user_attrs[attrs.COSTS]["parameters"])).number
    assert closest.number == least
    text = page_of(handle.study).text
    assert f"The nearest is trial {least}: " in text


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
def test_samplers_go_on_past_their_start(tmp_path: Path, limit: int, sampler: str) -> None:
    handle = two_objectives(
        tmp_path,
        objectives=["accuracy", "memory_mb"],
        constraints={"max_parameters": limit + 300},
        search__sampler=sampler,
        search__trials=14,
        training__epochs=1,
    )
    run(handle)
    progress = handle.progress()
    assert progress.finished == 14 and progress.failed == 0
    assert progress.complete + progress.infeasible == 14


def two_objectives(folder: Path, **overrides: Any) -> OpenStudy:
    return open_small(folder, **{"objectives": TWO, "search__pruner": "none", **overrides})


def test_a_study_of_two_objectives(tmp_path: Path) -> None:
    handle = two_objectives(tmp_path)
    events = run(handle)
    study = handle.study
    assert study.metric_names == TWO
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    for trial in study.trials:
        assert trial.state == TrialState.COMPLETE
        assert trial.values == [
            trial.user_attrs[attrs.METRICS]["accuracy"],
            trial.user_attrs[attrs.COSTS]["latency_ms"],
        ]
        # The learning curve, which Optuna's own report refuses here.
        assert sorted(trial.intermediate_values) == [1, 2]
        assert trial.intermediate_values[2] == trial.values[0]
        assert trial.user_attrs[attrs.EPOCHS] == 2
    front = ranking.pareto_front(study.trials, attrs.metric_direction(study))
    assert {one.number for one in front} == {trial.number for trial in study.best_trials}
    kept = [
        trial.number
        for trial in study.trials
        if "weights.safetensors"
        in [meta.filename for meta in get_all_artifact_meta(trial, storage=handle.storage)]
    ]
    assert {one.number for one in front} <= set(kept)
    assert [event["value"] for event in events if event["event"] == "end"] == [
        trial.values[0] for trial in study.trials
    ]


@pytest.mark.parametrize("kind", [{"data__folds": 2}, {"objectives": TWO}], ids=["folds", "two"])
def test_an_interrupted_trial_goes_on_where_it_was(tmp_path: Path, kind: dict[str, Any]) -> None:
    options = {"search__trials": 1, "search__pruner": "none", "training__epochs": 4, **kind}
    undisturbed = open_small(tmp_path / "a", **options)
    run(undisturbed)
    handle = open_small(tmp_path / "b", **options)
    run(handle, until=lambda event: event.get("epoch") == 2)
    resumed = run(handle)
    assert [one["epoch"] for one in resumed if one["event"] == "epoch"] == [3, 4]
    (expected,) = undisturbed.study.trials
    first, second = handle.study.trials
    assert second.state == TrialState.COMPLETE
    assert second.intermediate_values == expected.intermediate_values
    assert untimed_curves(second) == untimed_curves(expected)
    for name in (attrs.METRICS, attrs.DEVIATIONS):
        assert second.user_attrs.get(name) == expected.user_attrs.get(name)
    # Measured once: a latency is never twice the same.
    costs = second.user_attrs[attrs.COSTS]
    assert costs == first.user_attrs[attrs.COSTS]
    cost = [costs["latency_ms"]] if "objectives" in kind else []
    assert second.values == [expected.values[0], *cost]


@pytest.mark.slow
def test_limits_do_not_change_what_is_trained(tmp_path: Path) -> None:
    wide = {"max_parameters": 10**9, "max_latency_ms": 1e6, "max_memory_mb": 1e6}
    studies = [
        open_small(tmp_path / "a", search__sampler="random"),
        open_small(tmp_path / "b", search__sampler="random", constraints=wide),
    ]
    for handle in studies:
        run(handle)
    found = [
        [
            (TrialPlan.from_json(trial.user_attrs[attrs.PLAN]), trial.intermediate_values)
            for trial in handle.study.trials
        ]
        for handle in studies
    ]
    assert found[0] == found[1]
    (costs,) = {tuple(trial.user_attrs[attrs.COSTS]) for trial in studies[1].study.trials}
    assert costs == ("parameters", "latency_ms", "memory_mb")
