from __future__ import annotations

import math
import time

import optuna
import pytest
import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.storage.rdb import connection as database
from autotune.storage.rdb import trial_reader
from autotune.storage.rdb.connection import open_storage
from autotune.storage.rdb.retry import RetryingStorage, no_retry

pytestmark = pytest.mark.usefixtures("closed_connections")

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "drop": FloatDistribution(0.0, 0.8, step=0.1),
    "depth": IntDistribution(0, 6),
    "pool": CategoricalDistribution(["keep", None, 3, 0.5, True]),
}


def made(pool: object, state: TrialState = TrialState.RUNNING, **named: object) -> FrozenTrial:
    params = {"lr": 0.01, "drop": 0.1 * 3, "depth": 2, "pool": pool}
    attributes = {"plan": {"depth": 2, "layers": [None, "ä"]}, "claimed": 1.5}
    return create_trial(
        state=state,
        params=params,
        distributions=DISTRIBUTIONS,
        user_attrs=attributes,
        system_attrs={"note": [1, 2]},
        **named,  # type: ignore[arg-type]
    )


def fill(url: str, directions: int = 1) -> tuple[RetryingStorage, int]:
    """Make a study with trials in every state, with every kind of value."""
    storage = open_storage(url, create=True)
    study = optuna.create_study(storage=storage, directions=["maximize"] * directions)
    other = optuna.create_study(storage=storage)
    values = [math.inf, -math.inf, 0.1 + 0.2][:directions]
    study.add_trial(made("keep", TrialState.COMPLETE, values=values))
    for pool in (None, 3, 0.5, True):
        storage.create_new_trial(study._study_id, made(pool))
    other.add_trial(made("keep"))
    study.enqueue_trial({"lr": 0.05})
    running = storage.get_trial_id_from_study_id_trial_number(study._study_id, 5)
    storage.set_trial_state_values(running, TrialState.RUNNING)
    storage.set_trial_param(running, "lr", 0.05, DISTRIBUTIONS["lr"])
    for step, value in ((3, math.nan), (1, math.inf), (2, 0.25), (1, -math.inf)):
        storage.set_trial_intermediate_value(running, step, value)
    study.tell(1, state=TrialState.FAIL)
    return storage, study._study_id


def as_text(found: list[FrozenTrial]) -> list[str]:
    """Write trials so that NaN equals NaN; the order counts of parameters alone."""
    return [
        repr(
            {
                name: sorted(value.items())
                if name in ("_user_attrs", "_system_attrs", "intermediate_values")
                else value
                for name, value in vars(one).items()
            }
        )
        for one in found
    ]


@pytest.mark.parametrize("directions", [1, 3])
def test_trials_are_read_as_optuna_reads_them(url: str, directions: int) -> None:
    storage, study_id = fill(url, directions)
    ours = storage._get_trials(study_id, None, set(), -1)
    theirs = RDBStorage._get_trials(storage, study_id, None, set(), -1)
    assert len(ours) == 6
    assert as_text(ours) == as_text(theirs)
    ids = [trial._trial_id for trial in ours]
    for known, after in (({ids[0]}, ids[3]), (set(ids[:3]), -1), (set(ids), ids[-1])):
        ours = storage._get_trials(study_id, None, known, after)
        theirs = RDBStorage._get_trials(storage, study_id, None, known, after)
        assert as_text(ours) == as_text(theirs) != []
    waiting = (TrialState.WAITING, TrialState.FAIL)
    ours = storage._get_trials(study_id, waiting, set(), -1)
    assert as_text(ours) == as_text(RDBStorage._get_trials(storage, study_id, waiting, set(), -1))
    for trial_id in ids:
        assert as_text([storage.get_trial(trial_id)]) == as_text(
            [RDBStorage.get_trial(storage, trial_id)]
        )


def test_what_is_not_there_is_refused_as_by_optuna(url: str) -> None:
    storage, _ = fill(url)
    with pytest.raises(KeyError):
        storage.get_trial(10**6)
    with pytest.raises(KeyError):
        storage._get_trials(10**6, None, set(), -1)


