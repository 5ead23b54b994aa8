"""Study files: YAML plus overrides in, a checked :class:`StudyConfig` out.

A study is named on the command line by a preset (a file shipped under ``studies/``) or by the
path of a file. Overrides are ``dotted.key=value`` with the value in YAML.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from autotune.config.fields import is_plugin_ref
from autotune.config.old_names import (
    KEYS,
    describe_renamed,
    old_keys,
    stored_init,
    with_new_names,
)
from autotune.config.safe_yaml import MAX_DEPTH, LimitError, parse_yaml, read_yaml_text
from autotune.config.schema import MAX_NAME, PLUGIN_KEYS, SAMPLERS, STRATEGIES, StudyConfig
from autotune.errors import (
    MAX_PROBLEMS,
    ConfigError,
    Problem,
    StudyError,
    did_you_mean,
    format_yaml,
    join_sentences,
    shorten,
)

logger = logging.getLogger(__name__)

#: A change of one of these keys makes another study, and the study's name says so.
NAMING_KEYS = ("dataset", "backbone", "init", "search.sampler", "search.strategy")
#: Endings of data sets that are files: they are no part of a name.
_ENDINGS = re.compile(r"\.(csv|tsv|parquet|zip|tar|tar\.(gz|bz2|xz)|t(gz|bz|bz2|xz))$", re.I)
#: What a study file means that does not give them.
_DEFAULTS = {"init": "pretrained", "search.sampler": SAMPLERS[0], "search.strategy": STRATEGIES[0]}


def presets_folder() -> Path:
    """Return the folder of the shipped study files.

    In a checkout it is a link to ``studies/``, which a wheel carries as a folder.
    """
    return Path(__file__).parents[1] / "presets"


def presets() -> dict[str, Path]:
    """Return the shipped study files by name."""
    return {path.stem: path for path in sorted(presets_folder().glob("*.yaml"))}


def find_study_file(study: str) -> Path:
    """Find the file of a study.

    Args:
        study: A preset's name or the path of a YAML file.

    Raises:
        StudyError: When there is neither.
    """
    known = presets()
    if study in known:
        return known[study]
    path = Path(study)
    with suppress(OSError, RuntimeError, ValueError):  # no home, too long, not a path at all
        path = path.expanduser()
        if path.is_file():
            return path
    rule = f"no study file {study!r}: " + (
        "there is no such file"
        if path.suffix in (".yaml", ".yml")
        else f"the presets are {', '.join(known)}, and a path must be that of a YAML file"
    )
    raise StudyError(
        join_sentences(rule, did_you_mean(study, [*known, *_yaml_files_beside(path)]))
    )


def _yaml_files_beside(path: Path) -> Iterator[str]:
    with suppress(OSError, ValueError):
        for one in sorted(path.parent.glob("*")):
            if one.suffix in (".yaml", ".yml"):
                yield str(path.parent / one.name)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a study file.

    Raises:
        ConfigError: When the file cannot be read, is not YAML or does not hold a mapping.
    """
    try:
        values = parse_yaml(read_yaml_text(path))
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        raise ConfigError(str(path), [Problem("(file)", reason)]) from error
    except LimitError as error:
        raise ConfigError(str(path), [Problem("(file)", str(error))]) from error
    except UnicodeDecodeError as error:
        reason = f"must be text in UTF-8, but is not ({error.reason} at byte {error.start:,})"
        raise ConfigError(str(path), [Problem("(file)", reason)]) from error
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise ConfigError(
            str(path), [Problem("(file)", f"is not valid YAML: {message}")]
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            str(path), [Problem("(file)", "must hold keys such as 'dataset:' and 'backbone:'")]
        )
    return values


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Read ``dotted.key=value`` overrides; values are YAML.

    Raises:
        ConfigError: When one has no ``=`` or a value that is not YAML.
    """
    parsed: dict[str, Any] = {}
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            problems.append(Problem(override.strip() or "''", "an override must read key=value"))
            continue
        if key.count(".") > MAX_DEPTH:
            problems.append(Problem(key.strip(), f"must have at most {MAX_DEPTH} dots"))
            continue
        try:
            parsed[key.strip()] = parse_yaml(text)
        except LimitError as error:
            problems.append(Problem(key.strip(), f"must be a YAML value, but {error}"))
        except yaml.YAMLError:
            problems.append(
                Problem(key.strip(), f"must be a YAML value, but got {format_yaml(text)}")
            )
    if problems:
        raise ConfigError("command line", problems)
    return parsed


def apply_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested ``values`` in which each dotted key is replaced."""
    result: dict[str, Any] = {
        key: apply_overrides(value, {}) if isinstance(value, Mapping) else value
        for key, value in values.items()
    }
    for dotted, value in overrides.items():
        target = result
        *parents, last = dotted.split(".")
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                target[parent] = {}
            target = target[parent]
        target[last] = value
    return result


