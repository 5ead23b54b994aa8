"""The plots of a trial: learning curve, confusion matrix, worst images and their heat maps.

Drawn with matplotlib's object interface, which needs no display and keeps no global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw
from torch import Tensor

from autotune.data.drawing import draw_heat, draw_text, draw_tile, plot_label
from autotune.study.state.predictions import (
    EDGE,
    HEAT_MAPS,
    LINE,
    TILE,
    WORST_IMAGES,
    ImagePrediction,
    sheet_size,
    tile_corner,
)
from autotune.training import curves

#: Most classes that get names at the axes and counts in the cells.
NAMED_CLASSES = 25
_PAPER, _INK, _SOFT, _RIGHT, _WRONG = "#ffffff", "#1c2733", "#5b6b7b", "#2e6b34", "#b3261e"


def draw_curve(
    folder: Path, values: Mapping[int, float], objective: str, stored: curves.Stored
) -> Path:
    """Draw the objective on the validation split, and the losses, against the epoch.

    What is not known is left out: a refit has no validation, and trials of earlier versions have
    no losses.
    """
    losses = {
        name: curves.series(stored, key)
        for name, key in (
            ("training", curves.TRAINING_LOSS),
            ("validation", curves.VALIDATION_LOSS),
        )
        if curves.series(stored, key)
    }
    label = f"validation {objective.replace('_', ' ')}"
    panels = {label: {"": dict(sorted(values.items()))}, "loss (nats)": losses}
    panels = {title: drawn for title, drawn in panels.items() if any(drawn.values())}
    figure = Figure(figsize=(5, max(1, len(panels)) * 3.2), layout="constrained")
    for place, (title, drawn) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(len(panels), 1, place)
        for name, curve in drawn.items():
            style = "--" if name == "training" else "-"
            axes.plot(list(curve), list(curve.values()), style, marker="o", ms=3, label=name)
        if len(drawn) > 1:
            axes.legend()
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    return _save(figure, folder / "learning_curve.png")


def draw_confusion(folder: Path, matrix: npt.NDArray[np.int64], classes: Sequence[str]) -> Path:
    """Draw a confusion matrix; rows are true classes, scaled to their shares."""
    count = len(classes)
    side = min(9.0, 3.0 + 0.35 * count)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if count <= NAMED_CLASSES:
        names = [plot_label(name) for name in classes]
        # A dollar sign in a class name must not start a formula.
        axes.set_xticks(range(count), names, rotation=90, parse_math=False)
        axes.set_yticks(range(count), names, parse_math=False)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color)
    return _save(figure, folder / "confusion_matrix.png")


def draw_worst(folder: Path, images: Sequence[ImagePrediction], views: Sequence[Tensor]) -> Path:
    """Draw the images with the highest loss as the network saw them, with what it predicted.

    Each has a view ``(3, H, W)``, uint8. A JPEG has a tenth of the size of a PNG.
    """
    title = "highest loss first; black: its class, red: the prediction"
    sheet, pen = _empty_sheet(len(images), title)
    for number, (image, view) in enumerate(zip(images, views, strict=True)):
        left, top = tile_corner(number)
        sheet.paste(draw_tile(view, TILE), (left, top))
        predicted = f"{_percent(image.top[0][1])} for {image.predicted_class}"
        lines = (
            (f"{_percent(image.true_probability)} for {image.true_class}", _INK),
            ("right", _RIGHT) if image.is_correct else (predicted, _WRONG),
            (PurePosixPath(image.path).name, _SOFT),
        )
        for line, (text, color) in enumerate(lines):
            draw_text(pen, (left, top + TILE + 1 + line * LINE), text, 13, color, TILE)
    return _save_sheet(sheet, folder / WORST_IMAGES)


def draw_heat_maps(folder: Path, views: Sequence[Tensor], maps: Sequence[Tensor]) -> Path:
    """Draw heat maps ``(h, w)`` over the same images, in the places of :func:`draw_worst`."""
    sheet, _ = _empty_sheet(len(views), "bright: what speaks for the predicted class")
    for number, (view, heat) in enumerate(zip(views, maps, strict=True)):
        sheet.paste(draw_heat(draw_tile(view, TILE), heat), tile_corner(number))
    return _save_sheet(sheet, folder / HEAT_MAPS)


def _empty_sheet(images: int, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", sheet_size(images), _PAPER)
    pen = ImageDraw.Draw(sheet)
    draw_text(pen, (EDGE, EDGE), title, 14, _INK, sheet.width - 2 * EDGE)
    return sheet, pen


def _save_sheet(sheet: Image.Image, path: Path) -> Path:
    sheet.save(path, quality=85, subsampling=0)
    return path


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]
    return path
