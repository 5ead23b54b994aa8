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
``depth``                 Int64                how many of the last layers it tunes
``param.<name>``          by the distribution  what was searched; missing where it has no effect
``metric.<name>``         float64              all metrics after the last epoch
``deviation.<name>``      float64              their standard deviations over the folds
``cost.<name>``           float64              what the network costs, measured before it trains
``epochs``                Int64                epochs trained, those of earlier attempts included
``seconds``               float64              wall time of the training, likewise
``parameters_tuned``      Int64                parameters that train
``peak_memory_mb``        float64              what the training held on its GPU at most
``worker``, ``device``    string               who ran it, and on what
``started``, ``ended``    datetime64, UTC      when this attempt began and ended
``retry_of``              Int64                the attempt that it goes on from
``origin``                string               why it was queued at the start
``reason``                string               why it failed, was given back or was not trained
========================  ===================  ====================================================

Columns of metrics, deviations and costs are there where a trial has one. What is not known is
missing (``NaN``, ``NaT`` or ``NA``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.results.figures.history import describe_state
from autotune.results.figures.parameters import is_active, space_of
from autotune.search.space import Space
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
    "params": "",  # these four are a column for each of their names
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


def trials_frame(study: Study) -> pd.DataFrame:
    """Return the trials of a study as a table.

    Args:
        study: The study, at any stage.

    Returns:
        A row for every trial, in their order; for the columns see this module.
    """
    import pandas as pd  # here, because a report without a table needs none

    found = trial_records(study)
    known = _distributions(study.get_trials(deepcopy=False))
    columns: dict[str, pd.Series[Any]] = {}
    for key, kind in _TYPES.items():
        if key not in _PREFIXES:
            columns[key] = _series([one[key] for one in found], kind)
            continue
        names = known if key == "params" else dict.fromkeys(n for one in found for n in one[key])
        for name in names:
            values = [one[key].get(name) for one in found]
            its = kind or _type_of(known[name])
            if its == "string":
                values = [None if value is None else str(value) for value in values]
            columns[f"{_PREFIXES[key]}.{name}"] = _series(values, its)
    return pd.DataFrame(columns)


def trial_records(study: Study) -> list[dict[str, Any]]:
    """Return what is known of each trial of a study, by the names of the columns.

    Parameters, metrics, deviations and costs are dictionaries, times are aware of their zone, and
    what is not known is ``None``.

    Args:
        study: The study, at any stage.
    """
    trials = study.get_trials(deepcopy=False)
    superseded, space = attrs.retried_numbers(trials), space_of(study)
    several = attrs.has_several_backbones(study.user_attrs)
    return [_facts(one, superseded, space, several) for one in trials]


def _facts(
    trial: FrozenTrial, superseded: set[int], space: Space | None, several: bool
) -> dict[str, Any]:
    attributes = trial.user_attrs
    plan = attrs.trial_plan(trial)
    earlier = attrs.earlier_attempts(trial)
    finished = trial.state.is_finished()
    return {
        "number": trial.number,
        "state": describe_state(trial, superseded),
        "role": attributes.get(attrs.ROLE),
        "value": attrs.metric_value(trial) if finished else None,
        "plan": plan.describe(several) if plan else None,
        "backbone": plan.backbone if plan else None,
        "depth": plan.depth if plan else None,
        "params": active_params(trial, space),
        "metrics": dict(attributes.get(attrs.METRICS, {})),
        "deviations": dict(attributes.get(attrs.DEVIATIONS, {})),
        "costs": dict(attributes.get(attrs.COSTS, {})),
        "epochs": attrs.trained_epochs(trial),
        "seconds": attributes.get(attrs.SECONDS),
        "parameters_tuned": attributes.get(attrs.TRAINABLE_PARAMETERS),
        "peak_memory_mb": attributes.get(attrs.PEAK_MEMORY_MB),
        "worker": attributes.get(attrs.WORKER),
        "device": attributes.get(attrs.DEVICE),
        "started": _moment(attrs.started_at(trial)),
        "ended": _moment(attrs.ended_at(trial)) if finished else None,
        "retry_of": earlier[-1] if earlier else None,
        "origin": attrs.trial_origin(trial) or None,
        "reason": attributes.get(attrs.REASON),
    }


def active_params(trial: FrozenTrial, space: Space | None) -> dict[str, Any]:
    """Return the parameters of a trial that have an effect under its other ones.

    Args:
        trial: The trial.
        space: The space of the study, if it is known.
    """
    return {name: one for name, one in trial.params.items() if is_active(space, trial, name)}


def _moment(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _distributions(trials: Iterable[FrozenTrial]) -> dict[str, BaseDistribution]:
    return {name: found for one in trials for name, found in one.distributions.items()}


def _type_of(found: BaseDistribution) -> str:
    """Return the type of a parameter's column; choices of several types are written as text."""
    if isinstance(found, IntDistribution):
        return "Int64"
    if isinstance(found, FloatDistribution):
        return "float64"
    assert isinstance(found, CategoricalDistribution)
    kinds = {type(choice) for choice in found.choices}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "Int64"
    return "float64" if kinds <= {int, float} else "string"


def _series(values: Sequence[Any], kind: str) -> pd.Series[Any]:
    import pandas as pd

    if kind == _TIME:
        return pd.Series(pd.DatetimeIndex(pd.to_datetime(list(values), utc=True)).as_unit("us"))
    series: pd.Series[Any] = pd.Series(list(values), dtype=pd.api.types.pandas_dtype(kind))
    return series
