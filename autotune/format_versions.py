"""Format numbers of stored data, and the message for data of another version.

Another version may read a study, the model of a refit or the files of a confirmation. Each has a
format number, which rises with every change of the stored fields. The message for unreadable data
names it, the version that wrote it, this version, and the way out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from autotune.errors import FormatError, did_you_mean, join_sentences

STUDY, MODEL, CONFIRMATION = "study", "model", "confirmation"
#: Formats that this version writes, the latest that it reads. Raise them with every change of the
#: stored fields, also for a new key (an earlier version must not drop it silently).
#: ``tests/test_format_versions.py`` compares the names of all fields with these numbers.
FORMATS = {STUDY: 5, MODEL: 2, CONFIRMATION: 3}
#: The user attribute in which a study stores the result of :func:`stamp`.
ATTRIBUTE = "format"
#: Errors of a reader that meets unknown values. pydantic's error is a ValueError.
_READ_ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def stamp(kind: str) -> dict[str, Any]:
    """Return the format and the version of autotune, to be stored with the data."""
    return {"format": FORMATS[kind], "autotune": version("autotune")}


def check_format(stored: object, kind: str, what: str) -> None:
    """Refuse data that a later version has written.

    Args:
        stored: A mapping with the result of :func:`stamp`. Other values are accepted: the first
            versions stored none.
        kind: ``study``, ``model`` or ``confirmation``.
        what: Name of the data, for the message.

    Raises:
        FormatError: When the format is later than that of this version.
    """
    values = stored if isinstance(stored, Mapping) else {}
    number, by = values.get("format"), str(values.get("autotune") or "")
    if isinstance(number, int) and number > FORMATS[kind]:
        raise FormatError(unreadable(what, f"it has format {number}", kind, by))


@contextmanager
def reading(what: str, kind: str = STUDY, by: str = "") -> Iterator[None]:
    """Turn the errors of a reader into the message of :func:`unreadable`.

    Args:
        what: Name of the data, such as ``the plan of trial 3``.
        kind: ``study``, ``model`` or ``confirmation``.
        by: Version of autotune that has written it; empty if unknown.

    Raises:
        FormatError: Instead of the reader's error.
    """
    try:
        yield
    except FormatError:
        raise
    except _READ_ERRORS as error:
        reason = " ".join(f"{'no ' * isinstance(error, KeyError)}{error}".split())[:200]
        raise FormatError(unreadable(what, reason, kind, by)) from error


def unreadable(what: str, reason: str, kind: str = STUDY, by: str = "") -> str:
    """Return the message for stored data that cannot be read; see :func:`reading`."""
    ours = version("autotune")
    writer, use = "another version of autotune", "the version that wrote it"
    if by and by != ours:
        writer = use = f"autotune {by}"
    return (
        f"{what} was written by {writer}, and cannot be read ({reason}); this is autotune {ours}, "
        f"which reads the format {FORMATS[kind]} of a {kind}; use {use}, or a later one"
    )


def refuse_unknown(values: Iterable[str], fields: Iterable[str], where: str) -> None:
    """Raise a TypeError for the first stored field that this version does not have."""
    names = list(fields)
    for name in values:
        if name not in names:
            hint = did_you_mean(str(name), names)
            raise TypeError(join_sentences(f"{where} has no {name!r}", hint))
