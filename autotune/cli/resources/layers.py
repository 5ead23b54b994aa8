"""``autotune layers``: what a backbone is made of, and what a plan makes of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.text import Text

from autotune.config.safe_yaml import LimitError, parse_yaml, read_yaml_text
from autotune.display.console import (
    NameOption,
    StorageOption,
    VisibleConsole,
    console,
    lines_of_text,
    locate,
)
from autotune.display.layer_table import (
    EDGELESS,
    print_legend,
    print_reasons,
    print_table,
    ranges,
    usage,
)
from autotune.errors import PlanError, StudyError, UserError
from autotune.format_versions import MODEL, check_format

if TYPE_CHECKING:
    from autotune.models.inspection import PlanPreview
    from autotune.plan import TrialPlan


#: Limits the size of a record.json that is read for its plan.
MAX_JSON_BYTES = 1 << 26


def layers(
    backbone: Annotated[
        str | None, typer.Argument(help="timm model name; --plan knows that of its plan.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, max=4096, help="Side of the images in pixels; default: its own."),
    ] = None,
    last: Annotated[
        int | None, typer.Option(min=1, help="Show the last layers only, this many of them.")
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="Say why a field cannot change.")] = False,
    plan: Annotated[
        str | None,
        typer.Option(help="Draw a plan: a file that holds one, or the number of a trial."),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(help="The study of the trial, as for the other verbs; default: digits."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    name: NameOption = None,
    storage: StorageOption = None,
) -> None:
    """Show the layers of a backbone and what each can become, or draw a plan; no weights."""
    if plan is None:
        if study is not None or name is not None:
            raise UserError("--study and --name say whose trial is meant; give its --plan NUMBER")
        if backbone is None:
            raise UserError("BACKBONE must be given, a timm model name, or --plan")
        _show(backbone, image_size, last, why, as_json)
        return
    if last is not None or why:
        raise UserError("--plan draws a whole plan; leave --last and --why out")
    if plan.isdecimal():
        found, of_study = _of_trial(int(plan), study or "digits", name, storage)
        source = f"trial {plan}"
    else:
        if study is not None or name is not None:
            raise UserError(
                f"--plan must be the number of a trial together with --study or --name, but got "
                f"{plan!r}"
            )
        found, of_study = _of_file(Path(plan))
        source = plan
    if backbone is not None and backbone != found.backbone:
        raise UserError(
            f"BACKBONE must be left out or that of the plan, {found.backbone!r}, but got "
            f"{backbone!r}"
        )
    _draw(found, image_size or of_study, source, as_json)


def _console() -> Console:
    """Return the console for results; a file has no edge."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return console()
    return VisibleConsole(soft_wrap=True, width=EDGELESS)


# The layers of a backbone


def _show(
    backbone: str, image_size: int | None, last: int | None, why: bool, as_json: bool
) -> None:
    shown = _console()
    with shown.status(Text(f"looking at {backbone}")):
        from autotune.models.inspection import inspect_layers

        inspected = inspect_layers(backbone, image_size)
    if last is not None and last > len(inspected.layers):
        raise UserError(
            f"--last must be at most {len(inspected.layers)}, the number of layers of "
            f"{backbone!r}, but got {last}"
        )
    chosen = inspected.layers[:last]
    if as_json:
        values = inspected.to_json()
        typer.echo(json.dumps({**values, "layers": values["layers"][:last]}, indent=2))
        return
    from autotune.study.state.constraints import format_count

    _, height, width = inspected.input_size
    shown.print(
        Text(
            f"{backbone} at {width}x{height} px: {len(inspected.layers)} layers, "
            f"{format_count(inspected.parameters)} parameters, {format_count(inspected.macs)} "
            "multiply-accumulates an image"
        )
    )
    shown.print()
    print_table(shown, inspected, chosen)
    shown.print()
    print_legend(shown, inspected, chosen)
    if why:
        shown.print()
        print_reasons(shown, chosen)
    shown.print()
    shown.print(Text(f"in a study file: {usage(inspected)}"), soft_wrap=True)


# A plan


