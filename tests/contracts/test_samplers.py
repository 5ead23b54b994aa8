"""One suite over all samplers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.config.schema import PRUNERS, SAMPLERS
from autotune.errors import ConfigError
from autotune.plan import TrialPlan
from autotune.search.parameters.dimensions import contains
from autotune.search.pruners import make_pruner
from autotune.search.samplers import ATTEMPTS, STARTUP_TRIALS, CanonicalSampler
from autotune.search.space import Params, Space
from autotune.search.study_view import DEVICE_MEMORY, FAILED_PLAN
from tests.support.models.spaces import sampler_of, space_of_three, start_of

MODELS = tuple(name for name in SAMPLERS if name != "random")


FULL = space_of_three(
    trainable_layers={"low": 0, "high": 3},
    head={
        "hidden_layers": {"low": 0, "high": 1},
        "units": [64, 128],
        "dropout": {"low": 0, "high": 0.8, "step": 0.1},
        "pool": ["keep", "max"],
    },
    training={
        "lr": {"low": 1e-4, "high": 1, "log": True},
        "layer_decay": {"low": 0.3, "high": 1},
        "label_smoothing": [0, 0.1, 0.25],
    },
)
LAYERS = space_of_three(
    trainable_layers={"low": 0, "high": 3},
    layers={
        "kernel": ["keep", 1, 5],
        "width": [0.5, "keep", 64],
        "dropout": {"low": 0.0, "high": 0.5},
        "drop_path": ["keep", 0.1],
    },
    head={"hidden_layers": [0, 1], "activation": ["relu", "tanh"], "batch_norm": [True, False]},
)
ONE = space_of_three(trainable_layers={"low": 0, "high": 5})
ONE_CHOICE = space_of_three(head={"pool": ["keep", "max"]})
NOTHING = space_of_three(trainable_layers=2)
ONE_RATE = space_of_three(training={"lr": {"low": 1e-4, "high": 1, "log": True}})
NO_BASELINE = space_of_three(
    trainable_layers={"low": 1, "high": 4}, training={"lr": {"low": 1e-4, "high": 1}}
)
SPACES = {
    "full": FULL,
    "layers": LAYERS,
    "one": ONE,
    "one choice": ONE_CHOICE,
    "nothing": NOTHING,
    "no baseline": NO_BASELINE,
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    threads = torch.get_num_threads()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)  # as a worker samples
    yield
    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(before)


def new_study(
    space: Space,
    sampler: BaseSampler,
    direction: str = "maximize",
    pruner: str = "none",
) -> optuna.Study:
    """A study as the study room opens it: the baseline is queued first."""
    study = optuna.create_study(
        sampler=sampler, direction=direction, pruner=make_pruner(pruner, 10, 1)
    )
    study.enqueue_trial(space.params(space.baseline()) or {}, user_attrs={"role": "baseline"})
    return study


def study_of(space: Space, name: str, **options: str) -> optuna.Study:
    """A study that one of the samplers searches."""
    return new_study(space, sampler_of(space, sampler=name), **options)


def suggest(trial: optuna.Trial, space: Space) -> Params:
    """What the study room does with a claimed trial."""
    if trial.user_attrs.get("role") == "baseline" and space.params(space.baseline()) is None:
        return {}
    return {name: trial._suggest(name, found) for name, found in space.distributions.items()}


def score(plan: TrialPlan) -> float:
    """Higher is better: deep, and a learning rate near 0.01."""
    return plan.depth - abs(math.log10(plan.policy.lr) + 2)


def run(study: optuna.Study, space: Space, trials: int, sign: float = 1.0) -> list[Params]:
    drawn = []
    for _ in range(trials):
        trial = study.ask()
        params = suggest(trial, space)
        plan = space.plan(params) if params or not space.distributions else space.baseline()
        study.tell(trial, sign * score(plan))
        drawn.append(params)
    return drawn


def check_static(study: optuna.Study, space: Space) -> None:
    for trial in study.trials:
        if trial.user_attrs.get("role") == "baseline" and not trial.params:
            continue
        assert trial.distributions == space.distributions
        assert list(space.canonical(trial.params).items()) == [
            (name, trial.params[name]) for name in space.distributions
        ]
        assert all(
            contains(space.distributions[name], trial.params[name]) for name in trial.params
        )


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("which", SPACES)
def test_every_trial_has_all_parameters_in_canonical_form(name: str, which: str) -> None:
    space = SPACES[which]
    study = study_of(space, name)
    run(study, space, STARTUP_TRIALS + 2)
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    check_static(study, space)
    baseline = space.params(space.baseline())
    assert study.trials[0].params == (baseline or {})


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_goes_with_every_sampler(name: str, pruner: str) -> None:
    study = study_of(ONE, name, pruner=pruner)
    for number in range(STARTUP_TRIALS + 3):
        trial = study.ask()
        depth = suggest(trial, ONE)["depth"]
        state = TrialState.COMPLETE
        for step in range(1, 11):
            trial.report(depth * step - number, step)
            if trial.should_prune():
                state = TrialState.PRUNED
                break
        study.tell(trial, float(depth) if state == TrialState.COMPLETE else None, state=state)
    check_static(study, ONE)


@pytest.mark.parametrize("name", SAMPLERS)
def test_seeds(name: str) -> None:
    def draws(seed: int) -> list[Params]:
        return run(new_study(FULL, sampler_of(FULL, seed, sampler=name)), FULL, STARTUP_TRIALS + 2)

    first, again, other = draws(0), draws(0), draws(1)
    assert first == again
    assert first[0] == other[0]  # the baseline
    assert first[1:] != other[1:]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1.0), ("minimize", -1.0)])
def test_it_learns_in_both_directions(name: str, direction: str, sign: float) -> None:
    study = study_of(ONE, name, direction=direction)
    late = run(study, ONE, STARTUP_TRIALS + 10, sign)[STARTUP_TRIALS:]
    assert sum(one["depth"] for one in late) / len(late) > 3.5


def spying(name: str, seen: list[dict[str, Any]]) -> CanonicalSampler:
    """A sampler that notes what its base sampler is asked and answers."""

    def note(cls: type[BaseSampler]) -> type[BaseSampler]:
        class Spy(cls):  # type: ignore[valid-type, misc]
            def sample_relative(
                self, study: Any, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
            ) -> dict[str, Any]:
                found = super().sample_relative(study, trial, search_space)
                states = (TrialState.COMPLETE, TrialState.PRUNED)
                seen.append(
                    {
                        "trial": trial.number,
                        "space": set(search_space),
                        "joint": set(found),
                        "single": [],
                        "shown": study._get_trials(deepcopy=False, states=states),
                    }
                )
                return found

            def sample_independent(
                self, study: Any, trial: FrozenTrial, name: str, found: BaseDistribution
            ) -> Any:
                seen[-1]["single"].append(name)
                return super().sample_independent(study, trial, name, found)

        return Spy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        base = note(GPSampler if name == "gp" else TPESampler)(
            seed=0, n_startup_trials=STARTUP_TRIALS
        )
    return CanonicalSampler(FULL, base, start_of(FULL), impute=name == "gp")


@pytest.mark.parametrize("name", MODELS)
def test_after_the_start_all_parameters_are_sampled_jointly(name: str) -> None:
    seen: list[dict[str, Any]] = []
    run(new_study(FULL, spying(name, seen)), FULL, STARTUP_TRIALS + 4)
    # The baseline is queued and needs no sampling; the model takes over after the tenth trial.
    assert [one["trial"] for one in seen] == list(range(1, STARTUP_TRIALS + 4))
    for one in seen:
        start = one["trial"] < STARTUP_TRIALS
        assert one["space"] == set(FULL.distributions)
        assert one["joint"] == (set() if start else set(FULL.distributions))
        assert one["single"] == (list(FULL.distributions) if start else [])


@pytest.mark.parametrize("name", MODELS)
def test_a_baseline_outside_of_the_space_is_not_shown(name: str) -> None:
    study = study_of(NO_BASELINE, name)
    late = run(study, NO_BASELINE, STARTUP_TRIALS + 8)[STARTUP_TRIALS + 1 :]
    check_static(study, NO_BASELINE)
    assert study.trials[0].params == {}
    assert sum(one["depth"] for one in late) / len(late) > 2.5


@pytest.mark.parametrize("name", MODELS)
def test_pruned_trials_are_learned_from(name: str) -> None:
    seen: list[dict[str, Any]] = []
    study = new_study(FULL, spying(name, seen))
    for number in range(STARTUP_TRIALS + 2):
        trial = study.ask()
        params = suggest(trial, FULL)
        if number < 3:
            study.tell(trial, score(FULL.plan(params)))
            continue
        for step, value in {1: 0.5, 2: 0.25 + number, 3: math.nan}.items():
            trial.report(value, step)
        study.tell(trial, state=TrialState.PRUNED)
    assert seen[-1]["joint"] == set(FULL.distributions)
    shown = seen[-1]["shown"]
    assert len(shown) == STARTUP_TRIALS + 1
    if name == "gp":
        assert {one.state for one in shown} == {TrialState.COMPLETE}
        assert [one.value for one in shown[3:]] == [
            0.25 + number for number in range(3, STARTUP_TRIALS + 1)
        ]
    # The study itself is as it was.
    assert [one.state for one in study.trials[3:]] == [TrialState.PRUNED] * (STARTUP_TRIALS - 1)


@pytest.mark.parametrize("name", MODELS)
def test_pruned_trials_without_a_number_are_left_out(name: str) -> None:
    study = study_of(FULL, name)
    run(study, FULL, STARTUP_TRIALS)
    for _ in range(3):
        trial = study.ask()
        suggest(trial, FULL)
        trial.report(math.nan, 1)
        study.tell(trial, state=TrialState.PRUNED)
    trial = study.ask()
    suggest(trial, FULL)
    study.tell(trial, state=TrialState.PRUNED)  # without any report
    run(study, FULL, 2)
    check_static(study, FULL)


@pytest.mark.parametrize("name", SAMPLERS)
def test_running_failed_and_waiting_trials_are_tolerated(name: str) -> None:
    study = study_of(FULL, name)
    run(study, FULL, STARTUP_TRIALS)
    signed, unsigned = study.ask(), study.ask()  # two workers, one has no parameters yet
    suggest(signed, FULL)
    run(study, FULL, 2)
    failed = study.ask()
    study.tell(failed, state=TrialState.FAIL)
    run(study, FULL, 2)
    suggest(unsigned, FULL)
    check_static(study, FULL) if failed.params else None
    assert unsigned.params != signed.params


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_retry_keeps_its_parameters_and_is_not_sampled_again(name: str) -> None:
    study = study_of(FULL, name)
    run(study, FULL, STARTUP_TRIALS)
    lost = study.ask()
    params = suggest(lost, FULL)
    lost.report(0.5, 1)
    study.tell(lost, state=TrialState.FAIL)
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=params,
            distributions=dict(FULL.distributions),
            intermediate_values={1: 0.5},
        )
    )
    retry = study.ask()
    assert retry.params == params
    assert retry.relative_params == {}
    assert suggest(retry, FULL) == params
    study.tell(retry, 1.0)
    run(study, FULL, 1)
    check_static(study, FULL)


@pytest.mark.parametrize("name", SAMPLERS)
def test_queued_parameters_are_taken(name: str) -> None:
    study = study_of(FULL, name)
    run(study, FULL, STARTUP_TRIALS)
    wanted = FULL.canonical({**study.trials[3].params, "depth": 2, "training.lr": 0.5})
    study.enqueue_trial(wanted)
    assert run(study, FULL, 1) == [wanted]


@pytest.mark.parametrize("name", SAMPLERS)
def test_reseeding_changes_the_draws(name: str) -> None:
    sampler = sampler_of(FULL, sampler=name)
    sampler.reseed_rng()
    assert run(new_study(FULL, sampler), FULL, 4) != run(study_of(FULL, name), FULL, 4)


def test_there_is_no_other_sampler() -> None:
    with pytest.raises(ConfigError, match=r"search\.sampler: must be one of gp, tpe, random"):
        sampler_of(FULL, sampler="grid")


SMALL = space_of_three(
    trainable_layers={"low": 0, "high": 2},
    head={"pool": ["keep", "max"]},
    training={"layer_decay": [0.5, 1]},
)


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_plan_is_trained_twice_and_the_last_one_ends_the_study(name: str) -> None:
    sampler = sampler_of(SMALL, sampler=name)
    study = new_study(SMALL, sampler)
    for _ in range(10):
        assert sampler.exhausted_reason(study) == ""
        run(study, SMALL, 1)
    drawn = {tuple(trial.params.values()) for trial in study.trials}
    assert len(drawn) == 10  # the head alone, and two depths with two decays, times two poolings
    assert sampler.exhausted_reason(study) == "every plan of the space has been tried"


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_others_are_training_is_not_trained_again(name: str) -> None:
    study = study_of(SMALL, name)
    running = []
    for worker in range(10):
        # Two workers of equal seeds as well.
        study.sampler = sampler_of(SMALL, worker % 2, sampler=name)
        running.append(study.ask())
        suggest(running[-1], SMALL)
    assert len({tuple(one.params.values()) for one in running}) == 10


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_that_failed_is_learned_from(name: str) -> None:
    """A learning rate above 0.01 diverges; the model must keep away from there."""
    study = study_of(ONE_RATE, name)
    for _ in range(60 if name == "tpe" else 32):
        trial = study.ask()
        rate = suggest(trial, ONE_RATE)["training.lr"]
        if rate > 0.01:
            trial.set_user_attr(FAILED_PLAN, True)
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, math.log10(rate))
    late = [trial.params["training.lr"] for trial in study.trials[-20:]]
    assert sum(one > 0.02 for one in late) < 5


def test_a_sampler_is_asked_again_before_another_plan_is_chosen() -> None:
    asked: list[int] = []

    class Stubborn(RandomSampler):
        """Proposes the baseline, until it is asked for the third time."""

        def sample_relative(
            self, study: Any, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            asked.append(trial.number)
            depth = 2 if asked.count(trial.number) == ATTEMPTS and trial.number == 1 else 0
            return {**start_of(SMALL), "depth": depth}

    sampler = CanonicalSampler(SMALL, Stubborn(), start_of(SMALL))
    study = new_study(SMALL, sampler)
    params = run(study, SMALL, 3)
    assert asked == [1] * ATTEMPTS + [2] * ATTEMPTS
    assert [param["depth"] for param in params] == [0, 2, 0]
    assert params[2] != params[0]  # what is nearest to the proposal and new


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("limited", [False, True], ids=["no limits", "limits"])
def test_plans_that_do_not_fit_into_memory_are_kept_away_from(name: str, limited: bool) -> None:
    """A learning rate above 0.01 wants too much; the higher it is, the better the value."""
    study = study_of(ONE_RATE, name)
    for number in range(60 if name == "tpe" else 32):
        trial = study.ask()
        rate = suggest(trial, ONE_RATE)["training.lr"]
        beyond = max(0.0, math.log10(rate) + 2.0)
        if limited and (not beyond or number % 2):  # it may give out before anything is measured
            trial.set_constraint("max_latency_ms", -0.5)
        if beyond:
            trial.set_constraint(DEVICE_MEMORY, beyond)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, math.log10(rate))
    late = [trial.params["training.lr"] for trial in study.trials[-20:]]
    assert sum(one > 0.02 for one in late) < 7
    assert max(one for one in late if one <= 0.01) > 0.005


def test_a_gp_goes_on_when_a_stage_hides_the_plans_that_did_not_fit() -> None:
    """The number of constraints goes up and down with what it is shown."""
    space = space_of_three(
        trainable_layers={"low": 0, "high": 3}, training={"lr": {"low": 1e-4, "high": 1}}
    )
    study = new_study(space, sampler_of(space, sampler="gp"))
    for number in range(STARTUP_TRIALS + 6):
        trial = study.ask()
        suggest(trial, space)
        trial.set_constraint("max_latency_ms", -0.1)
        if number == STARTUP_TRIALS + 2:
            trial.set_constraint(DEVICE_MEMORY, 0.5)
        study.tell(trial, float(number))
    check_static(study, space)


def test_a_gp_computes_on_the_cpu_whatever_the_default_device_is() -> None:
    def draws() -> list[Params]:
        return run(new_study(ONE_RATE, sampler_of(ONE_RATE, sampler="gp")), ONE_RATE, 12)

    expected = draws()
    with torch.device("meta"):
        assert draws() == expected


@pytest.mark.parametrize("name", MODELS)
def test_two_objectives_can_be_searched(name: str) -> None:
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=sampler_of(FULL, sampler=name)
    )
    for _ in range(STARTUP_TRIALS + 3):
        trial = study.ask()
        plan = FULL.plan(suggest(trial, FULL))
        study.tell(trial, [score(plan), float(plan.depth)])
    check_static(study, FULL)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("value", [0.0, 1e6, -1e6])
def test_constant_and_huge_values(name: str, value: float) -> None:
    study = study_of(ONE, name)
    for _ in range(STARTUP_TRIALS + 3):
        trial = study.ask()
        suggest(trial, ONE)
        study.tell(trial, value)
    check_static(study, ONE)
