"""``autotune rename``: another name for a study."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from autotune.display import console
from autotune.text import shell_quote


def rename(
    study: console.ExistingArgument,
    new: Annotated[str, typer.Argument(metavar="NEW", help="The new name.")],
    overrides: console.Overrides = None,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
    files: console.FilesOption = None,
) -> None:
    """Rename a study that does not run, with its files.

    Its reports are written anew. A study file continues it with --name NEW.
    """
    located = console.locate(study, overrides, name, storage)
    from autotune.errors import UserError
    from autotune.results.report.formats import write_predictions, write_report
    from autotune.storage.paths import EPOCHS, REPORT_FORMATS
    from autotune.study.setup.opening import open_existing
    from autotune.study.upkeep.renaming import rename_study

    opened = open_existing(located.name, located.storage, files or located.files)
    old, opened = opened.name, rename_study(opened, new)
    for format in (*REPORT_FORMATS, EPOCHS):
        if opened.files.report(new, format).exists():
            with suppress(UserError):  # of another version, or without pyarrow: the old one stays
                write_report(opened, format=format)
    if opened.files.predictions(new).exists():
        with suppress(UserError):
            write_predictions(opened)
    console.stdout().print(
        f"the study {old!r} is now {new!r}; 'autotune run' continues it with --name "
        f"{shell_quote(new)}"
    )
