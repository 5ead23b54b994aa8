from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.config.schema import GreedyConfig
from autotune.plan import KEEP
from autotune.search.greedy import STAGE, GreedyState, greedy_state, list_stages
from autotune.search.parameters.dimensions import suggest
from autotune.search.samplers import CanonicalSampler
from autotune.search.space import Params, Space
from autotune.search.study_view import FAILED_PLAN
from tests.support.models.spaces import sampler_of, space_of_three, start_of

LAYERS = {"kernel": ["keep", 1, 5], "width": ["keep", 0.5]}
TRAINING = {"lr": {"low": 1e-4, "high": 1, "log": True}, "label_smoothing": [0, 0.1]}
HEAD = {"hidden_layers": [0, 1], "units": [8, 16]}


FULL = space_of_three(
    trainable_layers={"low": 0, "high": 3}, layers=LAYERS, head=HEAD, training=TRAINING
)


def greedy_sampler(space: Space, **greedy: Any) -> CanonicalSampler:
    return sampler_of(space, sampler="random", strategy="greedy", trials=40, greedy=greedy)


def where(study: Study, space: Space, budget: int = 40, **config: Any) -> GreedyState:
    return greedy_state(
        space,
        study.trials,
        study.direction,
        GreedyConfig.model_validate(config),
        budget,
        start_of(space),
    )


def stage_name(study: Study, space: Space, budget: int = 40, **config: Any) -> str | None:
    """Return the name of the present stage."""
    current = where(study, space, budget, **config).current
    return None if current is None else current.name


def add(
    study: Study, space: Space, value: float | None, stage: str | None = None, **params: Any
) -> None:
    """Add a trial with a value, or without one: it runs."""
    dotted = {key.replace("__", "."): param for key, param in params.items()}
    values = space.canonical({**start_of(space), **dotted})
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.RUNNING if value is None else TrialState.COMPLETE,
            value=value,
            params=values,
            distributions=dict(space.distributions),
            user_attrs={} if stage is None else {STAGE: stage},
        )
    )


def search(
    study: Study, space: Space, sampler: CanonicalSampler, score: Callable[[Params], float], n: int
) -> None:
    """Run trials one after the other, at most ``n``."""
    study.sampler = sampler
    for _ in range(n):
        if sampler.exhausted_reason(study):
            return
        trial = study.ask()
        params = {name: suggest(trial, name, one) for name, one in space.distributions.items()}
        study.tell(trial, score(params))


def test_the_stages_go_from_the_last_layer_to_the_first_then_head_and_training() -> None:
    stages = list_stages(FULL)
    assert [(stage.name, stage.depth) for stage in stages] == [
        ("layer 1", 1),
        ("layer 2", 2),
        ("layer 3", 3),
        ("head", None),
        ("training", None),
    ]
    assert stages[1].free == ("layer.2.kernel", "layer.2.width", "inherit", "training.lr")
    assert stages[3].free == ("head.hidden_layers", "head.units.1")
    assert stages[4].free == ("training.lr", "training.label_smoothing")


def test_layers_that_have_nothing_to_search_are_trainable_as_they_are() -> None:
    plain = list_stages(space_of_three(trainable_layers={"low": 0, "high": 4, "step": 2}))
    assert [(one.name, one.free, one.depth) for one in plain] == [
        ("layers 1-2", (), 2),
        ("layers 3-4", (), 4),
    ]
    chosen = list_stages(space_of_three(trainable_layers=[3, 1], layers={"kernel": ["keep", 5]}))
    assert [(one.name, one.depth) for one in chosen] == [("layer 1", 1), ("layers 2-3", 3)]
    fixed = list_stages(space_of_three(trainable_layers=2, layers={"kernel": ["keep", 5]}))
    assert [(one.name, one.free, one.depth) for one in fixed] == [
        ("layer 1", ("layer.1.kernel", "inherit"), None),
        ("layer 2", ("layer.2.kernel", "inherit"), None),
    ]
    assert list_stages(space_of_three()) == ()


