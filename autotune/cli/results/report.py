"""``autotune report``: a study as one self-contained page, as Markdown, JSON or a table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from autotune.display import console
from autotune.errors import UserError
from autotune.text import relative_path

#: Formats that a terminal or a pipe can take.
_STREAMED = ("md", "json", "csv", "yaml", "epochs", "predictions")


def report(
    study: console.ExistingArgument = "digits",
    overrides: console.Overrides = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write, - for standard output; default: beside the study.",
        ),
    ] = None,
    format: Annotated[
        Literal["html", "md", "json", "csv", "parquet", "yaml", "epochs", "predictions"] | None,
        typer.Option(
            "--format", help="What to write; default: what the file's ending says, else html."
        ),
    ] = None,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
) -> None:
    """Write the report of a study: one self-contained HTML page, or what --format says.

    md: to read in an issue or a wiki. json: everything, for programs. csv, parquet: a row a trial.
    epochs: CSV, a row an epoch: losses, learning rate, seconds. yaml: its study file, to run it
    again. predictions: CSV with a row an image, the highest loss first; it is written beside the
    page too.
    """
    if output is not None and output != "-":
        console.check_writable(output)
    from autotune.results.report.formats import (
        render,
        resolve_format,
        write_predictions,
        write_report,
    )
    from autotune.results.study_results import StudyResults
    from autotune.storage.url import redact

    chosen = resolve_format(output, format)
    if output == "-" and chosen not in _STREAMED:
        raise UserError(
            f"--output -: standard output takes {', '.join(_STREAMED)}, but got {chosen}; name "
            "one, as in --format md, or a file"
        )
    opened = console.open_study(study, overrides, name, storage)
    if output == "-":
        results = StudyResults.from_study(opened.study, opened.files.artifacts)
        sys.stdout.write(render(results, chosen, redact(opened.url)).decode())
        return
    path = write_report(opened, None if output is None else Path(output), chosen)
    console.stdout().print(f"report: {relative_path(path)}")
    if chosen == "html" and output is None:
        table = write_predictions(opened)
        if table is not None:  # else the page says why
            console.stdout().print(f"predictions: {relative_path(table)}")
