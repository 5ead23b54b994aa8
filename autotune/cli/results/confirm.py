"""``autotune confirm``: train the best plans and the baseline under several seeds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from autotune.display.console import (
    ExistingArgument,
    NameOption,
    Overrides,
    StorageOption,
    console,
    describe_image_progress,
    error_console,
    locate,
)

if TYPE_CHECKING:
    from autotune.results.evaluation.confirm import Confirmation, ConfirmProgress, PlanResult
    from autotune.results.values.intervals import Interval
    from autotune.results.values.objective import Objective


def confirm(
    study: ExistingArgument = "digits",
    overrides: Overrides = None,
    top: Annotated[int, typer.Option(min=1, help="Plans, besides the baseline.")] = 5,
    seeds: Annotated[int, typer.Option(min=2, help="Seeds of each; none is the study's.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    name: NameOption = None,
    storage: StorageOption = None,
) -> None:
    """Train the best plans and the baseline under several seeds, and say whether one is better.

    Call it again to go on with what was interrupted, or with more seeds.
    """
    located = locate(study, overrides, name, storage)
    told = error_console(highlight=False)
    with told.status("opening the study") as line:
        from autotune.results.evaluation.confirm import confirm_plans
        from autotune.results.study_results import StudyResults
        from autotune.study.setup.opening import open_existing

        opened = open_existing(located.name, located.storage, located.files)
        objective = StudyResults.from_study(opened.study).objective
        epochs = opened.config().training.epochs

        def listen(step: ConfirmProgress) -> None:
            line.update(f"{_who(step.trial)}, seed {step.seed}: epoch {step.epoch} of {epochs}")
            if said := step.describe(objective):
                told.print(Text(said))

        found = confirm_plans(
            opened,
            top,
            seeds,
            listen,
            lambda step, done, total: line.update(describe_image_progress(step, done, total)),
        )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return
    shown = console()
    from autotune.study.state import attrs

    several = attrs.has_several_backbones(opened.study.user_attrs)
    shown.print(_table(found, opened.name, objective))
    for one in (found.baseline, *found.plans):  # their plans would not fit beside the numbers
        shown.print(Text(f"{_who(one.trial)}: {one.plan.describe(several)}"))
    for one in found.plans:
        if one.failed:
            shown.print(Text(f"{_who(one.trial)} has no mean: {one.failed}"))
    if found.verdict is not None:
        shown.print(Text(f"{_sentence(found.verdict.describe(objective))}."))
    images = opened.study.user_attrs[attrs.DATASET].get("validation")
    shown.print(
        Text(
            f"These are the {images} validation images that the search has chosen by; "
            "'autotune refit' measures on others."
        )
    )


def _table(found: Confirmation, name: str, objective: Objective) -> Table:
    seeds = f"seeds {found.seeds[0]} to {found.seeds[-1]}"
    title = f"study {name}, {objective.label}, {seeds}, 95 % intervals"
    table = Table(title=title, title_justify="left", box=None)  # 80 columns hold the numbers
    points = " (points)" if objective.is_share else ""
    for title in ("rank", "trial", "search", "mean", f"gain{points}", "shrank"):
        table.add_column(title, justify="right", no_wrap=True)
    ranked = [("", found.baseline), *((str(i), one) for i, one in enumerate(found.plans, 1))]
    for rank, one in ranked:
        table.add_row(
            rank if one.mean else "–",
            "baseline" if one.trial is None else str(one.trial),
            objective.format_value(one.search_value),
            _mean(one, objective),
            _gain(one.gain, objective),
            _shrank(one, objective),
        )
    return table


def _mean(one: PlanResult, objective: Objective) -> str:
    if one.mean is None:
        missing = sum(value is None for value in one.values)
        return f"diverged {missing} of {len(one.values)} times"
    return objective.format_value(one.mean.mean, one.mean.half_width)


def _gain(gain: Interval | None, objective: Objective) -> str:
    if gain is None:
        return ""
    low, high = (objective.format_gain(end, unit=False) for end in (gain.low, gain.high))
    return f"{objective.format_gain(gain.mean, unit=False)} ({low} to {high})"


def _shrank(one: PlanResult, objective: Objective) -> str:
    return (
        "" if one.selection_bias is None else objective.format_gain(one.selection_bias, unit=False)
    )


def _who(trial: int | None) -> str:
    return "baseline" if trial is None else f"trial {trial}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
