"""The race among backbones as a table, for all reports and the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from autotune.study.state.constraints import format_cost
from autotune.study.state.race_record import RaceRecord, describe_left_out
from autotune.text import format_duration, join_some, plural


@dataclass(frozen=True)
class RaceTable:
    """The race of a study.

    Args:
        text: What it has found, and who was left out and why, in words.
        titles: The heads of the columns.
        rows: The cells of each backbone that took part, the best first.
    """

    text: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def race_table(results: StudyResults) -> RaceTable | None:
    """Return the race that has chosen the backbones of a study; ``None`` where there was none."""
    stored = results.attributes.get(attrs.RACE)
    if not stored:
        return None
    record = RaceRecord.from_json(stored)
    objective = results.objective.with_name(record.metric)
    numbers = range(len(record.epochs))
    titles = ("backbone", *(record.describe_round(number) for number in numbers))
    rows = tuple(
        (
            entry.backbone,
            *(
                objective.format_value(entry.values[number]) if number < len(entry.values) else ""
                for number in numbers
            ),
            "" if entry.parameters is None else format_cost("parameters", entry.parameters),
            "" if entry.latency_ms is None else format_cost("latency_ms", entry.latency_ms),
            entry.license,
            record.outcome(entry),
        )
        for entry in record.running
    )
    return RaceTable(_describe(record), (*titles, "parameters", "latency", "license", ""), rows)


def _describe(record: RaceRecord) -> str:
    count = plural(len(record.entries), "backbone")
    where = f" of the list {record.listed}" if record.listed else ""
    left_out = describe_left_out(record.entries)
    without = f" Left out: {'; '.join(left_out)}." if left_out else ""
    if not record.kept:
        return f"A round of the race among {count}{where}.{without}"
    kept = join_some(list(record.kept))
    enter = "enters" if len(record.kept) == 1 else "enter"
    spent = format_duration(record.seconds) if record.seconds else ""
    cost = f" Its trainings took {spent} on one device." if spent else ""
    return f"Of {count}{where}, {kept} {enter} the study.{cost}{without}"
