"""What is drawn and listed of a study of many trials."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.results.figures import history, parameters, pareto, thinning
from autotune.results.figures.history import curves_figure, history_figure, timeline_figure
from autotune.results.report import html, trial_table
from autotune.results.report.html import render_html
from autotune.results.report.trial_table import choose_rows, trial_rows
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from tests.support.pages.page import some, traces
from tests.support.study.studies import make_results, make_study


def numbers(trials: Iterable[FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw so little that a small study is a large one."""
    limits = {"MAX_POINTS": 30, "MAX_CURVES": 20, "MAX_SLICE_POINTS": 12, "MAX_BARS": 15}
    for name, limit in {**limits, "BEST_DRAWN": 5, "MAX_ROWS": 20}.items():
        for module in (history, parameters, pareto, thinning, trial_table, html):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, limit)


@pytest.fixture(scope="module")
def results() -> StudyResults:
    return make_results(trials=80, retried=3)


def test_a_small_study_is_drawn_completely(results: StudyResults) -> None:
    trials = list(results.trials)
    assert thinning.thin(results, trials, len(trials)) == trials
    rows = choose_rows(results)
    assert rows[0] is results.best and sorted(rows, key=lambda trial: trial.number) == trials
    page = render_html(results)
    assert "The table has" not in page and "are drawn" not in page


@pytest.mark.parametrize("most", [10, 11, 37])
def test_trials_are_spread_evenly_and_the_best_are_among_them(
    results: StudyResults, most: int, few: None
) -> None:
    drawn = numbers(thinning.thin(results, results.trials, most, keep={3}))
    assert len(drawn) <= most + 2  # the one to keep, and the baseline
    assert drawn == sorted(set(drawn))
    complete = [trial for trial in results.trials if trial.state == TrialState.COMPLETE]
    ranked = sorted(complete, key=lambda trial: -trial.values[0])
    assert {*numbers(ranked[:5]), 0, 3} <= set(drawn)
    gaps = [after - before for before, after in pairwise(drawn)]
    assert max(gaps) <= -(-len(results.trials) // (most - 5))


def test_figures_say_how_many_trials_they_show(results: StudyResults, few: None) -> None:
    title = some(history_figure(results)).layout.xaxis.title.text
    assert re.search(r"trial \(\d+ of 80 trials are drawn\)", title)
    for figure in (curves_figure(results), parameters.slice_figure(results, "training.lr")):
        assert "trials are drawn)" in some(figure).layout.xaxis.title.text
    timeline = some(timeline_figure(results))
    assert timeline.layout.xaxis.title.text.partition("; ")[2].startswith("the newest trials (")
    drawn = {number for bar in timeline.data for number, _ in bar.customdata}
    assert set(numbers(one for one in results.trials if one.datetime_start)[-15:]) <= drawn


def test_the_best_so_far_is_the_same_line(
    results: StudyResults, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def value_at(line: Any, number: int) -> float:
        points = zip(line.x, line.y, strict=True)
        return float([y for x, y in points if x <= number][-1])

    thin = traces(history_figure(results))
    monkeypatch.setattr(history, "MAX_POINTS", 10_000)
    full = traces(history_figure(results))
    assert len(thin["best so far"].x) < len(full["best so far"].x)
    last = results.trials[-1].number
    for number in range(last + 1):
        assert value_at(thin["best so far"], number) == value_at(full["best so far"], number)
    # Every step of the line has its point.
    assert set(thin["best so far"].x) <= {*thin["complete"].x, last}


def test_rows_of_the_table_do_not_depend_on_the_others(results: StudyResults, few: None) -> None:
    every = {row.number: row for row in trial_rows(results, results.trials)}
    chosen = choose_rows(results)
    assert len(chosen) < len(every)
    rows = trial_rows(results, chosen)
    assert rows == [every[trial.number] for trial in chosen]
    assert rows[0].mark == "best"
    assert any(row.mark == "baseline" for row in rows)
    assert any(row.state == "retried" for row in every.values())
    page = render_html(results)
    for text in ("The table has", "report digits --format csv", "do not show all trials"):
        assert text in page


@pytest.mark.slow
def test_a_report_of_5000_trials_has_less_than_4_mb() -> None:
    templates = [one for one in make_study(trials=200).trials if one.state.is_finished()]
    study = make_study(trials=0, running=0, failed=0, budget=5000)
    begin = datetime(2026, 1, 5)
    for number in range(5000):
        one = templates[number % len(templates)]
        copied = create_trial(
            state=one.state,
            values=one.values,
            params=one.params,
            distributions=one.distributions,
            user_attrs={**one.user_attrs, attrs.CLAIMED_AT: begin.timestamp() + 10 * number},
            system_attrs=one.system_attrs,
            intermediate_values=one.intermediate_values,
        )
        copied.datetime_start = begin + timedelta(seconds=10 * number)
        copied.datetime_complete = copied.datetime_start + timedelta(seconds=9)
        study.add_trial(copied)
    assert len(study.get_trials(deepcopy=False)) == 5000
    assert len(render_html(StudyResults.from_study(study)).encode()) < 4_000_000
