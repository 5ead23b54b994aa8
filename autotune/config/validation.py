"""Check the values of a study file, and say what is wrong in its words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from autotune.config.old_names import KEYS, old_keys
from autotune.config.schema import StudyConfig, all_fields
from autotune.config.text_values import Misread
from autotune.errors import (
    MAX_PROBLEMS,
    ConfigError,
    Problem,
    did_you_mean,
    format_yaml,
    join_sentences,
)


def validate(
    values: Mapping[str, Any], source: str, misread: Misread | None = None
) -> StudyConfig:
    """Check the values of a study file.

    Raises:
        ConfigError: With every mistake.
    """
    misread = misread or Misread()
    try:
        config = StudyConfig.model_validate(dict(values))
    except ValidationError as error:
        said = {problem.key for problem in misread.problems}
        errors = [one for one in error.errors() if _dotted(one) not in said]
        listed = [*misread.problems, *(_problem(one, misread) for one in errors[:MAX_PROBLEMS])]
        raise ConfigError(source, listed, len(misread.problems) + len(errors)) from None
    if problems := [*misread.problems, *config.cross_field_problems()]:
        raise ConfigError(source, problems)
    return config


def _dotted(error: ErrorDetails) -> str:
    return ".".join(map(str, error["loc"]))


def _problem(error: ErrorDetails, misread: Misread) -> Problem:
    """Return pydantic's error in the words of a study file."""
    location, key = [str(part) for part in error["loc"]], _dotted(error)
    value, hint, cure = format_yaml(error["input"]), misread.hint(key), "put it in quotes"
    match error["type"]:
        case "extra_forbidden" | "invalid_key":
            text = _unknown_key(location)
        case "missing":
            text = "is required, but the file does not give it"
        case "value_error":
            text = str(error["ctx"]["error"])
        case "model_type" | "model_attributes_type":
            text = f"must be a section with keys, but got {value}"
        case "string_type" if hint:
            return Problem(key, f"must be text, but {hint}")
        case "string_type":
            text = join_sentences(
                f"must be text, but got {value}", "" if value == "null" else cure
            )
        case _:
            text = f"{error['msg']}, but got {value}"
    return Problem(key, join_sentences(text.removesuffix(f"; {cure}"), hint) if hint else text)


def _unknown_key(location: Sequence[str]) -> str:
    *sections, name = location
    model: type[BaseModel] = StudyConfig
    for part in sections:
        inner = model.model_fields[part].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel)
        model = inner
    section = ".".join(sections)
    dotted = {key: None for full in all_keys() for key in _with_sections(full)}
    elsewhere = [key for key in dotted if key.rpartition(".")[2] == name]
    elsewhere += [new for old, new in KEYS.items() if old.rpartition(".")[2] == name]
    if "." in name and name in dotted:
        hint = f"in a file, write {name.replace('.', ': {')}: ...{'}' * name.count('.')}"
    elif elsewhere:
        hint = f"did you mean {' or '.join(map(repr, elsewhere))}?"
    else:
        hint = did_you_mean(name, [*model.model_fields, *old_keys(section)])
        for old in old_keys(section):
            new = KEYS[f"{section}.{old}".lstrip(".")].rpartition(".")[2]
            hint = hint.replace(repr(old), repr(new))
    keys = ", ".join(model.model_fields)
    return join_sentences(f"unknown key; {section or 'a study file'} has {keys}", hint)


def _with_sections(key: str) -> Iterator[str]:
    """Yield ``a``, ``a.b`` and ``a.b.c`` for ``a.b.c``."""
    parts = key.split(".")
    yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def all_keys() -> Iterator[str]:
    """Yield every dotted key that a study file may have."""
    return (key for key, _ in all_fields())
