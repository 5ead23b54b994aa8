"""A study that is read once."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy import event

from autotune.results.report.html import render_report
from autotune.results.study_results import StudyResults
from autotune.search import ranking
from autotune.storage.rdb.connection import open_storage
from autotune.study.state import attrs
from tests.support.studies import make_study

pytestmark = pytest.mark.usefixtures("closed_connections")


def test_what_was_read_stays_what_it_was() -> None:
    study = make_study()
    results = StudyResults.from_study(study)
    count, best = len(study.trials), ranking.best_trial(study.trials, study.direction)
    study.add_trial(create_trial(value=1.0))
    study.set_user_attr(attrs.BUDGET, {"trials": 1})
    assert len(study.trials) == count + 1
    assert len(results.trials) == len(results.study.trials) == count
    assert results.study.user_attrs[attrs.BUDGET]["trials"] == results.progress.budget == 40
    assert best is not None and results.best is not None
    assert results.best.number == best.number
    assert StudyResults.from_study(results) is results
    assert results.study.get_trials(states=(TrialState.RUNNING,)) == [
        one for one in results.trials if one.state == TrialState.RUNNING
    ]


def test_values_follow_from_the_trials() -> None:
    study = make_study(objectives=("accuracy", "parameters"))
    results = StudyResults.from_study(study)
    assert results.cost is not None
    assert list(results.front) == ranking.pareto_front(results.trials, results.direction)
    assert results.baseline is attrs.find_baseline(results.trials)
    assert results.superseded == attrs.retried_numbers(results.trials) != set()
    assert results.space is not None
    assert set(results.parameter_names) == set(results.space.distributions)
    assert results.ended is None  # a trial runs
    assert StudyResults.from_study(make_study()).front == ()


def test_a_report_reads_the_trials_once(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    assert isinstance(storage, RDBStorage)
    study = make_study(storage=storage)
    seen: list[str] = []
    event.listen(storage.engine, "before_cursor_execute", lambda *told: seen.append(str(told[2])))
    render_report(study)
    assert sum("FROM trial_params" in one for one in seen) <= 1
