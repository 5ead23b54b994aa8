"""``autotune confirm``: train the best plans and the baseline under several seeds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from autotune.display import console

if TYPE_CHECKING:
    from autotune.results.evaluation.confirm import Confirmation
    from autotune.results.values.objective import Objective


def confirm(
    study: console.ExistingArgument = "digits",
    overrides: console.Overrides = None,
    top: Annotated[int, typer.Option(min=1, help="Plans, besides the baseline.")] = 5,
    seeds: Annotated[int, typer.Option(min=2, help="Seeds of each; none is the study's.")] = 5,
    splits: Annotated[
        bool,
        typer.Option("--splits", help="Divide training and validation images anew for each seed."),
    ] = False,
    workers: console.WorkersOption = None,
    gpus: console.GpusOption = None,
    workers_per_gpu: console.WorkersPerGpuOption = None,
    as_json: console.JsonOption = False,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
) -> None:
    """Train the best plans and the baseline under several seeds, and say whether one is better.

    Call it again to continue an interrupted confirmation, or with more seeds or plans.
    """
    stderr = console.stderr()
    with stderr.status("opening the study") as status, console.explain_stop():
        opened = console.open_study(study, overrides, name, storage)
        from autotune.display.trainings_display import TrainingsView
        from autotune.results.evaluation.confirm import confirm_plans
        from autotune.results.study_results import StudyResults
        from autotune.study.engine.trainings import Workers

        objective = StudyResults.from_study(opened.study).objective
        confirmation = confirm_plans(
            opened,
            top,
            seeds,
            TrainingsView(objective, status, stderr),
            status.on_progress,
            Workers(workers, gpus, workers_per_gpu),
            splits,
        )
    if as_json:
        typer.echo(json.dumps(confirmation.to_json(), indent=2))
        console.refresh_report(opened)
        return
    stdout = console.stdout()
    from autotune.study.state import attrs

    has_several = attrs.has_several_backbones(opened.study.user_attrs)
    stdout.print(_table(confirmation, opened.name, objective, splits))
    for plan in (confirmation.baseline, *confirmation.plans):  # too long for the table
        stdout.print(f"{_format_trial(plan.trial)}: {plan.plan.describe(has_several)}")
    for plan in confirmation.plans:
        if plan.failed:
            stdout.print(f"{_format_trial(plan.trial)} has no mean: {plan.failed}")
    if confirmation.verdict is not None:
        sentence = confirmation.verdict.describe(objective)
        stdout.print(f"{sentence[:1].upper()}{sentence[1:]}.")
    images = opened.study.user_attrs[attrs.DATASET].get("validation")
    stdout.print(
        "Each seed has other validation images, among them those by which the search has chosen; "
        "'autotune refit' measures on the test split."
        if splits
        else f"These are the {images} validation images by which the search has chosen; "
        "--splits varies them, and 'autotune refit' measures on others."
    )
    console.refresh_report(opened, stdout)


def _table(confirmation: Confirmation, name: str, objective: Objective, splits: bool) -> Table:
    varied = "seeds and splits" if splits else "seeds"
    seeds = f"{varied} {confirmation.seeds[0]} to {confirmation.seeds[-1]}"
    title = f"study {name}, {objective.label}, {seeds}, 95 % intervals"
    table = Table(title=title, title_justify="left", box=None)  # fits 80 columns
    points = " (points)" if objective.is_share else ""
    for title in ("rank", "trial", "search", "mean", f"gain{points}", "bias"):
        table.add_column(title, justify="right", no_wrap=True)
    for rank, plan in enumerate((confirmation.baseline, *confirmation.plans)):
        if plan.mean is None:
            missing = sum(value is None for value in plan.values)
            mean = f"diverged {missing} of {len(plan.values)} times"
        else:
            mean = objective.format_value(plan.mean.mean, plan.mean.half_width)
        gain, bias = "", plan.selection_bias
        if plan.gain is not None:
            center, low, high = (
                objective.format_gain(value, unit=False)
                for value in (plan.gain.mean, plan.gain.low, plan.gain.high)
            )
            gain = f"{center} ({low} to {high})"
        table.add_row(
            (str(rank) if rank else "") if plan.mean else "–",
            "baseline" if plan.trial is None else str(plan.trial),
            objective.format_value(plan.search_value),
            mean,
            gain,
            "" if bias is None else objective.format_gain(bias, unit=False),
        )
    return table


def _format_trial(trial: int | None) -> str:
    return "baseline" if trial is None else f"trial {trial}"
