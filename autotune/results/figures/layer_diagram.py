"""Draw which layers a plan freezes, trains and reshapes, in the order of the network.

The input is at the top and the head at the end, in a terminal and on a page alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from markupsafe import Markup

from autotune.plan import TrialPlan
from autotune.study.state.constraints import format_count

State = Literal["frozen", "trainable", "reshaped"]

#: Longest run of like layers that is drawn one by one. Frozen layers are the less interesting
#: ones; of trainable layers one wants to see the names, up to what fits a screen.
LONGEST_RUN: Mapping[State, int] = {"frozen": 3, "trainable": 12, "reshaped": 12}
_MARKS: Mapping[State, str] = {"frozen": "□", "trainable": "■", "reshaped": "▣"}


@dataclass(frozen=True)
class LayerRow:
    """One line of the picture.

    Args:
        index: The layer, counted from the output; 0 is the head.
        label: The modules it is made of, e.g. ``layer4.1``.
        parameters: Number of trainable values; ``None`` for the head, whose size depends on the
            data set.
        state: Whether the layer trains, and whether the plan changes something of it.
        change: What the plan makes of it, in words; empty when it keeps everything.
    """

    index: int
    label: str
    parameters: int | None
    state: State
    change: str = ""


def layer_rows(layers: Sequence[Mapping[str, Any]], plan: TrialPlan) -> tuple[LayerRow, ...]:
    """Draw a plan: the layer next to the input first, the head last.

    Args:
        layers: Layers of the backbone as the study remembers them, the last layer first.
        plan: The plan.

    Returns:
        One row for every layer, and one for the head.
    """
    reshaped = plan.reshaped
    drawn = [_layer_row(layer, plan, reshaped) for layer in reversed(layers)]
    return (*drawn, LayerRow(0, "head", None, "trainable", plan.head.describe()))


def _layer_row(layer: Mapping[str, Any], plan: TrialPlan, reshaped: Collection[int]) -> LayerRow:
    index = int(layer["index"])
    state: State = "trainable" if index <= plan.depth else "frozen"
    if index in reshaped:
        state = "reshaped"
    return LayerRow(
        index=index,
        label=str(layer["label"]),
        parameters=int(layer["parameters"]),
        state=state,
        change=plan.layers[index - 1].describe() if state == "reshaped" else "",
    )


@dataclass(frozen=True)
class _Line:
    """What is drawn on one line: a row, or a run of rows that are alike."""

    members: tuple[LayerRow, ...]

    @property
    def state(self) -> State:
        return self.members[0].state

    @property
    def change(self) -> str:
        return self.members[0].change

    @property
    def name(self) -> str:
        first, last = self.members[-1].index, self.members[0].index
        if not last:
            return "head"
        return f"layer {last}" if first == last else f"layers {first}-{last}"

    @property
    def label(self) -> str:
        first, last = self.members[0], self.members[-1]
        if not first.index:
            return ""
        return first.label if first is last else f"{first.label} … {last.label}"

    @property
    def parameters(self) -> str:
        known = [row.parameters for row in self.members if row.parameters is not None]
        return format_count(sum(known)) if known else ""


def _lines(picture: Sequence[LayerRow]) -> Iterator[_Line]:
    """Join long runs of like layers; the head is never part of one."""
    for _, run in groupby(picture, key=lambda row: (row.state, row.change, row.index == 0)):
        members = tuple(run)
        if len(members) > LONGEST_RUN[members[0].state]:
            yield _Line(members)
        else:
            yield from (_Line((member,)) for member in members)


def as_text(picture: Sequence[LayerRow]) -> str:
    """Draw a picture for a terminal.

    Args:
        picture: What :func:`rows` returned.

    Returns:
        Aligned lines without a line break at the end. Filled squares are trainable, those with a
        rim also reshaped.
    """
    lines = [
        (
            f"{_MARKS[line.state]} {line.name}",
            line.state,
            f"{line.parameters} parameters" if line.parameters else "",
            line.label,
            line.change,
        )
        for line in _lines(picture)
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


def as_html(picture: Sequence[LayerRow]) -> Markup:
    """Draw a picture for a page; a joined run opens to its layers.

    Args:
        picture: What :func:`rows` returned.

    Returns:
        An ordered list of class ``network``. Labels are escaped.
    """
    items = [
        Markup('<li class="{}">{}</li>').format(
            line.state, _run_as_html(line) if len(line.members) > 1 else _line_as_html(line)
        )
        for line in _lines(picture)
    ]
    return Markup('<ol class="network">{}</ol>').format(Markup("\n").join(items))


def _run_as_html(line: _Line) -> Markup:
    inner = Markup("").join(
        Markup("<li>{}</li>").format(_line_as_html(_Line((member,)))) for member in line.members
    )
    return Markup("<details><summary>{}</summary><ol>{}</ol></details>").format(
        _line_as_html(line), inner
    )


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
