"""``autotune best``: the winning plan as YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
import yaml

from autotune.display.console import ExistingArgument, NameOption, Overrides, StorageOption, locate
from autotune.errors import StudyError
from autotune.text import visible

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def best(
    study: ExistingArgument = "digits",
    overrides: Overrides = None,
    name: NameOption = None,
    storage: StorageOption = None,
) -> None:
    """Print the plan of the best trial as YAML, of two objectives the Pareto front with it."""
    located = locate(study, overrides, name, storage)
    from autotune.display.summary import MAX_FRONT_LINES
    from autotune.results.diagnosis.headline import describe_confirmation
    from autotune.results.study_results import StudyResults
    from autotune.study.setup.opening import open_existing
    from autotune.study.state import attrs

    opened = open_existing(located.name, located.storage, located.files)
    results = StudyResults.from_study(opened.study)
    if results.best is None:
        raise StudyError(f"the study {located.name!r} has {results.explain_no_best()}")
    names = tuple(opened.config().directions)
    values = {"study": opened.name, **_outcome(results.best, names)}
    if confirmation := describe_confirmation(results):
        values["confirmed"] = confirmation
    if results.front:
        front = results.front[:MAX_FRONT_LINES]
        lines = [
            {**_outcome(trial, names), "plan": results.describe_plan(trial)} for trial in front
        ]
        # A line for each: the whole front is to fit a screen, with the plan below it.
        typer.echo(_in_yaml(values) + _in_yaml({"front": lines}, lines=True), nl=False)
        if more := len(results.front) - len(front):
            typer.echo(f"# and {more} cheaper ones; the report shows them all")
        values = {}
    plan = attrs.trial_plan(results.best)
    typer.echo(_in_yaml({**values, "plan": plan and plan.to_json()}), nl=False)


def _outcome(trial: FrozenTrial, names: Sequence[str]) -> dict[str, Any]:
    return {"trial": trial.number, **dict(zip(names, trial.values, strict=True))}


def _in_yaml(values: dict[str, Any], *, lines: bool = False) -> str:
    flow = None if lines else False  # None writes the innermost mappings into one line each
    text: str = yaml.safe_dump(
        values, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=flow
    )
    return visible(text)
