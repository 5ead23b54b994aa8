"""``autotune report``: one self-contained HTML page about a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.console import (
    ExistingArgument,
    NameOption,
    Overrides,
    StorageOption,
    check_writable,
    console,
    locate,
)

if TYPE_CHECKING:
    from autotune.study.opening import OpenStudy


def report(
    study: ExistingArgument = "digits",
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
    from autotune.cli.summary import shorten
    from autotune.study.opening import open_existing

    opened = open_existing(located.name, located.storage, located.files)
    path = write_report_of(opened, None if output is None else Path(output))
    console().print(f"report: {shorten(path)}", highlight=False)


def write_report_of(opened: OpenStudy, path: Path | None = None) -> Path:
    """Write the report of an open study, by default beside it; return where."""
    from autotune.errors import disk_full_as_user_error
    from autotune.results.report import write_report
    from autotune.storage.url import redact

    path = path or opened.files.report(opened.name)
    with disk_full_as_user_error(path.parent):
        return write_report(opened.study, path, storage_url=redact(opened.url))
