"""Greedy selection: which trials make an ensemble, and what is said where none can be chosen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from optuna.trial import TrialState

from autotune.errors import StudyError
from autotune.results.evaluation.ensemble_selection import EnsembleChoice, select_ensemble
from autotune.results.study_results import StudyResults
from autotune.study.state.predictions import ValidationLogits
from tests.support.study.studies import make_study

LABELS = np.array([0, 1, 2, 0, 1, 2])
IDS = np.array([f"{number}.png" for number in range(6)])


def predicted(*wrong: int, sure: float = 2.0, ids: np.ndarray = IDS) -> ValidationLogits:
    """Return logits that are right except for some images."""
    classes = LABELS.copy()
    classes[list(wrong)] = (classes[list(wrong)] + 1) % 3
    logits = sure * np.eye(3, dtype=np.float32)[classes]
    return ValidationLogits(ids, LABELS, logits.astype(np.float32))


@pytest.fixture(scope="module")
def results() -> StudyResults:
    return StudyResults.from_study(make_study(trials=5, running=0, failed=0, retried=0))


def choose(
    results: StudyResults,
    monkeypatch: pytest.MonkeyPatch,
    kept: Mapping[int, ValidationLogits],
    most: int = 5,
) -> EnsembleChoice:
    monkeypatch.setattr(StudyResults, "read_logits", lambda _, trial: kept.get(trial.number))
    complete = [trial for trial in results.trials if trial.state == TrialState.COMPLETE]
    return select_ensemble(results, complete[0], most)


def test_networks_that_err_on_other_images_are_joined(
    results: StudyResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *rest = [t.number for t in results.trials if t.state == TrialState.COMPLETE]
    kept = {first: predicted(0), rest[0]: predicted(1), rest[1]: predicted(2)}
    choice = choose(results, monkeypatch, kept)
    assert choice.is_better and set(choice.weights) == {first, *rest[:2]}
    assert next(iter(choice.weights)) == first
    assert (choice.single.accuracy, choice.together.accuracy) == (pytest.approx(5 / 6), 1.0)
    assert (choice.considered, choice.without_logits) == (3, len(rest) - 2)
    assert len(choose(results, monkeypatch, kept, most=2).weights) <= 2


def test_what_adds_nothing_is_left_out(
    results: StudyResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = [t.number for t in results.trials if t.state == TrialState.COMPLETE]
    for other in (predicted(0), predicted(0, 1)):  # the same errors, or more
        choice = choose(results, monkeypatch, {first: predicted(0), second: other})
        assert not choice.is_better and choice.weights == {first: 1}
        assert choice.single == choice.together


def test_equal_accuracy_is_decided_by_the_log_loss(
    results: StudyResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = [t.number for t in results.trials if t.state == TrialState.COMPLETE]
    choice = choose(results, monkeypatch, {first: predicted(sure=1), second: predicted(sure=3)})
    assert choice.weights.keys() == {first, second}
    assert choice.together.log_loss < choice.single.log_loss


def test_a_study_without_logits_says_what_is_missing(
    results: StudyResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = [t.number for t in results.trials if t.state == TrialState.COMPLETE]
    others = np.array([f"{number}.jpg" for number in range(6)])
    for kept, what in (
        ({}, f"but trial {first} has none: an earlier version of autotune has trained it"),
        ({first: predicted()}, "none has any"),
        ({first: predicted(), second: predicted(ids=others)}, "1 have those of other images"),
    ):
        with pytest.raises(StudyError, match="by the validation logits") as error:
            choose(results, monkeypatch, kept)
        assert what in str(error.value) and "--combine soup" in str(error.value)
