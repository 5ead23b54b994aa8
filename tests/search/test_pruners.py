from __future__ import annotations

import math
from collections.abc import Sequence

import optuna
import pytest
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, PercentilePruner
from optuna.trial import TrialState, create_trial

from autotune.config.schema import PRUNERS
from autotune.search.pruners import (
    N_MIN_TRIALS,
    AllTrialsPruner,
    NarrowingPruner,
    make_pruner,
)

EPOCHS = 20
WARMUP = EPOCHS // 10


def study_with(
    pruner: BasePruner | None,
    complete: Sequence[Sequence[float]] = (),
    pruned: Sequence[Sequence[float]] = (),
    direction: str = "maximize",
) -> optuna.Study:
    """A study whose finished trials have these curves; steps count from 1, as epochs do."""
    study = optuna.create_study(direction=direction, pruner=pruner)
    for state, curves in ((TrialState.COMPLETE, complete), (TrialState.PRUNED, pruned)):
        for curve in curves:
            values = dict(enumerate(curve, start=1))
            study.add_trial(create_trial(state=state, value=curve[-1], intermediate_values=values))
    return study


def pruned_at(study: optuna.Study, curve: Sequence[float]) -> int | None:
    """Run one more trial; return the epoch after which the pruner ends it."""
    trial = study.ask()
    for step, value in enumerate(curve, start=1):
        trial.report(value, step)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return step
    study.tell(trial, curve[-1])
    return None


def is_pruned(study: optuna.Study, pruner: BasePruner, *curve: float) -> bool:
    """Ask a pruner at the end of a curve; the trial does not count afterwards."""
    study.pruner = pruner
    trial = study.ask()
    for step, value in enumerate(curve, start=1):
        trial.report(value, step)
    found = trial.should_prune()
    study.tell(trial, state=TrialState.FAIL)
    return found


def rising(level: float) -> list[float]:
    return [level * step / EPOCHS for step in range(1, EPOCHS + 1)]


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("epochs", [1, 2, 3, 20, 1000])
@pytest.mark.parametrize("workers", [1, 8])
def test_every_pruner_can_be_made_and_asked(name: str, epochs: int, workers: int) -> None:
    study = study_with(make_pruner(name, epochs, workers))
    for number in range(6):
        pruned_at(study, [0.1 * number] * min(epochs, 20))
    assert len(study.trials) == 6


@pytest.mark.parametrize(
    ("head_epochs", "warmup"), [(0, 2), (1, 2), (5, 6), (10, 11), (16, 17), (19, 20)]
)
def test_nothing_is_pruned_in_head_only_epochs_and_warm_up(head_epochs: int, warmup: int) -> None:
    study = study_with(make_pruner("median", EPOCHS, 1, head_epochs), [rising(0.8)] * 5)
    assert pruned_at(study, rising(0.1)) == warmup
    pruner = make_pruner("hyperband", EPOCHS, 1, head_epochs)
    assert isinstance(pruner, HyperbandPruner)
    hyperband = study_with(pruner)
    ends = [pruned_at(hyperband, rising(0.9 if number < 6 else 0.1)) for number in range(30)]
    early = [end for end in ends if end is not None]
    assert min(early, default=warmup) >= warmup
    assert early or head_epochs


@pytest.mark.filterwarnings("ignore:All-NaN")
@pytest.mark.parametrize("name", ["median", "narrowing", "percentile"])
def test_bad_trials_are_pruned_right_after_the_warm_up(name: str) -> None:
    study = study_with(make_pruner(name, EPOCHS, 1), [rising(0.8)] * 5)
    assert pruned_at(study, rising(0.1)) == WARMUP
    assert pruned_at(study, rising(0.9)) is None
    assert pruned_at(study, [math.nan] * EPOCHS) == WARMUP


def test_percentile_ends_the_worst_quarter_where_median_ends_half() -> None:
    curves = [rising(level) for level in (0.2, 0.4, 0.6, 0.8, 1.0)]
    ends = {
        (name, level): pruned_at(study_with(make_pruner(name, EPOCHS, 1), curves), rising(level))
        for name, level in (("median", 0.5), ("percentile", 0.5), ("percentile", 0.3))
    }
    assert list(ends.values()) == [WARMUP, None, WARMUP]


def test_narrowing_begins_as_the_median_and_ends_with_the_best_tenth() -> None:
    curves = [rising(0.5 + level / 100) for level in range(1, 21)]
    study = study_with(make_pruner("narrowing", EPOCHS, 1), curves)
    assert pruned_at(study, rising(0.60)) == WARMUP
    ends = [pruned_at(study, rising(0.5 + level / 100)) for level in (12.5, 14.5, 16.5)]
    assert ends == sorted(end for end in ends if end is not None and WARMUP < end < EPOCHS)
    assert pruned_at(study, rising(0.70)) is None
    shares = [NarrowingPruner(WARMUP, EPOCHS).share(epoch) for epoch in range(EPOCHS + 1)]
    assert shares[: WARMUP + 1] == [0.5] * (WARMUP + 1)
    assert shares == sorted(shares, reverse=True) and shares[-1] == pytest.approx(0.1)
    assert NarrowingPruner(1, 1).share(1) == 0.5


