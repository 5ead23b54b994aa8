"""The Pareto front as a figure, in words and on the page; and studies with limits."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from autotune.results.diagnosis.answer import describe_answer
from autotune.results.diagnosis.diagnostics import diagnose
from autotune.results.diagnosis.headline import key_figures
from autotune.results.diagnosis.next_steps import next_steps
from autotune.results.figures.history import history_figure, timeline_figure
from autotune.results.figures.parameters import importances
from autotune.results.figures.pareto import front_figure
from autotune.results.report.trial_table import backbone_rows, cost_names, trial_rows
from autotune.results.study_results import StudyResults
from tests.support.pages.page import page_of, report_page, some, traces
from tests.support.study.studies import HOSTILE, make_results, make_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TWO = ("accuracy", "latency_ms")
OUT_OF_REACH = {"max_latency_ms": 0.5}


@pytest.fixture(scope="module")
def results() -> StudyResults:
    return make_results(objectives=TWO, trials=40)


@pytest.fixture(scope="module")
def limited() -> StudyResults:
    return make_results(constraints={"max_latency_ms": 1.4}, trials=30)


def test_one_objective_has_no_front(limited: StudyResults) -> None:
    assert limited.front == () and limited.cost is None
    assert front_figure(limited) is None


def test_the_front_goes_from_the_best_to_the_cheapest(results: StudyResults) -> None:
    assert len(results.front) > 1
    optimal = {trial.number for trial in results.study.best_trials}
    assert {trial.number for trial in results.front} <= optimal
    for better, cheaper in itertools.pairwise(results.front):
        assert better.values[0] > cheaper.values[0] and better.values[1] > cheaper.values[1]


def test_the_headline_has_both_values(results: StudyResults) -> None:
    best = results.front[0]
    text = describe_answer(results)
    assert text.startswith(
        f"baseline 84.2 % at 0.800 ms → best {results.format_values(best)} (trial {best.number}, "
    )
    assert text.endswith("3 trials on the Pareto front")


def test_the_figure_of_the_front(results: StudyResults) -> None:
    figure = some(front_figure(results))
    drawn = traces(figure)
    assert list(drawn) == ["front", "complete", "Pareto front", "baseline"]
    assert list(drawn["Pareto front"].x) == [trial.values[1] for trial in results.front]
    assert list(drawn["Pareto front"].y) == [trial.values[0] for trial in results.front]
    line = drawn["front"]
    assert line.line.shape == "hv"
    assert list(line.x) == sorted(line.x) and list(line.y) == sorted(line.y)
    points = sum(len(drawn[name].x) for name in ("complete", "Pareto front", "baseline"))
    # The baseline is on the front of this study, and drawn as both.
    assert points == results.progress.complete + 1
    assert figure.layout.xaxis.title.text == "latency (ms)"


@pytest.mark.parametrize("cost", ["latency_ms", "parameters", "memory_mb"])
@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_every_pair_of_objectives_gives_a_page(metric: str, cost: str) -> None:
    page = page_of(make_study(objectives=[metric, cost], trials=12, hostile=True, name=HOSTILE))
    assert not page.open
    headings = {"Metric against cost", "Course of the study", "Learning curves"}
    assert headings <= set(page.of("h2"))
    assert len(page.having("table", **{"class": "front stacked"})) == 1


@pytest.mark.parametrize("trials", [0, 1, 2])
def test_a_study_of_two_objectives_at_its_start(trials: int) -> None:
    study = make_study(objectives=TWO, trials=trials, failed=0)
    assert not page_of(study).open
    assert (front_figure(StudyResults.from_study(study)) is None) == (trials == 0)


def test_importances_are_those_of_the_metric(results: StudyResults) -> None:
    """They are what the same trials give with the metric as the only objective."""
    single = optuna.create_study(direction="maximize")
    for trial in results.trials:
        if trial.state == TrialState.COMPLETE:
            found = trial.distributions
            single.add_trial(
                create_trial(value=trial.values[0], params=trial.params, distributions=found)
            )
    alone = importances(StudyResults.from_study(single))
    assert importances(results) == pytest.approx(alone)


def test_infeasible_trials_are_counted_and_say_why(limited: StudyResults) -> None:
    infeasible = limited.progress.infeasible
    assert infeasible > 0
    figures = {name: text for name, _, text in key_figures(limited)}
    assert f"{infeasible} infeasible" in figures["finished trials"]
    assert cost_names(limited) == ("latency_ms",)
    rows = [row for row in trial_rows(limited, limited.trials) if row.state == "infeasible"]
    assert len(rows) == infeasible
    for row in rows:
        assert row.value.text == "–" and row.costs[0].text.endswith(" ms")
        assert row.reason == f"infeasible: {row.costs[0].text} latency, at most 1.40 ms"
    assert len(traces(timeline_figure(limited))["infeasible"].x) == infeasible
    pruned = [trial for trial in limited.trials if trial.state == TrialState.PRUNED]
    saved = sum(10 - len(one.intermediate_values) for one in pruned if one.intermediate_values)
    # Infeasible trials save no epochs.
    assert f"pruning saved {saved:,} of " in figures["epochs trained"]


def test_where_nothing_is_within_the_limits_the_page_says_so() -> None:
    study = make_study(constraints=OUT_OF_REACH, trials=20, failed=0, running=0)
    results = StudyResults.from_study(study)
    assert describe_answer(results) == results.explain_no_best()
    answers = [found.answer for found in diagnose(results) if found.severity == "action"]
    assert any("were beyond the limits or the memory" in answer for answer in answers)
    assert any("The nearest is trial" in step.text for step in next_steps(results))
    page = page_of(study)
    assert not page.open and "best so far" not in page.text
    assert list(traces(history_figure(results))) == ["complete", "baseline"]


def test_a_baseline_beyond_the_limits_is_marked() -> None:
    results = make_results(objectives=TWO, constraints=OUT_OF_REACH, trials=8, failed=0)
    drawn = traces(front_figure(results))
    assert list(drawn) == ["baseline, beyond a limit"]
    assert drawn["baseline, beyond a limit"].marker.symbol == "diamond-open"


def test_the_limit_is_drawn_where_it_is_near(results: StudyResults) -> None:
    near = make_results(objectives=TWO, constraints={"max_latency_ms": 1.4}, trials=30)
    (line,) = some(front_figure(near)).layout.shapes
    assert line.x0 == line.x1 == 1.4
    assert not some(front_figure(results)).layout.shapes


def test_the_page_works_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    study = make_study(objectives=TWO, constraints={"max_latency_ms": 1.2}, trials=30)
    viewport = {"width": 390, "height": 800}
    page, messages, _ = report_page(browser, study, tmp_path, viewport=viewport)
    assert messages == []
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator(".front tbody tr").count() > 1
    page.close()


def test_several_backbones_are_named_with_both_values() -> None:
    results = make_results(objectives=TWO, others={"tiny": 3}, trials=30)
    for row in backbone_rows(results):
        assert " % at " in row.value and row.value.endswith(" ms")
    figure = some(front_figure(results))
    plans = [point[2] for trace in figure.data if trace.customdata for point in trace.customdata]
    assert plans and all(plan.startswith(tuple(results.backbones)) for plan in plans)
