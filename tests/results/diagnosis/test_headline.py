"""What a report says first: the headline, the key figures, and how far to trust them."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from autotune.results.diagnosis.answer import describe_answer, find_answer
from autotune.results.diagnosis.facts import Facts
from autotune.results.diagnosis.gain_checks import check_noise
from autotune.results.diagnosis.headline import (
    caveats,
    describe_refit,
    describe_saved_epochs,
    key_figures,
)
from autotune.results.evaluation.plan_selection import select_plan
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from tests.support.pages.page import Parsed, page_of
from tests.support.study.studies import ONE_PARAMETER, make_results, make_study, make_tied_results


@pytest.fixture(scope="module")
def results() -> StudyResults:
    return make_results()


@pytest.fixture(scope="module")
def page(results: StudyResults) -> Parsed:
    return page_of(results.study)


def figures(study: Study) -> dict[str, tuple[str, str]]:
    found = key_figures(StudyResults.from_study(study))
    return {name: (number, parts) for name, number, parts in found}


def test_headline(results: StudyResults) -> None:
    best = results.best
    assert best is not None
    assert describe_answer(results) == (
        f"baseline 84.2 % → best 91.7 % (trial {best.number}, +7.5 points): "
        f"{results.describe_plan(best)}"
    )


def test_headline_of_a_minimized_objective() -> None:
    results = make_results(objective="log_loss")
    complete = (trial for trial in results.trials if trial.state == TrialState.COMPLETE)
    best = min(complete, key=lambda one: one.value or 0.0)
    assert describe_answer(results).startswith(
        f"baseline 0.4000 → best 0.2200 (trial {best.number}, 0.1800 lower): last "
    )


def test_headline_when_nothing_beats_the_baseline() -> None:
    text = describe_answer(make_results(gain=-0.05, space=ONE_PARAMETER))
    assert text.startswith("no trial is better than the baseline: 84.2 %")
    assert "→" not in text


def test_of_equal_trials_the_one_with_the_lower_log_loss_is_named() -> None:
    tied = make_tied_results()
    answer = find_answer(tied)
    assert tied.best is tied.trials[1] and answer.trial is tied.best
    assert answer.text.startswith(
        "trial 1 equals the baseline, 84.2 %, and has the lower log loss: "
    )
    assert answer.is_better is None and "which may be chance" in answer.plain
    assert tied.difference == "none; the log loss of the best is lower"
    assert select_plan(tied).describe() == (
        "trial 1, equal to the baseline, with a lower log loss"
    )
    assert check_noise(Facts(tied)).answer.startswith("There is no gain")
    assert not any("The gain of" in text for text in caveats(tied))
    worse = make_tied_results(log_loss=9.0)
    assert worse.best is worse.baseline and worse.difference == "no trial is better"
    assert describe_answer(worse).endswith("reaches as well")


@pytest.mark.parametrize(
    ("made", "value", "text"),
    [
        ({"trials": 0, "running": 0}, None, "nothing has run yet"),
        ({"trials": 0, "running": 2}, None, "no trial is complete yet (2 running)"),
        ({"trials": 1, "running": 0}, None, "only the baseline is complete: 84.2 %"),
        (
            {"trials": 0, "running": 0},
            0.9,
            "best 90.0 % (trial 0); the baseline is not complete yet",
        ),
        (
            {"trials": 1, "running": 0},
            0.80,
            "no trial is better than the baseline: 84.2 %; the nearest is trial 1 with 80.0 % "
            "(−4.2 points)",
        ),
    ],
)
def test_headline_before_there_is_much_to_say(
    made: dict[str, Any], value: float | None, text: str
) -> None:
    study = make_study(**made, failed=0)
    if value is not None:
        study.add_trial(create_trial(value=value))
    assert describe_answer(StudyResults.from_study(study)) == text


def test_key_figures(results: StudyResults, page: Parsed) -> None:
    progress = results.progress
    assert f"{progress.finished} of 40" in page.of("b")
    counts = f"{progress.complete} complete, {progress.pruned} pruned, 1 failed, 1 retried"
    assert f"{counts}, 1 running" in page.text
    seconds = sum(trial.duration.total_seconds() for trial in results.trials if trial.duration)
    assert f"{seconds:,.0f} s on 2 workers (NVIDIA H200)" in page.text


def test_epochs_of_a_retried_attempt_count_once() -> None:
    study = make_study(trials=2, running=0, failed=0, retried=1)
    assert [trial.user_attrs[attrs.EPOCHS] for trial in study.trials[:2]] == [10, 2]
    # The attempt's two epochs are among those of its successor.
    expected = 10 + study.trials[2].user_attrs[attrs.EPOCHS]
    assert figures(study)["epochs trained"][0] == str(expected)


def test_without_pruning_no_epoch_is_saved() -> None:
    study = make_study(trials=2, running=0, failed=0, retried=0)
    assert figures(study)["epochs trained"] == ("20", "pruning saved none yet")


def test_epochs_saved_by_pruning(results: StudyResults, page: Parsed) -> None:
    pruned = [trial for trial in results.trials if trial.state == TrialState.PRUNED]
    saved = sum(10 - trial.user_attrs[attrs.EPOCHS] for trial in pruned)
    total = 10 * (len(pruned) + results.progress.complete)
    text = f"pruning saved {saved} of {total} epochs ({100 * saved / total:.0f} %)"
    assert text == describe_saved_epochs(results)
    assert text in page.text


@pytest.mark.parametrize(
    ("folds", "figure"), [((), "5,400 of 6,000"), ((100, 100), "7,400 of 8,000")]
)
def test_reused_features_are_counted(folds: tuple[int, ...], figure: str) -> None:
    study = make_study(trials=1, running=0, failed=0)
    assert "features reused" not in figures(study)
    split = {"train": 200, "validation": 200 if folds else 100, "folds": list(folds)}
    study.set_user_attr(attrs.DATASET, {**study.user_attrs[attrs.DATASET], **split})
    for computed, more in ((600, {}), (0, {}), (0, {attrs.RETRIES: [2]})):
        caches = {"decoded": "once", "computed": computed, "seconds": 3.0}
        attributes = {attrs.EPOCHS: 10, attrs.CACHES: caches, **more}
        study.add_trial(create_trial(value=0.5, user_attrs=attributes))
    # Two trials of 10 epochs; the retry has the counts of its earlier attempt.
    assert figures(study)["features reused"][1].startswith(figure)


def test_the_page_says_what_ended_the_study() -> None:
    study = make_study(trials=6, running=0)
    text = page_of(study).text
    assert "ended by" not in text and "not at its end: 33 of 40 trials are missing" in text
    reason = StopReason("patience", "no better trial in the last 4")
    study.set_user_attr(attrs.ENDED, reason.to_json())
    text = page_of(study).text
    assert "ended by patience no better trial in the last 4" in text
    assert "not at its end" not in text
    study.add_trial(create_trial(state=TrialState.RUNNING))
    assert "ended by" not in page_of(study).text


def test_the_page_warns_of_optimism(page: Parsed) -> None:
    assert "measures the test split" in page.text
    text = "points, the standard error of differences on the same 360 validation images."
    assert text in page.text


def test_the_page_says_when_a_gain_may_be_chance() -> None:
    study = make_study(trials=1, running=0, failed=0)
    study.add_trial(create_trial(value=0.85))
    text = "validation images: it is less than twice that, so it may be chance."
    assert text in page_of(study).text


def test_action_items() -> None:
    late = make_study(trials=30, running=0, failed=6)
    late.add_trial(create_trial(value=0.99))
    notes = page_of(late).of("li")
    assert any(note.startswith("See what failed, above: one reason is") for note in notes)


def read(test: float, baseline: float, metric: str = "accuracy", **more: object) -> Any:
    values = {"test": {metric: test}, "baseline": {metric: baseline}}
    return {"time": "2026-01-06T10:00:00+00:00", "trial": 7, **values, **more}


def refit_of(study: Study, *reads: Any) -> str:
    study.set_user_attr(attrs.TEST_READS, list(reads))
    return describe_refit(StudyResults.from_study(study))


def test_the_page_shows_what_the_last_refit_measured(results: StudyResults) -> None:
    assert describe_refit(results) == ""
    study = make_study(trials=8)
    text = refit_of(study, read(0.905, 0.84))
    assert text == (
        "On the test split, which no trial has seen: trial 7, trained on training and validation "
        "images, has 90.5 %, the baseline 84.0 % (+6.5 points). It was read once."
    )
    assert text in page_of(study).text
    gain = {"mean": 0.065, "low": 0.031, "high": 0.099}
    text = refit_of(study, read(0.8, 0.84), read(0.905, 0.84, gain=gain))
    assert "90.5 %" in text and "(+6.5 points, interval of the gain 3.1 to 9.9)" in text
    assert "It was read 2 times" in text


def test_the_test_split_of_a_minimized_objective() -> None:
    study = make_study(trials=8, objective="log_loss")
    text = refit_of(study, read(0.31, 0.4, "log_loss"))
    assert "has 0.3100, the baseline 0.4000 (0.0900 lower)" in text
    gain = {"mean": -0.09, "low": -0.12, "high": -0.06}  # as stored: model minus baseline
    text = refit_of(study, read(0.31, 0.4, "log_loss", gain=gain))
    assert "(0.0900 lower, interval of the gain 0.0600 to 0.1200)" in text
    assert refit_of(study, read(0.9, 0.8)) == ""  # of another metric