@pytest.mark.parametrize("name", ["median", "narrowing"])
@pytest.mark.parametrize("workers", [1, 8])
def test_the_first_trials_finish(workers: int, name: str) -> None:
    pruner = make_pruner(name, EPOCHS, workers)
    assert pruned_at(study_with(pruner, [rising(0.8)] * (N_MIN_TRIALS - 1)), rising(0.1)) is None
    assert pruned_at(study_with(pruner, [rising(0.8)] * N_MIN_TRIALS), rising(0.1)) == WARMUP


def test_trials_that_run_side_by_side_are_compared_with_each_other() -> None:
    """Eight workers begin together: a later trial is compared with those that are ahead."""
    study = study_with(make_pruner("median", EPOCHS, 8))
    trials = [study.ask() for _ in range(8)]
    pruned = []
    for epoch in range(1, WARMUP + 1):
        for trial, level in zip(trials, [0.1, 0.8, 0.8, 0.8, 0.8, 0.8, 0.1, 0.9], strict=True):
            trial.report(level * epoch / EPOCHS, epoch)
            if trial.should_prune():
                pruned.append((trial.number, epoch))
    # The first one had no other to be compared with; at its next epoch it has.
    assert pruned == [(6, WARMUP)]
    trials[0].report(0.1 * (WARMUP + 1) / EPOCHS, WARMUP + 1)
    assert not trials[0].should_prune()
    for trial in trials[1:6]:
        trial.report(0.8 * (WARMUP + 1) / EPOCHS, WARMUP + 1)
    assert trials[0].should_prune()


def test_five_others_must_have_reached_the_epoch() -> None:
    short = [rising(0.8)[:6]] * 5
    study = study_with(make_pruner("median", EPOCHS, 1), [*short, *[rising(0.8)] * 4])
    behind = rising(0.81)[:6] + [0.0] * (EPOCHS - 6)
    assert pruned_at(study, behind) is None  # four have reached epoch 7, and this is the fifth
    assert pruned_at(study, behind) == 7


def test_the_other_direction() -> None:
    losses = [[1 - value for value in rising(0.8)]] * 5
    study = study_with(make_pruner("median", EPOCHS, 1), losses, direction="minimize")
    assert pruned_at(study, [1 - value for value in rising(0.1)]) == WARMUP
    assert pruned_at(study, [1 - value for value in rising(0.9)]) is None


# All trials


def test_the_bar_does_not_rise_with_the_survivors_and_the_study_stays_as_it_is() -> None:
    """Half were pruned at 0.4; who is better than they were is in the better half."""
    study = study_with(None, [[0.8] * EPOCHS] * 5, [[0.4] * 2] * 5)
    before = [(trial.state, trial.intermediate_values) for trial in study.trials]
    plain = MedianPruner(n_startup_trials=5, n_warmup_steps=2)
    ours = AllTrialsPruner(plain, EPOCHS)
    assert is_pruned(study, plain, 0.7, 0.7)
    assert not is_pruned(study, ours, 0.7, 0.7)
    assert is_pruned(study, ours, 0.3, 0.3)
    assert [(trial.state, trial.intermediate_values) for trial in study.trials[:10]] == before


def test_a_pruned_trial_stays_where_it_was() -> None:
    study = study_with(None, [[0.8] * EPOCHS] * 2, [[0.4, 0.5]] * 3)
    ours = AllTrialsPruner(PercentilePruner(50.0, n_startup_trials=5), EPOCHS)
    for step in range(2, EPOCHS):
        assert not is_pruned(study, ours, *[0.55] * step)
        assert is_pruned(study, ours, *[0.45] * step)


def test_trials_without_a_curve_are_not_compared_with() -> None:
    study = study_with(None, [[0.8] * EPOCHS] * 3)
    for _ in range(5):  # beyond a constraint, never trained
        study.add_trial(create_trial(state=TrialState.PRUNED))
    ours = AllTrialsPruner(MedianPruner(n_startup_trials=4), EPOCHS)
    assert not is_pruned(study, ours, 0.1)
    assert not is_pruned(study_with(None), ours, 0.1)


def test_a_running_trial_counts_as_far_as_it_has_come_and_never_for_itself() -> None:
    study = study_with(None)
    for _ in range(3):
        other = study.ask()
        for step in (1, 2):
            other.report(0.8, step)
    ours = AllTrialsPruner(MedianPruner(n_startup_trials=0, n_min_trials=3), EPOCHS)
    assert is_pruned(study, ours, 0.1, 0.1)
    assert not is_pruned(study, ours, 0.1, 0.1, 0.1)  # none of them has come to the third


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_curves_with_other_numbers_do_no_harm(value: float) -> None:
    study = study_with(None, [[0.8] * EPOCHS] * 5, [[0.4, value]])
    assert is_pruned(study, AllTrialsPruner(MedianPruner(5, 1), EPOCHS), 0.1, 0.1)
