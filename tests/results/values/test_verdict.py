"""A confirmation in a sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from optuna.study import StudyDirection

from autotune.results.diagnosis.headline import describe_confirmation
from autotune.results.values.objective import Objective
from autotune.results.values.verdict import Verdict, format_gain
from autotune.search import ranking
from autotune.study.state import attrs
from tests.support.studies import make_study

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


@pytest.mark.parametrize(
    ("gain", "shown"), [(0.0214, "2.1 points"), (-0.02, "−2.0 points"), (-0.0004, "0.0 points")]
)
def test_gains(gain: float, shown: str) -> None:
    assert format_gain(SHARE, gain) == shown


def test_a_study_has_it_in_its_answer() -> None:
    study = make_study()
    best = ranking.best_trial(study.trials, study.direction)
    assert best is not None
    assert Verdict.from_study(study) is None and describe_confirmation(study, best) == ""
    study.set_user_attr(attrs.CONFIRMED, replace(WON, trials=(best.number,)).to_json())
    assert describe_confirmation(study, best).startswith(
        "Confirmed over seeds: trial 12 beats the baseline"
    )
    study.set_user_attr(attrs.CONFIRMED, replace(WON, trials=(1, 2)).to_json())
    later = f"; trial {best.number}, the best one now, was not among them."
    assert describe_confirmation(study, best).endswith(later)
