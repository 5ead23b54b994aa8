"""How to run a study again: its study file, and the commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import yaml
from optuna.study import Study

from autotune.config.loading import load_study_file, presets, slug
from autotune.config.schema import BUDGETS
from autotune.errors import AutotuneError
from autotune.storage.url import redact
from autotune.study.state import attrs


def study_file(study: Study, storage_url: str = "") -> str:
    """Return a study file that runs the same study again.

    Args:
        study: The study.
        storage_url: URL of the storage; a password in it is left out, and so is the key when
            there is none.
    """
    definition = attrs.definition(study.user_attrs)
    if not definition:
        return ""
    remembered = study.user_attrs.get(attrs.BUDGET, {})
    budget = {key: remembered[key] for key in BUDGETS if key in remembered}
    values = {"name": study.study_name, **definition}
    values["search"] = {**definition.get("search", {}), **budget}
    if storage_url:
        values["storage"] = redact(storage_url)
    return yaml.safe_dump(
        values, sort_keys=False, allow_unicode=True, width=96, default_flow_style=None
    )


def file_name(study: Study) -> str:
    """Return the name under which the study file is to be saved."""
    return f"{slug(study.study_name) or 'study'}.yaml"


def commands(study: Study, storage_url: str) -> str:
    """Return the commands that print the winning plan and run the study again.

    Args:
        study: The study.
        storage_url: URL of the storage; a password in it is left out.
    """
    return "\n".join(_command_lines(study, storage_url))


def next_commands(study: Study, storage_url: str) -> str:
    """Return the commands that go on with the study and say more of it.

    Args:
        study: The study.
        storage_url: URL of the storage; a password in it is left out.
    """
    name, storage = shlex.quote(study.study_name), _storage(storage_url)
    return "\n".join(
        [
            f"autotune report {name}{storage}",
            "# what is left of its trials; search.trials=... for more",
            f"autotune run {file_name(study)}{storage}",
            "# the best plans and the baseline over seeds; then the final model and its test",
            f"autotune confirm {name}{storage}",
            f"autotune refit {name}{storage}",
        ]
    )


def _storage(storage_url: str) -> str:
    url = redact(storage_url)
    return f" --storage {shlex.quote(url)}" if url else ""


def _command_lines(study: Study, storage_url: str) -> Iterator[str]:
    file = file_name(study)
    url = redact(storage_url)
    storage = _storage(storage_url)
    # Under its own name the finished study would be found, and nothing be trained.
    again = f"{file.removesuffix('.yaml')}-again"
    if "***" in url:
        yield "# write the password of the database in place of ***"
    yield "# the winning plan of this study"
    yield f"autotune best {shlex.quote(study.study_name)}{storage}"
    if _is_preset(study):
        yield "# the same study once more, from its preset"
        yield f"autotune cp {shlex.quote(study.study_name)} {file}"
    else:
        yield f"# the same study once more; save the study file above as {file}"
    yield f"autotune run {file} --name {again}{storage}"
    yield f"autotune best {again}{storage}"


def _is_preset(study: Study) -> bool:
    """Tell whether the shipped study file of that name still says what the study did."""
    if study.study_name not in presets():
        return False
    try:
        shipped = load_study_file(study.study_name).identity()
    except AutotuneError:
        return False
    return shipped == attrs.definition(study.user_attrs)
