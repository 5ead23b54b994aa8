"""Studies that hold everything a database can hold, and their comparison row by row."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from autotune.storage.admin.read_only import connect_read_only
from autotune.storage.admin.study_rows import read_study
from autotune.storage.rdb.connection import open_storage
from tests.support.study.studies import make_study


def rich_study(url: str, name: str = "rich") -> RDBStorage:
    """Make a study as a run leaves it behind, and add what runs seldom have."""
    storage = open_storage(url, create=True)
    study = make_study(name, trials=8, running=2, waiting=2, storage=storage, hostile=True)
    study.set_user_attr("nothing", None)
    study.set_user_attr("text é ✓ \N{NO-BREAK SPACE}", ["\x00", {"a": 0.1}])
    storage.set_study_system_attr(
        study._study_id, "artifacts:of-the-study", '{"artifact_id": "of-the-study"}'
    )
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE,
            value=math.inf,
            params={"a": 0.1 + 0.2, "b": None, "c": 7},
            distributions={
                "a": FloatDistribution(1e-9, 1.0, log=True),
                "b": CategoricalDistribution([None, "x", 1.5, True]),
                "c": IntDistribution(1, 9, step=2),
            },
            user_attrs={"long": "x" * 100_000},
            system_attrs={"fixed_params": {"c": 7}, "constraints": [-0.5]},
            intermediate_values={1: math.nan, 2: -math.inf, 7: 1e-300},
        )
    )
    with storage.engine.begin() as connection:
        # An hour that the clocks of many countries show twice, to the microsecond.
        connection.execute(
            sqlalchemy.text(
                "UPDATE trials SET datetime_start = :start, datetime_complete = :complete "
                "WHERE number = 3"
            ),
            {
                "start": datetime(2026, 10, 25, 0, 30, 0, 123456),
                "complete": datetime(2026, 10, 25, 1, 30, 0, 654321),
            },
        )
    return storage


def everything(url: str, name: str = "rich") -> dict[str, Any]:
    """Return all that a database holds of a study, by number of the trial instead of its id."""
    with connect_read_only(url) as connection:
        study = read_study(connection, name)
    numbers = {row["trial_id"]: row["number"] for row in study.trials}
    tables = {"trials": study.trials, **study.parts}

    def plain(row: dict[str, Any]) -> tuple[Any, ...]:
        values = (value for key, value in row.items() if not key.endswith("_id"))
        return (numbers.get(row.get("trial_id")), *values)

    return {table: [plain(row) for row in rows] for table, rows in tables.items()}


def trials_of(url: str, name: str = "rich") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=open_storage(url)).trials
