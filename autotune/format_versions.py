"""The formats of what autotune stores, and the message where another version has written it.

A study, the model of a fit and the files of a confirmation outlive the process that wrote them,
and another version may read them. Each has the number of its format, which rises with every change
of what is stored. What cannot be read ends in one message: what it is, which version wrote it,
which one this is, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from autotune.errors import FormatError, did_you_mean, join_sentences

STUDY, MODEL, CONFIRMATION = "study", "model", "confirmation"
#: The format of each that this version writes, and the latest that it reads. Raised with every
#: change of what is stored, also with a new key (an earlier version must not drop it silently).
#: ``tests/test_format_versions.py`` holds the names of all fields against these numbers.
FORMATS = {STUDY: 3, MODEL: 1, CONFIRMATION: 2}
#: The user attribute in which a study has what :func:`stamp` returned.
ATTRIBUTE = "format"
#: What raises where values are not those that a reader knows. pydantic's error is a ValueError.
_STRANGE = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def stamp(kind: str) -> dict[str, Any]:
    """Return what is stored to say which version has written something."""
    return {"format": FORMATS[kind], "autotune": version("autotune")}


def check_format(stored: object, kind: str, what: str) -> None:
    """Refuse what a later version has written.

    Args:
        stored: A mapping with what :func:`stamp` returned; anything else was written before there
            were stamps, and is read as far as it can be.
        kind: ``study``, ``model`` or ``confirmation``.
        what: Name of the thing, as the message has it.

    Raises:
        FormatError: When its format is later than the one of this version.
    """
    found = stored.get("format") if isinstance(stored, Mapping) else None
    if isinstance(found, int) and found > FORMATS[kind]:
        by = stored.get("autotune") if isinstance(stored, Mapping) else None
        raise FormatError(unreadable(what, f"it has format {found}", kind, str(by or "")))


@contextmanager
def reading(what: str, kind: str = STUDY, by: str = "") -> Iterator[None]:
    """Turn what is raised by stored values of another version into the one message.

    Args:
        what: Name of what is read, such as ``the plan of trial 3``.
        kind: What it is a part of.
        by: Version of autotune that has written it, if that is known.

    Raises:
        FormatError: In place of what a reader raises.
    """
    try:
        yield
    except FormatError:
        raise
    except _STRANGE as error:
        raise FormatError(unreadable(what, _in_a_line(error), kind, by)) from error


def unreadable(what: str, reason: str, kind: str = STUDY, by: str = "") -> str:
    """Say that something stored cannot be read, by which version it was written, and the way out.

    Args:
        what: Name of what is read.
        reason: Why it cannot be read.
        kind: What it is a part of.
        by: Version of autotune that has written it; empty where that is not known.
    """
    ours = version("autotune")
    writer = f"autotune {by}" if by and by != ours else "another version of autotune"
    use = f"autotune {by}" if by and by != ours else "the version that wrote it"
    return (
        f"{what} was written by {writer}, and cannot be read ({reason}); this is autotune {ours}, "
        f"which reads the format {FORMATS[kind]} of a {kind}; use {use}, or a later one"
    )


def refuse_unknown(values: Iterable[str], fields: Iterable[str], where: str) -> None:
    """Refuse a stored field that this version does not have: it may not be dropped.

    Raises:
        TypeError: With the first of them.
    """
    known = list(fields)
    for name in values:
        if name not in known:
            raise TypeError(
                join_sentences(f"{where} has no {name!r}", did_you_mean(str(name), known))
            )


def _in_a_line(error: BaseException) -> str:
    text = f"no {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())[:200]
