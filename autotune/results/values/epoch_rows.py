"""The epochs of trainings as rows of a table for pandas and spreadsheets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from autotune.training import curves

if TYPE_CHECKING:
    import pandas as pd

_LAYER = "learning_rate.layer"


def epoch_rows(
    stored: curves.Stored, values: Mapping[int, float] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield what is known of each epoch of a training, by the names of the columns."""
    by_name = {name: curves.series(stored, name) for name in curves.SERIES}
    rates = curves.layer_rates(stored)
    by_name |= {f"{_LAYER}{layer}": rate for layer, rate in rates.items()}
    if values is not None:
        by_name = {"value": dict(values), **by_name}
    for epoch in sorted({epoch for of_name in by_name.values() for epoch in of_name}):
        yield {"epoch": epoch, **{name: found.get(epoch) for name, found in by_name.items()}}


def epochs_table(
    rows: Iterable[Mapping[str, Any]], first: Mapping[str, str], values: bool = False
) -> pd.DataFrame:
    """Return rows of epochs as a table; the columns of layers come last, in their order."""
    import pandas as pd  # here, because a report without a table needs none

    rows = list(rows)
    known = dict.fromkeys(name for row in rows for name in row if name.startswith(_LAYER))
    layers = sorted(known, key=lambda name: int(name.removeprefix(_LAYER)))
    floats = dict.fromkeys((*["value"] * values, *curves.SERIES, *layers), "float64")
    types = {**first, "epoch": "int64", **floats}
    return pd.DataFrame(rows, columns=list(types), dtype=object).astype(types)
