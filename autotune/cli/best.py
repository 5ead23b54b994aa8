"""``autotune best``: the winning plan as YAML."""

from __future__ import annotations

import typer
import yaml

from autotune.cli.console import ExistingArgument, NameOption, Overrides, StorageOption, locate
from autotune.errors import StudyError


def best(
    study: ExistingArgument = "digits",
    overrides: Overrides = None,
    name: NameOption = None,
    storage: StorageOption = None,
) -> None:
    """Print the plan of the best trial as YAML."""
    located = locate(study, overrides, name, storage)
    from autotune.study import record
    from autotune.study.opening import open_existing

    opened = open_existing(located.name, located.storage, located.files)
    trials = opened.study.get_trials(deepcopy=False)
    found = record.best_of(trials, opened.study.direction)
    if found is None:
        raise StudyError(f"the study {located.name!r} has no complete trial yet")
    objective = opened.config().training.objective
    values = {
        "study": opened.name,
        "trial": found.number,
        objective: found.value,
        "plan": found.user_attrs[record.PLAN],
    }
    typer.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), nl=False)
