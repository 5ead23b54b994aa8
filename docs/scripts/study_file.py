"""Write the tables of keys in docs/study-file.md from the models of the configuration.

A table stands between ``<!-- keys: section -->`` and ``<!-- end of keys -->``; all else on the
page is written by hand. ``make reference`` runs this.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from autotune.config.fields import FieldRule
from autotune.config.schema import StudyConfig
from autotune.errors import format_yaml

PAGE = Path(__file__).parents[1] / "study-file.md"
_TABLE = re.compile(r"(<!-- keys: ([\w.]+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)
#: What the keys outside of every section are called on the page.
TOP = "study"


def sections(model: type[BaseModel] = StudyConfig, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield every section that has its own keys, with its table.

    Args:
        model: The model of the section.
        name: Its dotted name; empty for the whole file.
    """
    rows = []
    for key, field in model.model_fields.items():
        dotted = f"{name}.{key}" if name else key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation, dotted)
        else:
            rows.append(row(dotted, field))
    head = ["| key | takes | default | means |", "| --- | --- | --- | --- |"]
    yield name or TOP, "\n".join([*head, *rows])


def row(key: str, field: FieldInfo) -> str:
    """Write the line of one key.

    Raises:
        ValueError: When the model does not say what the key means.
    """
    if not field.description:
        raise ValueError(
            f"autotune/config/schema.py says nothing of {key}; write it below the key"
        )
    means = " ".join(field.description.split()).removesuffix(".")
    return f"| `{key}` | {takes(field)} | {default(field)} | {means} |"


def takes(field: FieldInfo) -> str:
    """Say what a key takes: what its rule says, or what its type is."""
    for one in field.metadata:
        if isinstance(one, FieldRule):
            return one.takes
    if field.annotation is str:
        return "text"
    assert isinstance(field.annotation, types.UnionType)
    assert set(typing.get_args(field.annotation)) == {str, type(None)}
    return "text or `null`"


def default(field: FieldInfo) -> str:
    """Write the default of a key as the file would have it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, str):
        return f"`{value}`" if value else ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{format_yaml(value)}`"


def render(page: str) -> str:
    """Put the tables of today in the place of those on the page.

    Raises:
        ValueError: When the page lacks a section, or has one that is none.
    """
    tables = dict(sections())
    named = [match[1] for match in _TABLE.findall(page)]
    if sorted(named) != sorted(tables):
        differing = ", ".join(sorted(set(named) ^ set(tables))) or "one is there twice"
        raise ValueError(f"{PAGE.name} must have a table for every section once; see: {differing}")
    return _TABLE.sub(lambda match: f"{match[1]}\n{tables[match[2]]}\n\n{match[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
