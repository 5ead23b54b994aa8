"""Which plan is refitted: the best confirmed one, else the best of the search."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.errors import StudyError
from autotune.results.evaluation.plan_selection import plans_to_confirm, select_plan
from autotune.results.study_results import StudyResults
from autotune.results.values.verdict import Verdict
from autotune.study.state import attrs
from tests.results.test_cheapest import two_objectives
from tests.support.study.studies import make_study


def results(confirmed: int = 0, skip: int = 0, **verdict: Any) -> StudyResults:
    """Return a study, whose verdict is that the last of its confirmed trials has the best mean."""
    study = make_study()
    if confirmed:
        best = plans_to_confirm(StudyResults.from_study(study), confirmed)
        trials = tuple(trial.number for trial, _ in best[skip:])
        values = {"mean": 0.949, "baseline": 0.928, "gain": 0.021, "low": 0.009, "high": 0.033}
        values |= {"selection_bias": 0.008, **verdict}
        found = Verdict(trial=trials[-1], seeds=5, trials=trials, **values)
        study.set_user_attr(attrs.CONFIRMED, found.to_json())
    return StudyResults.from_study(study)


def test_without_a_confirmation_the_best_of_the_search() -> None:
    study = results()
    assert study.best is not None
    found = select_plan(study)
    assert (found.trial, found.plan) == (study.best.number, attrs.trial_plan(study.best))
    assert found.describe() == f"trial {study.best.number}, the best of the search"
    assert found.remarks == (
        "Its value is biased upwards by selection; 'autotune confirm' measures by how much.",
    )


def test_the_baseline_where_no_trial_is_better() -> None:
    found = select_plan(StudyResults.from_study(make_study(gain=-0.05)))
    assert found.describe() == "trial 0, the baseline: no trial is better"
    assert found.remarks == ()


@pytest.mark.parametrize(
    ("verdict", "reason", "remark"),
    [
        ({}, "trial {best}, confirmed over 5 seeds", ""),
        (
            {"low": -0.004},
            "trial {best}, confirmed over 5 seeds",
            "No plan is shown to beat the baseline (92.8 %): the best mean is that",
        ),
        (
            {"gain": -0.01, "low": -0.02, "high": 0.0},
            "trial 0, the baseline, confirmed over 5 seeds",
            "No confirmed plan has a better mean: the best is trial {best}, which --trial {best} "
            "takes.",
        ),
    ],
)
def test_the_best_confirmed_mean_comes_before_the_best_of_the_search(
    verdict: dict[str, float], reason: str, remark: str
) -> None:
    study = results(confirmed=3, **verdict)
    assert study.verdict is not None and study.best is not None
    best = study.verdict.trial
    found = select_plan(study)
    assert best != study.best.number
    assert found.describe() == reason.format(best=best)
    assert len(found.remarks) == bool(remark)
    assert all(text.startswith(remark.format(best=best)) for text in found.remarks)


def test_better_trials_that_were_not_confirmed_are_named() -> None:
    study = results(confirmed=4, skip=1)
    assert study.best is not None and study.verdict is not None
    found = select_plan(study)
    assert found.trial == study.verdict.trial
    assert found.remarks == (
        f"Trial {study.best.number} is better in the search than some that were confirmed; "
        "run 'autotune confirm' again to compare them.",
    )


def test_a_given_trial() -> None:
    study = results(confirmed=3)
    found = select_plan(study, 0)
    assert (found.trial, found.plan.depth, found.remarks) == (0, 0, ())
    for trial in (-1, 99):
        with pytest.raises(StudyError, match=f"has the trials 0 to 26, but got {trial}"):
            select_plan(study, trial)
    with pytest.raises(
        StudyError, match="must be the number of a trial or 'cheapest', but got '7"
    ):
        select_plan(study, "7")  # type: ignore[arg-type]


def test_two_objectives_confirm_the_front() -> None:
    study = two_objectives([(10, 4.0), (11, 1.25), (11, 5.0)])  # the last one is not on it
    assert [trial.number for trial, _ in plans_to_confirm(study, 100)] == [1, 2]


def test_a_trial_without_a_plan_cannot_be_refitted() -> None:
    study = make_study(trials=1, running=0, failed=0)
    study.enqueue_trial({})
    with pytest.raises(StudyError, match="trial 1 of 'digits' ended before it had a plan"):
        select_plan(StudyResults.from_study(study), 1)


def test_a_study_without_a_complete_trial() -> None:
    with pytest.raises(StudyError, match="has no complete trial yet"):
        select_plan(StudyResults.from_study(make_study(trials=0)))
