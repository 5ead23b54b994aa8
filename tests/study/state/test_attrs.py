"""What is read from the trials of a study: the best, the front, the counts."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.search import ranking
from autotune.study.state import attrs

MAXIMISE = StudyDirection.MAXIMIZE


def trial(
    *values: float,
    state: TrialState = TrialState.COMPLETE,
    beyond: float | None = None,
    role: str = "",
) -> FrozenTrial:
    return create_trial(
        state=state,
        values=list(values) or None,
        constraints={} if beyond is None else {"max_parameters": beyond},
        user_attrs={attrs.ROLE: role} if role else {},
    )


def study_of(trials: Sequence[FrozenTrial], *directions: str) -> Study:
    study = optuna.create_study(directions=directions)
    study.add_trials(trials)
    return study


def best(study: Study) -> int | None:
    found = ranking.best_trial(study.trials, attrs.metric_direction(study))
    return None if found is None else found.number


def test_the_best_is_within_the_limits() -> None:
    trials = [trial(0.5, beyond=-0.1), trial(0.9, beyond=0.1), trial(0.6, beyond=0.0), trial(0.6)]
    assert best(study_of(trials, "maximize")) == 2
    assert best(study_of(trials, "minimize")) == 0


def test_nothing_is_best_where_all_are_beyond_the_limits() -> None:
    baseline = trial(0.9, beyond=0.5, role=attrs.BASELINE)
    study = study_of([baseline, trial(state=TrialState.PRUNED, beyond=2.0)], "maximize")
    assert best(study) is None
    assert attrs.find_baseline(study.trials) is not None


def test_the_best_of_two_objectives_has_the_best_metric_then_the_lowest_cost() -> None:
    trials = [trial(0.9, 3.0), trial(0.8, 1.0), trial(0.9, 2.0), trial(0.95, 1.0, beyond=1.0)]
    assert best(study_of(trials, "maximize", "minimize")) == 2
    assert best(study_of(trials, "minimize", "minimize")) == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=12))
def test_the_front_is_optuna_s_without_doubles(values: list[tuple[int, int, bool]]) -> None:
    trials = [trial(x, y, beyond=float(over)) for x, y, over in values]
    for direction in ("maximize", "minimize"):
        study = study_of(trials, direction, "minimize")
        front = ranking.pareto_front(study.trials, attrs.metric_direction(study))
        assert {tuple(one.values) for one in front} == {
            tuple(trial.values) for trial in study.best_trials
        }
        assert len({tuple(one.values) for one in front}) == len(front)
        assert best(study) == (front[0].number if front else None)
        for one in front:
            others = [other for other in study.trials if other.values != one.values]
            direction = attrs.metric_direction(study)
            assert not ranking.is_dominated(one, one.values, others, direction)


@pytest.mark.parametrize(
    ("values", "beaten"),
    [((0.9, 2.0), True), ((0.91, 9.0), False), ((0.5, 0.9), False), ((0.5, 1.0), True)],
)
def test_what_is_no_better_in_anything_is_beaten(values: list[float], beaten: bool) -> None:
    trials = [trial(0.9, 2.0), trial(0.5, 1.0), trial(0.99, 0.1, beyond=1.0)]
    *others, ending = study_of([*trials, trial(*values)], "maximize", "minimize").trials
    assert ranking.is_dominated(ending, values, others, MAXIMISE) is beaten


def test_infeasible_trials_are_counted_by_themselves() -> None:
    trials = [
        trial(0.9, beyond=0.5, role=attrs.BASELINE),
        trial(state=TrialState.PRUNED, beyond=2.0),
        trial(state=TrialState.PRUNED, beyond=-0.5),
        trial(state=TrialState.FAIL, beyond=-0.5),
        trial(state=TrialState.RUNNING, beyond=0.5),
    ]
    progress = attrs.count_progress(trials, 4)
    assert progress == attrs.Progress(
        complete=1, pruned=1, failed=1, retried=0, running=1, waiting=0, budget=4, infeasible=1
    )
    assert progress.finished == progress.budget == 4
    assert attrs.pruned_epochs(trials, 10) == 10  # of the pruned one alone
