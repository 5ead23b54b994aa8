"""Draw which layers a plan freezes, trains and reshapes, in the order of the network.

The input is at the top and the head at the end, in a terminal and on a page alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from autotune.plan import TrialPlan
from autotune.study.state.constraints import format_count

State = Literal["frozen", "trainable", "reshaped"]

#: Longest run of like layers that is drawn one by one: frozen layers are the less interesting
#: ones; trainable layers are named, up to what fits a screen.
MAX_RUN: Mapping[State, int] = {"frozen": 3, "trainable": 12, "reshaped": 12}
_MARKS: Mapping[State, str] = {"frozen": "□", "trainable": "■", "reshaped": "▣"}


@dataclass(frozen=True)
class LayerRow:
    """One layer of the diagram.

    Args:
        index: The layer, counted from the output; 0 is the head.
        label: The modules it is made of, e.g. ``layer4.1``.
        parameters: Number of trainable values; ``None`` for the head, whose size depends on the
            data set.
        state: Whether the layer trains, and whether the plan changes it.
        change: How the plan changes it; empty when it does not.
    """

    index: int
    label: str
    parameters: int | None
    state: State
    change: str = ""


def layer_rows(layers: Sequence[Mapping[str, Any]], plan: TrialPlan) -> tuple[LayerRow, ...]:
    """Return a row for every layer, the layer next to the input first, the head last.

    Args:
        layers: Layers of the backbone as the study remembers them, the last layer first.
        plan: The plan.
    """
    rows, reshaped = [], plan.reshaped
    for layer in reversed(layers):
        index = int(layer["index"])
        state: State = "trainable" if index <= plan.depth else "frozen"
        change = ""
        if index in reshaped:
            state, change = "reshaped", plan.layers[index - 1].describe()
        rows.append(LayerRow(index, str(layer["label"]), int(layer["parameters"]), state, change))
    return (*rows, LayerRow(0, "head", None, "trainable", plan.head.describe()))


class _Line(NamedTuple):
    """What is drawn on one line: a row, or a run of like rows."""

    rows: tuple[LayerRow, ...]
    name: str
    state: State
    label: str
    parameters: str
    change: str


def _line(rows: tuple[LayerRow, ...]) -> _Line:
    first, last = rows[0], rows[-1]
    name = f"layer {first.index}" if first is last else f"layers {last.index}-{first.index}"
    label = first.label if first is last else f"{first.label} … {last.label}"
    if not first.index:
        name, label = "head", ""
    counts = [row.parameters for row in rows if row.parameters is not None]
    parameters = format_count(sum(counts)) if counts else ""
    return _Line(rows, name, first.state, label, parameters, first.change)


def _lines(rows: Sequence[LayerRow]) -> Iterator[_Line]:
    """Join long runs of like layers; the head is never part of one."""
    for _, run in groupby(rows, key=lambda row: (row.state, row.change, row.index == 0)):
        members = tuple(run)
        if len(members) > MAX_RUN[members[0].state]:
            yield _line(members)
        else:
            yield from (_line((member,)) for member in members)


def as_text(rows: Sequence[LayerRow]) -> str:
    """Draw layers for a terminal, as aligned lines without a line break at the end.

    Filled squares are trainable, those with a rim also reshaped.
    """
    lines = [
        (
            f"{_MARKS[line.state]} {line.name}",
            line.state,
            f"{line.parameters} parameters" if line.parameters else "",
            line.label,
            line.change,
        )
        for line in _lines(rows)
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            # Numbers end at the same place, words begin there.
            cell.rjust(width) if column == 2 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            if width
        ).rstrip()
        for line in lines
    )


def as_html(rows: Sequence[LayerRow]) -> Markup:
    """Draw layers for a page; a joined run opens to its layers.

    Returns:
        An ordered list of class ``network``. Labels are escaped.
    """
    items = []
    for line in _lines(rows):
        html = _line_as_html(line)
        if len(line.rows) > 1:
            inner = (
                Markup("<li>{}</li>").format(_line_as_html(_line((row,)))) for row in line.rows
            )
            html = Markup("<details><summary>{}</summary><ol>{}</ol></details>").format(
                html, Markup("").join(inner)
            )
        items.append(Markup('<li class="{}">{}</li>').format(line.state, html))
    return Markup('<ol class="network">{}</ol>').format(Markup("\n").join(items))


def _line_as_html(line: _Line) -> Markup:
    return Markup(
        '<span class="row"><span class="name">{}</span> <span class="state">{}</span> '
        '<span class="label">{}</span> <span class="size">{}</span></span>'
    ).format(
        line.name,
        line.state,
        " · ".join(part for part in (line.label, line.change) if part),
        line.parameters,
    )
