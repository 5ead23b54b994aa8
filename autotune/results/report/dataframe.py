"""The trials of a study as a table for pandas: a row a trial, a typed column a fact.

========================  ===================  ====================================================
column                    type                 holds
========================  ===================  ====================================================
``number``                int64                number of the trial
``state``                 string               complete, pruned, infeasible, failed, retried,
                                               running, waiting
``role``                  string               ``baseline``, or nothing
``value``                 float64              the objective; of a pruned trial at its last epoch
``plan``                  string               the plan in words
``backbone``              string               its backbone
``depth``                 Int64                how many of the last layers train
``param.<name>``          by the distribution  what was searched; missing where it has no effect
``metric.<name>``         float64              all metrics after the last epoch
``deviation.<name>``      float64              their standard deviations over the folds
``cost.<name>``           float64              what the network costs, measured before it trains
``epochs``                Int64                epochs trained, those of earlier attempts included
``seconds``               float64              wall time of the training, likewise; without the
                                               features that it computed for all other trials
``parameters_tuned``      Int64                parameters that train
``peak_memory_mb``        float64              what the training held on its GPU at most
``worker``, ``device``    string               who ran it, and on what
``started``, ``ended``    datetime64, UTC      when this attempt began and ended
``retry_of``              Int64                the attempt that it continues
``origin``                string               why it was queued at the start
``reason``                string               why it failed, was requeued or was not trained
========================  ===================  ====================================================

Columns of metrics, deviations and costs exist where a trial has one. Unknown values are missing
(``NaN``, ``NaT`` or ``NA``).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial

from autotune.results.study_results import StudyResults
from autotune.study.state import attrs

if TYPE_CHECKING:
    import pandas as pd

_TIME = "datetime64[us, UTC]"
_TYPES = {
    "number": "int64",
    "state": "string",
    "role": "string",
    "value": "float64",
    "plan": "string",
    "backbone": "string",
    "depth": "Int64",
    "params": "by the distribution",  # these four are a column for each of their names
    "metrics": "float64",
    "deviations": "float64",
    "costs": "float64",
    "epochs": "Int64",
    "seconds": "float64",
    "parameters_tuned": "Int64",
    "peak_memory_mb": "float64",
    "worker": "string",
    "device": "string",
    "started": _TIME,
    "ended": _TIME,
    "retry_of": "Int64",
    "origin": "string",
    "reason": "string",
}
_PREFIXES = {
    "params": "param",
    "metrics": "metric",
    "deviations": "deviation",
    "costs": "cost",
}


def trials_frame(results: StudyResults) -> pd.DataFrame:
    """Return the trials of a study as a table: a row for each, the columns as above."""
    import pandas as pd  # here, because a report without a table needs none

    rows = trial_records(results)
    types: dict[str, str] = {}
    for key, kind in _TYPES.items():
        if key == "params":
            for trial in results.trials:
                types |= {
                    f"param.{name}": _type_of(distribution)
                    for name, distribution in trial.distributions.items()
                }
        elif prefix := _PREFIXES.get(key):
            types |= {f"{prefix}.{name}": kind for row in rows for name in row[key]}
        else:
            types[key] = kind
    for row in rows:
        for key, prefix in _PREFIXES.items():
            row |= {f"{prefix}.{name}": value for name, value in row[key].items()}
    return pd.DataFrame(rows, columns=list(types), dtype=object).astype(types)


def trial_records(results: StudyResults) -> list[dict[str, Any]]:
    """Return the facts of each trial of a study, by the names of the columns.

    Parameters, metrics, deviations and costs are dictionaries, times are aware of their zone, and
    unknown facts are ``None``.
    """
    return [_record(trial, results) for trial in results.trials]


def _record(trial: FrozenTrial, results: StudyResults) -> dict[str, Any]:
    stored, plan = trial.user_attrs, attrs.trial_plan(trial)
    earlier, finished = attrs.earlier_attempts(trial), trial.state.is_finished()
    return {
        "number": trial.number,
        "state": results.state_of(trial),
        "role": stored.get(attrs.ROLE),
        "value": attrs.metric_value(trial) if finished else None,
        "plan": results.describe_plan(trial) or None,
        "backbone": plan.backbone if plan else None,
        "depth": plan.depth if plan else None,
        "params": results.active_params(trial),
        "metrics": dict(stored.get(attrs.METRICS, {})),
        "deviations": dict(stored.get(attrs.DEVIATIONS, {})),
        "costs": dict(stored.get(attrs.COSTS, {})),
        "epochs": attrs.trained_epochs(trial),
        "seconds": attrs.own_seconds(trial) if attrs.SECONDS in stored else None,
        "parameters_tuned": stored.get(attrs.TRAINABLE_PARAMETERS),
        "peak_memory_mb": stored.get(attrs.PEAK_MEMORY_MB),
        "worker": stored.get(attrs.WORKER),
        "device": stored.get(attrs.DEVICE),
        "started": _moment(attrs.started_at(trial)),
        "ended": _moment(attrs.ended_at(trial)) if finished else None,
        "retry_of": earlier[-1] if earlier else None,
        "origin": attrs.trial_origin(trial) or None,
        "reason": stored.get(attrs.REASON),
    }


def _moment(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _type_of(distribution: BaseDistribution) -> str:
    """Return the type of a parameter's column; choices of several types are written as text."""
    if isinstance(distribution, CategoricalDistribution):
        kinds = {type(choice) for choice in distribution.choices}
    else:
        kinds = {int if isinstance(distribution, IntDistribution) else float}
    if kinds in ({bool}, {int}):
        return "boolean" if bool in kinds else "Int64"
    return "float64" if kinds <= {int, float} else "string"
