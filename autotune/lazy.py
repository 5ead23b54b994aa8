"""Re-export the public names of a room without importing its modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def attach(package: str, homes: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any]]:
    """Return ``__all__`` and ``__getattr__`` of a package whose names are loaded on first use.

    Args:
        package: Name of the package.
        homes: Public name -> module below the package, with ``:name`` where the module uses
            another name.

    Example:
        >>> from autotune.storage import redact
        >>> redact("postgresql://me:secret@db/studies")
        'postgresql://me:***@db/studies'
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, original = homes[name].partition(":")
        return getattr(import_module(f"{package}.{module}"), original or name)

    return sorted(homes), load
