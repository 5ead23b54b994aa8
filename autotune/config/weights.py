"""The key ``weights``: one value for all backbones, or one for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from autotune.config.fields import FieldRule, timm_name
from autotune.errors import did_you_mean, format_yaml, join_sentences

Weights = str | list[str] | dict[str, str]
#: Values that are no path.
HUB, NONE = "hub", "none"


def weights_rule() -> FieldRule:
    """Accept a value, a list of values, or a mapping of backbones to values."""

    def check(value: Any) -> Any:
        value = _texts(value)
        is_mapping = isinstance(value, dict)
        members = list(value.values()) if is_mapping else value
        members = members if isinstance(members, list) else [members]
        names = list(value) if is_mapping else []
        wrong = [text for text in (*names, *members) if not _is_text(text)]
        if wrong or not members:
            got = wrong[0] if wrong else value
            if got == "":
                raise ValueError("must not be empty")
            is_number = isinstance(got, int | float) and not isinstance(got, bool)
            raise ValueError(
                join_sentences(
                    "must be hub, none or the path of a file or folder, a list of them, or a "
                    f"mapping of backbones to them, but got {format_yaml(got)}",
                    "put it in quotes" if is_number else "",
                )
            )
        return {timm_name(name): text for name, text in value.items()} if is_mapping else value

    takes = "text; for several backbones also a list, or a mapping `{backbone: text}`"
    return FieldRule(check, takes=takes)


def _texts(value: Any) -> Any:
    """Replace the paths of Python's ``pathlib`` by texts."""
    match value:
        case dict():
            return {name: _texts(path) for name, path in value.items()}
        case list() | tuple():
            return [_texts(path) for path in value]
        case os.PathLike():
            return os.fspath(value)
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def weights_of(weights: Weights, backbones: Sequence[str], backbone: str) -> str:
    """Return the value of one of the backbones; one that a mapping does not name has ``hub``."""
    if isinstance(weights, dict):
        return weights.get(backbone, HUB)
    return weights if isinstance(weights, str) else weights[backbones.index(backbone)]


def weights_problem(weights: Weights, backbones: Sequence[str]) -> str:
    """Say what is wrong with the weights of these backbones; empty where nothing is."""
    if isinstance(weights, str):
        if len(backbones) == 1 or weights in (HUB, NONE):
            return ""
        return (
            f"must be hub or none, or a value for each of the {len(backbones)} backbones, but got "
            f"{weights}; such as {{{backbones[0]}: {weights}, {backbones[1]}: {HUB}}}"
        )
    if isinstance(weights, list):
        if len(weights) == len(backbones):
            return ""
        return (
            f"must have as many values as there are backbones ({len(backbones)}), in their order, "
            f"but got {len(weights)}: {format_yaml(weights)}"
        )
    unknown = [name for name in weights if name not in backbones]
    if not unknown:
        return ""
    nearest = did_you_mean(unknown[0], backbones)
    return join_sentences(
        f"must name backbones of the study ({', '.join(backbones)}), but got {unknown[0]}", nearest
    )