def load_study_file(
    study: str, overrides: Sequence[str] | Mapping[str, Any] = (), name: str | None = None
) -> StudyConfig:
    """Load and check a study.

    Args:
        study: A preset's name or the path of a YAML file.
        overrides: What replaces values of the file: values by dotted key, or
            ``dotted.key=value`` strings.
        name: Name of the study; by default the file's own, see :func:`study_name`.

    Returns:
        The checked configuration, its name filled in.

    Raises:
        StudyError: When there is no such file.
        ConfigError: With every mistake of the file and of the overrides.
    """
    path = find_study_file(study)
    base, renamed = with_new_names(read_yaml(path), str(path))
    _warn_once(str(path), renamed)
    if isinstance(overrides, Mapping):
        replaced = dict(overrides)
        words = [f"{key}={format_yaml(value)}" for key, value in replaced.items()]
    else:
        replaced, words = parse_overrides(overrides), list(overrides)
    replaced, renamed = with_new_names(replaced, "command line")
    _warn_once("command line", renamed)
    values = resolve_plugin_paths(apply_overrides(base, replaced), replaced, path.parent)
    values["name"] = name or study_name(base, replaced, path.stem)
    return validate(
        values, str(path) if not replaced else f"{path} with {' '.join(map(shorten, words))}"
    )


def _warn_once(source: str, renamed: Mapping[str, str]) -> None:
    if renamed:
        _log_once(describe_renamed(source, renamed))


@cache
def _log_once(line: str) -> None:
    logger.warning("%s", line)


