"""The tables of learning curves: their tasks, space and files, and how a plan is looked up.

`benchmarks/search_table.py` makes them, `benchmarks/search_quality.py` simulates studies on them.
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

TABLES = Path(__file__).parent / "search_tables"
#: What differs from `studies/digits.yaml`: a space small enough to be trained whole. The learning
#: rates go on to where most plans fail, and every plan of a table trains its head.
SPACE = (
    "space.trainable_layers={low: 0, high: 3}",
    "space.layers={kernel: [keep, 1], width: [keep, 0.5], max_layers: 2}",
    "space.head={hidden_layers: {low: 0, high: 1}, units: [128, 512], dropout: [0.0, 0.25, 0.5]}",
    "space.training={lr: {low: 1.0e-3, high: 0.3, log: true}, layer_decay: {low: 0.6, high: 1.0}}",
    "baseline.head_start=random",
)
#: Images of each task: ten digits with few images each, and the letters of `glyphs.py`.
TASKS: Mapping[str, tuple[str, ...]] = {
    "digits": (
        "data={test: 0.3, validation: 0.2, train_per_class: 5, image_size: 32}",
        "training.batch_size=16",
    ),
    "glyphs": (
        "data={validation: 0.2, test: 0.2, image_size: 32}",
        "training.batch_size=32",
        "training.augment={crop: 0.8, flip: 0.0, rotate: 15.0}",
    ),
}
#: Stands in a table for an epoch that diverged, and for all after it.
DIVERGED = int(np.iinfo(np.uint16).max)

#: Epochs from one evaluation of a training to the next.
EVERY = 2

Params = dict[str, Any]


def load_config(task: str, *overrides: str) -> StudyConfig:
    """Return the study whose plans are in a table.

    Args:
        task: A name of :data:`TASKS`.
        overrides: What else differs from `studies/digits.yaml`.
    """
    return load_study_file("digits", [*SPACE, *TASKS[task], *overrides], "search-table")


@dataclass(frozen=True, eq=False)
class Curves:
    """One way to train all plans of a table.

    Args:
        right: uint16, ``(plans, evaluations)``: right validation images after every ``EVERY``
            epochs, or ``DIVERGED``.
        average: The same, by the moving average of the weights.
        test: uint16, ``(plans, 2)``: right test images after the last epoch, by the weights and
            by their average; 0 where the training diverged.
    """

    right: np.ndarray
    average: np.ndarray
    test: np.ndarray

    @property
    def final(self) -> np.ndarray:
        """Right images after the last epoch, ``(plans,)``; 0 where the training diverged."""
        last = self.right[:, -1]
        return np.where(last == DIVERGED, 0, last).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Table:
    """The learning curves of all plans of a space.

    Args:
        space: The space; its ranges are continuous.
        axes: Values of each parameter that are in the table.
        index: uint8, ``(plans, parameters)``: positions on the axes, in the order of the space.
        full: Curves of trainings with all epochs.
        short: What trainings with half as many epochs, and a schedule of that length, end with.
        images: Number of validation images.
        test_images: Number of test images.
        about: How the table was made: versions, machine, seconds.
    """

    space: Space
    axes: Mapping[str, list[Any]]
    index: np.ndarray
    full: Curves
    short: Curves
    images: int
    test_images: int
    about: Mapping[str, Any]

    @property
    def epochs(self) -> int:
        """Epochs of a full training."""
        return EVERY * int(self.full.right.shape[1])

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
            "test_images": self.test_images,
            "about": dict(self.about),
        }
        arrays = {
            f"{name}_{key}": values
            for name, curves in (("full", self.full), ("short", self.short))
            for key, values in vars(curves).items()
        }
        np.savez_compressed(path, json=np.array(json.dumps(about)), index=self.index, **arrays)

    @staticmethod
    def load(task: str) -> Table:
        """Read the table of a task."""
        with np.load(TABLES / f"{task}.npz") as file:
            about = json.loads(str(file["json"]))
            full, short = (
                Curves(*(file[f"{name}_{key}"] for key in ("right", "average", "test")))
                for name in ("full", "short")
            )
            return Table(
                Space.from_json(about["space"]),
                about["axes"],
                file["index"],
                full,
                short,
                about["images"],
                about["test_images"],
                about["about"],
            )
