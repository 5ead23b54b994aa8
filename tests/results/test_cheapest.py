"""The cheapest trial that is at most a standard error behind the best one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from optuna.trial import create_trial

from autotune.errors import StudyError
from autotune.results.cheapest import describe_cheapest, find_cheapest
from autotune.results.diagnosis.next_steps import next_steps
from autotune.results.evaluation.plan_selection import select_plan
from autotune.results.report.markdown import render_markdown
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from autotune.study.state.predictions import encode_scores
from tests.support.pages.page import page_of
from tests.support.study.studies import VALIDATION, make_study

TWO = ["accuracy", "latency_ms"]


def two_objectives(trials: Sequence[tuple[int, float]], has_scores: bool = True) -> StudyResults:
    """Return a study with a baseline and some trials: images that are wrong, and latency.

    Wrong images are the last ones, of which those of a better trial are a part.
    """
    study = make_study(trials=1, running=0, failed=0, objectives=TWO)
    base = study.trials[0]
    for wrong, latency_ms in trials:
        scores = np.ones(VALIDATION)
        scores[VALIDATION - wrong :] = 0.0
        known = {attrs.IMAGE_SCORES: encode_scores(scores)} if has_scores else {}
        attributes = {attrs.PLAN: base.user_attrs[attrs.PLAN], **known}
        values = [float(scores.mean()), latency_ms]
        study.add_trial(create_trial(values=values, user_attrs=attributes))
    return StudyResults.from_study(study)


@pytest.mark.parametrize(
    ("trials", "cheapest"),
    [
        # Of networks that disagree on two images, the standard error is 1.4 images.
        ([(10, 4.0), (11, 3.0), (12, 2.0)], 2),
        ([(10, 4.0), (30, 0.1)], 1),
        ([(10, 4.0), (11, 3.0), (11, 5.0)], 2),  # not on the front
        ([(10, 4.0), (10, 3.0)], 2),  # as good, and cheaper: the best
    ],
)
def test_the_cheapest_within_a_standard_error(
    trials: list[tuple[int, float]], cheapest: int
) -> None:
    results = two_objectives(trials)
    found = find_cheapest(results)
    assert found is not None and found.trial.number == cheapest
    selected = select_plan(results, "cheapest")
    assert selected.trial == cheapest
    if found.trial is results.best:
        assert selected.describe().endswith("the best: no cheaper trial is about as good")
        assert describe_cheapest(results) == "" and not selected.remarks
    else:
        assert selected.reason == "the cheapest about as good as trial 1"
        assert selected.remarks == (describe_cheapest(results),)


def test_pages_name_it_with_its_command() -> None:
    results = two_objectives([(10, 4.0), (11, 1.25)])
    baseline = results.baseline
    assert baseline is not None
    text = describe_cheapest(results)
    assert text == (
        "Trial 2 is the cheapest that is at most one standard error (0.3 points) behind the best, "
        "trial 1: it is 0.3 points behind, and has 1.25 ms, "
        f"{baseline.values[1] / 1.25:.2f} times as fast as the baseline."
    )
    assert text in page_of(results.source).text and text in render_markdown(results)
    steps = [step for step in next_steps(results) if step.text.endswith(text)]
    assert [step.command for step in steps] == ["autotune refit digits --trial cheapest"]


def test_it_needs_scores_a_cost_and_a_complete_trial() -> None:
    results = two_objectives([(10, 4.0), (11, 1.0)], has_scores=False)
    found = find_cheapest(results)
    assert found is not None and found.trial is results.best
    results = StudyResults.from_study(make_study())
    assert find_cheapest(results) is None
    with pytest.raises(StudyError, match=r"'digits' has no cost; give a study two objectives"):
        select_plan(results, "cheapest")
    empty = make_study(trials=0, objectives=TWO)
    with pytest.raises(StudyError, match="has no complete trial yet"):
        select_plan(StudyResults.from_study(empty), "cheapest")
