"""The tables of ``autotune layers``: layers, what they can become, and why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from autotune.text import join_some

if TYPE_CHECKING:
    from autotune.models.inspection import InspectedLayer, Inspection

#: Width of a console whose output goes to a file.
UNLIMITED_WIDTH = 10_000

#: The first six describe a layer, the others what it can become.
_COLUMNS = (
    *("layer", "modules", "kind", "output", "params", "FLOPs"),
    *("kernel", "width", "bridge", "activation", "pool", "drop"),
)
_RIGHT_ALIGNED = ("layer", "params", "FLOPs")
_MODULES = 1
_CHANGEABLE = range(6, len(_COLUMNS))
#: Values in a line of a study file, of fields that the last layers offer.
_EXAMPLES = {"kernel": 5, "width": 0.5, "drop_path": 0.1, "activation": "gelu", "dropout": 0.1}


def print_table(console: Console, inspected: Inspection, layers: Sequence[InspectedLayer]) -> None:
    """Print one table where it fits, else one of the layers and one of what they can become."""
    rows = list(_rows(inspected, layers))
    if table := _fitting_table(console, rows, range(len(_COLUMNS))):
        console.print(table)
        return
    for number, columns in enumerate((range(_CHANGEABLE[0]), [0, *_CHANGEABLE])):
        if number:
            console.print()
        console.print(_fitting_table(console, rows, columns) or _table(rows, columns, 1))


def _fitting_table(
    console: Console, rows: Sequence[Sequence[str]], columns: Sequence[int]
) -> Table | None:
    """Return the table with the widest gap that fits the console, if one does."""
    unlimited = console.options.update(max_width=UNLIMITED_WIDTH)
    tables = (_table(rows, columns, gap) for gap in (2, 1))
    return next(
        (
            table
            for table in tables
            if Measurement.get(console, unlimited, table).minimum <= console.width
        ),
        None,
    )


def _table(rows: Sequence[Sequence[str]], columns: Sequence[int], gap: int) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False)
    for column in columns:
        header = _COLUMNS[column]
        cells = [header, *(row[column] for row in rows)]
        # Only module names may wrap, between two names; a name is folded if nothing else fits.
        wraps = column == _MODULES
        table.add_column(
            header,
            justify="right" if header in _RIGHT_ALIGNED else "left",
            no_wrap=not wraps,
            overflow="fold",
            min_width=None if wraps else max(map(len, cells)),
        )
    for row in rows:
        table.add_row(*(Text(row[column]) for column in columns))
    return table


def _rows(inspected: Inspection, layers: Sequence[InspectedLayer]) -> Iterator[tuple[str, ...]]:
    """Return the cells of every row, the head first."""
    from autotune.study.state.constraints import format_count

    empty = ("",) * len(_CHANGEABLE)
    yield ("0", "head", "linear", f"{inspected.head.features} → n", "", "", *empty)
    for layer in layers:
        yield (
            str(layer.layer.index),
            layer.layer.label,
            layer.kind,
            "x".join(map(str, layer.shape)),
            format_count(layer.layer.parameters),
            f"{100 * layer.share:.1f} %",
            *(_format_field(layer, name) for name in _COLUMNS[6:-1]),
            _format_drops(layer),
        )
    if inspected.remainder:
        share = inspected.remainder / inspected.macs
        yield ("", "outside of all layers", "", "", "", f"{100 * share:.1f} %", *empty)


def _format_field(layer: InspectedLayer, name: str) -> str:
    """Write the values of a field that can change, a dash where it cannot."""
    if name in layer.capabilities.reasons:
        return "–"
    values = [str(value) for value in layer.present[name]]
    return " ".join(values[:3]) + (" …" if len(values) > 3 else "")


def _format_drops(layer: InspectedLayer) -> str:
    """Write which kinds of dropout a layer can have, with the rates that are not 0."""
    words = []
    for name, word in (("dropout", "out"), ("drop_path", "path")):
        if name not in layer.capabilities.reasons:
            rate = max(float(value) for value in layer.present[name])
            words.append(f"{word} {rate:.2g}" if rate else word)
    return " ".join(words) or "–"


def print_legend(
    console: Console, inspected: Inspection, layers: Sequence[InspectedLayer]
) -> None:
    """Print what the fields can become that a layer offers, and why the others cannot change."""
    from autotune.config.fields import KERNELS
    from autotune.config.schema import ACTIVATIONS, LAYER_POOLS

    meanings = {
        "kernel": " ".join(map(str, KERNELS)),
        "width": _describe_widths(layers),
        "bridge": "the same of the channels that the last convolution or linear layer writes",
        "activation": " ".join(ACTIVATIONS),
        "pool": " ".join(LAYER_POOLS),
        "dropout": "0 to below 1 (drop: out)",
        "drop_path": "0 to below 1 (drop: path)",
    }
    offered = [name for name in meanings if _offering(layers, name)]
    legend = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for name in offered:
        legend.add_row(name, Text(meanings[name]))
    for name in meanings:
        if name not in offered:
            reasons = dict.fromkeys(layer.capabilities.reasons[name] for layer in layers)
            legend.add_row(name, Text(f"no layer: {join_some(reasons, 2, '; ')}"))
    head = inspected.head
    activations = "of those above" if "activation" in offered else f"({' '.join(ACTIVATIONS)})"
    text = (
        f"{head.features} features to n classes, linear or with 1 to 3 hidden layers: units, "
        f"activation {activations}, batch norm, dropout; pool {' '.join(head.pools)}"
    )
    legend.add_row("head", Text(text))
    console.print("what a value above can become; a dash cannot change:", highlight=False)
    console.print(legend)


def _describe_widths(layers: Sequence[InspectedLayer]) -> str:
    capabilities = [layer.capabilities for layer in _offering(layers, "width")]
    shrinking = [entry.index for entry in capabilities if not entry.can_grow]
    units = sorted({group.unit for entry in capabilities for group in entry.groups} - {1})
    text = "a ratio from 0.1 to below 8, or a number of channels from 8 on"
    if shrinking:
        text += f"; only fewer in {format_layers(shrinking)}"
    if units:
        text += f"; grouped channels in steps of {', '.join(map(str, units))}"
    return text


def _offering(layers: Sequence[InspectedLayer], name: str) -> list[InspectedLayer]:
    return [layer for layer in layers if name not in layer.capabilities.reasons]


def print_reasons(console: Console, layers: Sequence[InspectedLayer]) -> None:
    """Print why fields cannot change, in one row for all layers with the same reason."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("why not", no_wrap=True)
    table.add_column("layers")
    table.add_column("reason")
    for name in layers[0].present:
        reasons: dict[str, list[int]] = {}
        for layer in layers:
            if reason := layer.capabilities.reasons.get(name):
                reasons.setdefault(reason, []).append(layer.layer.index)
        for number, (reason, indices) in enumerate(reasons.items()):
            numbers = format_layers(indices).split(" ", 1)[1]
            table.add_row("" if number else name, numbers, Text(reason))
    console.print(table)


def format_layers(indices: Sequence[int]) -> str:
    """Write numbers of layers, consecutive ones as a range.

    Example:
        >>> format_layers([1, 2, 3, 7])
        'layers 1-3, 7'
    """
    runs = []
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        members = [index for _, index in run]
        runs.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else f"{members[0]}")
    return f"layer{'s' if len(indices) > 1 else ''} {', '.join(runs)}"


def example_space(inspected: Inspection) -> str:
    """Return a line of a study file that searches over these layers."""
    depth = min(4, len(inspected.layers))
    fields = [
        name for name in _EXAMPLES if len(_offering(inspected.layers[:depth], name)) * 2 > depth
    ]
    searched = ", ".join(f"{name}: [keep, {_EXAMPLES[name]}]" for name in fields[:2])
    layers = f", layers: {{{searched}}}" if searched else ""
    return f"space: {{trainable_layers: {{low: 0, high: {depth}}}{layers}}}"
