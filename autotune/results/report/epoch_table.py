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
                                        trains alone; where it differs from the head's
=============================  =======  ===========================================================

With folds, losses and rates are means over them, and seconds are their sum. Trials of earlier
versions have the values alone; what is unknown is missing (``NaN``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.results.study_results import StudyResults
from autotune.results.values.epoch_rows import epoch_rows, epochs_table
from autotune.study.state import attrs

if TYPE_CHECKING:
    import pandas as pd


def epochs_frame(results: StudyResults) -> pd.DataFrame:
    """Return the epochs of a study as a table: a row for each of every trial."""
    rows = [
        {"number": trial.number, "state": results.state_of(trial), **row}
        for trial in results.trials
        for row in epoch_rows(trial.user_attrs.get(attrs.CURVES, {}), trial.intermediate_values)
    ]
    return epochs_table(rows, {"number": "int64", "state": "string"}, values=True)
