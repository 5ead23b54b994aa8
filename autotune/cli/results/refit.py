"""``autotune refit``: train the best plan anew and measure it on the test split."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from autotune.display import console
from autotune.text import plural, relative_path

if TYPE_CHECKING:
    from rich.console import Console

    from autotune.results.evaluation.combination import Combination
    from autotune.results.evaluation.plan_selection import Choice
    from autotune.results.evaluation.refit import RefitResult
    from autotune.results.values.objective import Objective


#: The combinations of ``autotune.results.evaluation.combination``, which imports torch.
Combine = Literal["none", "ensemble", "soup", "distill"]


def refit(
    study: console.ExistingArgument = "digits",
    overrides: console.Overrides = None,
    trial: Annotated[
        str | None,
        typer.Option(
            help="Number of the trial, or 'cheapest': of two objectives the one of least cost "
            "that is about as good as the best. Default: the best confirmed one, or the best."
        ),
    ] = None,
    combine: Annotated[
        Combine,
        typer.Option(
            help="Combine the best plans (ensemble), several trainings of the plan (soup), or "
            "teach the plan by the ensemble; where the validation split agrees."
        ),
    ] = "none",
    members: Annotated[
        int | None,
        typer.Option(help="Most plans of an ensemble (5), or trainings of a soup (3)."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; default: beside the study.")
    ] = None,
    workers: console.WorkersOption = None,
    gpus: console.GpusOption = None,
    workers_per_gpu: console.WorkersPerGpuOption = None,
    as_json: console.JsonOption = False,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
) -> None:
    """Train the best plan and the baseline anew, and measure both on the test split.

    Call it again to continue an interrupted refit.
    """
    choice: Choice | None = console.parse_trial(trial, "cheapest")
    located = console.locate(study, overrides, name, storage)
    if output is not None:
        console.check_folder(output)
    stderr = console.stderr()
    with stderr.status("opening the study") as status, console.explain_stop():
        from autotune.data.sources.published.stanford_dogs import STANFORD_DOGS as DOGS
        from autotune.data.sources.published.stanford_dogs import imagenet_overlap_warning
        from autotune.display.trainings_display import TrainingsView
        from autotune.results.evaluation.model_card import describe_difference
        from autotune.results.evaluation.refit import refit_study
        from autotune.results.study_results import StudyResults
        from autotune.results.values.speed import describe_speed
        from autotune.study.engine.trainings import Workers
        from autotune.study.setup.opening import open_existing
        from autotune.study.state import attrs

        opened = open_existing(located.name, located.storage, located.files)
        objective = StudyResults.from_study(opened.study).objective
        result = refit_study(
            opened,
            choice,
            output,
            TrainingsView(objective, status, stderr),
            status.on_progress,
            located.refit,
            located.max_unreadable_share,
            Workers(workers, gpus, workers_per_gpu),
            combine,
            members,
        )
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2))
        console.refresh_report(opened)
        return
    stdout = console.stdout()
    for sentence in (f"Refitted: {result.selection.describe()}.", *result.selection.remarks):
        stdout.print(sentence)
    for sentence in attrs.image_counts(opened.study.user_attrs):
        stdout.print(sentence, soft_wrap=True)
    stdout.print(
        f"On the {plural(result.test_images, 'image')} of the test split, trained on "
        f"{result.images} others:"
    )
    decimals = 2 if result.test_images >= 1000 else 1
    objective = replace(objective, decimals=decimals)
    stdout.print(_metrics_table(result, objective))
    if result.combination is not None:
        print_combination(stdout, result.combination, objective)
    if not result.is_baseline:
        differences = result.comparison.to_json()["difference"]
        stdout.print(describe_difference(objective.name, differences))
    if result.speed is not None:
        stdout.print(describe_speed(result.speed.to_json()))
    config = opened.config()
    is_pretrained_on_dogs = (
        config.dataset == DOGS.name and config.weights_of(result.plan.backbone) != "none"
    )
    if is_pretrained_on_dogs and (remark := imagenet_overlap_warning(result.plan.backbone)):
        stdout.print(remark)
    if result.reads > 1:
        stdout.print(
            f"The test split has now been read {result.reads} times; choosing by it makes it a "
            "validation split."
        )
    console.refresh_report(opened, stdout)
    stdout.print(f"model: {relative_path(result.folder)}", soft_wrap=True)


def print_combination(stdout: Console, combination: Combination, objective: Objective) -> None:
    """Print what was decided about a combination, and all models beside each other."""
    stdout.print(combination.decision)
    if combination.is_used:
        stdout.print(f"The model is {combination.name}.")
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    names = dict.fromkeys((objective.label, "gain", "95 % interval", "log loss"))
    for title in (*names, "parameters", "latency"):
        table.add_column(title, justify="right", no_wrap=True)
    loss = objective.with_name("log_loss")
    for model in combination.models:
        value, gain = model.scores.values, ["", ""]
        if difference := model.gain.get(objective.name):
            interval = objective.gain_interval(asdict(difference))
            ends = [objective.format_gain(end, unit=False) for end in interval]
            gain = [ends[0], f"{ends[1]} to {ends[2]}"]
        losses = [loss.format_value(value["log_loss"])] * (objective.name != loss.name)
        table.add_row(
            model.name,
            objective.format_value(value[objective.name]),
            *gain,
            *losses,
            f"{model.parameters:,}",
            f"{model.latency_ms:.2f} ms",
        )
    stdout.print(table)
    stdout.print(
        f"The gains are those over the single plan on the same images; the latency is that of one "
        f"image on {combination.device}."
    )


def _metrics_table(result: RefitResult, objective: Objective) -> Table:
    """Return all metrics with their intervals, in a table of at most 80 columns."""
    comparison = result.comparison
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for title in (
        "combined" if result.is_combined else f"trial {result.trial}",
        "95 % interval",
        "baseline",
        "95 % interval",
        "gain",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for name, difference in comparison.difference.items():
        metric = objective.with_name(name)
        cells = []
        for assessment in (comparison.model, comparison.baseline):
            estimate = assessment.estimates[name]
            ends = (estimate.low, estimate.high)
            low, high = (metric.format_value(end).removesuffix(" %") for end in ends)
            cells += [metric.format_value(estimate.value), f"{low} to {high}"]
        gain = metric.gain(difference.value, 0.0)
        table.add_row(metric.label, *cells, metric.format_gain(gain, unit=False))
    return table
