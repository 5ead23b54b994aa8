"""What a report says first: the headline, the numbers below it, and how far to trust them."""

from __future__ import annotations

import pytest
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from autotune.results.diagnosis.headline import describe_refit, headline
from autotune.results.diagnosis.savings import saved_by_pruning
from autotune.results.report.html import render_report
from autotune.results.values.objective import format_duration
from autotune.search import ranking
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from tests.support.page import Parsed
from tests.support.studies import ONE_PARAMETER, make_study


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study()


@pytest.fixture(scope="module")
def page(study: Study) -> Parsed:
    return Parsed(render_report(study))


def test_headline(study: Study) -> None:
    best = ranking.best_trial(study.trials, study.direction)
    assert best is not None
    plan = attrs.trial_plan(best)
    assert plan is not None
    assert headline(study) == (
        f"baseline 84.2 % → best 91.7 % (trial {best.number}, +7.5 points): {plan.describe()}"
    )


def test_headline_of_a_minimised_objective() -> None:
    study = make_study(objective="log_loss")
    best = min(study.get_trials(states=(TrialState.COMPLETE,)), key=lambda one: one.value or 0.0)
    assert headline(study).startswith(
        f"baseline 0.4000 → best 0.2200 (trial {best.number}, 0.1800 lower): last "
    )


def test_headline_when_nothing_beats_the_baseline() -> None:
    study = make_study(gain=-0.05, space=ONE_PARAMETER)
    said = headline(study)
    assert said.startswith("no trial is better than the baseline: 84.2 %")
    assert "→" not in said


def test_headline_names_the_distance_of_the_nearest_trial() -> None:
    study = make_study(trials=1, running=0, failed=0)
    study.add_trial(create_trial(value=0.80))
    assert headline(study) == (
        "no trial is better than the baseline: 84.2 %; the nearest is trial 1 with 80.0 % "
        "(−4.2 points)"
    )


def test_headline_before_there_is_much_to_say() -> None:
    assert headline(make_study(trials=0, running=0, failed=0)) == "nothing has run yet"
    assert headline(make_study(trials=0, running=2, failed=1)) == (
        "no trial is complete yet (2 running, 1 failed)"
    )
    assert headline(make_study(trials=1, running=0, failed=0)) == (
        "only the baseline is complete: 84.2 %"
    )


def test_headline_without_a_baseline() -> None:
    study = make_study(trials=0, running=0, failed=0)
    study.add_trial(create_trial(value=0.9))
    assert headline(study) == "best 90.0 % (trial 0); the baseline is not complete yet"


def test_facts(study: Study, page: Parsed) -> None:
    progress = attrs.count_progress(study.trials, 40)
    assert f"{progress.finished} of 40" in page.of("b")
    counts = f"{progress.complete} complete, {progress.pruned} pruned, 1 failed, 1 retried"
    assert f"{counts}, 1 running" in page.text
    ended = [one.duration.total_seconds() for one in study.trials]
    assert f"{sum(one for one in ended if one):,.0f} s on 2 workers (NVIDIA H200)" in page.text


def test_epochs_of_a_retried_attempt_count_once() -> None:
    study = make_study(trials=2, running=0, failed=0, retried=1)
    assert [one.user_attrs[attrs.EPOCHS] for one in study.trials[:2]] == [10, 2]
    # The attempt's two epochs are among those of its successor.
    expected = 10 + study.trials[2].user_attrs[attrs.EPOCHS]
    assert str(expected) in Parsed(render_report(study)).of("b")


def test_what_is_beyond_the_limits_is_not_pruned() -> None:
    limited = make_study(constraints={"max_latency_ms": 1.4}, trials=30)
    beyond = [one for one in limited.trials if attrs.ended_infeasible(one)]
    pruned = [one for one in limited.trials if one.state == TrialState.PRUNED]
    assert beyond and len(pruned) > len(beyond)
    trained = [one for one in limited.trials if one not in beyond]
    assert saved_by_pruning(limited, limited.trials) == saved_by_pruning(limited, trained)


