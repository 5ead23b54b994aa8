"""Passwords of servers that autotune starts: given by the environment, or made once and kept."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from autotune.errors import UserError, place_as_user_error

MIN_CHARACTERS = 12
MAX_BYTES = 72  # bcrypt reads no further


def find_password(variable: str, file: Path) -> tuple[str, str]:
    """Return a password, and in words where it is; it is made where there is none.

    Args:
        variable: Environment variable that may give it.
        file: Where it is kept otherwise, in its own folder, for its owner alone.

    Raises:
        UserError: When it is too short or too long, or others may read its file.
    """
    given = os.environ.get(variable)
    if given is not None:
        return _checked(given, variable), f"that of {variable}"
    with place_as_user_error(file.parent):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as opened:
                opened.write(f"{secrets.token_urlsafe(24)}\n")
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        raise UserError(
            f"{file} must be for its owner alone, but its mode is {mode:o}: others may have read "
            "it; delete it, and another password is made"
        )
    kept = file.read_text("utf-8", errors="surrogateescape").rstrip("\n")
    return _checked(kept, str(file)), f"in {file}"


def _checked(password: str, source: str) -> str:
    size = len(password.encode(errors="surrogateescape"))
    if len(password) < MIN_CHARACTERS or size > MAX_BYTES or not password.isprintable():
        raise UserError(
            f"the password of {source} must have at least {MIN_CHARACTERS} printable characters "
            f"and at most {MAX_BYTES} bytes, but has {len(password)} and {size}"
        )
    return password
