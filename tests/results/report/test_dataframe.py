"""The table of trials: its types, its gaps, its times."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from autotune.results.report.dataframe import trial_records, trials_frame
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from tests.support.study.studies import make_results, make_study

#: Columns of every study, whatever its trials are.
ALWAYS = {
    **{"number": "int64", "state": "string", "role": "string", "value": "float64"},
    **{"plan": "string", "backbone": "string", "depth": "Int64", "epochs": "Int64"},
    **{"seconds": "float64", "parameters_tuned": "Int64", "peak_memory_mb": "float64"},
    **{"worker": "string", "device": "string", "retry_of": "Int64"},
    **{"started": "datetime64[us, UTC]", "ended": "datetime64[us, UTC]"},
    **{"origin": "string", "reason": "string"},
}


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study(waiting=2)


@pytest.fixture(scope="module")
def frame(study: Study) -> pd.DataFrame:
    return trials_frame(StudyResults.from_study(study))


@pytest.fixture
def far_east() -> Iterator[None]:
    """Have this process in another time zone."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def types_of(frame: pd.DataFrame) -> dict[str, str]:
    return {name: str(kind) for name, kind in frame.dtypes.items()}


def test_every_trial_is_a_row_and_every_column_has_its_type(
    study: Study, frame: pd.DataFrame
) -> None:
    assert frame["number"].tolist() == [trial.number for trial in study.trials]
    found = types_of(frame)
    assert {name: found[name] for name in ALWAYS} == ALWAYS
    assert found["param.head.units.1"] == found["param.depth"] == "Int64"
    assert found["param.training.lr"] == found["metric.accuracy"] == "float64"
    assert found["param.head.pool"] == "string"
    assert set(frame["state"]) == {
        *("complete", "pruned", "failed", "retried", "running", "waiting")
    }


def test_values_are_those_of_the_study(study: Study, frame: pd.DataFrame) -> None:
    best = frame.loc[frame["value"].where(frame["state"] == "complete").idxmax()]
    assert best["value"] == study.best_value == best["metric.accuracy"]
    assert best["param.training.lr"] == study.best_params["training.lr"]
    plan = attrs.trial_plan(study.best_trial)
    assert plan is not None
    assert (best["plan"], best["depth"]) == (plan.describe(), plan.depth)
    assert frame.loc[frame["role"] == "baseline", "number"].tolist() == [0]
    assert frame["retry_of"].dropna().tolist() == [2]


def test_what_is_not_known_or_has_no_effect_is_missing(frame: pd.DataFrame) -> None:
    waiting, running = (frame[frame["state"] == one] for one in ("waiting", "running"))
    assert waiting[["value", "started", "ended", "worker"]].isna().all(axis=None)
    assert running[["value", "ended"]].isna().all(axis=None) and running["started"].notna().all()
    one_layer = frame["param.head.hidden_layers"] == 1
    assert one_layer.any() and frame.loc[one_layer, "param.head.units.2"].isna().all()


def test_times_are_the_claims_in_utc(far_east: None) -> None:
    study = make_study(trials=2, running=0, failed=0, retried=0)
    stamps = {attrs.CLAIMED_AT: 1_700_000_000.0, attrs.DEVICE_SECONDS: 60.0}
    kept = optuna.create_study(direction="maximize")
    for attributes in (stamps, {}):
        one = study.trials[1]
        one.user_attrs = {**one.user_attrs, **attributes}
        kept.add_trial(one)
    claimed, local = trial_records(StudyResults.from_study(kept))
    assert claimed["started"] == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert (claimed["ended"] - claimed["started"]).total_seconds() == 60
    # Optuna's own times are local ones.
    start = study.trials[1].datetime_start
    assert start is not None and local["started"] == start.astimezone(UTC)
    assert local["started"].hour == (start.hour - 9) % 24


def test_choices_of_several_types_are_text() -> None:
    study = optuna.create_study()
    choices = {"kernel": ["keep", 5], "ratio": [1, 0.5], "on": [True, False], "units": [1, 2]}
    for index in range(2):
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=1.0,
                params={name: some[index] for name, some in choices.items()},
                distributions={
                    name: CategoricalDistribution(some)  # type: ignore[arg-type]
                    for name, some in choices.items()
                },
            )
        )
    frame = trials_frame(StudyResults.from_study(study))
    found = {name.removeprefix("param."): kind for name, kind in types_of(frame).items()}
    kinds = {"kernel": "string", "ratio": "float64", "on": "boolean", "units": "Int64"}
    assert {name: found[name] for name in kinds} == kinds
    assert frame["param.kernel"].tolist() == ["keep", "5"]


@pytest.mark.parametrize("made", [{"trials": 0, "running": 0, "failed": 0, "retried": 0}, None])
def test_a_study_without_trials_has_the_columns(made: dict[str, int] | None) -> None:
    study = optuna.create_study() if made is None else make_study(**made)
    frame = trials_frame(StudyResults.from_study(study))
    assert frame.empty and types_of(frame) == ALWAYS


def test_costs_and_several_backbones() -> None:
    frame = trials_frame(make_results(objectives=("accuracy", "latency_ms"), others={"small": 3}))
    assert types_of(frame)["cost.latency_ms"] == "float64"
    assert set(frame["backbone"].dropna()) == {"test_resnet.r160_in1k", "small"}