def test_every_stage_varies_its_own_part_and_the_rest_is_the_incumbent() -> None:
    study = optuna.create_study(direction="maximize")
    add(study, FULL, 0.0)

    def score(params: Params) -> float:
        return sum(params[f"layer.{i}.kernel"] == 5 for i in (1, 2, 3)) + params["depth"]

    search(study, FULL, greedy_sampler(FULL, trials_per_stage=6), score, 100)
    by_stage: dict[str, list[FrozenTrial]] = {}
    for trial in study.trials[1:]:
        by_stage.setdefault(trial.user_attrs[STAGE], []).append(trial)
    assert list(by_stage) == ["layer 1", "layer 2", "layer 3", "head", "training"]
    incumbent = start_of(FULL)
    for stage in list_stages(FULL):
        trials = by_stage[stage.name]
        expected = {**incumbent, "depth": stage.depth or incumbent["depth"]}
        for trial in trials:
            for name in FULL.distributions.keys() - set(stage.free):
                assert trial.params[name] == expected[name], (stage.name, name)
        best = max(trials, key=lambda one: one.value or 0.0)
        if score(best.params) > score(incumbent):
            incumbent = best.params
    assert [incumbent[f"layer.{i}.kernel"] for i in (1, 2, 3)] == [5, 5, 5]
    assert len(study.trials) == 1 + 5 * 6 - (6 - len(by_stage["head"]))
    assert len(by_stage["head"]) == 2  # one hidden layer of 8 or 16; linear is the incumbent
    end = where(study, FULL, trials_per_stage=6)
    assert end.current is None
    assert end.incumbent == incumbent
    assert [result.accepted for result in end.results] == [True, True, True, False, False]


@pytest.mark.parametrize("stop", ["no_gain", "never"])
def test_the_layers_end_with_the_first_that_does_not_help(stop: str) -> None:
    study = optuna.create_study(direction="maximize")
    add(study, FULL, 0.5)
    sampler = greedy_sampler(FULL, trials_per_stage=2, stop=stop)
    search(study, FULL, sampler, lambda params: 0.6 if params["depth"] == 1 else 0.4, 100)
    stages = [trial.user_attrs[STAGE] for trial in study.trials[1:]]
    layers = ["layer 1", "layer 2"] + ["layer 3"] * (stop == "never")
    assert stages == [one for one in (*layers, "head", "training") for _ in range(2)]
    found = where(study, FULL, trials_per_stage=2, stop=stop)
    skipped = [result.stage.name for result in found.results if result.skipped]
    assert skipped == ["layer 3"] * (stop == "no_gain")
    assert [result.accepted for result in found.results] == [True, False, False, False, False]
    assert found.incumbent["depth"] == 1
    if stop == "never":  # what did not help is left as it was when the next layer is trainable
        third = study.trials[5].params
        assert (third["depth"], third["layer.2.kernel"]) == (3, KEEP)


@pytest.mark.parametrize(("margin", "accepted"), [(0.0, True), (0.09, True), (0.11, False)])
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_gain_must_be_larger_than_the_margin(
    direction: str, margin: float, accepted: bool
) -> None:
    study = optuna.create_study(direction=direction)
    sign = 1 if direction == "maximize" else -1
    add(study, FULL, 0.5)
    add(study, FULL, 0.5 + sign * 0.1, "layer 1", depth=1)
    add(study, FULL, 0.5 - sign * 0.1, "layer 1", depth=1, layer__1__kernel=5)
    found = where(study, FULL, trials_per_stage=2, margin=margin)
    assert [result.accepted for result in found.results[:1]] == [accepted]
    assert found.incumbent["depth"] == int(accepted)
    expected = "layer 2" if accepted else "head"
    assert stage_name(study, FULL, trials_per_stage=2, margin=margin) == expected


