"""The report of paper.py: paired differences on the test images, with intervals over splits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from reports import date_and_machine

from autotune.results.values.intervals import CONFIDENCE_LEVEL, t_interval

#: What tells rows apart: network, images and training; the split; what was measured; the init.
KEY = ("setting", "seed", "what", "init")
Key = tuple[Any, ...]
Row = dict[str, Any]
#: What was measured on a split -> accuracy on its test images.
Split = Mapping[tuple[str, str], float]
#: Question, and the two sides of its difference.
QUESTIONS: tuple[tuple[str, tuple[str, str], tuple[str, str]], ...] = (
    (
        "greedy, random start, less frozen baseline",
        ("greedy", "random"),
        ("baseline", ""),
    ),
    (
        "greedy, inherited, less frozen baseline",
        ("greedy", "pretrained"),
        ("baseline", ""),
    ),
    (
        "greedy, inherited, less frozen, solved",
        ("greedy", "pretrained"),
        ("solved", ""),
    ),
    ("greedy: inherited less random", ("greedy", "pretrained"), ("greedy", "random")),
    (
        "drawn plans: inherited less random",
        ("pairs", "pretrained"),
        ("pairs", "random"),
    ),
    ("inherited: joint less greedy", ("joint", "pretrained"), ("greedy", "pretrained")),
)
COLUMNS = tuple(dict.fromkeys(side for _, *sides in QUESTIONS for side in sides))


def render(rows: Sequence[Row], about: str, command: str) -> str:
    """Write the report of all rows.

    Args:
        rows: The results, in any order.
        about: What was run, in sentences.
        command: The command that has made it.
    """
    lines = [
        "# The question of the paper: layer by layer, inherited weights, all at once",
        "",
        date_and_machine("torch", "timm", "optuna"),
        "",
        about,
        "",
        f"    {command}",
        "",
    ]
    for name in dict.fromkeys(row["setting"] for row in rows):
        lines += _setting(name, [row for row in rows if row["setting"] == name])
    return "\n".join(lines) + "\n"


def _setting(name: str, rows: Sequence[Row]) -> list[str]:
    splits = {seed: _split(rows, seed) for seed in sorted({row["seed"] for row in rows})}
    images = max((row.get("images", 0) for row in rows), default=0)
    lines = [
        f"## {name}",
        "",
        "| difference | splits | points | 95 % interval | each split |",
    ]
    lines.append("| --- | --- | --- | --- | --- |")
    for title, left, right in QUESTIONS:
        pairs = [(s[left], s[right]) for s in splits.values() if left in s and right in s]
        lines.append(_difference(title, [100 * (a - b) for a, b in pairs], images))
    diverged = sum(row["test"] is None for row in rows)
    lines += ["", f"{images} test images a split; {diverged} trainings diverged.", ""]
    lines += ["| split | " + " | ".join(map(_title, COLUMNS)) + " |"]
    lines += ["| --- |" + " --- |" * len(COLUMNS)]
    for seed, split in splits.items():
        cells = [f"{100 * split[column]:.1f}" if column in split else "" for column in COLUMNS]
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| split | search | trials | best plan |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['seed']} | {row['what']}, {row['init']} | {row['trials']} | {row['plan']} |"
        for row in sorted(rows, key=lambda row: row["seed"])
        if "trials" in row
    ]
    return [
        *lines,
        "",
        f"CPU time: {sum(row['cpu_s'] for row in rows) / 60:.0f} minutes.",
        "",
    ]


def _split(rows: Sequence[Row], seed: int) -> Split:
    """Return what was measured on a split; pairs as a mean over those with both sides."""
    own = {
        (row["what"], row["init"]): row["test"]
        for row in rows
        if row["seed"] == seed and row["test"] is not None
    }
    whole = [what for what, init in own if what.startswith("pair ") and init == "random"]
    whole = [what for what in whole if (what, "pretrained") in own]
    if whole:
        for init in ("random", "pretrained"):
            own["pairs", init] = statistics.fmean(own[what, init] for what in whole)
    return own


def _difference(title: str, points: Sequence[float], images: int) -> str:
    each = ", ".join(f"{one:+.1f}" for one in points)
    if len(points) < 2:
        return f"| {title} | {len(points)} | {each} | | {each} |"
    least = 100 / images / math.sqrt(6) if images else 0.0  # values come in steps of an image
    interval = t_interval(points, CONFIDENCE_LEVEL, least)
    ends = f"{interval.low:+.1f} to {interval.high:+.1f}"
    return f"| {title} | {len(points)} | {interval.mean:+.1f} | {ends} | {each} |"


def _title(column: tuple[str, str]) -> str:
    return ", ".join(filter(None, column))
