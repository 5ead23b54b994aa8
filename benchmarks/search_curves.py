"""The table of learning curves: its space, its file, and how a plan is looked up.

`benchmarks/search_table.py` makes it, `benchmarks/search_quality.py` simulates studies on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution

from autotune.config.loading import load_study_file
from autotune.config.schema import StudyConfig
from autotune.search.space import Space

TABLE = Path(__file__).parent / "search_table.npz"
#: What differs from `studies/digits.yaml`: a space small enough to be trained whole. The learning
#: rates go on to where most plans fail, and every plan of the table trains its head.
OVERRIDES = (
    "space.trainable_layers={low: 0, high: 4}",
    "space.layers={kernel: [keep, 1], width: [keep, 0.5], last: 2}",
    "space.head={hidden_layers: {low: 0, high: 1}, units: [128, 512], dropout: [0.0, 0.5]}",
    "space.training={lr: {low: 1.0e-3, high: 0.3, log: true}, layer_decay: {low: 0.6, high: 1.0}}",
    "baseline.head_start=random",
)
#: Stands in the table for an epoch that diverged, and for all after it.
DIVERGED = int(np.iinfo(np.uint16).max)

Params = dict[str, Any]


def load_config(*overrides: str) -> StudyConfig:
    """Return the study whose plans are in the table.

    Args:
        overrides: What else differs from `studies/digits.yaml`.
    """
    return load_study_file("digits", [*OVERRIDES, *overrides], "search-table")


@dataclass(frozen=True, eq=False)
class Table:
    """The learning curves of all plans of a space.

    Args:
        space: The space; its ranges are continuous.
        axes: Values of each parameter that are in the table.
        index: uint8, ``(plans, parameters)``: positions on the axes, in the order of the space.
        right: uint16, ``(plans, epochs)``: right validation images, or ``DIVERGED``.
        log_loss: float16, ``(plans, epochs)``: in nats, NaN where the training diverged.
        images: Number of validation images.
        about: How the table was made: versions, machine, seconds.
    """

    space: Space
    axes: Mapping[str, list[Any]]
    index: np.ndarray
    right: np.ndarray
    log_loss: np.ndarray
    images: int
    about: Mapping[str, Any]

    @property
    def epochs(self) -> int:
        """Epochs of every training."""
        return int(self.right.shape[1])

    @property
    def final(self) -> np.ndarray:
        """Right images after the last epoch, ``(plans,)``; 0 where the training diverged."""
        last = self.right[:, -1]
        return np.where(last == DIVERGED, 0, last).astype(np.int64)

    def row(self, params: Mapping[str, Any]) -> int:
        """Find the plan that is nearest to some parameters.

        Args:
            params: Parameters of the space; those that have no meaning may be left out.
        """
        given = {name: params.get(name, values[0]) for name, values in self.axes.items()}
        given = self.space.canonical(given)
        return self._rows[tuple(self._position(name, value) for name, value in given.items())]

    @cached_property
    def _rows(self) -> dict[tuple[int, ...], int]:
        return {tuple(positions): row for row, positions in enumerate(self.index.tolist())}

    def _position(self, name: str, value: Any) -> int:
        """Find the nearest value on an axis, by ratio on a logarithmic range."""
        values = self.axes[name]
        if value in values:
            return values.index(value)
        found = self.space.distributions[name]
        assert isinstance(found, FloatDistribution)
        scale = np.log if found.log else np.asarray
        return int(np.abs(scale(values) - scale(value)).argmin())

    def save(self, path: Path) -> None:
        """Write the table."""
        about = {
            "space": self.space.to_json(),
            "axes": dict(self.axes),
            "images": self.images,
            "about": dict(self.about),
        }
        np.savez_compressed(
            path,
            json=np.array(json.dumps(about)),
            index=self.index,
            right=self.right,
            log_loss=self.log_loss,
        )

    @staticmethod
    def load(path: Path = TABLE) -> Table:
        """Read a table."""
        with np.load(path) as file:
            about = json.loads(str(file["json"]))
            return Table(
                Space.from_json(about["space"]),
                about["axes"],
                file["index"],
                file["right"],
                file["log_loss"],
                about["images"],
                about["about"],
            )
