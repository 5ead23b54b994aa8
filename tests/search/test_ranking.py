"""The order of trials: by value, and of equal values by log loss, then by number."""

from __future__ import annotations

import itertools

import optuna
import pytest
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, create_trial

from autotune.search import ranking

MAXIMIZE, MINIMIZE = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE


def study_of(*results: tuple[float | None, ...], direction: StudyDirection = MAXIMIZE) -> Study:
    """Make a study; a result has a log loss, then its values."""
    costs = [MINIMIZE] * (len(results[0]) - 2)
    study = optuna.create_study(directions=[direction, *costs])
    for log_loss, *values in results:
        metrics = {} if log_loss is None else {"metrics": {"accuracy": 0.5, "log_loss": log_loss}}
        study.add_trial(create_trial(values=values, user_attrs=metrics))
    return study


def numbers(trials: list[FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials]


@pytest.mark.parametrize(
    ("direction", "expected"), [(MAXIMIZE, [4, 2, 0, 1, 3]), (MINIMIZE, [3, 2, 0, 1, 4])]
)
def test_of_equal_values_the_lower_log_loss_is_better(
    direction: StudyDirection, expected: list[int]
) -> None:
    study = study_of(
        (0.3, 0.9), (0.3, 0.9), (0.2, 0.9), (0.1, 0.8), (0.7, 0.95), direction=direction
    )
    assert numbers(ranking.rank_trials(study.trials, direction)) == expected
    assert ranking.best_trial(study.trials, direction) == study.trials[expected[0]]


def test_without_a_stored_log_loss_the_first_of_equal_trials_is_the_best() -> None:
    study = study_of((None, 0.9), (None, 0.9), (None, 0.8))
    assert numbers(ranking.rank_trials(study.trials, MAXIMIZE)) == [0, 1, 2]


def test_a_trial_with_a_log_loss_comes_before_equal_ones_without() -> None:
    study = study_of((None, 0.9), (5.0, 0.9))
    assert numbers(ranking.rank_trials(study.trials, MAXIMIZE)) == [1, 0]


def test_the_log_loss_does_not_outweigh_a_cost() -> None:
    study = study_of((0.1, 0.9, 3.0), (0.4, 0.9, 2.0), (0.3, 0.9, 2.0), (0.01, 0.8, 2.5))
    front = ranking.pareto_front(study.trials, MAXIMIZE)
    assert numbers(front) == [2]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_the_weights_of_the_best_are_kept_in_whatever_order_trials_end(
    order: tuple[int, ...],
) -> None:
    study = study_of((0.3, 0.9), (0.2, 0.9), (0.2, 0.9), (0.1, 0.5))
    ended: list[FrozenTrial] = []
    kept = set()
    for number in order:
        trial = study.trials[number]
        if not ranking.is_dominated(trial, trial.values, ended, MAXIMIZE):
            kept.add(number)
        ended.append(trial)
        best = ranking.best_trial(ended, MAXIMIZE)
        assert best is not None and best.number in kept
    assert ranking.is_dominated(study.trials[0], [0.9], [study.trials[1]], MAXIMIZE)
    assert not ranking.is_dominated(study.trials[0], [0.91], [study.trials[1]], MAXIMIZE)
    assert not ranking.is_dominated(study.trials[0], [0.9], [], MAXIMIZE)
