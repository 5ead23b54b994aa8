"""Plans are drawn before the study's lock is taken, and looked at again under it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.config.schema import SpaceConfig
from autotune.search.samplers import CanonicalSampler
from autotune.search.space import Space
from autotune.storage.rdb.connection import open_storage
from autotune.storage.rdb.study_lock import study_lock
from autotune.study.state import attrs
from autotune.study.state.budget import Budget, StopReason
from autotune.study.state.trial_queue import MAX_PROPOSALS, Claim, TrialQueue

pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)

pytestmark = pytest.mark.usefixtures("closed_connections")

DEPTHS = SpaceConfig.model_validate({"trainable_layers": {"low": 0, "high": 9}})
SPACE = Space.from_config("resnet18", DEPTHS, "weights", ())


class Base(RandomSampler):
    """Draws fixed depths, and lets something happen while it draws."""

    def __init__(self, depths: Sequence[int], meanwhile: Callable[[int], None]) -> None:
        super().__init__(seed=0)
        self.depths = list(depths)
        self.meanwhile = meanwhile
        self.asked = 0

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        self.asked += 1
        self.meanwhile(self.asked)
        return {"depth": self.depths[min(self.asked, len(self.depths)) - 1]}


def queue_with(
    url: str,
    depths: Sequence[int],
    meanwhile: Callable[[int], None] = lambda asked: None,
    sees_running: bool = False,
    budget: int | None = None,
) -> TrialQueue:
    storage = open_storage(url, create=True)
    base = Base(depths, meanwhile)
    sampler = CanonicalSampler(SPACE, base, {"depth": 0}, sees_running=sees_running)
    study = optuna.create_study(
        study_name="s",
        storage=storage,
        sampler=sampler,
        direction="maximize",
        load_if_exists=True,
    )
    queue = TrialQueue(study, storage, url, SPACE)
    if budget is not None:
        queue.set_budget(Budget(budget))
    return queue


def depth_of(claim: object) -> int:
    assert isinstance(claim, Claim)
    return int(claim.trial.params["depth"])


def asked(queue: TrialQueue) -> int:
    base = queue.study.sampler._base  # type: ignore[attr-defined]
    assert isinstance(base, Base)
    return base.asked


def test_others_can_claim_while_a_sampler_draws(url: str) -> None:
    other = queue_with(url, [1], budget=10)
    held: list[bool] = []

    def look(asked: int) -> None:
        with study_lock(other.storage, url, "s", timeout_s=1):
            held.append(True)

    assert depth_of(queue_with(url, [2], look).claim("host/1/0")) == 2
    assert held == [True]


@pytest.mark.parametrize("sees_running", [False, True])
def test_a_plan_that_another_worker_takes_meanwhile_is_not_trained_twice(
    url: str, sees_running: bool
) -> None:
    other = queue_with(url, [3], budget=10)

    def take(asked: int) -> None:
        if asked == 1:
            assert depth_of(other.claim("host/2/0")) == 3

    queue = queue_with(url, [3, 4], take, sees_running)
    assert depth_of(queue.claim("host/1/0")) == 4
    assert asked(queue) == 2


def test_where_others_are_always_quicker_a_claim_still_ends(url: str) -> None:
    depths = list(range(1, MAX_PROPOSALS + 1))
    other = queue_with(url, depths, budget=20)
    queue = queue_with(
        url, depths, lambda asked: depth_of(other.claim(f"host/2/{asked}")), sees_running=True
    )
    found = depth_of(queue.claim("host/1/0"))
    assert asked(queue) == MAX_PROPOSALS
    trained = [one.params["depth"] for one in queue.study.trials]
    assert found not in depths and sorted(trained) == sorted({*depths, found})


def test_the_last_trial_of_a_budget_is_started_once(url: str) -> None:
    other = queue_with(url, [3], budget=1)
    queue = queue_with(url, [4], lambda asked: depth_of(other.claim("host/2/0")))
    ended = queue.claim("host/1/0")
    assert isinstance(ended, StopReason) and ended.kind == "trials"
    assert [one.params["depth"] for one in queue.study.trials] == [3]


def test_what_is_queued_meanwhile_comes_first(url: str) -> None:
    other = queue_with(url, [3], budget=10)
    queue = queue_with(
        url, [4], lambda asked: other.study.enqueue_trial({"depth": 7}, skip_if_exists=True)
    )
    assert depth_of(queue.claim("host/1/0")) == 7


@pytest.mark.parametrize("over", ["budget", "exhausted"])
def test_nothing_is_drawn_where_nothing_can_start(url: str, over: str) -> None:
    queue = queue_with(url, range(10))
    queue.set_budget(Budget(10 if over == "exhausted" else 1))
    for depth in range(10 if over == "exhausted" else 1):
        queue.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE,
                value=0.5,
                params={"depth": depth},
                distributions=dict(SPACE.distributions),
            )
        )
    queue.set_budget(Budget(20 if over == "exhausted" else 1))
    assert isinstance(queue.claim("host/1/0"), StopReason)
    assert asked(queue) == 0


def test_a_worker_that_meets_a_queue_draws_nothing(url: str) -> None:
    queue = queue_with(url, [4], budget=10)
    queue.study.enqueue_trial({"depth": 7})
    assert depth_of(queue.claim("host/1/0")) == 7
    assert asked(queue) == 0
    assert attrs.PLAN in queue.study.trials[0].user_attrs
