"""Trials that start: they have their parameters and their plan before another claim."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from optuna.trial import Trial, TrialState

from autotune.errors import FormatError
from autotune.plan import TrialPlan
from autotune.study.state import attrs
from autotune.study.state.trial_queue import Claim
from tests.study.state.test_trial_queue import (
    SPACE,
    claim,
    exhaust,
    frozen,
    killed,
    make_queue,
    states,
    stopped,
)

pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


def test_a_claim_has_all_that_there_is_to_know(url: str) -> None:
    queue = make_queue(url, budget=4)
    before = time.time()
    claimed = queue.claim("host/7/3")
    assert isinstance(claimed, Claim)
    trial = frozen(queue, 0)
    assert trial.state == TrialState.RUNNING
    assert trial.user_attrs[attrs.WORKER] == "host/7/3"
    assert before <= trial.user_attrs[attrs.CLAIMED_AT] == claimed.since <= time.time()
    assert trial.distributions == SPACE.distributions
    assert attrs.trial_plan(trial) == SPACE.plan(trial.params)
    assert claimed.workers == 1
    for worker, workers in (("host/7/4", 2), ("other/9/0", 3), ("host/7/3", 3)):
        more = queue.claim(worker)
        assert isinstance(more, Claim) and more.workers == workers


def test_a_queued_plan_outside_of_the_space_is_kept(url: str) -> None:
    queue = make_queue(url)
    outside = json.loads(json.dumps(TrialPlan("resnet34", depth=0).to_json()))
    queue.study.enqueue_trial({}, user_attrs={attrs.PLAN: outside})
    trial = frozen(queue, claim(queue).number)
    assert (trial.user_attrs[attrs.PLAN], trial.params) == (outside, {})


def test_a_worker_that_dies_in_the_middle_of_a_claim(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make_queue(url, budget=2)
    queue.study.enqueue_trial({"depth": 3})
    queue.study.sampler.writes_trials = True  # type: ignore[attr-defined]  # as a plugin does

    def half_way(trial: Trial, *_: Any) -> None:
        trial.suggest_int("depth", 0, 5)
        trial.set_user_attr(attrs.STAGE, "layer 1")
        killed()

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("autotune.study.state.starting.draw_missing_params", half_way)
            queue.claim("host/1/0")
    assert states(queue) == ["RUNNING", "RUNNING"]
    assert queue.reclaim_stale() == 2
    assert queue.progress().waiting == 2
    queued, drawn = (frozen(queue, claim(queue).number) for _ in range(2))
    assert (attrs.earlier_attempts(queued), attrs.earlier_attempts(drawn)) == ([0], [1])
    assert queued.params["depth"] == 3  # as it was queued
    for trial in (queued, drawn):
        # Drawn as a whole: one half of one plan and one of another would be neither.
        assert trial.params == SPACE.canonical(trial.params)
        assert attrs.trial_plan(trial) == SPACE.plan(trial.params)
        assert attrs.STAGE not in trial.user_attrs  # it belongs to what was drawn in it


def test_a_new_trial_is_there_as_a_whole_or_not_at_all(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make_queue(url, budget=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("autotune.storage.rdb.statements._part_rows", killed)
        queue.claim("host/1/0")
    assert states(queue) == []
    claim(queue)
    (trial,) = queue.study.trials
    assert trial.state == TrialState.RUNNING and trial.user_attrs[attrs.WORKER] == "host/1/0"
    assert attrs.trial_plan(trial) == SPACE.plan(trial.params)
    assert list(trial.params) == list(SPACE.distributions)


def test_a_queued_trial_without_a_plan_needs_one(url: str) -> None:
    queue = make_queue(url)
    queue.storage.create_new_trial(queue.study._study_id)  # lost between asking and drawing
    queue.reclaim_stale()
    exhaust(queue)
    assert stopped(queue).kind == "exhausted"
    assert queue.finalize() is not None
    exhaust(queue, "")
    assert claim(queue).number == 1


def test_a_queued_plan_of_a_later_version_stays_in_the_queue(url: str) -> None:
    queue = make_queue(url)
    plan = {**SPACE.baseline().to_json(), "attention": 3}
    queue.study.enqueue_trial({}, user_attrs={attrs.PLAN: plan})
    with pytest.raises(FormatError, match="the plan of trial 0 was written by another version"):
        queue.claim("w/1/0")
    assert states(queue) == ["WAITING"]
