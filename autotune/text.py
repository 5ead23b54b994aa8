"""Text for people: safe output of foreign names, and lists, counts, sizes, durations in words.

A name may contain escape sequences for a terminal, bidi controls that reverse a line, bytes that
are not UTF-8, or a formula for a spreadsheet. The data keeps it; terminals, pages and tables get
the text that these functions return.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import TextIO

#: Control characters apart from tab and line feed, bidi and other format controls, line and
#: paragraph separators, and lone surrogates.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u206f\ufff9-\ufffb"
    "\ud800-\udfff]"
)
#: Characters that begin a formula; the last four are full-width.
_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"
#: A formula after a semicolon, which separates cells where numbers have decimal commas.
_LATER = re.compile(f"(;\\s*)(?=[{re.escape(_FORMULA)}])")


def join_some(items: Collection[object], limit: int = 20, separator: str = ", ") -> str:
    """Join the first items of a list and count the others.

    Example:
        >>> join_some("abcde", 3)
        'a, b, c and 2 more'
    """
    text = separator.join(str(item) for item, _ in zip(items, range(limit), strict=False))
    return text + (f" and {len(items) - limit:,} more" if len(items) > limit else "")


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Write a count with its noun; ``nouns`` is the plural where it is not ``noun`` plus s.

    Example:
        >>> plural(1, "image"), plural(1200, "image"), plural(2, "class", "classes")
        ('1 image', '1,200 images', '2 classes')
    """
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def count_of(count: int, whole: int) -> str:
    """Write a count of a whole: ``25 of 40``; the count alone where there is no whole, or less.

    A budget that was lowered later is no whole: ``4 of 3`` would be.
    """
    return f"{count:,} of {whole:,}" if whole >= count and whole else f"{count:,}"


def format_bytes(size: float) -> str:
    """Write a size in decimal units: ``512 bytes``, ``1.5 kB``, ``23 MB``, ``1.2 GB``."""
    if size < 1000:
        return plural(round(size), "byte")
    unit, scale = next(
        ((name, scale) for name, scale in (("kB", 1e3), ("MB", 1e6)) if size < 999.5 * scale),
        ("GB", 1e9),
    )
    return f"{size / scale:,.{int(size < 9.95 * scale)}f} {unit}"


def format_duration(seconds: float) -> str:
    """Write a duration with two units.

    Example:
        >>> format_duration(4980)
        '1 h 23 min'
    """
    rounded = round(seconds)
    units = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))
    for unit, size, smaller, smaller_size in units:
        if rounded >= size:
            return f"{rounded // size} {unit} {rounded % size // smaller_size} {smaller}"
    return f"{seconds:.3g} s"


def format_clock(seconds: float | None) -> str:
    """Write a duration as ``2:05`` or ``1:02:05``; ``?`` for ``None``."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def first_line(error: BaseException, limit: int = 200) -> str:
    """Return the first line of an error's message, ``no details`` where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else "no details"


def error_line(error: BaseException, limit: int = 200) -> str:
    """Return type and message of an error in one line: ``ValueError: no such key``."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:limit]


def visible(text: str) -> str:
    r"""Write out control characters, such as ``\x1b``; tabs and line feeds stay."""
    return _HIDDEN.sub(_escape, text)


def one_line(text: str) -> str:
    r"""Write out control characters, tabs and line feeds: the result is one line."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def shell_quote(text: str) -> str:
    r"""Quote a text as one word of a shell, in characters that a terminal shows as they are.

    Example:
        >>> shell_quote("a b"), shell_quote("plain")
        ("'a b'", 'plain')
        >>> print(shell_quote("a\tb"))
        "$(printf '%b' 'a\0011b')"
    """
    if text == one_line(text):
        return shlex.quote(text)
    escapes = "".join(
        character
        if character.isprintable() and character != "\\"
        else "".join(f"\\0{byte:03o}" for byte in os.fsencode(character))
        for character in text
    )
    return f"\"$(printf '%b' {shlex.quote(escapes)})\""


def escaped(text: str) -> str:
    r"""Escape control characters in a JSON text, such as ``\u001b``; its values stay the same."""
    return _HIDDEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def as_cell(value: object) -> object:
    """Return a cell of a CSV file, quoted where a spreadsheet would compute a text.

    Numbers stay numbers, also a text such as ``-0.5``.
    """
    if not isinstance(value, str):
        return value
    text = one_line(value)
    text = _LATER.sub(r"\1'", text)
    if not text.lstrip().startswith(tuple(_FORMULA)) and value[:1] not in ("\t", "\r", "\n"):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


class VisibleFormatter(logging.Formatter):
    """Format log records so that their text neither acts on a terminal nor forges a record."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; lines after its first are indented."""
        return visible(super().format(record)).replace("\n", "\n  ")


def guard_standard_error() -> None:
    """Write out control characters in everything that Python prints to standard error.

    These are log records without a handler, warnings and tracebacks of uncaught errors, which may
    contain names of files and classes.
    """
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(VisibleFormatter("%(message)s"))
    warnings.showwarning = _show_warning
    sys.excepthook = _show_error


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = warnings.formatwarning(message, category, filename, lineno, line)
    print(visible(text), end="", file=file or sys.stderr)


def _show_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(visible(text), end="", file=sys.stderr)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def relative_path(path: Path) -> str:
    """Write a path relative to the working directory where it lies below it."""
    absolute, folder = path.absolute(), Path.cwd()
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)
