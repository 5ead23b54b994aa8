"""The key ``backbone``: a name, a list of names, or a race that chooses among a list.

The default lists of a race are data: ``studies/backbones/*.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autotune.config.fields import Check, FieldRule, names, number, timm_name
from autotune.errors import did_you_mean, format_yaml, join_sentences

Backbones = str | list[str] | dict[str, Any]
#: Starts a race, alone or as the key of its list.
RACE = "race"
#: Names of the default lists; ``auto`` takes the one that suits the device.
SMALL, LARGE, AUTO = "small", "large", "auto"
#: Most backbones that enter the study, unless the study file says how many.
MOST_KEPT = 2
_KEYS = (RACE, "keep")
_MOST = 5


@dataclass(frozen=True)
class Race:
    """A race that a study file asks for.

    Args:
        entrants: ``auto``, ``small``, ``large``, or the names of the backbones.
        keep: Most backbones that enter the study; ``None`` where the study file does not say.
    """

    entrants: str | tuple[str, ...] = AUTO
    keep: int | None = None

    @staticmethod
    def from_value(value: Any) -> Race | None:
        """Return the race of a checked value of the key; ``None`` where it names backbones."""
        if value == RACE:
            return Race()
        if not isinstance(value, dict):
            return None
        entrants = value[RACE]
        return Race(tuple(entrants) if isinstance(entrants, list) else entrants, value.get("keep"))

    def to_json(self) -> dict[str, Any]:
        """Return what the study file asks for, however it is written."""
        own = self.entrants
        keep = {} if self.keep is None else {"keep": self.keep}
        return {RACE: own if isinstance(own, str) else list(own), **keep}

    def names(self, size: str = "") -> tuple[str, ...]:
        """Return the backbones that may take part.

        Args:
            size: The list that ``auto`` takes; by default the backbones of all lists.
        """
        if not isinstance(self.entrants, str):
            return self.entrants
        size = size if self.entrants == AUTO else self.entrants
        lists = [size] if size else [SMALL, LARGE]
        return tuple(dict.fromkeys(name for each in lists for name in listed_backbones(each)))


def presets_folder() -> Path:
    """Return the folder of the shipped study files.

    A wheel carries them as ``autotune/presets``. In a checkout that is a link to ``studies/``.
    Where links are lost (a downloaded archive), ``studies/`` itself is read.
    """
    presets = Path(__file__).parents[1] / "presets"
    return presets if presets.is_dir() else Path(__file__).parents[2] / "studies"


def listed_backbones(size: str) -> tuple[str, ...]:
    """Return the names of a default list, ``small`` or ``large``."""
    text = (presets_folder() / "backbones" / f"{size}.yaml").read_text(encoding="utf-8")
    return tuple(entry["name"] for entry in yaml.safe_load(text)["backbones"])


def backbones_rule() -> FieldRule:
    """Accept a name, a list of different names, or a race."""
    several = names("backbones")
    check_names: Check = several.func  # type: ignore[assignment]

    def check(value: Any) -> Any:
        value = _shorten(value)
        if isinstance(value, list) and RACE in value:
            others = [name for name in value if name != RACE]
            raise ValueError(
                f"must be race alone, or {{race: {format_yaml(others)}}} for a race among these, "
                f"but got {format_yaml(value)}"
            )
        return _check_race(value, check_names) if isinstance(value, dict) else check_names(value)

    takes = f"`{RACE}`, {several.takes}, or `{{{RACE}: names, keep: {MOST_KEPT}}}`"
    return FieldRule(check, takes=takes)


def _check_race(value: dict[str, Any], check_names: Check) -> dict[str, Any]:
    rule = f"a race reads {{{RACE}: names, keep: {MOST_KEPT}}}"
    if unknown := next((str(key) for key in value if key not in _KEYS), None):
        hint = did_you_mean(unknown, _KEYS)
        raise ValueError(join_sentences(f"{rule}, but got the key {unknown!r}", hint))
    if RACE not in value:
        raise ValueError(f"{rule}, but got {format_yaml(value)}")
    return {RACE: _check_entrants(rule, value[RACE], check_names), **_check_keep(rule, value)}


def _check_keep(rule: str, value: dict[str, Any]) -> dict[str, int]:
    check: Any = number(True, 1, _MOST, optional=True).func
    try:
        keep = check(value.get("keep"))
    except ValueError as error:
        raise ValueError(f"{rule}, where keep {error}") from None
    return {} if keep is None else {"keep": keep}


def _check_entrants(rule: str, entrants: Any, check_names: Check) -> Any:
    if isinstance(entrants, list):
        if len(entrants) < 2:
            raise ValueError(f"{rule}, with two or more names, but got {format_yaml(entrants)}")
        return check_names(entrants)
    lists = (AUTO, SMALL, LARGE)
    if entrants not in lists:
        raise ValueError(
            join_sentences(
                f"{rule}, where the names are a list such as [resnet18, resnet50] or one of "
                f"{', '.join(lists)}, but got {format_yaml(entrants)}",
                did_you_mean(str(entrants), lists),
            )
        )
    return entrants


def _shorten(value: Any) -> Any:
    """Shorten the addresses of timm on the hub, so that two spellings name one study."""
    match value:
        case dict():
            return {key: _shorten(entry) if key == RACE else entry for key, entry in value.items()}
        case list():
            return [_shorten(name) for name in value]
    return timm_name(value) if isinstance(value, str) else value
