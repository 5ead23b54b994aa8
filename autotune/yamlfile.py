"""Reading YAML of unknown origin: too much is refused before anything is built of it.

An alias stands for everything behind its anchor, so that a file of a few hundred bytes can mean
billions of values (https://en.wikipedia.org/wiki/Billion_laughs_attack), or itself. The events of
PyYAML's parser tell sizes and depths without building a value.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

#: Limits of a file in bytes, of one value in characters, of levels of nesting and of values, those
#: behind aliases counted each time. The largest study file that ships has 9 kB and 150 values.
MAX_BYTES = 1 << 20
MAX_CHARACTERS = 10_000
MAX_DEPTH = 32
MAX_VALUES = 20_000


class LimitError(yaml.YAMLError):
    """A YAML text is larger than any that is meant for autotune."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuse a key that is given twice; YAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml_text(path: Path) -> str:
    """Read the text of a YAML file.

    Raises:
        OSError: When it cannot be read.
        LimitError: When it is too large.
        UnicodeDecodeError: When it is not UTF-8.
    """
    with path.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise LimitError(f"it must have at most {MAX_BYTES:,} bytes, but has more")
    return data.decode("utf-8")


def parse_yaml(text: str) -> Any:
    """Build the value of a YAML text.

    Raises:
        yaml.YAMLError: When it is none, has a key twice, or is larger than the limits.
        ValueError: When a date or a number in it is none.
    """
    _check_size(text)
    return yaml.load(text, Loader=_UniqueKeyLoader)


def _check_size(text: str) -> None:
    if len(text) > MAX_BYTES:
        raise LimitError(f"it must have at most {MAX_BYTES:,} characters, but has {len(text):,}")
    sizes: dict[str, int] = {}
    open_ones: list[tuple[str | None, int]] = []  # the anchor of each, and the values before it
    values = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_ones.append((event.anchor, values))
            values += 1
            if len(open_ones) > MAX_DEPTH:
                raise LimitError(
                    f"it must be nested at most {MAX_DEPTH} levels deep, but is deeper in line "
                    f"{_line_of(event)}"
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_ones.pop()
            if anchor is not None:
                sizes[anchor] = values - before
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
            if len(event.value) > MAX_CHARACTERS:
                raise LimitError(
                    f"a value must have at most {MAX_CHARACTERS:,} characters, but that of line "
                    f"{_line_of(event)} has {len(event.value):,}"
                )
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_ones):
                raise LimitError(
                    f"the alias *{event.anchor} of line {_line_of(event)} stands for "
                    "what it is in, without end"
                )
            values += sizes.get(event.anchor or "", 1)
        if values > MAX_VALUES:
            raise LimitError(
                f"it must have at most {MAX_VALUES:,} values, those behind aliases counted each "
                f"time, but has more by line {_line_of(event)}"
            )


def _line_of(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 0
