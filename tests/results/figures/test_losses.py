"""The figures of the losses of single trials."""

from __future__ import annotations

import pytest
from optuna.trial import create_trial

from autotune.results.figures.losses import (
    BEST_DRAWN,
    loss_range,
    losses_figure,
    trials_with_losses,
)
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from tests.support.pages.page import page_of, traces
from tests.support.study.studies import curves_of, make_results, make_study


@pytest.fixture(scope="module")
def results() -> StudyResults:
    return make_results()


def test_the_best_trials_and_the_baseline_are_drawn_on_one_axis(results: StudyResults) -> None:
    text = page_of(results.study).text
    assert "Losses of the best plans" in text and "Trial 7, best" in text
    assert text.count("Neither overfits nor still learns, beyond chance.") == BEST_DRAWN + 1
    trials = trials_with_losses(results)
    assert trials[0] is results.best and trials[-1] is results.baseline
    assert len(trials) == BEST_DRAWN + 1
    ends = loss_range(trials)
    for trial in trials:
        stored = trial.user_attrs[attrs.CURVES]
        figure = losses_figure(trial, ends)
        drawn = traces(figure)
        assert figure is not None and figure.layout.yaxis.type == "log"
        assert [10**end for end in figure.layout.yaxis.range] == pytest.approx(ends)
        assert list(drawn["training"].y) == stored["training_loss"]
        assert list(drawn["validation"].y) == stored["validation_loss"]
        assert drawn["training"].line.dash == "dash"
        assert list(drawn["lowest"].y) == [min(stored["validation_loss"])]
        assert ends[0] < min(stored["training_loss"]) < max(stored["validation_loss"]) < ends[1]


def test_a_study_of_an_earlier_version_is_shown_without_them() -> None:
    study = make_study(has_losses=False)
    results = StudyResults.from_study(study)
    assert trials_with_losses(results) == [] and losses_figure(results.trials[0]) is None
    text = page_of(study).text
    assert "Losses of the best plans" not in text and "Learning curves" in text
    assert "Its losses were not recorded: this is judged by its validation curve alone." in text


@pytest.mark.parametrize(
    ("training", "validation", "ends"),
    [
        ([1.0, 0.5], [2.0, 0.8], (0.45, 2.2)),
        ([1.0, 1e-6], [2.0, 0.5], (0.09, 2.2)),  # squeezes nothing
        ([1.0, 0.0], [2.0, 0.0], (0.9, 2.2)),
        ([0.5], [0.5], (0.45, 0.55)),
        ([], [], (0.9, 1.1)),
    ],
)
def test_the_axis_of_losses(
    training: list[float], validation: list[float], ends: tuple[float, float]
) -> None:
    stored = {attrs.CURVES: curves_of(training, validation)} if training else {}
    trial = create_trial(value=0.5, user_attrs=stored)
    assert loss_range([trial]) == pytest.approx(ends)
    figure = losses_figure(trial)
    assert (figure is None) == (not training)
