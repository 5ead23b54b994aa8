"""Draws the pictures of docs/surgery.md, with the code that changes layers.

``make pictures`` runs this. The same versions of matplotlib and torch draw the same files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from torch import Tensor, nn

from autotune.models.backbone import load_backbone
from autotune.models.inspection import inspect_layers
from autotune.models.surgery.channel_groups import ChannelGroup, Member
from autotune.models.surgery.kernels import change_kernel
from autotune.models.surgery.widths import WidthChange, change_widths
from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrainingPolicy, TrialPlan
from autotune.results.figures.layer_diagram import LayerRow, layer_rows
from autotune.results.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE

IMAGES = Path(__file__).parents[1] / "images"
#: Colors of the hidden units of the small network; a copy has that of its original.
UNITS = (BLUE, ORANGE, GREEN, PURPLE)
#: The convolution of the packaged backbone whose strongest filter is shown.
CONV = "layer2.0.conv1"


def kernels() -> Figure:
    """Draw a 3x3 kernel and what it becomes with other sides."""
    conv = load_backbone("test_resnet.letters").pretrained.get_submodule(CONV)
    assert isinstance(conv, nn.Conv2d)
    flat = conv.weight.detach().flatten(0, 1)
    strongest = int(flat.square().sum((1, 2)).argmax())
    row, column = divmod(strongest, conv.weight.shape[1])
    figure = Figure(figsize=(11, 3.4), facecolor="white")
    scale = Normalize(-float(flat[strongest].abs().max()), float(flat[strongest].abs().max()))
    shown = {
        3: "3x3, pretrained",
        5: "5: zeros around it",
        7: "7: zeros around it",
        2: "2: the best window",
        1: "1: one tap",
    }
    # All cells are of one size; titles need the width of three.
    spans = [max(side, 3) + 1 for side in shown]
    grid = figure.add_gridspec(1, len(shown), width_ratios=spans, left=0, right=1, wspace=0)
    for place, (side, title) in enumerate(shown.items()):
        changed = change_kernel(conv, side, inherit=True)
        axes = figure.add_subplot(grid[place])
        _kernel(axes, changed.weight.detach()[row, column], scale)
        axes.set(xlim=(-spans[place] / 2, spans[place] / 2), ylim=(-3.6, 4.3), aspect="equal")
        axes.text(0, side / 2 + 0.25, title, fontsize=9, ha="center")
    return figure


def _kernel(axes: Axes, weights: Tensor, scale: Normalize) -> None:
    side = len(weights)
    colors = mpl.colormaps["RdBu_r"]
    for y in range(side):
        for x in range(side):
            value = float(weights[y, x])
            corner = (x - side / 2, side / 2 - y - 1)
            axes.add_patch(
                Rectangle(corner, 1, 1, facecolor=colors(scale(value)), edgecolor="#cccccc")
            )
            strong = abs(scale(value) - 0.5) > 0.33
            axes.text(
                corner[0] + 0.5,
                corner[1] + 0.5,
                f"{value:.2f}" if value else "0",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if strong else "black",
            )
    axes.axis("off")


def widths() -> Figure:
    """Draw a small network, the same widened, and the same made narrower."""
    figure = Figure(figsize=(11, 4), facecolor="white")
    image = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    before = _small()(image)
    for place, count in enumerate((4, 6, 2), 1):
        model, origin = widened(count)
        same = torch.allclose(model(image), before, atol=1e-6)
        words = "pretrained" if count == 4 else f"width {count / 4:g}"
        outcome = "" if count == 4 else ": the function is " + ("the same" if same else "another")
        axes = figure.add_axes(((place - 1) / 3, 0, 1 / 3, 0.92))
        _network(axes, model, origin)
        axes.set_title(f"{words}{outcome}", fontsize=9)
    return figure


def _small() -> nn.Sequential:
    """Make a network of 3 inputs, 4 hidden units and 2 outputs."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False)


def widened(count: int) -> tuple[nn.Sequential, list[int]]:
    """Change the hidden units of the small network.

    Args:
        count: How many it has afterwards.

    Returns:
        The network, and for each of its hidden units which of the four it comes from.
    """
    model, old = _small(), _small()
    whole = ((0, 1, 1),)
    group = ChannelGroup(
        layer=1,
        size=4,
        unit=1,
        inner=True,
        exact=True,
        members=(
            Member("0", "out", 0, 4, whole),
            Member("2", "in", 0, 4, whole),
        ),
    )
    change_widths(model, [WidthChange(group, count)], "weights", torch.Generator().manual_seed(1))
    distances = torch.cdist(model[0].weight, old[0].weight)
    return model, distances.argmin(1).tolist()


