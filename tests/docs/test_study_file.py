"""docs/study-file.md: its tables are those of the models, and every key is in them once."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from autotune.config.fields import FieldRule
from autotune.config.schema import StudyConfig
from autotune.config.validation import all_keys
from docs.scripts.study_file import PAGE, render, row, sections


def test_the_page_is_current() -> None:
    page = PAGE.read_text()
    assert render(page) == page, (
        "autotune/config/schema.py says something else; renew: make reference"
    )


def test_every_key_is_on_the_page_once() -> None:
    named = re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert sorted(named) == sorted(all_keys())


def test_what_a_line_says() -> None:
    tables = dict(sections())
    assert (
        "| `search.trials` | a whole number of at least 1 | `40` | Finished trials"
        in (tables["search"])
    )
    assert "| `dataset` | text | required |" in tables["study"]
    assert (
        "| `training.precision` | `auto`, `off`, `bf16`, `fp16` | `auto` |" in tables["training"]
    )
    assert "; a list or a range of them | `0.9` |" in tables["space.training"]


def test_a_table_that_is_missing_is_named() -> None:
    page = PAGE.read_text().replace("<!-- keys: cache -->", "")
    with pytest.raises(ValueError, match="must have a table for every section once; see: cache"):
        render(page)


def test_a_key_without_a_description_is_named() -> None:
    class Bare(BaseModel):
        key: str = ""

    with pytest.raises(ValueError, match=r"says nothing of data\.key; write it below the key"):
        row("data.key", Bare.model_fields["key"])


def test_every_rule_says_what_it_takes() -> None:
    found = [rule for model in _models(StudyConfig) for rule in _rules(model)]
    assert len(found) > 60
    assert all(rule.takes for rule in found)


def _models(model: type[BaseModel]) -> list[type[BaseModel]]:
    parts = [field.annotation for field in model.model_fields.values()]
    inner = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    return [model, *(deeper for one in inner for deeper in _models(one))]


def _rules(model: type[BaseModel]) -> list[FieldRule]:
    return [
        one
        for field in model.model_fields.values()
        for one in field.metadata
        if isinstance(one, FieldRule)
    ]
