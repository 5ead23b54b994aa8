"""The reliability diagram: what the probabilities of a classifier are worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from autotune.results.evaluation.bootstrap import Bin

RELIABILITY = "reliability.png"


def draw_reliability(folder: Path, bins: Sequence[Bin]) -> Path:
    """Draw the share of right answers against the probability of the predicted class.

    Args:
        folder: Where the PNG goes.
        bins: From the lowest to the highest.
    """
    figure = Figure(figsize=(4.5, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    there = [one for one in bins if one.images]
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="as promised")
    upper.plot(
        [one.probability for one in there],
        [one.accuracy for one in there],
        marker="o",
        markersize=4,
        label="this model",
    )
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
    upper.legend(loc="upper left")
    upper.grid(alpha=0.3)
    width = bins[0].high - bins[0].low
    lower.bar([one.low for one in bins], [one.images for one in bins], width, align="edge")
    lower.set(xlabel="probability of the predicted class", ylabel="images")
    path = folder / RELIABILITY
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]
    return path
