"""How to run a study again: its study file, and the commands.

A password in the URL of the storage is left out.
"""

from __future__ import annotations

import yaml

from autotune.config.loading import load_study_file, presets, slug
from autotune.config.schema import BUDGETS, NAME_RULE
from autotune.errors import AutotuneError
from autotune.results.study_results import StudyResults
from autotune.storage.commands import STORAGE, command_line, full_storage_option
from autotune.storage.url import redact
from autotune.study.state import attrs
from autotune.text import shell_quote


def study_file(results: StudyResults, storage_url: str = "") -> str:
    """Return a study file that runs the same study again."""
    stored = results.attributes.get(attrs.BUDGET, {})
    budget = {key: stored[key] for key in BUDGETS if key in stored}
    name = results.name if NAME_RULE.fullmatch(results.name) else slug(results.name) or "study"
    values = {"name": name, **results.definition}
    values["search"] = {**results.definition.get("search", {}), **budget}
    if storage_url:
        values["storage"] = redact(storage_url)
    return yaml.safe_dump(
        values, sort_keys=False, allow_unicode=True, width=96, default_flow_style=None
    )


def file_name(results: StudyResults) -> str:
    """Return the name under which the study file is to be saved."""
    return f"{slug(results.name) or 'study'}.yaml"


def commands(results: StudyResults, storage_url: str) -> str:
    """Return the commands that print the winning plan and run the study again."""
    name, file, storage = results.name, file_name(results), full_storage_option(storage_url)
    # Under its own name the finished study would be found, and nothing be trained.
    again = f"{file.removesuffix('.yaml')}-again"
    lines = []
    if storage_url and not storage:
        lines.append(f"# {STORAGE} names the storage of the study")
    if "***" in storage:
        lines.append("# write the password of the database instead of ***")
    lines += ["# the winning plan of this study", command_line("autotune", "best", name, storage)]
    if _is_preset(results):
        lines.append("# the same study once more, from its preset")
        lines.append(f"autotune cp {shell_quote(name)} {file}")
    else:
        lines.append(f"# the same study once more; save the study file above as {file}")
    lines.append(f"autotune run {file} --name {again}{storage}")
    lines.append(f"autotune best {again}{storage}")
    return "\n".join(lines)


def _is_preset(results: StudyResults) -> bool:
    """Tell whether the study is still defined as the shipped study file of its name."""
    if results.name not in presets():
        return False
    try:
        return load_study_file(results.name).identity() == results.definition
    except AutotuneError:
        return False
