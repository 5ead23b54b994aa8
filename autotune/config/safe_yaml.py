"""Read YAML of unknown origin, and refuse oversized values before they are built.

An alias repeats everything behind its anchor, so that a file of a few hundred bytes can hold
billions of values (https://en.wikipedia.org/wiki/Billion_laughs_attack), or itself. The events of
PyYAML's parser give sizes and depths without building a value.
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
#: Limit of a whole number: that of 64 bits. Python refuses to write one of thousands of digits.
MAX_INTEGER = 2**63
#: Errors of PyYAML's constructors besides its own, raised by a tag such as ``!!int ''``.
_CONSTRUCTOR_ERRORS = (
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    OverflowError,
    RecursionError,
)


class LimitError(yaml.YAMLError):
    """A YAML text exceeds a limit of size or depth."""


class DuplicateKeyError(yaml.constructor.ConstructorError):
    """A mapping gives a key twice."""


class _StrictLoader(yaml.SafeLoader):
    """Refuse duplicate keys, of which YAML would keep the last, and huge numbers."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value: int = super().construct_yaml_int(node)
        if abs(value) >= MAX_INTEGER:
            raise LimitError(
                f"a whole number must have at most 18 digits, but that of line "
                f"{node.start_mark.line + 1} has more; text goes in quotes"
            )
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below
            if key in seen:
                text = f"the key {key!r} is given twice"
                raise DuplicateKeyError(None, None, text, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)


class _TextLoader(_StrictLoader):
    """Read every value as text, whatever it looks like."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


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


def parse_yaml(text: str, *, only_text: bool = False) -> Any:
    """Build the value of a YAML text; with ``only_text``, of texts that are no numbers or words.

    Raises:
        yaml.YAMLError: When it is not YAML, has a key twice, or exceeds the limits.
    """
    try:
        _check_size(text)
        return yaml.load(text, Loader=_TextLoader if only_text else _StrictLoader)
    except _CONSTRUCTOR_ERRORS as error:
        if isinstance(error, ValueError):  # its message explains the mistake
            raise yaml.YAMLError(str(error)) from error
        reason = f"{type(error).__name__}: {error}"
        raise yaml.YAMLError(f"a value does not fit its type ({reason})") from error


def compose_yaml(text: str) -> yaml.Node | None:
    """Return the nodes of a text that :func:`parse_yaml` has read; they know where they stand."""
    node: yaml.Node | None = yaml.compose(text, Loader=_StrictLoader)
    return node


def _check_size(text: str) -> None:
    if len(text) > MAX_BYTES:
        raise LimitError(f"it must have at most {MAX_BYTES:,} characters, but has {len(text):,}")
    sizes: dict[str, tuple[int, int]] = {}  # anchor -> values behind it, and their levels
    open_anchors: list[tuple[str | None, int]] = []  # open collections: anchor, values before it
    heights: list[int] = []  # levels inside each open collection, so far
    values = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append((event.anchor, values))
            heights.append(0)
            values += 1
            _check_depth(len(open_anchors), event)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_anchors.pop()
            height = heights.pop() + 1
            if heights:
                heights[-1] = max(heights[-1], height)
            if anchor is not None:
                sizes[anchor] = (values - before, height)
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            if event.anchor is not None:
                sizes[event.anchor] = (1, 0)
            if len(event.value) > MAX_CHARACTERS:
                raise LimitError(
                    f"a value must have at most {MAX_CHARACTERS:,} characters, but that of line "
                    f"{_line_of(event)} has {len(event.value):,}"
                )
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_anchors):
                raise LimitError(
                    f"the alias *{event.anchor} of line {_line_of(event)} contains itself, "
                    "without end"
                )
            size, height = sizes.get(event.anchor or "", (1, 0))
            values += size
            _check_depth(len(open_anchors) + height, event)
            if heights:
                heights[-1] = max(heights[-1], height)
        if values > MAX_VALUES:
            raise LimitError(
                f"it must have at most {MAX_VALUES:,} values, those behind aliases counted each "
                f"time, but has more by line {_line_of(event)}"
            )


def _check_depth(depth: int, event: yaml.Event) -> None:
    if depth > MAX_DEPTH:
        raise LimitError(
            f"it must be nested at most {MAX_DEPTH} levels deep, but is deeper in line "
            f"{_line_of(event)}"
        )


def _line_of(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 0
