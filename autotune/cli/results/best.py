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
    from autotune.results.diagnosis.headline import describe_confirmation
    from autotune.results.values.pareto_front import MAX_FRONT_LINES, explain_no_best, front_of
    from autotune.search import ranking
    from autotune.study.setup.opening import open_existing
    from autotune.study.state import attrs

    opened = open_existing(located.name, located.storage, located.files)
    trials = opened.study.get_trials(deepcopy=False)
    found = ranking.best_trial(trials, attrs.metric_direction(opened.study))
    if found is None:
        raise StudyError(f"the study {located.name!r} has {explain_no_best(trials)}")
    names = tuple(opened.config().directions)
    values = {"study": opened.name, **_outcome(found, names)}
    if said := describe_confirmation(opened.study, found):
        values["confirmed"] = said
    front = front_of(opened.study)
    if front:
        several = attrs.has_several_backbones(opened.study.user_attrs)
        lines = [
            {**_outcome(one, names), "plan": _words(one, several)}
            for one in front[:MAX_FRONT_LINES]
        ]
        # A line for each: the whole front is to fit a screen, with the plan below it.
        typer.echo(_in_yaml(values) + _in_yaml({"front": lines}, lines=True), nl=False)
        if len(front) > MAX_FRONT_LINES:
            left = len(front) - MAX_FRONT_LINES
            typer.echo(f"# and {left} cheaper ones; the report shows them all")
        values = {}
    plan = attrs.trial_plan(found)
    typer.echo(_in_yaml({**values, "plan": plan and plan.to_json()}), nl=False)


def _outcome(trial: FrozenTrial, names: Sequence[str]) -> dict[str, Any]:
    return {"trial": trial.number, **dict(zip(names, trial.values, strict=True))}


def _words(trial: FrozenTrial, named: bool) -> str:
    from autotune.study.state import attrs

    plan = attrs.trial_plan(trial)
    return plan.describe(named) if plan else ""


def _in_yaml(values: dict[str, Any], *, lines: bool = False) -> str:
    flow = None if lines else False  # None writes the innermost mappings into one line each
    text: str = yaml.safe_dump(
        values, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=flow
    )
    return visible(text)