def test_epochs_saved_by_pruning(study: Study, page: Parsed) -> None:
    pruned = study.get_trials(states=(TrialState.PRUNED,))
    saved = sum(10 - one.user_attrs[attrs.EPOCHS] for one in pruned)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    epochs = 10 * (len(pruned) + len(complete))
    said = f"pruning saved {saved} of {epochs} epochs ({100 * saved / epochs:.0f} %)"
    assert said == saved_by_pruning(study, study.trials)
    assert said in page.text


def test_no_pruning_saves_nothing() -> None:
    study = make_study(trials=2, retried=0)
    assert saved_by_pruning(study, study.trials) == ""
    assert "pruning saved none yet" in Parsed(render_report(study)).text


def test_the_page_says_what_ended_the_study() -> None:
    study = make_study(trials=6, running=0)
    text = Parsed(render_report(study)).text
    assert "ended by" not in text and "The study is not at its end: 33 of 40" in text
    study.set_user_attr(
        attrs.ENDED, StopReason("patience", "no better trial in the last 4").to_json()
    )
    text = Parsed(render_report(study)).text
    assert "ended by patience no better trial in the last 4" in " ".join(text.split())
    assert "The study is not at its end" not in text
    study.add_trial(create_trial(state=TrialState.RUNNING))
    assert "ended by" not in Parsed(render_report(study)).text


def test_the_page_warns_of_optimism(page: Parsed) -> None:
    assert "autotune refit measures the test part" in page.text
    assert "On 360 validation images, one standard error of 91.7 % is 1.5 points." in page.text


def test_the_page_says_when_a_gain_may_be_chance() -> None:
    study = make_study(trials=1, running=0, failed=0)
    study.add_trial(create_trial(value=0.85))
    text = Parsed(render_report(study)).text
    assert "is less than two of them, so it may be chance" in text


def test_notes() -> None:
    late = make_study(trials=12, running=0, failed=6)
    late.add_trial(create_trial(value=0.99))
    text = Parsed(render_report(late)).text
    assert "Is much of the space infeasible, or failing? Yes: of 19 finished trials" in text
    assert "Would more trials help? Probably: the last 4 trained plans improved" in text
    assert "of 40 trials are missing" in text


def read(
    test: float, baseline: float, metric: str = "accuracy", **more: object
) -> dict[str, object]:
    values = {"test": {metric: test}, "baseline": {metric: baseline}}
    return {"time": "2026-01-06T10:00:00+00:00", "trial": 7, **values, **more}


def test_the_page_shows_what_fit_measured_last(study: Study) -> None:
    assert describe_refit(study) == ""
    made = make_study(trials=8)
    made.set_user_attr(attrs.TEST_READS, [read(0.905, 0.84)])
    assert describe_refit(made) == (
        "On the test part, which no trial has seen: trial 7, fitted on training and validation "
        "images, has 90.5 %, the baseline 84.0 % (+6.5 points). It was read once."
    )
    assert describe_refit(made) in Parsed(render_report(made)).text
    gain = {"mean": 0.065, "low": 0.031, "high": 0.099}
    made.set_user_attr(attrs.TEST_READS, [read(0.8, 0.84), read(0.905, 0.84, gain=gain)])
    said = describe_refit(made)
    assert "90.5 %" in said and "(+6.5 points, interval of the gain 3.1 to 9.9)" in said
    assert "It was read 2 times" in said


def test_the_test_part_of_a_minimised_objective() -> None:
    made = make_study(trials=8, objective="log_loss")
    made.set_user_attr(attrs.TEST_READS, [read(0.31, 0.4, "log_loss")])
    assert "has 0.3100, the baseline 0.4000 (0.0900 lower)" in describe_refit(made)
    made.set_user_attr(attrs.TEST_READS, [read(0.9, 0.8)])  # of another metric
    assert describe_refit(made) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.25 s"),
        (59, "59 s"),
        (61, "1 min 1 s"),
        (4980, "1 h 23 min"),
        (3 * 86400 + 7300, "3 d 2 h"),
    ],
)
def test_in_time(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
