"""Studies side by side at the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autotune.text import format_duration, shell_quote

if TYPE_CHECKING:
    from autotune.results.comparison import Comparison
    from autotune.results.seeds import SeedComparison
    from autotune.results.study_results import StudyResults

#: Most settings in which the studies differ that are listed.
MAX_SETTINGS = 20


def comparison_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield the tables: results, values by trials and by device time, best plans, settings."""
    yield _results_table(comparison)
    values = [
        (f"{n:,} trials", [group.after_trials(n) for group in comparison.groups])
        for n in comparison.trial_marks()
    ]
    yield _values_table(comparison, "best after", values)
    values = [
        (format_duration(s), [group.after_device_s(s) for group in comparison.groups])
        for s in comparison.device_marks()
    ]
    yield _values_table(comparison, "best after a device time of", values)
    rows = comparison.plan_rows()
    yield _side_by_side("best plan", [group.label for group in comparison.groups], rows)
    if len(comparison.studies) > 1 and comparison.settings:
        listed = list(comparison.settings.items())
        rows = {key: list(map(_setting, values)) for key, values in listed[:MAX_SETTINGS]}
        table = _side_by_side("settings that differ", [s.label for s in comparison.studies], rows)
        if others := len(listed) - MAX_SETTINGS:
            table.caption = f"and {others} more; --json has all" if others > 0 else None
        yield table


def seeds_table(comparison: SeedComparison) -> Table:
    """Return a table with a row for each of the studies that differ in their seed alone."""
    objective = comparison.objective
    points = " (points)" if objective.is_share else ""
    table = _table("study")
    for name in ("seed", "baseline", "best", f"gain{points}", "trial"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("plan")
    for study in comparison.studies:
        gain = "–" if study.gain is None else objective.format_gain(study.gain, unit=False)
        table.add_row(
            Text(study.study),
            str(study.seed),
            objective.format_value(study.baseline),
            objective.format_value(study.best),
            gain,
            "–" if study.trial is None else str(study.trial),
            Text(study.plan),
        )
    return table


def print_seeds(console: Console, results: Sequence[StudyResults], url: str) -> None:
    """Print what studies of several seeds have found, and the command that compares them."""
    from autotune.results.seeds import SeedComparison
    from autotune.storage.commands import program, storage_option

    for each in results:
        if each.no_result is not None:
            console.print(Text(f"{each.name}: {each.no_result.describe()}"))
    comparison = SeedComparison.of(results)
    if comparison is None:  # the first was interrupted
        return
    console.print(seeds_table(comparison))
    console.print(Text(comparison.describe()))
    names = " ".join(shell_quote(each.name) for each in results)
    command = f"{program()} compare {names}{storage_option(url)}"
    console.print(Text(f"side by side   {command}"), soft_wrap=True)


def _results_table(comparison: Comparison) -> Table:
    table = _table("")
    for name in ("trials", "device time", "metric", "baseline", "best", "trial"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for group in comparison.groups:
        results, best = group.results, group.best
        is_study = group.label == results.name
        baseline = results.format_values(results.baseline) if results.baseline else "–"
        table.add_row(
            Text(group.label),
            f"{group.finished:,}",
            format_duration(group.device_s) if group.device_s else "–",
            results.objective.label if is_study else "",
            baseline if is_study else "",
            results.format_values(best) if best else "–",
            str(best.number) if best else "–",
        )
    return table


def _values_table(
    comparison: Comparison, title: str, columns: Sequence[tuple[str, list[float | None]]]
) -> Table:
    table = _table(title)
    for name, _ in columns:
        table.add_column(name, justify="right")
    for index, group in enumerate(comparison.groups):
        objective = group.results.objective
        cells = (objective.format_value(values[index]) for _, values in columns)
        table.add_row(Text(group.label), *cells)
    return table


def _side_by_side(title: str, names: Sequence[str], rows: dict[str, list[str]]) -> Table:
    table = _table(title)
    for name in names:
        table.add_column(Text(name))
    for key, texts in rows.items():
        style = "bold" if len(set(texts)) > 1 else ""
        table.add_row(Text(key), *(Text(text, style=style) for text in texts))
    return table


def _table(title: str) -> Table:
    table = Table(box=None)
    table.add_column(title, overflow="fold")
    return table


def _setting(value: object) -> str:
    return "–" if value is None else str(value)
