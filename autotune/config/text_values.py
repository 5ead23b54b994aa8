"""Keys that hold only text: their values stay as they are written, whatever YAML would read there.

A folder may be called ``photos #2``, ``2024_11``, ``null`` or ``on``. On the command line the text
behind the ``=`` is the value. In a study file the rules of YAML hold, and a mistake says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache
from types import NoneType
from typing import Any, get_args

import yaml

from autotune.config.old_names import new_key
from autotune.config.safe_yaml import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    LimitError,
    compose_yaml,
    parse_yaml,
)
from autotune.config.schema import all_fields
from autotune.errors import Problem, format_yaml

_TEXT = "tag:yaml.org,2002:str"
_MAPPINGS = (dict[str, list[str]], dict[str, str], dict[str, Any])


@dataclass(frozen=True)
class TextKey:
    """What a key that holds only text may have besides a single text."""

    is_optional: bool
    is_list: bool
    is_mapping: bool = False
    #: Whether single values of the mapping need not be text.
    has_numbers: bool = False


@cache
def text_keys() -> dict[str, TextKey]:
    """Return the keys of a study file that hold only text, or lists or mappings of texts."""
    keys = {}
    for key, info in all_fields():
        types = set(get_args(info.annotation))
        if info.annotation in (str, list[str]):
            types = {info.annotation}
        if types and types <= {str, NoneType, list[str], *_MAPPINGS}:
            is_mapping = not types.isdisjoint(_MAPPINGS)
            has_numbers = dict[str, Any] in types
            keys[key] = TextKey(NoneType in types, list[str] in types, is_mapping, has_numbers)
    return keys


def parse_override(key: str, text: str) -> Any:
    """Return the value of an override.

    A key that holds only text takes all of ``text`` as it is. Where it may also be null, nothing
    and ``null`` mean that; where it may be a list or a mapping, brackets and braces make one.

    Raises:
        yaml.YAMLError: When the text of any other key is not YAML, or exceeds the limits.
    """
    kind = text_keys().get(new_key(key))
    if kind is None:
        return parse_yaml(text)
    if len(text) > MAX_CHARACTERS:
        raise LimitError(
            f"a value must have at most {MAX_CHARACTERS:,} characters, but it has {len(text):,}"
        )
    opening = text.lstrip()[:1]
    if (kind.is_list and opening == "[") or (kind.is_mapping and opening == "{"):
        return parse_yaml(text, only_text=True)
    can_be_null = kind.is_optional or (kind.is_mapping and not kind.is_list)
    if (can_be_null and text in ("", "null")) or (kind.is_list and not text):
        return None
    return text


@dataclass(frozen=True)
class Misread:
    """Texts of a study file that YAML reads as something else.

    Args:
        written: Dotted key -> the texts as they are written.
        problems: Those of which nothing else would say a word.
    """

    written: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    @classmethod
    def from_text(cls, text: str) -> Misread:
        """Find them in a study file, which is valid YAML."""
        nodes = list(_text_nodes(compose_yaml(text)))
        misread = cls({key: tuple(_misread_members(text, key, node)) for key, node in nodes})
        problems = (_silent_problem(text, key, node, misread) for key, node in nodes)
        return replace(misread, problems=tuple(problem for problem in problems if problem))

    def without(self, keys: Iterable[str]) -> Misread:
        """Leave out the keys and sections that the command line replaces."""
        prefixes = tuple(f"{key}." for key in keys)
        written = {
            key: texts for key, texts in self.written.items() if not f"{key}.".startswith(prefixes)
        }
        return Misread(written, tuple(one for one in self.problems if one.key in written))

    def hint(self, key: str) -> str:
        """Say what YAML reads for a key, and what to write; empty where it reads the text."""
        texts = self.written.get(key)
        if not texts:
            return ""
        read = " and ".join(f"{text} as {_describe(parse_yaml(text))}" for text in texts)
        return f"YAML reads {read}; put it in quotes: {' and '.join(map(_quote, texts))}"


def _misread_members(text: str, key: str, node: yaml.Node) -> Iterator[str]:
    for member in _members(node, text_keys()[key]):
        written = _written(text, member)
        if member.tag != _TEXT and written and "\n" not in written:
            yield written


def _members(node: yaml.Node, kind: TextKey) -> list[yaml.Node]:
    """Return the nodes of the texts of a value."""
    if kind.is_mapping:
        lists = TextKey(is_optional=False, is_list=True)
        if not isinstance(node, yaml.MappingNode):
            return _members(node, lists) if kind.has_numbers else []
        return [
            member
            for _, value in node.value
            if not (kind.has_numbers and isinstance(value, yaml.ScalarNode))
            for member in _members(value, lists)
        ]
    return node.value if kind.is_list and isinstance(node, yaml.SequenceNode) else [node]


def _silent_problem(text: str, key: str, node: yaml.Node, misread: Misread) -> Problem | None:
    """Find a name that would be changed, or a path that would be cut at a ``#``."""
    written = _written(text, node)
    is_free = key == "name" or text_keys()[key].is_mapping  # of which any value becomes a text
    if is_free and any(each != str(parse_yaml(each)) for each in misread.written[key]):
        return Problem(key, f"must be text, but {misread.hint(key)}")
    is_tagged = written.startswith(("&", "!")) and isinstance(node, yaml.ScalarNode)
    if is_tagged and node.tag == _TEXT and os.path.exists(written):
        return Problem(
            key,
            f"YAML reads {written} as {node.value!r}, but there is {written!r}; put it in quotes: "
            f"{_quote(written)}",
        )
    comment = text[node.end_mark.index :].partition("\n")[0].rstrip()
    is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
    if is_plain and "#" in comment and os.path.exists(os.path.expanduser(written + comment)):
        return Problem(
            key,
            f"YAML reads {comment.strip()} as a comment, but there is {written + comment!r}; put "
            f"it in quotes: {_quote(written + comment)}",
        )
    return None


def _text_nodes(node: yaml.Node | None, section: str = "") -> Iterator[tuple[str, yaml.Node]]:
    """Yield the keys of a study file that hold only text, under their new names."""
    for key_node, value in node.value if isinstance(node, yaml.MappingNode) else ():
        key = new_key(f"{section}{key_node.value}")
        if key in text_keys():
            yield key, value
        elif section.count(".") < MAX_DEPTH:
            yield from _text_nodes(value, f"{key}.")


def _written(text: str, node: yaml.Node) -> str:
    return text[node.start_mark.index : node.end_mark.index]


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _describe(value: Any) -> str:
    """Say what YAML has made of a text."""
    if isinstance(value, date):
        return "a date"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"the number {value}" if is_number else format_yaml(value)
