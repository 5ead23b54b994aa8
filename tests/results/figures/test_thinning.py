"""What is drawn and listed of a study of many trials."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.results.figures import history as course
from autotune.results.figures import thinning
from autotune.results.figures.parameters import slice_figure
from autotune.results.report.html import render_report
from autotune.results.report.trial_table import table_of
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from tests.support.figures import some, traces
from tests.support.studies import make_study


def numbers(trials: list[FrozenTrial]) -> list[int]:
    return [one.number for one in trials]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw so little that a small study is a large one."""
    for name, most in (
        ("MOST_POINTS", 30),
        ("MOST_CURVES", 20),
        ("MOST_SLICE_POINTS", 12),
        ("MOST_BARS", 15),
    ):
        for module in ("course", "parameters", "pareto"):
            path = f"autotune.results.{module}.{name}"
            monkeypatch.setattr(path, most, raising=False)
    monkeypatch.setattr(thinning, "BEST_DRAWN", 5)
    monkeypatch.setattr(thinning, "MOST_ROWS", 20)


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study(trials=80, retried=3)


def test_what_is_few_is_drawn_whole(study: Study) -> None:
    results = StudyResults.from_study(study)
    assert thinning.thin(results, results.trials, len(results.trials)) == list(results.trials)
    assert thinning.choose_rows(results) == list(results.trials)
    assert thinning.count_in_words(7, 7) == ""


@pytest.mark.parametrize("most", [10, 11, 37])
def test_trials_are_spread_evenly_and_the_best_are_among_them(
    study: Study, most: int, few: None
) -> None:
    results = StudyResults.from_study(study)
    drawn = thinning.thin(results, results.trials, most, keep={3})
    assert len(drawn) <= most + 2  # the one to keep, and the baseline
    assert numbers(drawn) == sorted(set(numbers(drawn)))
    ranked = sorted(
        (one for one in results.trials if one.state == TrialState.COMPLETE),
        key=lambda one: -one.values[0],
    )
    assert {*numbers(ranked[:5]), 0, 3} <= set(numbers(drawn))
    gaps = [after - before for before, after in pairwise(numbers(drawn))]
    assert max(gaps) <= -(-len(results.trials) // (most - 5))


def test_figures_say_how_many_trials_they_show(study: Study, few: None) -> None:
    results = StudyResults.from_study(study)
    history = some(course.history_figure(results))
    assert re.search(r"trial \(\d+ of 80 trials are drawn\)", history.layout.xaxis.title.text)
    assert "trials are drawn)" in some(course.curves_figure(results)).layout.xaxis.title.text
    sliced = some(slice_figure(results, "training.lr"))
    assert "trials are drawn)" in sliced.layout.xaxis.title.text
    timeline = some(course.timeline_figure(results))
    assert timeline.layout.xaxis.title.text.startswith("the newest trials (")
    shown = {number for bar in timeline.data for number, _ in bar.customdata}
    begun = [one.number for one in results.trials if one.datetime_start]
    assert set(begun[-15:]) <= shown


def test_the_best_so_far_is_the_same_line(
    study: Study, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def value_at(line: Any, number: int) -> float:
        drawn = zip(line.x, line.y, strict=True)
        return float([y for x, y in drawn if x <= number][-1])

    thin = traces(course.history_figure(study))
    monkeypatch.setattr(course, "MOST_POINTS", 10_000)
    whole = traces(course.history_figure(study))
    assert len(thin["best so far"].x) < len(whole["best so far"].x)
    last = study.trials[-1].number
    for number in range(last + 1):
        assert value_at(thin["best so far"], number) == value_at(whole["best so far"], number)
    # Every step of the line has its point.
    assert set(thin["best so far"].x) <= {*thin["complete"].x, last}


def test_rows_of_the_table_do_not_depend_on_which_others_are_shown(
    study: Study, few: None
) -> None:
    results = StudyResults.from_study(study)
    every = {row.number: row for row in table_of(results.trials, results.objective, results.best)}
    chosen = thinning.choose_rows(results)
    assert len(chosen) < len(every)
    rows = table_of(chosen, results.objective, results.best, among=results.trials)
    assert rows == [every[one.number] for one in chosen]
    assert rows[0].mark == "baseline"
    assert any(row.mark == "best" for row in rows)
    retried = [
        row for row in table_of(results.trials, results.objective, None) if "retried" in row.state
    ]
    assert retried


def test_the_page_says_what_is_left_out(study: Study, few: None) -> None:
    page = render_report(study)
    assert "autotune report digits --format csv" in page
    assert "The table has" in page
    assert "figures do not show all of them" in page


def test_the_page_of_a_small_study_says_nothing_of_it(study: Study) -> None:
    page = render_report(study)
    assert "The table has" not in page
    assert "are drawn" not in page


@pytest.mark.slow
def test_a_report_of_5000_trials_has_less_than_4_mb() -> None:
    made = make_study(trials=200)
    templates = [one for one in made.trials if one.state.is_finished()]
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
    size = len(render_report(study).encode())
    assert size < 4_000_000
