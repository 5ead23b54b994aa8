"""The epochs of a study as a table for pandas: a row for each epoch of every trial.

=============================  =======  ===========================================================
column                         type     holds
=============================  =======  ===========================================================
``number``                     int64    number of the trial
``state``                      string   state of the trial, as in the table of trials
``epoch``                      int64    the epoch, from 1; a retry has those of earlier attempts
``value``                      float64  the objective on the validation split
``training_loss``              float64  mean loss of the training images, with smoothed and mixed
                                        labels where the plan has them
``validation_loss``            float64  mean loss of the validation images, in nats
``validation_loss_error``      float64  standard error of its difference to the lowest one before,
                                        on the same images
``learning_rate``              float64  mean over the steps of the epoch; that of the head where
                                        layers have rates of their own
``seconds``                    float64  wall time, validation included
``learning_rate.layer<i>``     float64  of layer i, counted from the output; 0 while the head
                                        trains alone; where a trial has layer decay
=============================  =======  ===========================================================

With folds, losses and rates are means over them, and seconds are their sum. Trials of earlier
versions have the values alone; what is unknown is missing (``NaN``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from autotune.results.figures.history import describe_state
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from autotune.training import curves

if TYPE_CHECKING:
    import pandas as pd


def epochs_frame(results: StudyResults) -> pd.DataFrame:
    """Return the epochs of a study as a table: a row for each of every trial."""
    rows = [
        {"number": trial.number, "state": describe_state(trial, results.superseded), **row}
        for trial in results.trials
        for row in epoch_rows(trial.user_attrs.get(attrs.CURVES, {}), trial.intermediate_values)
    ]
    return frame_of(rows, ("number", "state"))


def epoch_rows(
    stored: curves.Stored, values: Mapping[int, float] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield what is known of each epoch of a training, by the names of the columns."""
    by_name = {name: curves.series(stored, name) for name in curves.SERIES}
    rates = curves.layer_rates(stored)
    by_name |= {f"learning_rate.layer{layer}": rate for layer, rate in rates.items()}
    if values is not None:
        by_name = {"value": dict(values), **by_name}
    for epoch in sorted({epoch for of_name in by_name.values() for epoch in of_name}):
        yield {"epoch": epoch, **{name: found.get(epoch) for name, found in by_name.items()}}


def frame_of(rows: list[dict[str, Any]], first: tuple[str, ...]) -> pd.DataFrame:
    """Return rows of epochs as a table; the columns of layers come last, in their order."""
    import pandas as pd  # here, because a report without a table needs none

    known = dict.fromkeys(name for row in rows for name in row)
    layers = sorted((name for name in known if "." in name), key=lambda name: int(name[19:]))
    names = dict.fromkeys((*first, "epoch", "value", *curves.SERIES, *layers))
    kinds = {"number": "int64", "epoch": "int64", "state": "string"}
    return pd.DataFrame(
        {
            name: pd.Series(
                [row.get(name) for row in rows],
                dtype=pd.api.types.pandas_dtype(kinds.get(name, "float64")),
            )
            for name in names
        }
    )
