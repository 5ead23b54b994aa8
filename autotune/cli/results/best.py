"""``autotune best``: the winning plan as YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
import yaml

from autotune.display import console
from autotune.errors import StudyError
from autotune.text import visible

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def best(
    study: console.ExistingArgument = "digits",
    overrides: console.Overrides = None,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
) -> None:
    """Print the plan of the best trial as YAML, of two objectives the Pareto front with it."""
    opened = console.open_study(study, overrides, name, storage)
    from autotune.display.summary import MAX_FRONT_LINES
    from autotune.results.diagnosis.headline import describe_confirmation, describe_refit
    from autotune.results.study_results import StudyResults
    from autotune.study.state import attrs

    results = StudyResults.from_study(opened.study)
    if results.best is None:
        raise StudyError(f"the study {opened.name!r} has {results.explain_no_best()}")
    names = tuple(opened.config().directions)
    values = {"study": opened.name, **_outcome(results.best, names)}
    if confirmation := describe_confirmation(results):
        values["confirmed"] = confirmation
    if tested := describe_refit(results):
        values["tested"] = tested
    if results.front:
        lines = [
            {**_outcome(trial, names), "plan": results.describe_plan(trial)}
            for trial in results.front[:MAX_FRONT_LINES]
        ]
        # One line each, so that the front and the plan below it fit a screen.
        typer.echo(_format_yaml(values) + _format_yaml({"front": lines}, lines=True), nl=False)
        if others := len(results.front) - len(lines):
            typer.echo(f"# and {others} cheaper ones; the report shows them all")
        values = {}
    plan = attrs.trial_plan(results.best)
    typer.echo(_format_yaml({**values, "plan": plan and plan.to_json()}), nl=False)


def _outcome(trial: FrozenTrial, names: Sequence[str]) -> dict[str, Any]:
    return {"trial": trial.number, **dict(zip(names, trial.values, strict=True))}


def _format_yaml(values: dict[str, Any], *, lines: bool = False) -> str:
    flow = None if lines else False  # None writes the innermost mappings into one line each
    text: str = yaml.safe_dump(
        values, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=flow
    )
    return visible(text)
