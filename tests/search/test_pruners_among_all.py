from __future__ import annotations

import math
from collections.abc import Sequence

import optuna
import pytest
from optuna.pruners import MedianPruner, PercentilePruner
from optuna.trial import TrialState, create_trial

from autotune.search.pruners import AllTrialsPruner

EPOCHS = 10


def study_with(
    complete: Sequence[Sequence[float]], pruned: Sequence[Sequence[float]]
) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for state, curves in ((TrialState.COMPLETE, complete), (TrialState.PRUNED, pruned)):
        for curve in curves:
            values = dict(enumerate(curve, start=1))
            study.add_trial(create_trial(state=state, value=curve[-1], intermediate_values=values))
    return study


def is_pruned(study: optuna.Study, pruner: optuna.pruners.BasePruner, *curve: float) -> bool:
    trial = study.ask()
    for step, value in enumerate(curve, start=1):
        trial.report(value, step)
    frozen = study._storage.get_trial(trial._trial_id)
    found = pruner.prune(study, frozen)
    study.tell(trial, state=TrialState.FAIL)
    return found


def test_the_bar_does_not_rise_with_the_survivors() -> None:
    """Half were pruned at 0.4; who is better than they were is in the better half."""
    study = study_with([[0.8] * EPOCHS] * 5, [[0.4] * 2] * 5)
    plain = MedianPruner(n_startup_trials=5, n_warmup_steps=2)
    ours = AllTrialsPruner(plain, EPOCHS)
    assert is_pruned(study, plain, 0.7, 0.7)
    assert not is_pruned(study, ours, 0.7, 0.7)
    assert is_pruned(study, ours, 0.3, 0.3)


def test_a_pruned_trial_stays_where_it_was() -> None:
    study = study_with([[0.8] * EPOCHS] * 2, [[0.4, 0.5]] * 3)
    ours = AllTrialsPruner(PercentilePruner(50.0, n_startup_trials=5), EPOCHS)
    for step in range(2, EPOCHS):
        assert not is_pruned(study, ours, *[0.55] * step)
        assert is_pruned(study, ours, *[0.45] * step)


def test_trials_without_a_curve_are_no_measure() -> None:
    study = study_with([[0.8] * EPOCHS] * 3, [])
    for _ in range(5):  # beyond a constraint, never trained
        study.add_trial(create_trial(state=TrialState.PRUNED))
    ours = AllTrialsPruner(MedianPruner(n_startup_trials=4), EPOCHS)
    assert not is_pruned(study, ours, 0.1)
    assert not is_pruned(optuna.create_study(), ours, 0.1)


def test_a_running_trial_counts_as_far_as_it_has_come_and_never_for_itself() -> None:
    study = study_with([], [])
    for _ in range(3):
        other = study.ask()
        for step in (1, 2):
            other.report(0.8, step)
    ours = AllTrialsPruner(MedianPruner(n_startup_trials=0, n_min_trials=3), EPOCHS)
    assert is_pruned(study, ours, 0.1, 0.1)
    assert not is_pruned(study, ours, 0.1, 0.1, 0.1)  # none of them has come to the third


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_curves_with_other_numbers_do_no_harm(value: float) -> None:
    study = study_with([[0.8] * EPOCHS] * 5, [[0.4, value]])
    assert is_pruned(study, AllTrialsPruner(MedianPruner(5, 1), EPOCHS), 0.1, 0.1)


def test_the_study_stays_as_it_is() -> None:
    study = study_with([[0.8] * EPOCHS] * 5, [[0.4] * 2] * 5)
    before = [(one.state, one.intermediate_values) for one in study.trials]
    is_pruned(study, AllTrialsPruner(MedianPruner(), EPOCHS), 0.3)
    assert [(one.state, one.intermediate_values) for one in study.trials[:-1]] == before