def test_what_is_left_of_the_budget_is_shared_among_the_stages_left() -> None:
    study = optuna.create_study(direction="maximize")
    add(study, FULL, 0.5)
    assert where(study, FULL, budget=41).results[0].quota == 8
    for i, kernel in enumerate((1, 5, "keep", 1)):
        add(study, FULL, 0.1 * i, "layer 1", depth=1, layer__1__kernel=kernel)
    early = where(study, FULL, budget=6).results  # 1 each, and 4 of them are in the first stage
    assert (early[0].quota, early[-1].quota) == (1, 1)
    assert stage_name(study, FULL, budget=6) == "head"  # layer 1 gained nothing
    assert stage_name(study, FULL, budget=61) == "layer 1"  # a later run asks for more: it goes on


def test_workers_do_not_wait_for_a_stage_whose_plans_are_all_taken() -> None:
    space = space_of_three(
        trainable_layers={"low": 0, "high": 2}, training={"weight_decay": [0.0, 0.1]}
    )
    study = optuna.create_study(direction="maximize")
    add(study, space, 0.5)
    add(study, space, None, "layer 1", depth=1)  # its only plan, and it runs
    assert stage_name(study, space) == "layer 2"
    assert not where(study, space).results[0].is_finished
    study.tell(1, 0.4)
    assert stage_name(study, space) == "training"


def test_a_late_result_changes_the_course() -> None:
    study = optuna.create_study(direction="maximize")
    add(study, FULL, 0.5)
    add(study, FULL, None, "layer 1", depth=1)
    add(study, FULL, 0.4, "layer 1", depth=1, layer__1__kernel=5)
    assert stage_name(study, FULL, trials_per_stage=1) == "head"
    study.tell(1, 0.9)
    assert stage_name(study, FULL, trials_per_stage=1) == "layer 2"
    assert where(study, FULL, trials_per_stage=1).incumbent["depth"] == 1


def test_lost_attempts_do_not_count_and_plans_that_failed_do() -> None:
    study = optuna.create_study(direction="maximize")
    add(study, FULL, 0.5)
    for kernel, failed in ((1, True), (5, False)):
        add(study, FULL, None, "layer 1", depth=1, layer__1__kernel=kernel)
        trial = study.trials[-1]
        if failed:
            study._storage.set_trial_user_attr(trial._trial_id, FAILED_PLAN, True)
        study.tell(trial.number, state=TrialState.FAIL)
    [result] = where(study, FULL, trials_per_stage=5).results
    assert (result.finished, result.trials, result.best) == (1, (1,), None)


def test_a_plan_beyond_a_constraint_is_no_gain() -> None:
    study = optuna.create_study(direction="maximize")
    add(study, FULL, 0.5)
    add(study, FULL, None, "layer 1", depth=1)
    trial = optuna.trial.Trial(study, study.trials[1]._trial_id)
    trial.set_constraint("parameters", 0.2)
    study.tell(1, 0.9)
    first = where(study, FULL, trials_per_stage=1).results[0]
    assert first.best is None and not first.accepted


def test_without_a_baseline_the_first_that_works_is_accepted() -> None:
    study = optuna.create_study(direction="maximize")
    add(study, FULL, 0.1, "layer 1", depth=1)
    assert where(study, FULL, trials_per_stage=1).results[0].accepted


@pytest.mark.parametrize("seed", range(4))
def test_the_course_is_the_same_for_every_worker_and_after_every_crash(seed: int) -> None:
    """Workers with samplers of their own, trials that end in any order: no state is needed."""
    rng = random.Random(seed)
    study = optuna.create_study(direction="maximize")
    add(study, FULL, 0.3)
    running = []
    for _ in range(120):
        sampler = greedy_sampler(FULL, trials_per_stage=4)  # a fresh worker each time
        if running and (len(running) >= 4 or rng.random() < 0.5):
            trial = running.pop(rng.randrange(len(running)))
            study.tell(trial, rng.random())
        elif not sampler.exhausted_reason(study):
            study.sampler = sampler
            trial = study.ask()
            for name, distribution in FULL.distributions.items():
                suggest(trial, name, distribution)
            running.append(trial)
        elif not running:
            break
    found = where(study, FULL, trials_per_stage=4)
    assert found.current is None
    assert not running
    assert all(result.finished <= 4 + 3 for result in found.results)  # others were under way
    params = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(params)) == len(params)
