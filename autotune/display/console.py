"""What all verbs share at the terminal: messages, arguments, and which study is meant."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from autotune.config.loading import find_study_file, load_study_file
from autotune.config.schema import RefitConfig, StudyConfig
from autotune.data.progress import COUNTED_STEPS
from autotune.errors import AutotuneError, ConfigError, StudyError, UserError
from autotune.text import visible

StudyArgument = Annotated[
    str, typer.Argument(help="A preset's name (see 'autotune ls') or the path of a study file.")
]
ExistingArgument = Annotated[
    str,
    typer.Argument(help="A study's name, a preset's name, or the path of a study file."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Values that replace those of the file."),
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name of the study; default: that of the file.")
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        envvar="AUTOTUNE_STORAGE",
        help="Storage URL: sqlite:///file.db or postgresql://user:password@host/database. Give "
        "a password in the environment or in ~/.pgpass: others can read the command line.",
        show_envvar=True,
    ),
]


class VisibleConsole(Console):
    """A console that shows texts and obeys none: neither markup nor escape sequences in them.

    All that autotune writes to a terminal goes through one. What rich itself sends to move the
    cursor, and styles, are no texts. A text is one line, because a line break in a name would make
    what follows look like a message of autotune: texts of several lines are printed with
    :func:`lines_of_text`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as rich does, and make visible what would act on the terminal."""
        for segment in super().render(_in_a_line(renderable), options):
            if segment.control:
                yield segment
            else:
                yield segment._replace(text=visible(segment.text))

    def status(self, status: RenderableType, **options: Any) -> Status:
        """Show what goes on, without taking a text for markup."""
        return _PlainStatus(status, console=self, **options)


class _PlainStatus(Status):
    """A status whose texts are no markup, which rich would make of any string."""

    def __init__(self, status: RenderableType, **options: Any) -> None:
        super().__init__(Text(status) if isinstance(status, str) else status, **options)

    def update(
        self,
        status: RenderableType | None = None,
        *,
        spinner: str | None = None,
        spinner_style: StyleType | None = None,
        speed: float | None = None,
    ) -> None:
        super().update(
            Text(status) if isinstance(status, str) else status,
            spinner=spinner,
            spinner_style=spinner_style,
            speed=speed,
        )


def _in_a_line(renderable: RenderableType) -> RenderableType:
    """Return a text with its line breaks written out, a table with those of its cells."""
    if isinstance(renderable, str):
        return renderable.replace("\n", "\\n")
    if isinstance(renderable, Text) and "\n" in renderable.plain:
        return renderable.blank_copy("\\n").join(renderable.split("\n", allow_blank=True))
    if isinstance(renderable, Table):  # here already: a column is as wide as its cells
        for column in renderable.columns:
            column._cells = [_in_a_line(cell) for cell in column._cells]
            column.header = _in_a_line(column.header)
    return renderable


def lines_of_text(text: str) -> Group:
    """Return what prints a text of several lines, none of which has a name with a line break."""
    return Group(*map(Text, text.split("\n")))


def console() -> Console:
    """Return the console for results."""
    return VisibleConsole(soft_wrap=not sys.stdout.isatty())


def error_console(**options: Any) -> Console:
    """Return the console for what is told beside results, on standard error."""
    return VisibleConsole(stderr=True, **options)


def plain_console() -> Console:
    """Return a console that writes lines of text, to a notebook too: its output is no terminal."""
    return VisibleConsole(soft_wrap=True, force_terminal=False, force_jupyter=False)


def fail(error: AutotuneError) -> int:
    """Print an error to standard error and return its exit code."""
    shown = error_console(soft_wrap=True, highlight=False)
    first, *more = str(error).split("\n")
    shown.print(Text.assemble(("error:", "bold red"), f" {first}"))
    for line in more:  # no line break of a name makes a message
        shown.print(Text(line if line.startswith("  ") else f"  {line}"))
    return error.exit_code


def load(
    study: str, overrides: Sequence[str] | None, name: str | None, storage: str | None
) -> StudyConfig:
    """Load a study file with everything the command line says about it."""
    return load_study_file(study, _all_overrides(overrides, storage), name)


def load_checked(
    study: str, overrides: Sequence[str] | None, name: str | None, storage: str | None
) -> StudyConfig:
    """Load a study file that is to be run: where it has mistakes, look for all there are.

    Raises:
        ConfigError: With every mistake of the file and of what it names.
    """
    try:
        return load(study, overrides, name, storage)
    except ConfigError as error:
        from autotune.display.config_errors import with_later_problems

        given = _all_overrides(overrides, storage)
        raise with_later_problems(error, study, given, name) from None


def _all_overrides(overrides: Sequence[str] | None, storage: str | None) -> list[str]:
    if not storage:
        return list(overrides or ())
    quoted = storage.replace("'", "''")
    return [*(overrides or ()), f"storage='{quoted}'"]


@dataclass(frozen=True)
class Located:
    """Which study is meant.

    Args:
        name: Name of the study.
        storage: Storage URL.
        files: Folder of its files, where the study file names one.
        refit: How its final fit trains, where there is a study file.
    """

    name: str
    storage: str
    files: str | None
    refit: RefitConfig | None = None


def locate(
    study: str, overrides: Sequence[str] | None, name: str | None, storage: str | None
) -> Located:
    """Find out which study is meant by a preset, a study file or the name of a study.

    Raises:
        UserError: When there are overrides, and no file that they could override.
    """
    try:
        find_study_file(study)
    except StudyError:
        if overrides or "/" in study or study.endswith((".yaml", ".yml")):
            raise
        default = StudyConfig.model_fields["storage"].default
        return Located(name or study, storage or default, None)
    config = load(study, overrides, name, storage)
    assert config.name is not None
    return Located(config.name, config.storage, config.files, config.refit)


def check_writable(path: str | Path) -> None:
    """Refuse an output file that is a folder, or whose folder cannot be written.

    Raises:
        UserError: With the folder.
    """
    if Path(path).is_dir():
        raise UserError(f"{path} must be a file to write, but it is a folder")
    folder = Path(path).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"the folder {folder} must exist and be writable, to write {path}")


def check_folder(path: Path) -> None:
    """Refuse an output folder that cannot be made or written.

    Raises:
        UserError: With what is in the way.
    """
    absolute = path.absolute()
    there = next(one for one in (absolute, *absolute.parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"{there} must be a folder that can be written, to write {path}")


def print_plugins(shown: Console, config: StudyConfig) -> None:
    """Say that a study file runs Python of its own, and from which files."""
    from autotune.search.plugins import plugin_refs

    own = plugin_refs(config)
    if own:
        files = ", ".join(f"{one.path} ({key})" for key, one in own.items())
        shown.print(Text(f"this study file runs its own Python: {files}"))


def describe_image_progress(step: str, done: int, total: int | None) -> str:
    """Say how far the fetching or opening of images is.

    Args:
        step: What is done.
        done: Bytes, or files; 0 where only the step is to be said.
        total: How many there will be, if that is known.
    """
    if not done:
        return step
    counted = step in COUNTED_STEPS
    numbers = [one if counted else one / 1e6 for one in (done, total) if one is not None]
    unit = "" if counted else " MB"
    return f"{step}: {' of '.join(f'{number:,.0f}' for number in numbers)}{unit}"
