"""Load a study file: YAML and overrides in, a checked :class:`StudyConfig` out.

The command line names a study by a preset (a file shipped under ``studies/``) or by the path of a
file. Overrides are ``dotted.key=value``: text for a key that holds only text, else YAML.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from autotune.config.backbones import RACE, presets_folder
from autotune.config.fields import is_plugin_ref
from autotune.config.old_names import describe_renamed, new_key, stored_init, with_new_names
from autotune.config.safe_yaml import (
    MAX_BYTES,
    MAX_DEPTH,
    DuplicateKeyError,
    LimitError,
    parse_yaml,
    read_yaml_text,
)
from autotune.config.schema import (
    MAX_NAME,
    PLUGIN_KEYS,
    SAMPLERS,
    STRATEGIES,
    StudyConfig,
    all_fields,
)
from autotune.config.text_values import Misread, parse_override
from autotune.config.validation import validate
from autotune.errors import (
    ConfigError,
    Problem,
    StudyError,
    did_you_mean,
    format_yaml,
    join_sentences,
    shorten,
)
from autotune.file_kinds import file_kind

logger = logging.getLogger(__name__)

#: Keys whose change makes another study, with another name.
NAMING_KEYS = ("dataset", "backbone", "init", "search.sampler", "search.strategy")
#: Endings of data set files, which are not part of a name.
_ENDINGS = re.compile(r"\.(csv|tsv|parquet|zip|tar|tar\.(gz|bz2|xz)|t(gz|bz|bz2|xz))$", re.I)
#: A key of a study file at the beginning of a line.
_STUDY_KEY = re.compile(r"""^[{\s]*["']?(dataset|backbone|space|search|training)["']?\s*:""", re.M)
#: Values of a study file without these keys.
_DEFAULTS = {"init": "pretrained", "search.sampler": SAMPLERS[0], "search.strategy": STRATEGIES[0]}


def presets() -> dict[str, Path]:
    """Return the shipped study files by name."""
    return {path.stem: path for path in sorted(presets_folder().glob("*.yaml"))}


def find_study_file(study: str) -> Path:
    """Find the file of a study.

    Args:
        study: A preset's name or the path of a YAML file.

    Raises:
        StudyError: When there is neither; it says what is there instead.
    """
    names, study = presets(), os.fspath(study)  # which Python may give as a path
    if study in names:
        return names[study]
    path = Path(study)
    with suppress(OSError, RuntimeError, ValueError):  # no home, too long, not a path at all
        path = path.expanduser()
        if study and path.exists():
            _check_study_file(study, path)
            return path
    reason = f"the presets are {', '.join(names)}, and a path must be that of a YAML file"
    if is_override(study):
        reason = f"values come behind the study, such as {shlex.join(('folder', study))}"
    elif path.suffix in (".yaml", ".yml"):
        reason = "there is no such file"
    near = list(names)
    with suppress(OSError, ValueError):
        near += [str(file) for file in sorted(path.parent.glob("*.y*ml"))]
    raise StudyError(
        join_sentences(f"no study file {study!r}: {reason}", did_you_mean(study, near))
    )


def is_override(argument: str) -> bool:
    """Tell whether an argument gives a value to a key of a study file."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and new_key(key) in {name for name, _ in all_fields()}


def _check_study_file(study: str, path: Path) -> None:
    """Raise a :class:`StudyError` for what is no text, or has another ending and no key."""
    try:
        kind = file_kind(path)
    except OSError:  # said when it is read
        return
    if path.suffix in (".yaml", ".yml") and kind.use in ("text", "broken", ""):
        return
    if kind.use == "text":
        with path.open(encoding="utf-8", errors="replace") as stream:
            if not path.suffix or _STUDY_KEY.search(stream.read(MAX_BYTES)):
                return
    quoted, advice = shlex.quote(study), kind.advice(study)
    if kind.use == "images":
        advice = (
            f"'autotune run folder dataset={quoted}' makes a study of its images, and 'autotune "
            f"data info {quoted}' counts them"
        )
    name = kind.name or "of an unknown format"
    problem = f"a study is the name of a preset or a YAML file, but {study!r} is {name}"
    raise StudyError(join_sentences(problem, advice))


def read_study_file(path: Path) -> tuple[dict[str, Any], Misread]:
    """Read a study file, and find the texts that YAML reads as something else.

    Raises:
        ConfigError: When the file cannot be read, is not YAML or does not hold a mapping.
    """
    try:
        text = read_yaml_text(path)
        values = parse_yaml(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        match error:
            case OSError():
                reason = f"cannot be read: {error.strerror}"
            case LimitError():
                reason = str(error)
            case UnicodeDecodeError():
                at = f"{error.reason} at byte {error.start:,}"
                reason = f"must be text in UTF-8, but is not ({at})"
            case _:
                is_double = isinstance(error, DuplicateKeyError)
                quotes = "" if is_double else "text with such characters goes in quotes"
                reason = f"is not valid YAML: {' '.join(str(error).split())}"
                reason = join_sentences(reason, quotes)
        raise ConfigError(str(path), [Problem("(file)", reason)]) from error
    if not isinstance(values, dict):
        reason = "must hold keys such as 'dataset:' and 'backbone:'"
        raise ConfigError(str(path), [Problem("(file)", reason)])
    return values, Misread.from_text(text)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the values of a study file; raises what :func:`read_study_file` does."""
    return read_study_file(path)[0]


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Read ``dotted.key=value`` overrides.

    The value of a key that holds only text is taken as it is; all others are YAML.

    Raises:
        ConfigError: When one has no ``=`` or a value that is not YAML.
    """
    parsed: dict[str, Any] = {}
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.append(Problem(override.strip() or "''", "an override must read key=value"))
        elif key.count(".") > MAX_DEPTH:
            problems.append(Problem(key, f"must have at most {MAX_DEPTH} dots"))
        else:
            parsed.pop(key, None)  # the last one counts, also against a whole section before it
            try:
                parsed[key] = parse_override(key, text)
            except yaml.YAMLError as error:
                is_limit = isinstance(error, LimitError)
                reason = str(error) if is_limit else f"got {format_yaml(text)}"
                problems.append(Problem(key, f"must be a YAML value, but {reason}"))
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
        overrides: Values that replace those of the file: a mapping of dotted keys, or
            ``dotted.key=value`` strings.
        name: Name of the study; by default the file's own, see :func:`study_name`.

    Returns:
        The checked configuration, its name filled in.

    Raises:
        StudyError: When there is no such file.
        ConfigError: With every mistake of the file and of the overrides.
    """
    path = find_study_file(study)
    values, misread = read_study_file(path)
    base = _with_new_names(values, str(path))
    if isinstance(overrides, Mapping):
        replaced = {
            key: os.fspath(value) if isinstance(value, os.PathLike) else value
            for key, value in overrides.items()
        }
        texts = [f"{key}={format_yaml(value)}" for key, value in replaced.items()]
    else:
        replaced, texts = parse_overrides(overrides), list(overrides)
    replaced = _with_new_names(replaced, "command line")
    values = resolve_plugin_paths(apply_overrides(base, replaced), replaced, path.parent)
    misread = misread.without([*replaced, *(["name"] if name else [])])
    values["name"] = name or study_name(base, replaced, path.stem)
    # A notification may hold a secret.
    texts = ["notify=***" if text.startswith("notify=") else shorten(text) for text in texts]
    source = f"{path} with {' '.join(texts)}" if replaced else str(path)
    return validate(values, source, misread)


def _with_new_names(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Rename the keys that have an old name, and log that once."""
    values, renamed = with_new_names(values, source)
    if renamed:
        _log_once(describe_renamed(source, renamed))
    return values


@cache
def _log_once(line: str) -> None:
    logger.warning("%s", line)


def resolve_plugin_paths(
    values: Mapping[str, Any], overrides: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Make the paths of plugin files absolute, so that worker processes find them.

    Args:
        values: Nested values of a study file, overrides applied.
        overrides: Values of the command line, with paths relative to the working directory.
        folder: Folder of the study file; the paths in the file are relative to it.
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
    """Derive the study's name from the file and its overrides.

    Another value of a key in ``NAMING_KEYS`` makes another study and is appended to the name:
    ``digits`` run with ``search.sampler=tpe`` becomes ``digits-tpe``; a list of backbones is
    joined by ``+``. A file without a name takes that of its data set, so that ``folder`` run on
    ``photos/ants`` becomes ``ants``.
    """
    if overrides.get("name"):
        return str(overrides["name"])
    name = base.get("name")
    values = apply_overrides(base, overrides)
    parts = [str(name)] if name else []
    for key in NAMING_KEYS:
        value, before = (_joined(get_dotted(source, key), key) for source in (values, base))
        before = _DEFAULTS.get(key) if before is None else before
        is_own_race = isinstance(get_dotted(overrides, key), Mapping)  # among a list of its own
        is_same = value == before and (name or key != "dataset") and not is_own_race
        if not isinstance(value, str) or is_same:
            continue
        if key == "init":
            value = stored_init(value)  # names of earlier versions stay
        elif is_plugin_ref(value):
            value = value.rpartition(":")[2]
        parts.append(slug(_dataset_name(value) if key == "dataset" else value))
    joined = "-".join(part for part in parts if part)
    # A given name is checked as it is; a name made of other names is cut to fit.
    if name:
        return joined[: max(MAX_NAME, len(str(name)))]
    return slug((joined or slug(stem) or "study")[:MAX_NAME])


def _joined(value: Any, key: str) -> Any:
    """Join a list of names; a study has one data set only. A race among a list is a race."""
    if isinstance(value, Mapping) and key == "backbone":
        return RACE
    return "+".join(map(str, value)) if isinstance(value, list) and key != "dataset" else value


def _dataset_name(dataset: str) -> str:
    """Return the last part of a path without the ending of a table or an archive.

    ``.`` gives the name of the working directory, an address on a hub its name and configuration.
    """
    _, hub, address = dataset.partition("://")
    if hub:
        return re.sub("@[^/]*", "", address.partition("?")[0].partition("/")[2])
    name = Path(dataset).name
    name = name if name not in ("", "..") else Path(os.path.abspath(dataset)).name
    return _ENDINGS.sub("", name) or name


def slug(text: str) -> str:
    """Replace the characters that a study's name may not have; letters lose their accents."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._+]+", "-", plain).strip("-._+")


def get_dotted(values: Any, key: str) -> Any:
    """Return the value of a dotted key in nested values, ``None`` where there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values
