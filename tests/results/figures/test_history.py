"""The figures of the course of a study, and what all figures have in common."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from autotune.results.figures.history import (
    curves_figure,
    history_figure,
    last_moment,
    timeline_figure,
)
from autotune.results.figures.parameters import importances, importances_figure, slice_figure
from autotune.results.study_results import StudyResults
from tests.support.pages.page import add, some, traces
from tests.support.study.studies import EPOCHS, HOSTILE, ONE_PARAMETER, make_results, make_study

FIGURES = (
    history_figure,
    curves_figure,
    timeline_figure,
    lambda results: importances_figure(importances(results)),
)


@pytest.fixture(scope="module")
def results() -> StudyResults:
    return make_results()


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({"trials": 0, "running": 0, "failed": 0}, [False] * 4),
        ({"trials": 0, "running": 2, "failed": 0}, [False, True, False, False]),
        ({"trials": 1, "running": 0, "failed": 0}, [True, True, True, False]),
    ],
    ids=["empty", "running", "baseline"],
)
def test_figures_of_a_study_at_its_start(options: dict[str, Any], drawn: list[bool]) -> None:
    results = make_results(**options)
    assert [draw(results) is not None for draw in FIGURES] == drawn


def test_history(results: StudyResults) -> None:
    drawn = traces(history_figure(results))
    complete = [one.number for one in results.trials if one.state == TrialState.COMPLETE]
    assert list(drawn["complete"].x) == complete
    best = list(drawn["best so far"].y)
    assert results.best is not None
    assert best == sorted(best) and best[-1] == results.best.value
    assert set(drawn["baseline"].y) == {results.trials[0].value}
    assert drawn["baseline"].line.dash == "dash"
    pruned = drawn["pruned, at their last epoch"]
    assert len(pruned.x) == results.progress.pruned
    assert pruned.marker.symbol != drawn["complete"].marker.symbol
    minimized = some(history_figure(make_results(objective="log_loss")))
    best = list(traces(minimized)["best so far"].y)
    assert best == sorted(best, reverse=True)
    assert minimized.layout.yaxis.title.text == "log loss"
    assert minimized.layout.yaxis.tickformat is None


@pytest.mark.parametrize(("direction", "far"), [("maximize", 0.1), ("minimize", 0.99)])
def test_what_was_pruned_far_off_leaves_room_for_the_others(direction: str, far: float) -> None:
    study = optuna.create_study(direction=direction)
    for value in (0.8, 0.9):
        study.add_trial(create_trial(value=value))
    for value in (0.82, far):
        study.add_trial(create_trial(state=TrialState.PRUNED, value=value))
    drawn = traces(history_figure(StudyResults.from_study(study)))
    pruned = drawn["pruned, at their last epoch"]
    nearer = 0.75 if direction == "maximize" else 0.95
    assert list(pruned.y) == [0.82, pytest.approx(nearer)]
    assert pruned.marker.symbol[0] == "x-thin" and pruned.marker.symbol[1].startswith("triangle")
    assert [point[1] for point in pruned.customdata] == [0.82, far]  # the text beside a point


def test_curves(results: StudyResults) -> None:
    drawn = traces(curves_figure(results))
    assert results.best is not None
    best = f"best (trial {results.best.number})"
    assert list(drawn) == ["pruned", "failed", "running", "complete", "baseline", best]
    assert list(drawn[best].y[:-1]) == list(results.best.intermediate_values.values())
    assert drawn[best].line.width > drawn["complete"].line.width > drawn["pruned"].line.width
    assert max(x for x in drawn["complete"].x if x is not None) == EPOCHS
    drawn = traces(curves_figure(make_results(gain=-0.05)))  # the baseline is best
    assert "baseline" in drawn and not any(name.startswith("best") for name in drawn)


def test_timeline_has_a_lane_per_worker_and_a_bar_per_trial(results: StudyResults) -> None:
    figure = some(timeline_figure(results))
    assert len(figure.layout.yaxis.categoryarray) == 2
    assert sum(len(trace.x) for trace in figure.data) == len(results.trials)
    assert list(traces(figure)) == ["complete", "pruned", "failed", "retried", "running"]
    assert len({trace.marker.color for trace in figure.data}) == 5


def test_a_trial_is_drawn_up_to_the_present_while_it_can_be_alive(results: StudyResults) -> None:
    moment, start = last_moment(results.trials), results.trials[0].datetime_start
    assert moment is not None and start is not None and moment.date() == start.date()
    trials = make_study(trials=2, running=1, failed=0, retried=0).get_trials()
    trials[-1].datetime_start = datetime.now() - timedelta(seconds=10)
    moment = last_moment(trials)
    assert moment is not None and datetime.now() - moment < timedelta(seconds=60)


def test_figures_are_transparent_and_hold_no_markup_of_others() -> None:
    results = make_results(hostile=True, name=HOSTILE)
    drawn = [draw(results) for draw in FIGURES]
    drawn += [slice_figure(results, name) for name in results.parameter_names]
    for figure in drawn:
        layout = some(figure).layout.template.layout
        assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0, 0, 0, 0)"
        assert "<script" not in json.dumps(json.loads(some(figure).to_json()))


def test_values_that_are_not_finite_are_left_out() -> None:
    study = make_study(trials=0, running=0, failed=0, space=ONE_PARAMETER, objective="log_loss")
    for depth, value in ((0, 0.5), (1, float("inf")), (2, 0.4)):
        add(study, {"depth": depth}, {"depth": IntDistribution(0, 5)}, value)
    results = StudyResults.from_study(study)
    assert list(traces(history_figure(results))["complete"].x) == [0, 2]
    assert importances(results)
