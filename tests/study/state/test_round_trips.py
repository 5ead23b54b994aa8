"""What happens under the study's lock is few statements: all workers wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import Trial, TrialState

from autotune.study.state import attrs
from autotune.study.state.budget import Budget
from autotune.study.state.retries import WORKER_LOST
from autotune.study.state.trial_queue import Claim, TrialQueue
from tests.study.state.test_trial_queue import SPACE, Sampler, frozen, make_queue

pytestmark = pytest.mark.usefixtures("closed_connections")


@contextmanager
def under_the_lock(queue: TrialQueue) -> Iterator[list[str]]:
    """Collect the statements between taking the lock and giving it back."""
    statements: list[str] = []
    held = False

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal held
        if "pg_advisory_unlock" in statement:
            held = False
        elif held:
            statements.append(statement)
        elif "pg_advisory_lock" in statement:
            held = True

    sqlalchemy.event.listen(queue.storage.engine, "before_cursor_execute", note)
    yield statements
    sqlalchemy.event.remove(queue.storage.engine, "before_cursor_execute", note)


def claimed(queue: TrialQueue) -> Claim:
    found = queue.claim("host/1/0")
    assert isinstance(found, Claim)
    return found


def test_claims_and_ends_are_few_statements_for_any_number_of_parameters(
    postgres_url: str,
) -> None:
    queue = make_queue(postgres_url)
    claimed(queue)
    with under_the_lock(queue) as statements:
        new = claimed(queue)
    assert 0 < len(statements) <= 8
    queue.study.enqueue_trial({"training.lr": 0.5})
    with under_the_lock(queue) as statements:
        trial = frozen(queue, claimed(queue).trial.number)
    assert 0 < len(statements) <= 14
    assert sum("INSERT INTO trial_params" in statement for statement in statements) == 1
    assert trial.params["training.lr"] == 0.5
    assert list(trial.params) == list(SPACE.distributions)
    assert trial.distributions == SPACE.distributions
    assert attrs.trial_plan(trial) == SPACE.plan(trial.params)
    with under_the_lock(queue) as statements:
        queue.finish(new, TrialState.COMPLETE, 0.5)
    assert 0 < len(statements) <= 4


def nothing(trial: Trial) -> None:
    pass


def reports(trial: Trial) -> None:
    trial.report(0.3, 2)
    trial.report(0.25, 1)


def reports_no_number(trial: Trial) -> None:
    trial.report(float("nan"), 1)


@pytest.mark.parametrize(
    ("state", "values", "before"),
    [
        (TrialState.COMPLETE, 0.5, reports),
        (TrialState.COMPLETE, [float("inf")], nothing),
        (TrialState.PRUNED, None, reports),
        (TrialState.PRUNED, None, reports_no_number),
        (TrialState.PRUNED, None, nothing),
        (TrialState.FAIL, None, reports),
    ],
)
def test_a_trial_ends_as_one_that_optuna_is_told_of(
    url: str,
    state: TrialState,
    values: float | Sequence[float] | None,
    before: Callable[[Trial], None],
) -> None:
    queue = make_queue(url)
    ours, theirs = claimed(queue), claimed(queue)
    before(ours.trial)
    before(theirs.trial)
    queue.finish(ours, state, values)
    queue.study.tell(theirs.trial, values, state)
    found, wanted = (frozen(queue, one.trial.number) for one in (ours, theirs))
    assert (found.state, found.values) == (wanted.state, wanted.values)
    assert found.datetime_complete is not None and wanted.datetime_complete is not None
    assert abs((found.datetime_complete - wanted.datetime_complete).total_seconds()) < 30
    assert found.user_attrs[attrs.DEVICE_SECONDS] >= 0


def test_two_objectives_have_a_value_each(url: str) -> None:
    queue = make_queue(url)
    study = optuna.create_study(
        study_name="two",
        storage=queue.storage,
        directions=["maximize", "minimize"],
        sampler=Sampler(),
    )
    two = TrialQueue(study, queue.storage, url, SPACE)
    two.set_budget(Budget(10))
    two.finish(claimed(two), TrialState.COMPLETE, [0.5, 7.0])
    pruned = claimed(two)
    two.storage.set_trial_intermediate_value(pruned.trial._trial_id, 1, 0.1)
    two.finish(pruned, TrialState.PRUNED)
    assert [trial.values for trial in study.trials] == [[0.5, 7.0], None]
    with pytest.raises(ValueError, match="cannot be complete"):
        two.finish(claimed(two), TrialState.COMPLETE, 0.5)


def test_a_trial_that_was_given_back_meanwhile_stays_so(url: str) -> None:
    queue = make_queue(url)
    found = claimed(queue)
    sampler = queue.study.sampler
    queue.requeue(found.trial.number, WORKER_LOST)
    queue.finish(found, TrialState.COMPLETE, 0.5)
    assert frozen(queue, 0).state == TrialState.FAIL

    again = claimed(queue)

    def after_trial(*_: Any) -> None:  # between the look at the trial and the lock
        queue.requeue(again.trial.number, WORKER_LOST)

    sampler.after_trial = after_trial  # type: ignore[method-assign]
    queue.finish(again, TrialState.COMPLETE, 0.5)
    assert frozen(queue, again.trial.number).state == TrialState.FAIL
    assert frozen(queue, again.trial.number).values is None