def test_many_trials_are_read_in_pieces(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, study_id = fill(url)
    whole = as_text(storage._get_trials(study_id, None, set(), -1))
    known = {trial._trial_id for trial in storage._get_trials(study_id, None, set(), -1)}
    monkeypatch.setattr(trial_reader, "CHUNK", 2)
    assert as_text(storage._get_trials(study_id, None, set(), -1)) == whole
    assert as_text(storage._get_trials(study_id, None, known, max(known))) == whole


def test_a_trial_that_is_made_whole_is_what_was_asked_for(url: str) -> None:
    storage, study_id = fill(url)
    asked = made(0.5)
    found = storage.get_trial(storage.create_new_trial(study_id, asked))
    assert found.number == 6
    assert (found.state, found.params) == (asked.state, asked.params)
    assert (found.distributions, found.user_attrs) == (asked.distributions, asked.user_attrs)
    assert found.system_attrs == asked.system_attrs
    assert found.datetime_start == asked.datetime_start


def test_what_is_known_to_run_is_asked_for_its_state_alone(url: str) -> None:
    storage, study_id = fill(url)
    claimed = made("keep")
    claimed.set_user_attr("worker", "host/1/0")
    first, second = (storage.create_new_trial(study_id, claimed) for _ in range(2))
    before = {trial._trial_id: trial for trial in storage._get_trials(study_id, None, set(), -1)}
    for trial_id in (first, second):
        storage.set_trial_intermediate_value(trial_id, 1, 0.5)
    storage.set_trial_state_values(second, TrialState.COMPLETE, [0.5])
    late = storage.create_new_trial(study_id, claimed)
    with storage.state_changes_only():
        found = {one._trial_id: one for one in storage._get_trials(study_id, None, set(), -1)}
    assert list(found) == sorted(found) == [*before, late]
    assert found[first] is before[first]
    assert (found[second].state, found[second].values) == (TrialState.COMPLETE, [0.5])
    assert found[second].intermediate_values == {1: 0.5}
    assert found[late].params == claimed.params
    whole = {trial._trial_id: trial for trial in storage._get_trials(study_id, None, set(), -1)}
    assert whole[first].intermediate_values == {1: 0.5}


def test_attributes_are_written_together(url: str) -> None:
    storage, study_id = fill(url)
    trial_id = storage.create_new_trial(study_id, made("keep"))
    storage.set_trial_user_attrs(trial_id, {"claimed": 2.5, "a": [1], "b": {"ä": None}})
    storage.set_trial_user_attrs(trial_id, {})
    storage.set_trial_system_attr(trial_id, "note", 3)
    found = storage.get_trial(trial_id)
    attributes = made("keep").user_attrs
    assert found.user_attrs == {**attributes, "claimed": 2.5, "a": [1], "b": {"ä": None}}
    assert found.system_attrs == {"note": 3}
    storage.set_trial_state_values(trial_id, TrialState.FAIL)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_user_attrs(trial_id, {"a": 1, "c": 2})
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.fill_trial(trial_id, {}, {"c": 2})
    with pytest.raises(KeyError):
        storage.set_trial_user_attr(10**6, "a", 1)
    assert storage.get_trial(trial_id).user_attrs == found.user_attrs


def test_a_connection_that_the_server_has_dropped_is_made_anew(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, study_id = fill(postgres_url)
    monkeypatch.setattr(database, "CHECK_AFTER_REST_S", 0.0)
    other = sqlalchemy.create_engine(storage.engine.url)
    drop = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    with other.connect() as connection:
        connection.execute(sqlalchemy.text(f"{drop} AND datname = current_database()"))
    other.dispose()
    with no_retry():
        assert len(storage._get_trials(study_id, None, set(), -1)) == 6


def test_times_are_local_as_those_of_optuna(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database has them in UTC."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        storage, study_id = fill(url)
        with storage.engine.begin() as connection:
            found = trial_reader.read_trials(connection, study_id)
        expected = [RDBStorage.get_trial(storage, one._trial_id) for one in found]
        times = [(one.datetime_start, one.datetime_complete) for one in expected]
        assert [(one.datetime_start, one.datetime_complete) for one in found] == times
        started = found[5].datetime_start
        assert started is not None and abs(started.timestamp() - time.time()) < 3600
    finally:
        monkeypatch.undo()
        time.tzset()
