"""``autotune refit``: train the best plan anew and measure it on the test part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from autotune.display.console import (
    ExistingArgument,
    NameOption,
    Overrides,
    StorageOption,
    check_folder,
    console,
    describe_image_progress,
    error_console,
    locate,
)

if TYPE_CHECKING:
    from autotune.results.evaluation.bootstrap import Assessment
    from autotune.results.evaluation.refit import RefitResult
    from autotune.results.values.objective import Objective


def refit(
    study: ExistingArgument = "digits",
    overrides: Overrides = None,
    trial: Annotated[
        int | None,
        typer.Option(help="Number of the trial; default: the best confirmed one, or the best."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; default: beside the study.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    name: NameOption = None,
    storage: StorageOption = None,
) -> None:
    """Train the best plan and the baseline anew, and measure both on the test part."""
    located = locate(study, overrides, name, storage)
    if output is not None:
        check_folder(output)
    with error_console().status("opening the study") as line:
        from autotune.data.sources.stanford_dogs import STANFORD_DOGS as DOGS
        from autotune.data.sources.stanford_dogs import imagenet_overlap_warning
        from autotune.display.summary import relative_path
        from autotune.results.evaluation.model_card import describe_difference
        from autotune.results.evaluation.refit import refit_study
        from autotune.results.study_results import StudyResults
        from autotune.study.setup.opening import open_existing

        opened = open_existing(located.name, located.storage, located.files)
        result = refit_study(
            opened,
            trial,
            output,
            lambda what, epoch, epochs: line.update(f"{what}: epoch {epoch} of {epochs}"),
            lambda step, done, total: line.update(describe_image_progress(step, done, total)),
            located.refit,
        )
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2))
        return
    shown = console()
    for sentence in (f"Fitted: {result.selection.describe()}.", *result.selection.remarks):
        shown.print(Text(sentence))
    shown.print(
        f"On the {result.test_images} images of the test part, trained on {result.images} others:",
        highlight=False,
    )
    decimals = 2 if result.test_images >= 1000 else 1
    objective = replace(StudyResults.from_study(opened.study).objective, decimals=decimals)
    shown.print(_table(result, objective))
    if not result.is_baseline:
        differences = result.comparison.to_json()["difference"]
        shown.print(Text(describe_difference(objective.name, differences)))
    config = opened.config()
    pretrained = config.dataset == DOGS.name and config.weights != "none"
    if pretrained and (remark := imagenet_overlap_warning(result.plan.backbone)):
        shown.print(remark, highlight=False)
    if result.reads > 1:
        shown.print(
            f"The test part has now been read {result.reads} times; choosing by it makes it a "
            "validation part.",
            highlight=False,
        )
    shown.print(f"model: {relative_path(result.folder)}", highlight=False, soft_wrap=True)


def _table(result: RefitResult, objective: Objective) -> Table:
    """Write all figures with their intervals; no box, so that they fit into 80 columns."""
    found = result.comparison
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for title in (f"trial {result.trial}", "95 %", "baseline", "95 %", "gain"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, difference in found.difference.items():
        metric = objective.with_name(name)
        table.add_row(
            metric.label,
            *_cells(metric, found.model),
            *_cells(metric, found.baseline),
            metric.format_gain(difference.value, unit=False),
        )
    return table


def _cells(metric: Objective, assessed: Assessment) -> tuple[str, str]:
    figure = assessed.estimates[metric.name]
    low, high = (metric.format_value(one).removesuffix(" %") for one in (figure.low, figure.high))
    return metric.format_value(figure.value), f"{low} to {high}"
