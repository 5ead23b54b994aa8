"""The verdict of a confirmation in a sentence."""

from __future__ import annotations

from dataclasses import replace

from optuna.study import StudyDirection

from autotune.results.diagnosis.headline import describe_confirmation
from autotune.results.study_results import StudyResults
from autotune.results.values.objective import Objective
from autotune.results.values.verdict import Verdict
from autotune.study.state import attrs
from tests.support.study.studies import make_study

SHARE = Objective("accuracy", StudyDirection.MAXIMIZE)
LOSS = Objective("log_loss", StudyDirection.MINIMIZE)
WON = Verdict(12, 0.949, 0.928, 0.021, 0.009, 0.033, 0.008, 5, (12, 3, 4, 7, 9))


def test_a_plan_that_beats_the_baseline() -> None:
    assert WON.is_better
    assert WON.describe(SHARE) == (
        "trial 12 beats the baseline by 2.1 points (95 % interval 0.9 to 3.3, 5 seeds, corrected "
        "for choosing among 5); its mean is 0.8 points worse than its value in the search"
    )


def test_a_plan_that_does_not() -> None:
    verdict = replace(WON, gain=0.002, low=-0.004, high=0.008, mean=0.93, selection_bias=0.0)
    assert not verdict.is_better
    assert verdict.describe(SHARE) == (
        "no plan is shown to beat the baseline (92.8 %): the best mean is that of trial 12 with "
        "93.0 %, a gain of 0.2 points (95 % interval −0.4 to 0.8, 5 seeds, corrected for choosing "
        "among 5); its mean is its value in the search"
    )
    alone = replace(verdict, trials=(12,), selection_bias=-0.01)
    assert alone.describe(SHARE) == (
        "no plan is shown to beat the baseline (92.8 %): trial 12 has a mean of 93.0 %, a gain of "
        "0.2 points (95 % interval −0.4 to 0.8, 5 seeds); its mean is 1.0 points better than its "
        "value in the search"
    )


def test_a_loss() -> None:
    verdict = replace(WON, mean=0.2, baseline=0.4, gain=0.2, low=0.15, high=0.25)
    assert verdict.describe(LOSS).startswith(
        "trial 12 beats the baseline by 0.2000 (95 % interval 0.1500 to 0.2500, 5 seeds"
    )


def test_a_stored_verdict_is_read_back() -> None:
    stored = WON.to_json()
    assert stored["shrank"] == 0.008  # the key of studies that were made before
    assert Verdict.from_attributes({attrs.CONFIRMED: stored}) == WON
    assert Verdict.from_attributes({}) is None


def test_a_study_has_it_in_its_answer() -> None:
    study = make_study()
    best = study.best_trial.number
    assert describe_confirmation(StudyResults.from_study(study)) == ""
    for trials, end in (((best,), ""), ((1, 2), f"; trial {best}, the best one now, was not")):
        study.set_user_attr(attrs.CONFIRMED, replace(WON, trials=trials).to_json())
        text = describe_confirmation(StudyResults.from_study(study))
        start = "Confirmed over seeds, on validation images: trial 12 beats the baseline"
        assert text.startswith(start) and end in text
