"""The pictures that go with a trial as artifacts: its learning curve and confusion matrix.

Drawn with matplotlib's object interface, which needs no display and keeps no global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

#: More classes than this get no names at the axes, and no counts in the cells.
NAMED_CLASSES = 25


def draw_curve(folder: Path, values: Mapping[int, float], objective: str) -> Path:
    """Draw the objective on the validation part against the epoch.

    Args:
        folder: Where the PNG goes.
        values: Objective by epoch.
        objective: Its name.
    """
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    epochs = sorted(values)
    axes.plot(epochs, [values[epoch] for epoch in epochs], marker="o", markersize=3)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {objective.replace('_', ' ')}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    return _save(figure, folder / "learning_curve.png")


def draw_confusion(folder: Path, matrix: npt.NDArray[np.int64], classes: Sequence[str]) -> Path:
    """Draw a confusion matrix, rows scaled to shares of the true class.

    Args:
        folder: Where the PNG goes.
        matrix: ``(classes, classes)`` counts; rows are true, columns predicted.
        classes: Names of the classes.
    """
    count = len(classes)
    side = min(9.0, 3.0 + 0.35 * count)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if count <= NAMED_CLASSES:
        # A dollar sign in a class name must not start a formula.
        names = [name.replace("$", r"\$") for name in classes]
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color)
    return _save(figure, folder / "confusion_matrix.png")


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]
    return path
