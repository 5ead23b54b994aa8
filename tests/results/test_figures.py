"""The figures of a study."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import plotly.graph_objects as go
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.results import figures
from autotune.results.figures import Objective
from autotune.study import record
from tests.support.studies import EPOCHS, HOSTILE, ONE_PARAMETER, make_study

WHOLE = (figures.history_figure, figures.curves_figure, figures.timeline_figure)


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study()


def some(figure: go.Figure | None) -> go.Figure:
    assert figure is not None
    return figure


def traces(figure: go.Figure | None) -> dict[str, Any]:
    return {trace.name: trace for trace in some(figure).data}


def best_of(study: Study) -> FrozenTrial:
    best = record.best_of(study.trials, study.direction)
    assert best is not None
    return best


# Objective


def test_objective_of_a_study(study: Study) -> None:
    assert Objective.of(study) == Objective("accuracy", StudyDirection.MAXIMIZE, 1)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.8416, "84.2 %"),
        ("macro_f1", 1.0, "100.0 %"),
        ("log_loss", 0.51299, "0.5130"),
        ("log_loss", float("inf"), "inf"),
        ("accuracy", float("nan"), "–"),
        ("accuracy", None, "–"),
    ],
)
def test_show(name: str, value: float | None, text: str) -> None:
    assert Objective(name, StudyDirection.MAXIMIZE).show(value) == text


def test_differences_follow_the_metric() -> None:
    accuracy = Objective("accuracy", StudyDirection.MAXIMIZE)
    loss = Objective("log_loss", StudyDirection.MINIMIZE)
    assert accuracy.difference(0.951, 0.842) == "+10.9 points"
    assert accuracy.difference(0.80, 0.842) == "−4.2 points"
    assert loss.difference(0.22, 0.51) == "0.2900 lower"
    assert loss.difference(0.51, 0.22) == "0.2900 higher"
    assert loss.difference(0.5, 0.5) == "no difference"


def test_decimals_are_what_the_validation_part_resolves() -> None:
    study = make_study(trials=1, running=0, failed=0)
    study.set_user_attr(record.DATASET, {"validation": 5000})
    assert Objective.of(study).show(0.84164) == "84.16 %"


# Nothing to draw yet


def test_empty_study_has_no_figures() -> None:
    study = make_study(trials=0, running=0, failed=0)
    assert [draw(study) for draw in WHOLE] == [None] * 3
    assert figures.importances_figure(study) is None
    assert figures.parameter_names(study) == ()


def test_running_trials_alone_have_curves_only() -> None:
    study = make_study(trials=0, running=2, failed=0)
    drawn = [draw(study) is not None for draw in WHOLE]
    assert drawn == [False, True, False]


def test_baseline_alone() -> None:
    study = make_study(trials=1, running=0, failed=0)
    assert all(draw(study) is not None for draw in WHOLE)
    assert figures.importances_figure(study) is None


def test_importances_need_values_that_differ() -> None:
    study = make_study(trials=0, running=0, failed=0, space=ONE_PARAMETER)
    for depth in (1, 2, 3):
        add(study, {"depth": depth}, {"depth": IntDistribution(0, 5)}, 0.5)
    assert figures.importances_figure(study) is None


# What is drawn


def test_history(study: Study) -> None:
    found = traces(figures.history_figure(study))
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert list(found["complete"].x) == [one.number for one in complete]
    best = list(found["best so far"].y)
    assert best == sorted(best) and best[-1] == best_of(study).value
    assert set(found["baseline"].y) == {study.trials[0].value}
    assert found["baseline"].line.dash == "dash"
    pruned = found["pruned, at their last epoch"]
    assert len(pruned.x) == len(study.get_trials(states=(TrialState.PRUNED,)))
    assert pruned.marker.symbol != found["complete"].marker.symbol


def test_history_of_a_minimised_objective() -> None:
    study = make_study(objective="log_loss")
    figure = some(figures.history_figure(study))
    best = list(traces(figure)["best so far"].y)
    assert best == sorted(best, reverse=True)
    assert figure.layout.yaxis.title.text == "log loss"
    assert figure.layout.yaxis.tickformat is None


def test_curves(study: Study) -> None:
    found = traces(figures.curves_figure(study))
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
    found = traces(figures.curves_figure(make_study(gain=-0.05)))
    assert "baseline" in found and not any(name.startswith("best") for name in found)


def test_timeline_has_a_lane_per_worker_and_a_bar_per_trial(study: Study) -> None:
    figure = some(figures.timeline_figure(study))
    assert len(figure.layout.yaxis.categoryarray) == 2
    assert sum(len(trace.x) for trace in figure.data) == len(study.trials)
    assert list(traces(figure)) == ["complete", "pruned", "failed", "retried", "running"]
    assert len({trace.marker.color for trace in figure.data}) == 5


def test_a_dead_study_is_not_drawn_up_to_the_present(study: Study) -> None:
    moment = figures.last_moment(study.trials)
    assert moment is not None and moment.date() == study.trials[0].datetime_start.date()


def test_a_live_trial_is_drawn_up_to_the_present() -> None:
    study = make_study(trials=2, running=1, failed=0, retried=0)
    trials = study.get_trials()
    trials[-1].datetime_start = datetime.now() - timedelta(seconds=10)
    moment = figures.last_moment(trials)
    assert moment is not None and datetime.now() - moment < timedelta(seconds=60)


def test_importances_name_every_parameter(study: Study) -> None:
    bars = some(figures.importances_figure(study)).data[0]
    assert set(bars.y) == set(figures.parameter_names(study))
    assert sum(bars.x) == pytest.approx(1.0)


def test_slices(study: Study) -> None:
    best = best_of(study)
    found = traces(figures.slice_figure(study, "training.lr"))
    assert list(found["best"].x) == [best.params["training.lr"]]
    figure = some(figures.slice_figure(study, "training.lr"))
    assert figure.layout.xaxis.type == "log"
    pools = some(figures.slice_figure(study, "head.pool")).layout.xaxis
    assert list(pools.categoryarray) == ["avg", "max", "avgmax"]


def test_slices_leave_out_inert_values(study: Study) -> None:
    figure = some(figures.slice_figure(study, "head.units.2"))
    expected = {
        one.number
        for one in study.get_trials(states=(TrialState.COMPLETE,))
        if one.params.get("head.hidden_layers") == 2
    }
    assert {row[0] for trace in figure.data for row in trace.customdata} == expected


def test_slice_of_one_parameter() -> None:
    study = make_study(space=ONE_PARAMETER)
    assert figures.parameter_names(study) == ("depth",)
    assert some(figures.slice_figure(study, "depth")).layout.xaxis.title.text == "depth"
    assert "baseline" in traces(figures.slice_figure(study, "depth"))


def test_a_definition_that_cannot_be_read_does_not_hide_the_trials(study: Study) -> None:
    other = make_study()
    other.set_user_attr(record.DEFINITION, {"space": {"colour": 3}})
    assert figures.space_of(other) is None
    drawn = some(figures.slice_figure(other, "head.units.2"))
    assert sum(len(trace.x) for trace in drawn.data) > 0


def test_figures_are_transparent_and_hold_no_markup_of_others() -> None:
    study = make_study(hostile=True, name=HOSTILE)
    drawn = [draw(study) for draw in (*WHOLE, figures.importances_figure)]
    drawn += [figures.slice_figure(study, name) for name in figures.parameter_names(study)]
    for figure in drawn:
        layout = some(figure).layout.template.layout
        assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0, 0, 0, 0)"
        assert "<script" not in json.dumps(json.loads(some(figure).to_json()))


def test_values_that_are_no_numbers_are_left_out() -> None:
    study = make_study(trials=0, running=0, failed=0, space=ONE_PARAMETER, objective="log_loss")
    for depth, value in ((0, 0.5), (1, float("inf")), (2, 0.4)):
        add(study, {"depth": depth}, {"depth": IntDistribution(0, 5)}, value)
    assert list(traces(figures.history_figure(study))["complete"].x) == [0, 2]
    assert figures.importances_figure(study) is not None


# The edge of the space


def add(
    study: Study, params: dict[str, Any], found: dict[str, BaseDistribution], value: float
) -> FrozenTrial:
    study.add_trial(
        create_trial(state=TrialState.COMPLETE, value=value, params=params, distributions=found)
    )
    return study.trials[-1]


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
    ],
)
def test_edges(
    name: str, found: BaseDistribution, value: Any, side: str, can_be_widened: bool
) -> None:
    study = make_study(trials=0, running=0, failed=0)
    edges = figures.edges_of_space(study, add(study, {name: value}, {name: found}, 0.5))
    assert [(one.side, one.can_be_widened) for one in edges] == (
        [(side, can_be_widened)] if side else []
    )


def test_an_inert_value_is_at_no_edge() -> None:
    study = make_study()
    linear = next(one for one in study.trials if one.params.get("head.hidden_layers") == 0)
    names = {edge.parameter for edge in figures.edges_of_space(study, linear)}
    assert not names & {"head.units.1", "head.dropout.1", "head.units.2", "head.dropout.2"}
