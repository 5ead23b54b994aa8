"""Heartbeats, read by the database's clock."""

from __future__ import annotations

import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url

from autotune.storage.rdb.connection import open_storage
from autotune.storage.rdb.heartbeat import read_heartbeat_ages
from tests.support.study.broken import silence
from tests.support.study.databases import Server

pytestmark = pytest.mark.usefixtures("closed_connections")


@pytest.fixture(params=["sqlite", "postgres", "postgres in Kathmandu"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> RDBStorage:
    if request.param == "sqlite":
        return open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    url: str = request.getfixturevalue("postgres_url")
    if "Kathmandu" in request.param:
        server: Server = request.getfixturevalue("postgres")
        server.run(f"ALTER DATABASE {make_url(url).database} SET timezone TO 'Asia/Kathmandu'")
    return open_storage(url, create=True)


def test_ages_and_clocks(storage: RDBStorage) -> None:
    study = optuna.create_study(study_name="s", storage=storage)
    ids = [storage.create_new_trial(study._study_id) for _ in range(4)]
    for trial_id in ids[:3]:
        storage.record_heartbeat(trial_id)
    storage.record_heartbeat(ids[1])  # the second one is written in another way than the first
    silence(storage, storage.get_trial(ids[2]), 500)
    beats = read_heartbeat_ages(storage, [*ids[1:], 10_000])
    assert beats.age_s.keys() == set(ids[1:3])
    assert 0 <= beats.age_s[ids[1]] < 10
    assert 500 <= beats.age_s[ids[2]] < 510
    assert abs(beats.now - time.time()) < 5
    assert abs(beats.clock_skew_s) < 2
    assert read_heartbeat_ages(storage, []).age_s == {}
