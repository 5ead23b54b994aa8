"""``autotune compare``: studies side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from autotune.display import console
from autotune.errors import UserError, place_as_user_error
from autotune.text import relative_path


def compare(
    study: console.StudiesArgument,
    storage: console.StorageOption = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="HTML file for a figure of the values so far."),
    ] = None,
    as_json: console.JsonOption = False,
) -> None:
    """Compare studies: values by trials and by device time, best plans, settings that differ.

    Studies that differ in their seed alone have a mean gain, with its interval.

    Where backbone or init vary inside a study, its trials are compared by these; so one study can
    be compared with itself.
    """
    located = console.locate_all(study, None, storage)
    if output is not None:
        if not output.endswith((".html", ".htm")):
            raise UserError(f"--output: the figure is a file .html, but got {output!r}")
        console.check_writable(output)
    from autotune.display.comparison import comparison_tables, seeds_table
    from autotune.results.comparison import Comparison
    from autotune.results.seeds import SeedComparison
    from autotune.results.study_results import StudyResults
    from autotune.study.setup.opening import open_existing

    studies = [open_existing(each.name, each.storage, each.files) for each in located]
    results = [StudyResults.from_study(opened.study) for opened in studies]
    comparison, seeds = Comparison.of(results), SeedComparison.of(results)
    if len(comparison.groups) < 2:
        raise UserError(
            "compare needs two studies, or one in which backbone or init vary, but got "
            f"{studies[0].name!r} alone"
        )
    if output is not None:
        if len(set(comparison.metrics.values())) > 1:
            raise UserError(f"--output: a figure has one metric, but {comparison.caveats()[0]}")
        from autotune.atomic import write_text
        from autotune.results.figures.comparison import comparison_figure

        page = comparison_figure(comparison).to_html(include_plotlyjs=True)
        with place_as_user_error(output):
            write_text(Path(output), page)
    if as_json:
        values = {**comparison.to_json(), "seeds": seeds and seeds.to_json()}
        typer.echo(json.dumps(values, indent=2))
        return
    stdout = console.stdout()
    for sentence in comparison.caveats():
        stdout.print(sentence, style="yellow")
    if seeds is not None:
        stdout.print(seeds_table(seeds))
        stdout.print(seeds.describe())
        stdout.print()
    for table in comparison_tables(comparison):
        stdout.print(table)
        stdout.print()
    if output is not None:
        stdout.print(f"figure: {relative_path(Path(output))}")
