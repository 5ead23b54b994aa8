"""The Pareto front in words, as a figure, on the page; and studies with limits."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from optuna.study import Study

from autotune.results.diagnosis.diagnostics import diagnose
from autotune.results.diagnosis.headline import action_items, headline, key_figures
from autotune.results.figures import history as course
from autotune.results.figures import parameters
from autotune.results.figures.pareto import front_figure
from autotune.results.report.backbones import backbones_of
from autotune.results.report.html import render_report, write_report
from autotune.results.report.trial_table import cost_names, table_of
from autotune.results.values.objective import Objective, format_values
from autotune.results.values.pareto_front import closest_to_feasible, explain_no_best, front_of
from autotune.search import ranking
from autotune.study.state import attrs
from tests.results.report.test_html import report_page
from tests.support.figures import some, traces
from tests.support.page import Parsed
from tests.support.studies import HOSTILE, make_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TWO = ("accuracy", "latency_ms")
OUT_OF_REACH = {"max_latency_ms": 0.5}


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study(objectives=TWO, trials=40)


@pytest.fixture(scope="module")
def limited() -> Study:
    return make_study(constraints={"max_latency_ms": 1.4}, trials=30)


def test_one_objective_has_no_front(limited: Study) -> None:
    assert front_of(limited) == []
    assert front_figure(limited) is None
    assert Objective.cost_from_study(limited) is None


def test_the_front_goes_from_the_best_to_the_cheapest(study: Study) -> None:
    front = front_of(study)
    assert len(front) > 1
    assert {one.number for one in front} <= {one.number for one in study.best_trials}
    for better, cheaper in itertools.pairwise(front):
        assert better.values[0] > cheaper.values[0] and better.values[1] > cheaper.values[1]


def test_both_values_are_written(study: Study) -> None:
    objective, cost = Objective.from_study(study), Objective.cost_from_study(study)
    assert cost is not None
    assert (objective.label, cost.label) == ("accuracy", "latency")
    assert format_values(study.trials[0], objective, cost) == "84.2 % at 0.800 ms"
    assert cost.format_difference(0.98, 0.8) == "0.180 ms higher"
    best = front_of(study)[0]
    assert headline(study).startswith(
        f"baseline 84.2 % at 0.800 ms → best {format_values(best, objective, cost)} (trial "
        f"{best.number}, "
    )
    assert headline(study).endswith("3 trials on the Pareto front")


def test_the_figure_of_the_front(study: Study) -> None:
    figure = some(front_figure(study))
    drawn = traces(figure)
    front = front_of(study)
    assert list(drawn) == ["front", "complete", "Pareto front", "baseline"]
    assert list(drawn["Pareto front"].x) == [one.values[1] for one in front]
    assert list(drawn["Pareto front"].y) == [one.values[0] for one in front]
    line = drawn["front"]
    assert line.line.shape == "hv"
    assert list(line.x) == sorted(line.x) and list(line.y) == sorted(line.y)
    points = sum(len(drawn[name].x) for name in ("complete", "Pareto front", "baseline"))
    # The baseline is on the front of this study, and drawn as both.
    assert points == len(study.get_trials(states=(course.TrialState.COMPLETE,))) + 1
    assert figure.layout.xaxis.title.text == "latency (ms)"


@pytest.mark.parametrize("cost", ["latency_ms", "parameters", "memory_mb"])
@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_every_pair_of_objectives_gives_a_page(metric: str, cost: str) -> None:
    made = make_study(objectives=[metric, cost], trials=12, hostile=True, name=HOSTILE)
    rendered = render_report(made)
    assert "<script>alert" not in rendered
    parsed = Parsed(rendered)
    assert not parsed.open
    assert {"Metric against cost", "Course of the study", "Learning curves"} <= set(
        parsed.of("h2")
    )
    assert len(parsed.having("table", **{"class": "front"})) == 1


@pytest.mark.parametrize("trials", [0, 1, 2])
def test_a_study_of_two_objectives_at_its_start(trials: int) -> None:
    made = make_study(objectives=TWO, trials=trials, failed=0)
    assert not Parsed(render_report(made)).open
    assert (front_figure(made) is None) == (trials == 0)


def test_importances_are_those_of_the_metric(study: Study) -> None:
    """They are what the same trials give with the metric as the only objective."""
    import optuna

    single = optuna.create_study(direction="maximize")
    for trial in study.get_trials(states=(course.TrialState.COMPLETE,)):
        single.add_trial(
            optuna.trial.create_trial(
                value=trial.values[0], params=trial.params, distributions=trial.distributions
            )
        )
    found, alone = (some(parameters.importances_figure(one)).data[0] for one in (study, single))
    assert list(found.y) == list(alone.y)
    assert list(found.x) == pytest.approx(list(alone.x))


def test_infeasible_trials_are_counted_and_say_why(limited: Study) -> None:
    trials = limited.trials
    progress = attrs.count_progress(trials, 40)
    assert progress.infeasible > 0
    counted = key_figures(limited, trials, progress)[0][2]
    assert f"{progress.infeasible} infeasible" in counted
    assert cost_names(limited) == ("latency_ms",)
    best = ranking.best_trial(trials, attrs.metric_direction(limited))
    table = table_of(trials, Objective.from_study(limited), best, cost_names(limited))
    rows = [row for row in table if row.state == "infeasible"]
    assert len(rows) == progress.infeasible
    for row in rows:
        assert row.value.text == "–" and row.costs[0].text.endswith(" ms")
        assert row.reason == f"infeasible: {row.costs[0].text} latency, at most 1.40 ms"
    bars = traces(course.timeline_figure(limited))
    assert len(bars["infeasible"].x) == progress.infeasible
    pruned = [one for one in trials if one.state.name == "PRUNED"]
    saved = sum(10 - len(one.intermediate_values) for one in pruned if one.intermediate_values)
    # Of epochs, pruning has saved those of the pruned alone.
    assert (
        f"pruning saved {saved:,} of "
        in {name: words for name, _, words in key_figures(limited, trials, progress)}[
            "epochs trained"
        ]
    )


def test_where_nothing_is_within_the_limits_the_page_says_so() -> None:
    made = make_study(constraints=OUT_OF_REACH, trials=20, failed=0)
    least = closest_to_feasible(made.trials)
    assert least is not None and least.number == 0  # the baseline costs least
    text = "no complete trial within the limits; the nearest is trial 0, 0.800 ms latency, at most"
    assert headline(made).startswith(text)
    assert explain_no_best(made.trials) == headline(made)
    progress = attrs.count_progress(made.trials, 20)
    said = action_items(progress, diagnose(made))
    assert any("were beyond the limits or the memory" in one for one in said)
    parsed = Parsed(render_report(made))
    assert not parsed.open
    assert "best so far" not in parsed.text
    assert list(traces(course.history_figure(made))) == ["complete", "baseline"]


def test_a_baseline_beyond_the_limits_is_marked() -> None:
    made = make_study(objectives=TWO, constraints=OUT_OF_REACH, trials=8, failed=0)
    drawn = traces(front_figure(made))
    assert list(drawn) == ["baseline, beyond a limit"]
    assert drawn["baseline, beyond a limit"].marker.symbol == "diamond-open"


def test_the_limit_is_drawn_where_it_is_near() -> None:
    made = make_study(objectives=TWO, constraints={"max_latency_ms": 1.4}, trials=30)
    (line,) = some(front_figure(made)).layout.shapes
    assert line.x0 == line.x1 == 1.4
    assert not some(front_figure(make_study(objectives=TWO))).layout.shapes


@pytest.mark.parametrize(
    "made",
    [{"objectives": TWO}, {"objectives": TWO, "constraints": {"max_latency_ms": 1.2}}],
    ids=str,
)
def test_the_page_works_in_a_browser(
    browser: Browser, tmp_path: Path, made: dict[str, Any]
) -> None:
    path = write_report(make_study(**made, trials=30), tmp_path / "digits.html")
    page, said, _ = report_page(browser, path, viewport={"width": 390, "height": 800})
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator(".front tbody tr").count() > 1
    page.close()


def test_several_backbones_are_named_with_both_values() -> None:
    study = make_study(objectives=["accuracy", "latency_ms"], others={"tiny": 3}, trials=30)
    trials = study.get_trials(deepcopy=False)
    best = ranking.best_trial(trials, attrs.metric_direction(study))
    for row in backbones_of(study, trials, best):
        assert " % at " in row.value and row.value.endswith(" ms")
    figure = front_figure(study)
    assert figure is not None
    plans = [point[2] for trace in figure.data if trace.customdata for point in trace.customdata]
    names = tuple(study.user_attrs[attrs.BACKBONES])
    assert plans and all(one.startswith(names) for one in plans)