def resolve_plugin_paths(
    values: Mapping[str, Any], overrides: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Make the paths of plugin files absolute, so that worker processes find them.

    Args:
        values: Nested values of a study file, overrides applied.
        overrides: What the command line says: its paths are relative to the working directory.
        folder: Where the study file lies: its paths are relative to that.
    """
    given = apply_overrides({}, overrides)
    absolute = {}
    for key in PLUGIN_KEYS:
        value = get_dotted(values, key)
        if is_plugin_ref(value):
            path, _, name = value.rpartition(":")
            base = Path.cwd() if get_dotted(given, key) == value else folder
            with suppress(RuntimeError):  # ~somebody without a home
                path = os.path.abspath(base / Path(path).expanduser())
            absolute[key] = f"{path}:{name}"
    return apply_overrides(values, absolute)


def study_name(base: Mapping[str, Any], overrides: Mapping[str, Any], stem: str) -> str:
    """Derive the study's name from the file and from what was overridden.

    Another data set, backbone, sampler or start of changed layers is another study, so its name
    says so:
    ``digits`` run with ``search.sampler=gp`` becomes ``digits-gp``, and a list of backbones is
    joined by ``+``. A file without a name takes that of its data set, so that ``folder`` run on
    ``photos/ants`` becomes ``ants``.
    """
    if overrides.get("name"):
        return str(overrides["name"])
    name = base.get("name")
    values = apply_overrides(base, overrides)
    parts = [str(name)] if name else []
    for key in NAMING_KEYS:
        value, before = _joined(get_dotted(values, key), key), _joined(get_dotted(base, key), key)
        before = _DEFAULTS.get(key) if before is None else before
        if isinstance(value, str) and (value != before or (key == "dataset" and not name)):
            value = stored_init(value) if key == "init" else value  # a name of before stays
            shown = value.rpartition(":")[2] if is_plugin_ref(value) else value
            parts.append(slug(_dataset_name(value) if key == "dataset" else shown))
    joined = "-".join(part for part in parts if part)
    # A name that was given is checked as it is; what is made of other names has to fit.
    if name:
        return joined[: max(MAX_NAME, len(str(name)))]
    return slug((joined or slug(stem) or "study")[:MAX_NAME])


def _joined(value: Any, key: str) -> Any:
    """Write a list of names as one; there is one data set alone."""
    return "+".join(map(str, value)) if isinstance(value, list) and key != "dataset" else value


def _dataset_name(dataset: str) -> str:
    """Return the last part of a path without the ending of a table or an archive.

    That of ``.`` is the name of the working directory, that of an address on a hub the name and
    the configuration.
    """
    _, hub, address = dataset.partition("://")
    if hub:
        _, _, named = address.partition("?")[0].partition("/")
        return re.sub("@[^/]*", "", named)
    name = Path(dataset).name
    name = name if name not in ("", "..") else Path(os.path.abspath(dataset)).name
    return _ENDINGS.sub("", name) or name


def slug(text: str) -> str:
    """Turn any text into characters that a study's name may have; letters lose their accents."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._+]+", "-", plain).strip("-._+")


def get_dotted(values: Any, key: str) -> Any:
    """Return the value of a dotted key in nested values, ``None`` where there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def validate(values: Mapping[str, Any], source: str) -> StudyConfig:
    """Check the values of a study file.

    Args:
        values: Nested values as the file has them.
        source: Where they came from, for the message.

    Raises:
        ConfigError: With every mistake.
    """
    try:
        config = StudyConfig.model_validate(dict(values))
    except ValidationError as error:
        found = error.errors()
        problems = [_problem(one) for one in found[:MAX_PROBLEMS]]
        raise ConfigError(source, problems, len(found)) from None
    if problems := config.cross_field_problems():
        raise ConfigError(source, problems)
    return config


def _problem(error: ErrorDetails) -> Problem:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    value = error["input"]
    kind = error["type"]
    if kind in ("extra_forbidden", "invalid_key"):
        return Problem(key, _unknown_key(location))
    if kind == "missing":
        return Problem(key, "is required, but the file does not give it")
    if kind == "value_error":
        return Problem(key, str(error["ctx"]["error"]))
    if kind in ("model_type", "model_attributes_type"):
        return Problem(key, f"must hold keys of its own, but got {format_yaml(value)}")
    if kind == "string_type":
        quotes = "" if value is None else "; put it in quotes"
        return Problem(key, f"must be text, but got {format_yaml(value)}{quotes}")
    return Problem(key, f"{error['msg']}, but got {format_yaml(value)}")


def _unknown_key(location: Sequence[str]) -> str:
    model: type[BaseModel] = StudyConfig
    for part in location[:-1]:
        inner = model.model_fields[part].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel)
        model = inner
    name = location[-1]
    known = {key: None for one in all_keys() for key in _with_sections(one)}
    elsewhere = [key for key in known if key.rsplit(".", 1)[-1] == name]
    elsewhere += [new for old, new in KEYS.items() if old.rsplit(".", 1)[-1] == name]
    if "." in name and name in known:
        hint = f"in a file, write {name.replace('.', ': {')}: ...{'}' * name.count('.')}"
    elif elsewhere:
        hint = f"did you mean {' or '.join(repr(key) for key in elsewhere)}?"
    else:
        section = ".".join(location[:-1])
        hint = did_you_mean(name, [*model.model_fields, *old_keys(section)])
        for old in old_keys(section):
            new = KEYS[f"{section}.{old}".lstrip(".")].rpartition(".")[2]
            hint = hint.replace(repr(old), repr(new))
    where = ".".join(location[:-1]) or "a study file"
    return join_sentences(
        f"unknown key; {where} has {', '.join(model.model_fields)}",
        hint,
    )


def _with_sections(key: str) -> Iterator[str]:
    """Yield ``a``, ``a.b`` and ``a.b.c`` for ``a.b.c``."""
    parts = key.split(".")
    yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def all_keys(model: type[BaseModel] = StudyConfig, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that a study file may have."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from all_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
