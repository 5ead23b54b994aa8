"""``autotune fit``: train the best plan anew and measure it on the test part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from autotune.cli.console import (
    ExistingArgument,
    NameOption,
    Overrides,
    StorageOption,
    check_folder,
    console,
    images_in_words,
    locate,
)


def fit(
    study: ExistingArgument = "digits",
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
    if output is not None:
        check_folder(output)
    shown = console()
    with shown.status("opening the study") as line:
        from autotune.cli.summary import shorten
        from autotune.data.dogs import PUBLICATION as DOGS
        from autotune.data.dogs import leak
        from autotune.results.fit import fit as fit_study
        from autotune.results.objective import Objective
        from autotune.study.opening import open_existing

        opened = open_existing(located.name, located.storage, located.files)
        result = fit_study(
            opened,
            trial,
            output,
            lambda what, epoch, epochs: line.update(f"{what}: epoch {epoch} of {epochs}"),
            lambda step, done, total: line.update(images_in_words(step, done, total)),
        )
    decimals = 2 if result.test_images >= 1000 else 1
    objective = replace(Objective.of(opened.study), decimals=decimals)
    metrics = [objective.other(name) for name in result.test.to_json()]
    table = Table("")
    for metric in metrics:
        table.add_column(metric.words, justify="right")
    for title, scores in (("baseline", result.baseline), (f"trial {result.trial}", result.test)):
        values = scores.to_json()
        table.add_row(title, *(metric.show(values[metric.name]) for metric in metrics))
    shown.print(
        f"On the {result.test_images} images of the test part, trained on {result.images} others:",
        highlight=False,
    )
    shown.print(table)
    config = opened.config()
    pretrained = config.dataset == DOGS.name and config.weights != "none"
    if pretrained and (remark := leak(result.plan.backbone)):
        shown.print(remark, highlight=False)
    if result.reads > 1:
        shown.print(
            f"The test part has now been read {result.reads} times; choosing by it makes it a "
            "validation part.",
            highlight=False,
        )
    shown.print(f"model: {shorten(result.folder)}", highlight=False, soft_wrap=True)
