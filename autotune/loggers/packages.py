"""The packages of the loggers, which are extras of autotune, and their errors."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from autotune.errors import AutotuneError, UserError, hide_passwords, shorten
from autotune.text import one_line


def import_extra(module: str, logger: str) -> Any:
    """Import a module of the package that a logger needs.

    Args:
        module: Its dotted name.
        logger: Name of the logger, which is that of the extra too.

    Raises:
        UserError: When the package is missing or broken, with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        is_missing = isinstance(error, ModuleNotFoundError)
        reason = "" if is_missing else f" (its import fails: {error})"
        name = logger if package in ("torch", logger) else package
        raise UserError(
            f"loggers: {logger} needs the package {name}{reason}: pip install "
            f"'autotune[{logger}]'; without it, leave {logger} out of 'loggers'"
        ) from None


def describe(error: BaseException) -> str:
    """Describe an error in one line without passwords."""
    if isinstance(error, AutotuneError):
        return one_line(hide_passwords(str(error)))
    text = one_line(" ".join(str(error).split()))
    return shorten(hide_passwords(f"{type(error).__name__}: {text}" if text else repr(error)))
