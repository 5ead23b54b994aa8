"""The plots that are artifacts of a trial: learning curve, confusion matrix, worst images.

Drawn with matplotlib's object interface, which needs no display and keeps no global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import cross_entropy

from autotune.data.drawing import draw_text, draw_tile, plot_label
from autotune.training import curves

#: Most classes that get names at the axes and counts in the cells.
NAMED_CLASSES = 25
#: Images on the sheet of the worst ones, and images in a row; below sizes in pixels.
WORST, _COLUMNS = 16, 4
_TILE, _GAP, _LINE, _EDGE, _TITLE = 144, 16, 17, 16, 44
_PAPER, _INK, _RIGHT, _WRONG = "#ffffff", "#1c2733", "#2e6b34", "#b3261e"


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


@dataclass(frozen=True)
class Prediction:
    """What a network predicts for an image: a class with its share, and that of the true class."""

    position: int
    label: int
    predicted: int
    share: float
    label_share: float


def worst(logits: Tensor, labels: Tensor, count: int = WORST) -> list[Prediction]:
    """Choose the images with the highest loss, the worst one first."""
    # In single precision: of 50,000 images and 1,000 classes, double takes 0.4 GB and a second.
    losses = cross_entropy(logits, labels.to(logits.device), reduction="none")
    order = losses.argsort(descending=True, stable=True)[:count]
    shares = logits[order].double().softmax(dim=1).cpu()
    predicted = shares.argmax(dim=1)
    return [
        Prediction(
            position,
            int(labels[position]),
            int(predicted[row]),
            float(shares[row, predicted[row]]),
            float(shares[row, labels[position]]),
        )
        for row, position in enumerate(order.tolist())
    ]


def draw_worst(
    folder: Path,
    images: Sequence[tuple[Prediction, Tensor]],
    classes: Sequence[str],
) -> Path:
    """Draw the worst-classified images as the network saw them, with what it predicted.

    Each comes with its view ``(3, H, W)``, uint8. A JPEG has a tenth of the size of a PNG.
    """
    rows = -(-len(images) // _COLUMNS)
    wide, high = _TILE + _GAP, _TILE + 2 * _LINE + _GAP
    width = 2 * _EDGE + _COLUMNS * wide - _GAP
    sheet = Image.new("RGB", (width, _TITLE + rows * high), _PAPER)
    pen = ImageDraw.Draw(sheet)
    title = "highest loss first; black: its class, red: the prediction"
    draw_text(pen, (_EDGE, _EDGE), title, 14, _INK, width - 2 * _EDGE)
    for number, (image, view) in enumerate(images):
        left, top = _EDGE + number % _COLUMNS * wide, _TITLE + number // _COLUMNS * high
        sheet.paste(draw_tile(view, _TILE), (left, top))
        place, below = (left, top + _TILE + 1), (left, top + _TILE + 1 + _LINE)
        draw_text(
            pen,
            place,
            f"{_percent(image.label_share)} for {classes[image.label]}",
            13,
            _INK,
            _TILE,
        )
        right = image.predicted == image.label
        text = "right" if right else f"{_percent(image.share)} for {classes[image.predicted]}"
        draw_text(pen, below, text, 13, _RIGHT if right else _WRONG, _TILE)
    path = folder / "worst_images.jpg"
    sheet.save(path, quality=85, subsampling=0)
    return path


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]
    return path
