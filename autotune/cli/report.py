"""``autotune report``: one self-contained HTML page about a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.console import (
    NameOption,
    Overrides,
    StorageOption,
    StudyArgument,
    check_writable,
    console,
    locate,
)


def report(
    study: StudyArgument = "digits",
    overrides: Overrides = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="File to write; default: beside the study."),
    ] = None,
    name: NameOption = None,
    storage: StorageOption = None,
) -> None:
    """Write one self-contained HTML page about a study."""
    located = locate(study, overrides, name, storage)
    if output is not None:
        check_writable(output)
    from autotune.results.report import write_report
    from autotune.storage.database import redact
    from autotune.study.opening import open_existing

    opened = open_existing(located.name, located.storage, located.files)
    path = Path(output) if output is not None else opened.files.report(opened.name)
    write_report(opened.study, path, storage_url=redact(opened.url))
    console().print(f"report: {path}", highlight=False)
