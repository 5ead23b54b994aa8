"""``autotune fit``: train the best plan anew and measure it on the test part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from autotune.cli.console import (
    NameOption,
    Overrides,
    StorageOption,
    StudyArgument,
    console,
    locate,
)


def fit(
    study: StudyArgument = "digits",
    overrides: Overrides = None,
    trial: Annotated[
        int | None, typer.Option(help="Number of the trial; default: the best one.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; default: beside the study.")
    ] = None,
    name: NameOption = None,
    storage: StorageOption = None,
) -> None:
    """Train the best plan and the baseline anew, and measure both on the test part."""
    located = locate(study, overrides, name, storage)
    from autotune.results.fit import fit as fit_study
    from autotune.study.opening import open_existing

    shown = console()
    opened = open_existing(located.name, located.storage, located.files)
    with shown.status("training") as line:
        result = fit_study(
            opened,
            trial,
            output,
            lambda what, epoch, epochs: line.update(f"{what}: epoch {epoch} of {epochs}"),
        )
    table = Table("", "accuracy", "balanced accuracy", "macro F1", "log loss")
    for title, scores in (("baseline", result.baseline), (f"trial {result.trial}", result.test)):
        values = (
            scores.accuracy,
            scores.balanced_accuracy,
            scores.macro_f1,
            scores.log_loss,
        )
        table.add_row(title, *(f"{value:.4f}" for value in values))
    shown.print(f"test part, {result.test_images} images; trained on {result.images}:")
    shown.print(table)
    if result.reads > 1:
        shown.print(
            f"The test part has now been read {result.reads} times; choosing by it makes it a "
            "validation part."
        )
    shown.print(f"model: {result.folder}", highlight=False)
