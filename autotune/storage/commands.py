"""Commands that autotune prints: each can be pasted into the shell that it was called from.

Where make was used, they are make's. They name a storage only where the shell does not.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from autotune.config.schema import StudyConfig
from autotune.errors import StorageError
from autotune.storage.url import absolute_url, database_path, is_sqlite, redact
from autotune.text import relative_path, shell_quote

#: Environment variable with the storage that a command uses.
STORAGE = "AUTOTUNE_STORAGE"
#: Set by the Makefile: ``1``, or ``STORAGE`` where that is a variable on make's command line.
MAKE = "AUTOTUNE_MAKE"


def study_command(verb: str, study: str, url: str) -> str:
    """Return the command of a verb for an existing study."""
    make = os.environ.get(MAKE)
    # Other names make would not pass on as they are.
    is_usual = bool(study.strip()) and study.isprintable() and not study.startswith("-")
    if make and is_usual:
        storage = "" if is_named(url) else f" STORAGE={_quoted_url(url)}"
        return f"make {verb} STUDY={shell_quote(study)}{storage}"
    return command_line(program(), verb, study, storage_option(url))


def command_line(program: str, verb: str, study: str, options: str = "") -> str:
    """Join a program, a verb, the name of a study and options, which are quoted already."""
    if study.startswith("-"):
        return f"{program} {verb}{options} -- {shell_quote(study)}"
    return f"{program} {verb} {shell_quote(study)}{options}"


def storage_option(url: str) -> str:
    """Return the option that names a storage; empty where that is the one without it."""
    return "" if is_named(url) else f" --storage {_quoted_url(url)}"


def full_storage_option(url: str) -> str:
    """Return the option that names a storage, for a reader who may be in another folder.

    It is left out where the environment names the storage. A password is replaced by ``***``.
    """
    if not url or (os.environ.get(STORAGE) and is_named(url)):
        return ""
    return f" --storage {shell_quote(redact(url))}"


def is_named(url: str) -> bool:
    """Tell whether a command of the user's shell uses a storage without naming it."""
    # Given to make alone, the shell does not have it.
    given = "" if os.environ.get(MAKE) == "STORAGE" else os.environ.get(STORAGE, "")
    default = str(StudyConfig.model_fields["storage"].default)
    with suppress(StorageError):
        return absolute_url(given or default) == absolute_url(url)
    return False


def program() -> str:
    """Return how this program was called, as a user would type it."""
    called = Path(sys.argv[0])
    if called.suffix == ".py":  # python -m autotune
        return "autotune"
    if shutil.which(called.name) == str(called):
        return shell_quote(called.name)
    return shell_quote(relative_path(called))


def _quoted_url(url: str) -> str:
    text = redact(url)
    if is_sqlite(url):
        text = f"sqlite:///{relative_path(database_path(url))}"
    return shell_quote(text)
