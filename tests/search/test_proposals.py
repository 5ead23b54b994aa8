"""Plans that are drawn ahead of the study's lock, and what becomes of them under it."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.search.samplers import CanonicalSampler, Draw, Proposal
from autotune.search.space import Space
from tests.support.models.spaces import sampler_of, space_of

SPACE: dict[str, Any] = {
    "trainable_layers": {"low": 0, "high": 3},
    "training": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "mixup": [0.0, 0.2]},
}
SMALL: dict[str, Any] = {"trainable_layers": {"low": 0, "high": 2}}


def proposer(
    config: dict[str, Any], seed: int = 0, **search: Any
) -> tuple[CanonicalSampler, Space]:
    space = space_of(of=(), **config)
    return sampler_of(space, seed, **search), space


def new_study() -> Study:
    return optuna.create_study(direction="maximize")


def drawn(sampler: CanonicalSampler, study: Study) -> Draw:
    trials = study.get_trials(deepcopy=False)
    return sampler.draw(study, upcoming(trials), trials)


def accepted(
    sampler: CanonicalSampler, study: Study, proposal: Proposal, last: bool = False
) -> Draw | None:
    trials = study.get_trials(deepcopy=False)
    return sampler.accept(study, upcoming(trials), trials, proposal, last=last)


def upcoming(trials: list[FrozenTrial]) -> FrozenTrial:
    made = create_trial(state=TrialState.RUNNING)
    made.number = len(trials)
    return made


def add(study: Study, space: Space, draw: Draw, state: TrialState = TrialState.COMPLETE) -> None:
    value = None if state == TrialState.RUNNING else draw.params["depth"] - len(study.trials) / 50
    study.add_trial(
        create_trial(
            state=state,
            value=value,
            params=draw.params,
            distributions=dict(space.distributions),
            user_attrs={} if draw.stage is None else {"stage": draw.stage},
        )
    )


@pytest.mark.parametrize("name", ["random", "tpe", "gp"])
def test_one_worker_draws_ahead_what_it_would_draw_under_the_lock(name: str) -> None:
    params: list[list[dict[str, Any]]] = []
    for ahead in (False, True):
        sampler, space = proposer(SPACE, sampler=name)
        study = new_study()
        for _ in range(14):
            if ahead:
                found = accepted(sampler, study, sampler.propose(study, study.trials))
                assert found is not None
            else:
                found = drawn(sampler, study)
            add(study, space, found)
        params.append([trial.params for trial in study.trials])
    assert params[0] == params[1]


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.COMPLETE])
def test_a_plan_that_another_worker_has_taken_is_not_drawn_again(state: TrialState) -> None:
    sampler, space = proposer(SMALL, sampler="random")
    study = new_study()
    proposal = sampler.propose(study, [])
    add(study, space, proposal.draw, state)
    assert accepted(sampler, study, proposal) is None
    found = accepted(sampler, study, proposal, last=True)
    assert found is not None
    assert found.params != proposal.draw.params


@pytest.mark.parametrize(("name", "holds"), [("random", True), ("tpe", True), ("gp", False)])
def test_a_further_trial_counts_where_the_sampler_keeps_away_from_it(
    name: str, holds: bool
) -> None:
    sampler, space = proposer(SPACE, sampler=name)
    other, _ = proposer(SPACE, sampler="random", seed=1)
    study = new_study()
    for _ in range(12):
        add(study, space, drawn(other, study))
    proposal = sampler.propose(study, study.trials)
    add(study, space, drawn(other, study), TrialState.RUNNING)
    assert accepted(sampler, study, proposal) == (proposal.draw if holds else None)
    # Not for ever: with many workers there is always a further trial.
    assert accepted(sampler, study, proposal, last=True) == proposal.draw


def test_a_trial_that_has_ended_in_between_is_no_reason_to_draw_anew() -> None:
    sampler, space = proposer(SPACE, sampler="gp")
    study = new_study()
    for _ in range(12):
        add(study, space, drawn(sampler, study))
    running = study.ask(dict(space.distributions))
    proposal = sampler.propose(study, study.trials)
    study.tell(running, 0.5)
    assert accepted(sampler, study, proposal) == proposal.draw


def test_a_search_in_stages_draws_in_the_stage_of_now() -> None:
    greedy = {"strategy": "greedy", "greedy": {"trials_per_stage": 1}, "trials": 9}
    sampler, space = proposer(SPACE, sampler="random", **greedy)
    study = new_study()
    add(study, space, Draw(space.nearest(space.baseline()), None))
    proposal = sampler.propose(study, study.trials)
    assert proposal.draw.stage == "layer 1"
    # Another worker has the only trial of that stage, which gains.
    add(study, space, drawn(sampler, study))
    assert accepted(sampler, study, proposal) is None
    found = accepted(sampler, study, proposal, last=True)
    assert found is not None
    assert found.stage == "layer 2"
