"""Data sets that need no path: a name is enough."""

from __future__ import annotations

from collections.abc import Callable

from autotune.data.sources import DigitsSource, Source

_KNOWN: dict[str, Callable[[], Source]] = {"digits": DigitsSource}


def known_names() -> tuple[str, ...]:
    """Return the names of the datasets that need no path."""
    return tuple(sorted(_KNOWN))


def open_known(name: str) -> Source:
    """Open a dataset by its name, one of :func:`known_names`."""
    return _KNOWN[name]()
