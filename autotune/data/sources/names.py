"""Names of files, folders and classes: how they are shown and compared, which are a system's."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Collection, Iterable
from functools import cache

from autotune.text import join_some

logger = logging.getLogger(__name__)

#: Folders that systems put among others, in lower case: of macOS into archives, of network
#: drives, of Windows, of file systems, of Python. Those that begin with a dot are hidden anyway.
_SYSTEM_FOLDERS = frozenset(
    (
        *("__macosx", "network trash folder", "temporary items"),
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
        *("$recycle.bin", "system volume information", "lost+found", "__pycache__"),
    )
)
#: Folders that checking a disk of Windows leaves.
_RESCUED = re.compile(r"found\.\d{3}")
#: Zeros before a number and behind its point, as spreadsheet programs leave them out.
_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)|(?<=\d)\.0+(?![\d.])")
#: What file managers and people add to the name of a copy.
_COPY = re.compile(r"^copy of | *(\(\d+\)|[ .-]+(copy( ?\(?\d+\)?)?|kopie|backup|bak))$")
_HYPHEN = re.compile(r"_|(?<=\w)-(?=\w)")
#: What may stand around a name without being part of it.
_PUNCTUATION = " '\"`\u2018\u2019\u201c\u201d[](){}.,;:!?"
#: What programs write for an empty cell, in lower case, and no class is called.
_NO_VALUE = frozenset(
    ("nan", "nat", "<na>", "null", "(null)", "nil", "n/a", "#n/a", "#na", "#value!", "#ref!")
)
#: Chooses the colored form of a symbol; it has no width.
_EMOJI_STYLE = "\ufe0f"


def is_system_folder(name: str) -> bool:
    """Tell whether a folder is a system's own and holds nobody's images."""
    lower = name.lower()
    return lower in _SYSTEM_FOLDERS or _RESCUED.fullmatch(lower) is not None


def printable(name: str) -> str:
    """Return the name of a file in a form that any log, terminal and JSON file can hold.

    Names that are no UTF-8 reach Python with lone surrogates, which cannot be encoded again.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def normalized(name: str) -> str:
    """Return a name in Unicode's composed form (NFC).

    An umlaut is one character or two; systems differ in which they write, and people see no
    difference.
    """
    return unicodedata.normalize("NFC", name)


def quoted(names: Collection[str]) -> str:
    """Quote names in a message; the first 20 are enough to see what is wrong."""
    return join_some([_quote(name) for name in names])


def describe_similar(classes: Iterable[str]) -> str:
    """Say which names differ only in what is easily overlooked; empty where none do."""
    by_form: dict[str, list[str]] = {}
    for name in sorted(set(classes)):
        by_form.setdefault(_form(name), []).append(name)
    pairs = [" and ".join(map(_quote, names)) for names in by_form.values() if names[1:]]
    if not pairs:
        return ""
    return (
        f"{join_some(pairs)} are different classes, though their names differ only in case, "
        "blanks, punctuation, zeros, hidden characters or the mark of a copy; rename them if "
        "they are one class"
    )


def describe_doubtful(classes: Collection[str]) -> list[str]:
    """Say which classes stand for no label, or for several ones; nothing where none do."""
    names = set(classes)
    empty = sorted(name for name in names if name.lower() in _NO_VALUE)
    joined = sorted(name for name in names if _is_joined(name, names))
    lines = []
    if empty:
        lines.append(
            f"of the classes, {quoted(empty)} may stand for no label: programs write that for an "
            "empty cell; leave out these images if they have none"
        )
    if joined:
        lines.append(
            f"of the classes, {quoted(joined)} may be several labels: parts of these names are "
            "classes too; an image has one class"
        )
    return lines


def warn_of_names(where: str, classes: Collection[str]) -> None:
    """Log what is odd about the names of classes, once."""
    for line in (describe_similar(classes), *describe_doubtful(classes)):
        if line:
            warn_once(f"{where}: {line}")


@cache
def warn_once(line: str) -> None:
    """Log a line, once in each process: a study opens its images several times."""
    logger.warning("%s", line)


def _quote(name: str) -> str:
    return repr(printable(name[:200]))


def _is_joined(name: str, names: Collection[str]) -> bool:
    """Tell whether a name consists of those of other classes."""
    listed = re.split(r"\s*[,;|+]\s*", name)
    words = re.split(r"\s*[/&]\s*|\s+|_and_", name)
    is_list = len(listed) > 1 and all(listed) and any(part in names for part in listed)
    return is_list or (len(words) > 1 and all(part in names for part in words))


def _form(name: str) -> str:
    """Return a name without what is easily overlooked, see :func:`describe_similar`."""
    visible = [
        letter
        for letter in normalized(name).casefold()
        if letter != _EMOJI_STYLE and unicodedata.category(letter) != "Cf"
    ]
    text = " ".join(_HYPHEN.sub(" ", "".join(visible)).split())
    text = _ZEROS.sub("", _COPY.sub("", text))
    return text.strip(_PUNCTUATION) or text
