"""The figures of the course of a study, and what all figures have in common."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from autotune.results.figures import history as course
from autotune.results.figures import parameters
from tests.support.figures import add, best_of, some, traces
from tests.support.studies import EPOCHS, HOSTILE, ONE_PARAMETER, make_study

WHOLE = (course.history_figure, course.curves_figure, course.timeline_figure)


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study()


def test_empty_study_has_no_figures() -> None:
    study = make_study(trials=0, running=0, failed=0)
    assert [draw(study) for draw in WHOLE] == [None] * 3
    assert parameters.importances_figure(study) is None
    assert parameters.parameter_names(study) == ()


def test_running_trials_alone_have_curves_only() -> None:
    study = make_study(trials=0, running=2, failed=0)
    drawn = [draw(study) is not None for draw in WHOLE]
    assert drawn == [False, True, False]


def test_baseline_alone() -> None:
    study = make_study(trials=1, running=0, failed=0)
    assert all(draw(study) is not None for draw in WHOLE)
    assert parameters.importances_figure(study) is None


def test_history(study: Study) -> None:
    found = traces(course.history_figure(study))
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert list(found["complete"].x) == [one.number for one in complete]
    best = list(found["best so far"].y)
    assert best == sorted(best) and best[-1] == best_of(study).value
    assert set(found["baseline"].y) == {study.trials[0].value}
    assert found["baseline"].line.dash == "dash"
    pruned = found["pruned, at their last epoch"]
    assert len(pruned.x) == len(study.get_trials(states=(TrialState.PRUNED,)))
    assert pruned.marker.symbol != found["complete"].marker.symbol


@pytest.mark.parametrize(("direction", "far"), [("maximize", 0.1), ("minimize", 0.99)])
def test_what_was_pruned_far_off_leaves_room_for_the_others(direction: str, far: float) -> None:
    study = optuna.create_study(direction=direction)
    for value in (0.8, 0.9):
        study.add_trial(create_trial(value=value))
    for value in (0.82, far):
        study.add_trial(create_trial(state=TrialState.PRUNED, value=value))
    pruned = traces(course.history_figure(study))["pruned, at their last epoch"]
    nearer = 0.75 if direction == "maximize" else 0.95
    assert list(pruned.y) == [0.82, pytest.approx(nearer)]
    assert pruned.marker.symbol[0] == "x-thin" and pruned.marker.symbol[1].startswith("triangle")
    assert [point[1] for point in pruned.customdata] == [0.82, far]  # what is shown beside it


def test_history_of_a_minimised_objective() -> None:
    study = make_study(objective="log_loss")
    figure = some(course.history_figure(study))
    best = list(traces(figure)["best so far"].y)
    assert best == sorted(best, reverse=True)
    assert figure.layout.yaxis.title.text == "log loss"
    assert figure.layout.yaxis.tickformat is None


def test_curves(study: Study) -> None:
    found = traces(course.curves_figure(study))
    best = best_of(study)
    assert list(found) == [
        "pruned",
        "failed",
        "running",
        "complete",
        "baseline",
        f"best (trial {best.number})",
    ]
    named = found[f"best (trial {best.number})"]
    assert list(named.y[:-1]) == list(best.intermediate_values.values())
    assert named.line.width > found["complete"].line.width > found["pruned"].line.width
    assert max(x for x in found["complete"].x if x is not None) == EPOCHS


def test_curves_when_the_baseline_is_best() -> None:
    found = traces(course.curves_figure(make_study(gain=-0.05)))
    assert "baseline" in found and not any(name.startswith("best") for name in found)


def test_timeline_has_a_lane_per_worker_and_a_bar_per_trial(study: Study) -> None:
    figure = some(course.timeline_figure(study))
    assert len(figure.layout.yaxis.categoryarray) == 2
    assert sum(len(trace.x) for trace in figure.data) == len(study.trials)
    assert list(traces(figure)) == ["complete", "pruned", "failed", "retried", "running"]
    assert len({trace.marker.color for trace in figure.data}) == 5


def test_a_dead_study_is_not_drawn_up_to_the_present(study: Study) -> None:
    moment = course.last_moment(study.trials)
    assert moment is not None and moment.date() == study.trials[0].datetime_start.date()


def test_a_live_trial_is_drawn_up_to_the_present() -> None:
    study = make_study(trials=2, running=1, failed=0, retried=0)
    trials = study.get_trials()
    trials[-1].datetime_start = datetime.now() - timedelta(seconds=10)
    moment = course.last_moment(trials)
    assert moment is not None and datetime.now() - moment < timedelta(seconds=60)


def test_figures_are_transparent_and_hold_no_markup_of_others() -> None:
    study = make_study(hostile=True, name=HOSTILE)
    drawn = [draw(study) for draw in (*WHOLE, parameters.importances_figure)]
    drawn += [parameters.slice_figure(study, name) for name in parameters.parameter_names(study)]
    for figure in drawn:
        layout = some(figure).layout.template.layout
        assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0, 0, 0, 0)"
        assert "<script" not in json.dumps(json.loads(some(figure).to_json()))


def test_values_that_are_no_numbers_are_left_out() -> None:
    study = make_study(trials=0, running=0, failed=0, space=ONE_PARAMETER, objective="log_loss")
    for depth, value in ((0, 0.5), (1, float("inf")), (2, 0.4)):
        add(study, {"depth": depth}, {"depth": IntDistribution(0, 5)}, value)
    assert list(traces(course.history_figure(study))["complete"].x) == [0, 2]
    assert parameters.importances_figure(study) is not None
