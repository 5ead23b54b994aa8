"""``autotune cp``: copy a preset to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.atomic import write_text
from autotune.config.loading import presets
from autotune.display import console
from autotune.errors import StudyError, did_you_mean, join_sentences, place_as_user_error
from autotune.text import shell_quote


def cp(
    preset: Annotated[str, typer.Argument(help="A preset's name, see 'autotune ls'.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
) -> None:
    """Copy a preset with its comments to a new file."""
    paths = presets()
    if preset not in paths:
        raise StudyError(
            join_sentences(
                f"there is no preset {preset!r}; there are {', '.join(paths)}",
                did_you_mean(preset, paths),
            )
        )
    if target.is_dir():
        target = target / f"{preset}.yaml"
    if target.exists():
        raise StudyError(f"the file {target} exists and is not overwritten; name another one")
    console.check_writable(str(target))
    with place_as_user_error(target):
        write_text(target, paths[preset].read_text(encoding="utf-8"))
    console.stdout().print(f"{target}: run it with: autotune run {shell_quote(str(target))}")
