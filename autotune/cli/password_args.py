"""Taking passwords off the command line, which every user of the machine can read with ``ps``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from autotune.errors import hide_passwords

#: Options with storage URLs, and the environment variables that say the same.
VARIABLES = {
    "--storage": "AUTOTUNE_STORAGE",
    "--from": "AUTOTUNE_STORAGE_FROM",
    "--to": "AUTOTUNE_STORAGE_TO",
}


def conceal_passwords() -> None:
    """Start the command anew, in the same process, with its passwords in the environment.

    A study runs for days. What remains is the moment before, and the history of the shell.
    """
    kept, moved = without_passwords(sys.argv[1:])
    start = len(sys.orig_argv) - len(sys.argv[1:])
    if moved and sys.orig_argv[start:] == sys.argv[1:]:  # not inside of another program
        os.execve(sys.executable, [*sys.orig_argv[:start], *kept], {**os.environ, **moved})


def without_passwords(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Take the storage URLs that have a password out of the arguments of the command.

    Args:
        arguments: Its arguments.

    Returns:
        The other arguments, and what has to be in the environment instead.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    left = list(arguments[:end])
    kept: list[str] = []
    urls: dict[str, str] = {}  # the last one counts
    while left:
        one = left.pop(0)
        name, equals, url = one.partition("=")
        if name in VARIABLES and (equals or left):
            urls[name] = url if equals else left.pop(0)
        else:
            kept.append(one)
    secret = {name for name, url in urls.items() if hide_passwords(url) != url}
    for name in urls.keys() - secret:
        kept += [name, urls[name]]
    return [*kept, *arguments[end:]], {VARIABLES[name]: urls[name] for name in secret}
