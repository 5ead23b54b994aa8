"""Texts of others on their way out: names of files and classes, and messages of libraries.

A name may hold what a terminal obeys (escape sequences), what turns a line around (bidi controls),
what cannot be encoded (bytes of a file name that are no UTF-8), or what a spreadsheet computes.
Inside they stay what they are; here is what terminals, pages and tables get in their place.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from types import TracebackType
from typing import TextIO

#: Control characters apart from tab and line feed, bidi and other format controls, line and
#: paragraph separators, and lone surrogates.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u206f\ufff9-\ufffb"
    "\ud800-\udfff]"
)
#: What begins a formula; the last four are full-width.
_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"
#: What begins one behind a semicolon, which separates cells where a comma is in numbers.
_LATER = re.compile(f"(;\\s*)(?=[{re.escape(_FORMULA)}])")


def visible(text: str) -> str:
    r"""Return a text in which characters that would act are written out, such as ``\x1b``.

    Tabs and ends of lines stay: see :func:`one_line`.
    """
    return _HIDDEN.sub(_written, text)


def one_line(text: str) -> str:
    r"""Return a name as one visible line: ends of lines are written out too, as ``\n``."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def escaped(text: str) -> str:
    r"""Return a JSON text with the same values, in which no character would act: ``\u001b``."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def as_cell(value: object) -> object:
    """Return a cell of a CSV file: a spreadsheet takes no text for a formula.

    Args:
        value: A cell. A number stays one, also where it is a text such as ``-0.5``.
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
    """Formats what is logged: nothing in it acts on a terminal, or looks like another record."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; lines after its first are indented."""
        return visible(super().format(record)).replace("\n", "\n  ")


def guard_standard_error() -> None:
    """Have what Python writes to standard error by itself be visible text.

    That is what libraries log where no handler is set up, warnings, and the traceback of an error
    that nobody has caught; names of files and classes are in all of them.
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


def _written(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