def _network(axes: Axes, model: nn.Sequential, origin: list[int]) -> None:
    sizes = (3, len(origin), 2)
    places = [
        [(2.2 * layer, (size - 1) / 2 - unit) for unit in range(size)]
        for layer, size in enumerate(sizes)
    ]
    for layer, module in enumerate((model[0], model[2])):
        for to, row in enumerate(module.weight.tolist()):
            for start, weight in enumerate(row):
                unit = to if layer == 0 else start
                (x0, y0), (x1, y1) = places[layer][start], places[layer + 1][to]
                axes.plot(
                    [x0, x1],
                    [y0, y1],
                    color=UNITS[origin[unit]],
                    linewidth=0.4 + 1.8 * abs(weight),
                    linestyle="-" if weight > 0 else (0, (3, 1.5)),
                    alpha=0.75,
                    zorder=1,
                )
    for layer, each in enumerate(places):
        for unit, place in enumerate(each):
            color = UNITS[origin[unit]] if layer == 1 else GREY
            axes.add_patch(Circle(place, 0.22, facecolor=color, edgecolor="white", zorder=2))
    axes.set(xlim=(-0.6, 5.0), ylim=(-2.8, 2.8), aspect="equal")
    axes.axis("off")


def network() -> Figure:
    """Draw which layers of a ResNet-18 a plan freezes, trains and reshapes."""
    plan = TrialPlan(
        backbone="resnet18.a1_in1k",
        depth=3,
        layers=(LayerPlan(width=0.5), LayerPlan(kernel=5), LayerPlan()),
        head=HeadPlan((HiddenLayer(256, 0.5),)),
        policy=TrainingPolicy(),
    )
    layers = [
        {"index": one.index, "label": one.label, "parameters": one.parameters}
        for one in (each.layer for each in inspect_layers(plan.backbone).layers)
    ]
    drawn = layer_rows(layers, plan)
    figure = Figure(figsize=(9, 0.36 * len(drawn) + 0.5), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    for position, row in enumerate(drawn):
        _layer(axes, row, -position)
    axes.text(0, 0.95, "image", fontsize=9, color=GREY)
    axes.text(0, -len(drawn) + 0.6, "classes", fontsize=9, color=GREY)
    axes.set(xlim=(-0.2, 10), ylim=(-len(drawn) + 0.3, 1.4))
    axes.axis("off")
    return figure


def _layer(axes: Axes, row: LayerRow, y: int) -> None:
    color = {"frozen": "#e9ebee", "trainable": "#cfe3f5", "reshaped": "#f7ddbd"}[row.state]
    rim = {"frozen": GREY, "trainable": BLUE, "reshaped": ORANGE}[row.state]
    axes.add_patch(
        FancyBboxPatch(
            (0, y + 0.1),
            9.6,
            0.66,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=color,
            edgecolor=rim,
        )
    )
    name = f"layer {row.index}" if row.index else "head"
    size = f"{row.parameters:,} parameters" if row.parameters is not None else ""
    label = row.label if row.index else ""
    cells = ((0.15, name), (1.5, row.state), (3.0, label), (5.0, size), (7.4, row.change))
    for x, text in cells:
        axes.text(x, y + 0.42, text, fontsize=9, va="center")


def draw(folder: Path) -> list[Path]:
    """Draw all pictures.

    Args:
        folder: Where to.

    Returns:
        The files.
    """
    pictures = {"kernels": kernels, "widths": widths, "network": network}
    paths = []
    # Text as paths, so that it looks alike where the font is missing; names of parts by content.
    with mpl.rc_context({"svg.hashsalt": "autotune", "svg.fonttype": "path"}):
        for name, make in pictures.items():
            paths.append(folder / f"surgery-{name}.svg")
            make().savefig(paths[-1], metadata={"Date": None}, bbox_inches="tight")
    return paths


if __name__ == "__main__":
    for path in draw(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES):
        print(path)
