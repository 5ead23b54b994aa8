from __future__ import annotations

import math
from collections.abc import Sequence

import optuna
import pytest
from optuna.pruners import BasePruner, HyperbandPruner
from optuna.trial import TrialState

from autotune.config.schema import PRUNERS
from autotune.search.pruners import N_MIN_TRIALS, make_pruner

EPOCHS = 20
WARMUP = EPOCHS // 10


def study_with(
    pruner: BasePruner, curves: Sequence[Sequence[float]], direction: str = "maximize"
) -> optuna.Study:
    """A study whose finished trials have these curves; steps count from 1, as epochs do."""
    study = optuna.create_study(direction=direction, pruner=pruner)
    for curve in curves:
        trial = study.ask()
        for step, value in enumerate(curve, start=1):
            trial.report(value, step)
        study.tell(trial, curve[-1])
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


def rising(level: float) -> list[float]:
    return [level * step / EPOCHS for step in range(1, EPOCHS + 1)]


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("epochs", [1, 2, 3, 20, 1000])
@pytest.mark.parametrize("workers", [1, 8])
def test_every_pruner_can_be_made_and_asked(name: str, epochs: int, workers: int) -> None:
    study = study_with(make_pruner(name, epochs, workers), [])
    for trial_number in range(6):
        pruned_at(study, [0.1 * trial_number] * min(epochs, 20))
    assert len(study.trials) == 6


@pytest.mark.parametrize(
    ("head_epochs", "warmup"), [(0, 2), (1, 2), (5, 6), (10, 11), (16, 17), (19, 20)]
)
def test_nothing_is_pruned_in_the_epochs_of_the_head_alone(head_epochs: int, warmup: int) -> None:
    study = study_with(make_pruner("median", EPOCHS, 1, head_epochs), [rising(0.8)] * 5)
    assert pruned_at(study, rising(0.1)) == warmup
    hyperband = study_with(make_pruner("hyperband", EPOCHS, 1, head_epochs), [])
    ends = [pruned_at(hyperband, rising(0.9 if one < 6 else 0.1)) for one in range(20)]
    assert min((end for end in ends if end is not None), default=warmup) >= warmup


def test_an_unknown_pruner_is_an_error_here_too() -> None:
    with pytest.raises(KeyError):
        make_pruner("medium", EPOCHS, 1)


@pytest.mark.parametrize("name", ["median", "percentile"])
def test_a_bad_trial_is_pruned_right_after_the_warm_up(name: str) -> None:
    study = study_with(make_pruner(name, EPOCHS, 1), [rising(0.8)] * 5)
    assert pruned_at(study, rising(0.1)) == WARMUP
    assert pruned_at(study, rising(0.9)) is None


def test_a_trial_that_falls_behind_later_is_pruned_later() -> None:
    study = study_with(make_pruner("median", EPOCHS, 1), [rising(0.8)] * 5)
    flat = [0.35] * EPOCHS  # 0.8 * 9 / 20 = 0.36 is the first median above it
    assert pruned_at(study, flat) == 9


def test_the_percentile_pruner_ends_the_worst_quarter_where_the_median_ends_half() -> None:
    curves = [rising(level) for level in (0.2, 0.4, 0.6, 0.8, 1.0)]
    between = rising(0.5)
    assert pruned_at(study_with(make_pruner("median", EPOCHS, 1), curves), between) == WARMUP
    assert pruned_at(study_with(make_pruner("percentile", EPOCHS, 1), curves), between) is None
    worst = rising(0.3)
    assert pruned_at(study_with(make_pruner("percentile", EPOCHS, 1), curves), worst) == WARMUP


@pytest.mark.parametrize("workers", [1, 8])
def test_the_first_trials_finish(workers: int) -> None:
    pruner = make_pruner("median", EPOCHS, workers)
    assert pruned_at(study_with(pruner, [rising(0.8)] * (N_MIN_TRIALS - 1)), rising(0.1)) is None
    assert pruned_at(study_with(pruner, [rising(0.8)] * N_MIN_TRIALS), rising(0.1)) == WARMUP


def test_trials_that_run_side_by_side_are_measured_by_each_other() -> None:
    """Eight workers begin together: whoever comes later is compared with those that are ahead."""
    study = study_with(make_pruner("median", EPOCHS, 8), [])
    trials = [study.ask() for _ in range(8)]
    pruned = []
    for epoch in range(1, WARMUP + 1):
        for trial, level in zip(trials, [0.1, 0.8, 0.8, 0.8, 0.8, 0.8, 0.1, 0.9], strict=True):
            trial.report(level * epoch / EPOCHS, epoch)
            if trial.should_prune():
                pruned.append((trial.number, epoch))
    # The first one had nobody to be compared with; at its next epoch it has.
    assert pruned == [(6, WARMUP)]
    trials[0].report(0.1 * (WARMUP + 1) / EPOCHS, WARMUP + 1)
    assert not trials[0].should_prune()
    for trial in trials[1:6]:
        trial.report(0.8 * (WARMUP + 1) / EPOCHS, WARMUP + 1)
    assert trials[0].should_prune()


def test_the_bar_stays_where_half_of_all_trials_are() -> None:
    study = study_with(make_pruner("median", EPOCHS, 1), [rising(0.8)] * 5)
    for _ in range(5):
        assert pruned_at(study, rising(0.1)) == WARMUP
    assert pruned_at(study, rising(0.79)) is None  # better than those five, so in the better half
    assert pruned_at(study, rising(0.1)) == WARMUP


def test_five_others_must_have_reached_the_epoch() -> None:
    short = [rising(0.8)[:6]] * 5
    study = study_with(make_pruner("median", EPOCHS, 1), [*short, *[rising(0.8)] * 4])
    behind = rising(0.81)[:6] + [0.0] * (EPOCHS - 6)
    assert pruned_at(study, behind) is None  # four have reached epoch 7, and this is the fifth
    assert pruned_at(study, behind) == 7


def test_the_other_direction() -> None:
    losses = [[1 - value for value in rising(0.8)]] * 5
    study = study_with(make_pruner("median", EPOCHS, 1), losses, "minimize")
    assert pruned_at(study, [1 - value for value in rising(0.1)]) == WARMUP
    assert pruned_at(study, [1 - value for value in rising(0.9)]) is None


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_no_numbers_are_pruned_but_not_in_the_warm_up() -> None:
    study = study_with(make_pruner("median", EPOCHS, 1), [rising(0.8)] * 5)
    assert pruned_at(study, [math.nan] * EPOCHS) == WARMUP


def test_none_prunes_nothing() -> None:
    study = study_with(make_pruner("none", EPOCHS, 1), [rising(0.8)] * 20)
    assert pruned_at(study, [0.0] * EPOCHS) is None


def test_hyperband_prunes_but_not_before_the_warm_up() -> None:
    pruner = make_pruner("hyperband", EPOCHS, 1)
    assert isinstance(pruner, HyperbandPruner)
    study = study_with(pruner, [])
    ends = [pruned_at(study, rising(0.9 if number < 6 else 0.1)) for number in range(30)]
    early = [end for end in ends if end is not None]
    assert early
    assert min(early) >= WARMUP