def _of_trial(
    number: int, study: str, name: str | None, storage: str | None
) -> tuple[TrialPlan, int | None]:
    """Return the plan of a trial and the size of its study's images."""
    located = locate(study, None, name, storage)
    from autotune.study.setup.opening import open_existing
    from autotune.study.state import attrs

    opened = open_existing(located.name, located.storage, located.files)
    trials = opened.study.get_trials(deepcopy=False)
    if number >= len(trials):
        count = f"the trials 0 to {len(trials) - 1}" if trials else "no trial yet"
        raise StudyError(f"--plan: the study {opened.name!r} has {count}, but got {number}")
    found = attrs.trial_plan(trials[number])
    if found is None:
        raise StudyError(f"--plan: trial {number} of {opened.name!r} has no plan")
    return found, opened.config().data.image_size


def _of_file(path: Path) -> tuple[TrialPlan, int | None]:
    """Read a plan from a file, with the size of the images where the file says it.

    Raises:
        UserError: When there is no such file, or it holds no plan.
    """
    from autotune.plan import TrialPlan

    rule = (
        "--plan must be the number of a trial, or a file that holds a plan: what 'autotune best' "
        "prints, the record.json of a fit, or TrialPlan.to_json()"
    )
    try:
        values: Any = _parsed(path)
    except OSError as error:
        raise UserError(f"{rule}; cannot read {str(path)!r}: {error.strerror}") from error
    except LimitError as error:
        raise UserError(f"{rule}; of {str(path)!r} {error}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{rule}; {str(path)!r} is neither YAML nor JSON") from error
    values = values if isinstance(values, dict) else {}
    given = values.get("plan", values)
    made = values.get("versions")
    by = made.get("autotune") if isinstance(made, dict) else None
    check_format({"format": values.get("format"), "autotune": by}, MODEL, str(path))
    try:
        found = TrialPlan.from_json(given)
    except KeyError as error:
        raise UserError(f"{rule}; {str(path)!r} has no {error}") from error
    except TypeError as error:
        raise UserError(f"{rule}; {str(path)!r} holds another one ({error})") from error
    size = ((values.get("definition") or {}).get("data") or {}).get("image_size")
    return found, size


def _parsed(path: Path) -> Any:
    """Read JSON, which of a fit with many classes is large, or YAML."""
    if path.suffix.lower() == ".json" and path.stat().st_size <= MAX_JSON_BYTES:
        return json.loads(path.read_text(encoding="utf-8"))
    return parse_yaml(read_yaml_text(path))


def _draw(plan: TrialPlan, image_size: int | None, source: str, as_json: bool) -> None:
    """Try a plan on its backbone and draw it.

    Raises:
        UserError: When the backbone cannot become that.
    """
    shown = _console()
    with shown.status(Text(f"looking at {plan.backbone}")):
        from autotune.models.inspection import preview_plan
        from autotune.results.figures.layer_diagram import as_text, layer_rows

        try:
            tried = preview_plan(plan, image_size)
        except PlanError as error:
            raise UserError(f"{source} does not fit {plan.backbone!r}: {error}") from error
    picture = layer_rows([layer.to_json() for layer in tried.before], plan)
    if as_json:
        values = {"plan": plan.to_json(), "layers": [asdict(row) for row in picture]}
        typer.echo(json.dumps(values, indent=2))
        return
    shown.print(Text(f"{plan.backbone}, {source}: {plan.describe()}"))
    shown.print()
    shown.print(lines_of_text(as_text(picture)))
    shown.print()
    for line in _counts(plan, tried):
        shown.print(Text(line))


def _counts(plan: TrialPlan, tried: PlanPreview) -> Iterator[str]:
    """Say in numbers what a plan locks, tunes and reshapes."""
    from autotune.study.state.constraints import format_count

    def parameters(layers: Sequence[Any]) -> str:
        return format_count(sum(layer.parameters for layer in layers))

    frozen = len(tried.before) - plan.depth
    yield (
        f"□ frozen: {frozen} of {len(tried.before)} layers, "
        f"{parameters(tried.before[plan.depth :])} parameters"
    )
    yield (
        f"■ trainable: the head on {tried.features} features"
        + (
            f" and {plan.depth} layer{'s' if plan.depth > 1 else ''}, "
            f"{parameters(tried.after[: plan.depth])} parameters"
            if plan.depth
            else ""
        )
    )
    if plan.reshaped:
        yield (
            f"▣ reshaped: {ranges(plan.reshaped)}; the backbone goes from "
            f"{parameters(tried.before)} to {parameters(tried.after)} parameters and from "
            f"{format_count(tried.macs_before)} to {format_count(tried.macs_after)} "
            "multiply-accumulates"
        )
