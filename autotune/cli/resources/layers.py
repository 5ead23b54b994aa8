"""``autotune layers``: the layers of a backbone, before or after a plan."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autotune.cli.plan_file import read_plan
from autotune.display import console
from autotune.display.layer_table import (
    UNLIMITED_WIDTH,
    example_space,
    format_layers,
    print_legend,
    print_reasons,
    print_table,
)
from autotune.errors import PlanError, StudyError, UserError
from autotune.text import plural

if TYPE_CHECKING:
    from autotune.models.inspection import PlanPreview
    from autotune.plan import TrialPlan


def layers(
    backbone: Annotated[
        str | None, typer.Argument(help="timm model name; not needed with --plan.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=8, max=4096, help="Side of the images in pixels; default: that of the backbone."
        ),
    ] = None,
    last: Annotated[
        int | None, typer.Option(min=1, help="Show the last layers only, this many of them.")
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="Print why a field cannot change.")] = False,
    plan: Annotated[
        str | None,
        typer.Option(help="Show a plan: a file that holds one, or the number of a trial."),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(help="The study of the trial, as for the other verbs; default: digits."),
    ] = None,
    as_json: console.JsonOption = False,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
) -> None:
    """Show the layers of a backbone and what each can become, or a plan; needs no weights."""
    if plan is None:
        if study is not None or name is not None:
            raise UserError("--study and --name say whose trial is meant; give its --plan NUMBER")
        if backbone is None:
            raise UserError("BACKBONE must be given, a timm model name, or --plan")
        _print_layers(backbone, image_size, last, why, as_json)
        return
    if last is not None or why:
        raise UserError("--plan shows all layers of a plan; leave --last and --why out")
    if plan.isdecimal():
        trial_plan, plan_size = _read_trial(int(plan), study or "digits", name, storage)
    elif study is not None or name is not None:
        raise UserError(
            "--plan must be the number of a trial together with --study or --name, but got "
            f"{plan!r}"
        )
    else:
        trial_plan, plan_size = read_plan(Path(plan), "the number of a trial, or ")
    if backbone is not None and backbone != trial_plan.backbone:
        raise UserError(
            f"BACKBONE must be left out or that of the plan, {trial_plan.backbone!r}, but got "
            f"{backbone!r}"
        )
    source = f"trial {plan}" if plan.isdecimal() else plan
    _print_plan(trial_plan, image_size or plan_size, source, as_json)


def _console() -> console.VisibleConsole:
    """Return the console for results; output to a file has no limit of its width."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return console.stdout()
    return console.VisibleConsole(soft_wrap=True, width=UNLIMITED_WIDTH)


def _print_layers(
    backbone: str, image_size: int | None, last: int | None, why: bool, as_json: bool
) -> None:
    stdout = _console()
    with stdout.status(f"inspecting {backbone}"):
        from autotune.models.inspection import inspect_layers
        from autotune.study.state.constraints import format_count

        inspected = inspect_layers(backbone, image_size)
    if last is not None and last > len(inspected.layers):
        raise UserError(
            f"--last must be at most {len(inspected.layers)}, the number of layers of "
            f"{backbone!r}, but got {last}"
        )
    if as_json:
        values = inspected.to_json()
        typer.echo(json.dumps({**values, "layers": values["layers"][:last]}, indent=2))
        return
    layers = inspected.layers[:last]
    _, height, width = inspected.input_size
    stdout.print(
        f"{backbone} at {width}x{height} px: {len(inspected.layers)} layers, "
        f"{format_count(inspected.parameters)} parameters, {format_count(inspected.macs)} "
        "multiply-accumulates an image"
    )
    stdout.print()
    print_table(stdout, inspected, layers)
    stdout.print()
    print_legend(stdout, inspected, layers)
    if why:
        stdout.print()
        print_reasons(stdout, layers)
    stdout.print()
    stdout.print(f"in a study file: {example_space(inspected)}", soft_wrap=True)


def _read_trial(
    number: int, study: str, name: str | None, storage: str | None
) -> tuple[TrialPlan, int | None]:
    """Return the plan of a trial and the image size of its study."""
    opened = console.open_study(study, None, name, storage)
    from autotune.study.state import attrs

    trials = opened.study.get_trials(deepcopy=False)
    if number >= len(trials):
        count = f"the trials 0 to {len(trials) - 1}" if trials else "no trial yet"
        raise StudyError(f"--plan: the study {opened.name!r} has {count}, but got {number}")
    plan = attrs.trial_plan(trials[number])
    if plan is None:
        raise StudyError(f"--plan: trial {number} of {opened.name!r} has no plan")
    return plan, opened.config().for_images(*plan.images[1:]).image_size


def _print_plan(plan: TrialPlan, image_size: int | None, source: str, as_json: bool) -> None:
    """Apply a plan to its backbone and print the layers.

    Raises:
        UserError: When the plan does not fit.
    """
    stdout = _console()
    with stdout.status(f"inspecting {plan.backbone}"):
        from autotune.models.inspection import preview_plan
        from autotune.results.figures.layer_diagram import as_text, layer_rows

        try:
            preview = preview_plan(plan, image_size)
        except PlanError as error:
            raise UserError(f"{source} does not fit {plan.backbone!r}: {error}") from error
    rows = layer_rows([layer.to_json() for layer in preview.before], plan)
    if as_json:
        values = {"plan": plan.to_json(), "layers": [asdict(row) for row in rows]}
        typer.echo(json.dumps(values, indent=2))
        return
    stdout.print(f"{plan.backbone}, {source}: {plan.describe()}")
    stdout.print()
    stdout.print(console.lines_of_text(as_text(rows)))
    stdout.print()
    for line in _count_lines(plan, preview):
        stdout.print(line)


def _count_lines(plan: TrialPlan, preview: PlanPreview) -> Iterator[str]:
    """Count the layers and parameters that are frozen, trainable and reshaped."""
    from autotune.study.state.constraints import format_count

    def parameters(layers: Sequence[Any]) -> str:
        return f"{format_count(sum(layer.parameters for layer in layers))} parameters"

    before, after, depth = preview.before, preview.after, plan.depth
    frozen = before[depth:]
    yield f"□ frozen: {len(frozen)} of {len(before)} layers, {parameters(frozen)}"
    layers = f" and {plural(depth, 'layer')}, {parameters(after[:depth])}" if depth else ""
    yield f"■ trainable: the head on {preview.features} features{layers}"
    if plan.reshaped:
        yield (
            f"▣ reshaped: {format_layers(plan.reshaped)}; the backbone goes from "
            f"{parameters(before)} to {parameters(after)} and from "
            f"{format_count(preview.macs_before)} to {format_count(preview.macs_after)} "
            "multiply-accumulates"
        )
