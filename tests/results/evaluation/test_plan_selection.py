"""Which plan is fitted: the best confirmed one, else the best of the search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autotune.errors import StudyError
from autotune.results.evaluation.confirm import candidates
from autotune.results.evaluation.plan_selection import select_plan
from autotune.results.values.verdict import Verdict
from autotune.search import ranking
from autotune.storage.paths import StudyPaths
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from tests.support.studies import make_study

LUCKY = "The best of a search is good and lucky; 'autotune confirm' tells how much was luck."


def made(**options: Any) -> OpenStudy:
    study = make_study(**options)
    return OpenStudy(
        study, study._storage, "sqlite:///none.db", StudyPaths.from_url("sqlite:///none.db")
    )


def confirmed(opened: OpenStudy, top: int = 3, **changes: Any) -> Verdict:
    """Have the study remember that the last of its best trials has the best mean."""
    trials = tuple(one.number for one, _ in candidates(opened, top))
    verdict = Verdict(trials[-1], 0.949, 0.928, 0.021, 0.009, 0.033, 0.008, 5, trials)
    verdict = replace(verdict, **changes)
    opened.study.set_user_attr(attrs.CONFIRMED, verdict.to_json())
    return verdict


def test_without_a_confirmation_the_best_of_the_search() -> None:
    opened = made()
    best = ranking.best_of(opened.study.trials, opened.study.direction)
    assert best is not None
    found = select_plan(opened)
    assert (found.trial, found.plan) == (best.number, attrs.trial_plan(best))
    assert found.describe() == f"trial {best.number}, the best of the search"
    assert found.remarks == (LUCKY,)


def test_the_baseline_where_no_trial_is_better() -> None:
    found = select_plan(made(gain=-0.05))
    assert found.describe() == "trial 0, the baseline: no trial is better"
    assert found.remarks == ()


def test_the_best_confirmed_mean_comes_before_the_best_of_the_search() -> None:
    opened = made()
    verdict = confirmed(opened)
    found = select_plan(opened)
    assert found.trial == verdict.trial != select_plan(opened, verdict.trials[0]).trial
    assert found.describe() == f"trial {verdict.trial}, confirmed over 5 seeds"
    assert found.remarks == ()


def test_a_confirmed_plan_that_is_not_shown_to_be_better_is_fitted_and_it_is_said() -> None:
    opened = made()
    verdict = confirmed(opened, low=-0.004)
    found = select_plan(opened)
    assert found.trial == verdict.trial
    (said,) = found.remarks
    assert said.startswith("No plan is shown to beat the baseline (92.8 %): the best mean is that")


def test_a_baseline_with_the_best_mean_is_fitted_itself() -> None:
    opened = made()
    verdict = confirmed(opened, gain=-0.01, low=-0.02, high=0.0)
    found = select_plan(opened)
    assert found.describe() == "trial 0, the baseline, confirmed over 5 seeds"
    assert found.plan.depth == 0
    assert found.remarks == (
        f"No confirmed plan has a better mean: the best is trial {verdict.trial}, which "
        f"--trial {verdict.trial} takes.",
    )


def test_better_trials_that_were_not_confirmed_are_named() -> None:
    opened = made()
    first, *others = (one.number for one, _ in candidates(opened, 4))
    confirmed(opened, trial=others[-1], trials=tuple(others))
    found = select_plan(opened)
    assert found.trial == others[-1]
    assert found.remarks == (
        f"Trial {first} is better in the search than some that were confirmed; "
        "'autotune confirm' again compares them.",
    )


def test_a_trial_that_is_asked_for() -> None:
    opened = made()
    confirmed(opened)
    found = select_plan(opened, 0)
    assert (found.trial, found.plan.depth, found.remarks) == (0, 0, ())
    for trial in (-1, 99):
        with pytest.raises(StudyError, match=f"has the trials 0 to 26, but got {trial}"):
            select_plan(opened, trial)


def test_a_trial_without_a_plan_cannot_be_fitted() -> None:
    opened = made(trials=1, running=0, failed=0)
    opened.study.enqueue_trial({})
    with pytest.raises(StudyError, match="trial 1 of 'digits' ended before it had a plan"):
        select_plan(opened, 1)


def test_a_study_without_a_complete_trial() -> None:
    with pytest.raises(StudyError, match="has no complete trial yet"):
        select_plan(made(trials=0))
