"""The table of ``autotune layers``: what layers are, what they can become, and why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from autotune.models.inspection import InspectedLayer, Inspection

#: Column of module names in a terminal that is too narrow for everything.
_NARROWEST = 12
#: Width of a console whose output goes to a file.
EDGELESS = 10_000
_KEPT, _NONE = "–", ""

#: Header, alignment; the first six say what a layer is, the others what it can become.
_COLUMNS = (
    ("layer", "right"),
    ("modules", "left"),
    ("kind", "left"),
    ("output", "left"),
    ("params", "right"),
    ("FLOPs", "right"),
    ("kernel", "left"),
    ("width", "left"),
    ("bridge", "left"),
    ("activation", "left"),
    ("pool", "left"),
    ("drop", "left"),
)
_FACTS = 6


def print_table(shown: Console, inspected: Inspection, chosen: Sequence[InspectedLayer]) -> None:
    """Print one table where it fits, else one of what layers are and one of what they can be."""
    rows = list(_rows(inspected, chosen))
    every = tuple(range(len(_COLUMNS)))
    can = tuple(range(_FACTS, len(_COLUMNS)))
    whole = _fitting(shown, rows, [(every, 2), (every, 1)])
    if whole is not None:
        shown.print(whole)
        return
    for number, columns in enumerate((every[:_FACTS], (0, 2, *can))):
        smallest = tuple(one for one in columns if one != 2)
        found = _fitting(shown, rows, [(columns, 2), (columns, 1), (smallest, 1)])
        if number:
            shown.print()
        shown.print(found or _table(rows, smallest, 1, _NARROWEST))


def _fitting(
    shown: Console,
    rows: Sequence[Sequence[str]],
    choices: Sequence[tuple[tuple[int, ...], int]],
) -> Table | None:
    """Return the first table of some columns and gaps that fits the terminal with its names."""
    common = _common_prefix([row[1] for row in rows[1:]])
    parts = [part.removeprefix(common) for row in rows for part in row[1].split(", ")]
    longest = max(len(part) for part in parts) + 1  # a comma
    unlimited = shown.options.update(max_width=EDGELESS)
    for columns, gap in choices:
        without = _table(rows, [one for one in columns if one != 1], gap, None)
        rest = shown.width - Measurement.get(shown, unlimited, without).maximum
        if 1 not in columns and rest >= 0:
            return without
        if rest - gap >= longest:
            return _table(rows, columns, gap, rest - gap)
    return None


def _rows(inspected: Inspection, chosen: Sequence[InspectedLayer]) -> Iterator[tuple[str, ...]]:
    """Write the cells of every row, the head first."""
    from autotune.study.state.constraints import format_count

    features = inspected.head.features
    empty = (_NONE,) * (len(_COLUMNS) - _FACTS)
    yield ("0", "head", "linear", f"{features} → n", _NONE, _NONE, *empty)
    for one in chosen:
        yield (
            str(one.layer.index),
            one.layer.label,
            one.kind,
            "x".join(map(str, one.shape)),
            format_count(one.layer.parameters),
            _percent(one.share),
            *(_cell(one, name) for name in ("kernel", "width", "bridge", "activation", "pool")),
            _drops(one),
        )
    if inspected.remainder:
        share = _percent(inspected.remainder / inspected.macs)
        yield (_NONE, "outside of all layers", _NONE, _NONE, _NONE, share, *empty)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _cell(one: InspectedLayer, name: str) -> str:
    """Write what a layer has of a field that can change, a dash where it cannot."""
    if name in one.capabilities.reasons:
        return _KEPT
    present = [str(value) for value in one.present[name]]
    return " ".join(present[:3]) + (" …" if len(present) > 3 else "")


def _drops(one: InspectedLayer) -> str:
    """Write which kinds of dropping a layer has a place for, with the rates that are not 0."""
    words = []
    for name, word in (("dropout", "out"), ("drop_path", "path")):
        if name not in one.capabilities.reasons:
            rate = max(float(value) for value in one.present[name])
            words.append(f"{word} {rate:.2g}" if rate else word)
    return " ".join(words) or _KEPT


def _table(
    rows: Sequence[Sequence[str]], columns: Sequence[int], gap: int, labels: int | None
) -> Table:
    """Make a table of some columns, with the names of modules in at most ``labels`` characters."""
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False)
    for column in columns:
        header, side = _COLUMNS[column]
        # The first column alone may wrap: names of modules, at their commas.
        table.add_column(header, justify=side, no_wrap=column != 1)  # type: ignore[arg-type]
    common = _common_prefix([row[1] for row in rows[1:]])
    for row in rows:
        cells = list(row)
        if labels is not None and len(cells[1]) > labels:
            parts = cells[1].split(", ")
            cells[1] = ", ".join(_shorten(part.removeprefix(common), labels - 1) for part in parts)
        table.add_row(*(Text(cells[column]) for column in columns))
    return table


def _common_prefix(labels: Sequence[str]) -> str:
    """Return the container that all modules lie in, with its dot, or an empty string."""
    heads = {part.partition(".")[0] for label in labels for part in label.split(", ")}
    return f"{heads.pop()}." if len(heads) == 1 else ""


def _shorten(name: str, width: int) -> str:
    """Cut the beginning of a name: its end tells it from its neighbours."""
    return name if len(name) <= width else f"…{name[1 - width :]}"


def print_legend(shown: Console, inspected: Inspection, chosen: Sequence[InspectedLayer]) -> None:
    """Print what the fields can become that some layer offers, and why the others cannot."""
    from autotune.config.fields import KERNELS
    from autotune.config.schema import ACTIVATIONS, LAYER_POOLS

    meanings = {
        "kernel": " ".join(map(str, KERNELS)),
        "width": _width_words(chosen),
        "bridge": "the same of the channels that the last convolution or linear layer writes",
        "activation": " ".join(ACTIVATIONS),
        "pool": " ".join(LAYER_POOLS),
        "dropout": "0 to below 1 (drop: out)",
        "drop_path": "0 to below 1 (drop: path)",
    }
    offered = [name for name in meanings if _offering(chosen, name)]
    legend = _two_columns()
    for name in offered:
        legend.add_row(name, Text(meanings[name]))
    for name in meanings:
        if name not in offered:
            reasons = dict.fromkeys(one.capabilities.reasons[name] for one in chosen)
            more = f" and {len(reasons) - 2} more reasons" if len(reasons) > 2 else ""
            legend.add_row(name, Text("no layer: " + "; ".join([*reasons][:2]) + more))
    head = inspected.head
    acts = "of those above" if "activation" in offered else f"({' '.join(ACTIVATIONS)})"
    words = (
        f"{head.features} features to n classes, linear or with 1 to 3 hidden layers: units, "
        f"activation {acts}, batch norm, dropout; pool {' '.join(head.pools)}"
    )
    legend.add_row("head", Text(words))
    shown.print("what a value above can become; a dash cannot change:", highlight=False)
    shown.print(legend)


def _width_words(chosen: Sequence[InspectedLayer]) -> str:
    offers = [one.capabilities for one in chosen if "width" not in one.capabilities.reasons]
    shrinking = [offer.index for offer in offers if not offer.can_grow]
    units = sorted({group.unit for offer in offers for group in offer.groups} - {1})
    words = "a ratio from 0.1 to below 8, or a number of channels from 8 on"
    if shrinking:
        words += f"; only fewer in {ranges(shrinking)}"
    if units:
        words += f"; grouped channels in steps of {', '.join(map(str, units))}"
    return words


def _two_columns() -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    return table


def _offering(chosen: Sequence[InspectedLayer], name: str) -> list[InspectedLayer]:
    return [one for one in chosen if name not in one.capabilities.reasons]


def print_reasons(shown: Console, chosen: Sequence[InspectedLayer]) -> None:
    """Print why fields cannot change; layers with the same reason stand together."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("why not", no_wrap=True)
    table.add_column("layers")
    table.add_column("reason")
    fields = [name for name in chosen[0].present if len(_offering(chosen, name)) < len(chosen)]
    for name in fields:
        reasons: dict[str, list[int]] = {}
        for one in chosen:
            if name in one.capabilities.reasons:
                reasons.setdefault(one.capabilities.reasons[name], []).append(one.layer.index)
        for number, (reason, indices) in enumerate(reasons.items()):
            table.add_row("" if number else name, ranges(indices).split(" ", 1)[1], Text(reason))
    shown.print(table)


def ranges(indices: Sequence[int]) -> str:
    """Write numbers of layers in short.

    Example:
        >>> ranges([1, 2, 3, 7])
        'layers 1-3, 7'
    """
    runs = []
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        members = [index for _, index in run]
        runs.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else f"{members[0]}")
    return f"layer{'s' if len(indices) > 1 else ''} {', '.join(runs)}"


#: What the line on the study file asks for, of fields that the last layers offer.
_EXAMPLES = {"kernel": 5, "width": 0.5, "drop_path": 0.1, "activation": "gelu", "dropout": 0.1}


def usage(inspected: Inspection) -> str:
    """Write a line of a study file that searches over these layers."""
    depth = min(4, len(inspected.layers))
    fields = [
        name for name in _EXAMPLES if len(_offering(inspected.layers[:depth], name)) * 2 > depth
    ]
    searched = ", ".join(f"{name}: [keep, {_EXAMPLES[name]}]" for name in fields[:2])
    layers = f", layers: {{{searched}}}" if searched else ""
    return f"space: {{depth: {{low: 0, high: {depth}}}{layers}}}"
