"""The figures of the losses of single trials."""

from __future__ import annotations

import pytest

from autotune.results.figures.losses import (
    BEST_DRAWN,
    highest_loss,
    losses_figure,
    trials_with_losses,
)
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from tests.support.figures import traces
from tests.support.page import page_of
from tests.support.studies import HOSTILE, make_results, make_study


@pytest.fixture(scope="module")
def results() -> StudyResults:
    return make_results()


def test_the_best_trials_and_the_baseline_are_drawn_on_one_axis(results: StudyResults) -> None:
    trials = trials_with_losses(results)
    assert trials[0] is results.best and trials[-1] is results.baseline
    assert len(trials) == BEST_DRAWN + 1
    highest = highest_loss(trials)
    for trial in trials:
        stored = trial.user_attrs[attrs.CURVES]
        figure = losses_figure(trial, highest)
        drawn = traces(figure)
        assert figure is not None and list(figure.layout.yaxis.range) == [0, highest]
        assert list(drawn["training"].y) == stored["training_loss"]
        assert list(drawn["validation"].y) == stored["validation_loss"]
        assert drawn["training"].line.dash == "dash"
        lowest = min(stored["validation_loss"])
        assert list(drawn["lowest"].y) == [lowest]
        assert max(stored["validation_loss"][1:]) < highest


def test_a_study_of_an_earlier_version_is_shown_without_them() -> None:
    study = make_study(has_losses=False)
    results = StudyResults.from_study(study)
    assert trials_with_losses(results) == [] and losses_figure(results.trials[0]) is None
    text = page_of(study).text
    assert "Losses of the best plans" not in text and "Learning curves" in text
    assert "Its losses were not recorded: this is judged by its validation curve alone." in text


def test_the_page_says_what_the_losses_tell() -> None:
    text = page_of(make_study(hostile=True, name=HOSTILE)).text
    assert "Losses of the best plans" in text and "Trial 7, best" in text
    assert text.count("Neither overfits nor still learns, beyond chance.") == BEST_DRAWN + 1
