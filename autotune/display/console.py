"""What all verbs share: consoles, messages, arguments, and how a study is located."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from autotune import atomic
from autotune.config.loading import find_study_file, is_override, load_study_file, presets
from autotune.config.schema import NAME_RULE, RefitConfig, StudyConfig
from autotune.display.status import PlainStatus
from autotune.errors import (
    AutotuneError,
    ConfigError,
    ModelError,
    StorageError,
    StudyError,
    UserError,
)
from autotune.text import relative_path, visible

if TYPE_CHECKING:
    from autotune.study.setup.opening import OpenStudy

#: A word that may be given instead of the number of a trial.
Word = TypeVar("Word", Literal["best"], Literal["cheapest"])
#: Where studies are kept if nothing else is said.
DEFAULT_STORAGE: str = StudyConfig.model_fields["storage"].default

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


WorkersOption = Annotated[
    int | None, typer.Option(help="Workers; default: one per GPU, or 2 on the CPU.")
]
GpusOption = Annotated[
    str | None, typer.Option(help="'all', 'none', or indices such as 0,2. Default: all.")
]
WorkersPerGpuOption = Annotated[
    int | None, typer.Option(help="Workers that share a GPU, instead of --workers.")
]
StudiesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="STUDY",
        help="Names of studies or presets, or study files; KEY=VALUE replaces values of these.",
    ),
]
FilesOption = Annotated[
    str | None, typer.Option(help="Folder of the study's files, where it is mounted here.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelArgument = Annotated[
    str,
    typer.Argument(
        help="Folder of a model, or the study that 'autotune refit' has trained it for."
    ),
]
ModelOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Values that replaced those of the study's file."
    ),
]


def verb_group(text: str, **options: Any) -> typer.Typer:
    """Return an empty group of verbs that shows its help where none is named."""
    names = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(help=text, no_args_is_help=True, context_settings=names, **options)


class VisibleConsole(Console):
    """A console that prints text as it is, without markup, highlighting and escape sequences.

    All output of autotune to a terminal goes through one. Control codes of rich (to move the
    cursor) and styles pass. A text is one line, because a line break in a name would make the rest
    look like a message of autotune: print texts of several lines with :func:`lines_of_text`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as rich does, and escape what would act on the terminal."""
        for segment in super().render(_as_line(renderable), options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    def status(self, status: RenderableType, **options: Any) -> PlainStatus:
        """Show a spinner with a text that is not markup."""
        return PlainStatus(status, console=self, **options)


def _as_line(renderable: RenderableType) -> RenderableType:
    """Escape the line breaks of a text, or of the cells of a table."""
    if isinstance(renderable, str):
        return renderable.replace("\n", "\\n")
    if isinstance(renderable, Text) and "\n" in renderable.plain:
        return renderable.blank_copy("\\n").join(renderable.split("\n", allow_blank=True))
    if isinstance(renderable, Table):  # before rich measures its columns
        for column in renderable.columns:
            column._cells = [_as_line(cell) for cell in column._cells]
            column.header = _as_line(column.header)
    return renderable


def lines_of_text(text: str) -> Group:
    """Return what prints a text of several lines; names in it must not have line breaks."""
    return Group(*map(Text, text.split("\n")))


def stdout() -> VisibleConsole:
    """Return the console for results."""
    return VisibleConsole(soft_wrap=not sys.stdout.isatty())


def stderr(**options: Any) -> VisibleConsole:
    """Return the console for messages and progress, on standard error."""
    return VisibleConsole(stderr=True, **options)


def plain_console() -> VisibleConsole:
    """Return a console that writes lines of text, also in a notebook."""
    return VisibleConsole(soft_wrap=True, force_terminal=False, force_jupyter=False)


def open_live(console: Console, **options: Any) -> AbstractContextManager[Live | None]:
    """Return a display that is redrawn in place; ``None`` where the output is no terminal."""
    if not console.is_terminal:
        return nullcontext()
    return Live(console=console, auto_refresh=False, **options)


def fail(error: AutotuneError) -> int:
    """Print an error to standard error and return its exit code."""
    output = stderr(soft_wrap=True)
    first, *others = str(error).split("\n")
    output.print(Text.assemble(("error:", "bold red"), f" {first}"))
    for line in others:  # indented: a line break in a name cannot imitate a message
        output.print(line if line.startswith("  ") else f"  {line}")
    return error.exit_code


def load(
    study: str, overrides: Sequence[str] | None, name: str | None, storage: str | None
) -> StudyConfig:
    """Load a study file with the overrides, the name and the storage of the command line."""
    given = _all_overrides(overrides, storage)
    if name is None or NAME_RULE.fullmatch(name):
        return load_study_file(study, given, name)
    config = load_study_file(study, given)
    if not _has_study(name, config.storage):
        return load_study_file(study, given, name)  # which says how a new study may be called
    return config.model_copy(update={"name": name})  # renamed in the dashboard


def _has_study(name: str, storage: str) -> bool:
    """Tell whether a storage has a study; false where it cannot be read."""
    from autotune.study.setup.manifest_store import find_study

    with suppress(AutotuneError):
        return find_study(name, storage) is not None
    return False


def load_checked(
    study: str, overrides: Sequence[str] | None, name: str | None, storage: str | None
) -> StudyConfig:
    """Load a study file to run it.

    Raises:
        ConfigError: With every mistake of the file and of what it names.
    """
    try:
        return load(study, overrides, name, storage)
    except ConfigError as error:
        from autotune.display.config_errors import with_later_problems

        given = _all_overrides(overrides, storage)
        raise with_later_problems(error, study, given, name) from None


def load_seeds(
    study: str,
    overrides: Sequence[str] | None,
    name: str | None,
    storage: str | None,
    seeds: int,
) -> list[StudyConfig]:
    """Load a study file once for each seed, from that of the file on.

    The studies have the name of the study with ``-seed0`` and so on.
    """
    first = load_checked(study, overrides, name, storage)
    return [
        load_checked(
            study,
            [*(overrides or ()), f"search.seed={seed}"],
            f"{first.name}-seed{seed}",
            storage,
        )
        for seed in range(first.search.seed, first.search.seed + seeds)
    ]


def _all_overrides(overrides: Sequence[str] | None, storage: str | None) -> list[str]:
    return [*(overrides or ()), *([f"storage={storage}"] if storage else [])]


@dataclass(frozen=True)
class Located:
    """Where a study is.

    Args:
        files: Folder of its files, where the study file names one.
        refit: How its final fit trains, where there is a study file.
        max_unreadable_share: Limit of unreadable images that the study file gives.
    """

    name: str
    storage: str
    files: str | None
    refit: RefitConfig | None = None
    max_unreadable_share: float = 0.0


def locate(
    study: str, overrides: Sequence[str] | None, name: str | None, storage: str | None
) -> Located:
    """Locate a study by a preset, a study file or its name.

    Raises:
        UserError: When there are overrides, but no study file.
    """
    try:
        find_study_file(study)
    except StudyError:
        is_other = "/" in study or study.endswith((".yaml", ".yml")) or is_override(study)
        if overrides or (is_other and not _has_study(name or study, storage_url(storage))):
            raise
        return Located(name or study, storage_url(storage), None)
    config = load(study, overrides, name, storage)
    assert config.name is not None
    share = config.data.max_unreadable_share
    return Located(config.name, config.storage, config.files, config.refit, share)


def locate_all(arguments: Sequence[str], name: str | None, storage: str | None) -> list[Located]:
    """Locate studies, each named once; arguments that are no study replace values of their files.

    Raises:
        UserError: When there is none or one of them twice, or a name for several.
    """
    studies: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        is_study = "=" not in argument or (
            not is_override(argument) and _has_study(argument, storage_url(storage))
        )
        (studies if is_study else overrides).append(argument)
    if name is not None and len(studies) > 1:
        raise UserError(f"--name is for one study, but got {', '.join(map(repr, studies))}")
    located = [locate(study, overrides, name, storage) for study in studies]
    names = [(each.name, each.storage) for each in located]
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"name at least one study, and each once, but got {', '.join(map(repr, arguments))}"
        )
    return located


@contextmanager
def explain_stop() -> Iterator[None]:
    """Say after an interrupt that the same command continues."""
    try:
        yield
    except KeyboardInterrupt:
        stderr().print("Stopped. What was trained is kept; the same command continues.")
        raise


def storage_url(storage: str | None) -> str:
    """Return the URL of the storage that was given, or of the default one."""
    return storage or DEFAULT_STORAGE


def is_terminal() -> bool:
    """Tell whether somebody can read a question and answer it."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def ask(question: str, is_yes: bool) -> None:
    """Ask before something is removed, unless ``is_yes``.

    Raises:
        UserError: When there is no terminal to ask at.
        typer.Abort: When the answer is no.
    """
    if is_yes:
        return
    if not is_terminal():
        raise UserError("nothing was removed: there is no terminal to ask at; --yes removes it")
    typer.confirm(visible(question), abort=True)


def parse_trial(trial: str | None, word: Word) -> int | Word | None:
    """Read ``--trial``: the number of a trial, or a word.

    Raises:
        UserError: When it is neither.
    """
    if trial is None:
        return None
    if trial == word:
        return word
    if not trial.isascii() or not trial.isdigit():
        raise UserError(f"--trial: must be the number of a trial, or {word!r}, but got {trial!r}")
    return int(trial)


def open_study(
    study: str, overrides: Sequence[str] | None, name: str | None, storage: str | None
) -> OpenStudy:
    """Locate an existing study and open it."""
    located = locate(study, overrides, name, storage)
    from autotune.study.setup.opening import open_existing

    return open_existing(located.name, located.storage, located.files)


def find_model(
    model: str, overrides: Sequence[str] | None, name: str | None, storage: str | None
) -> Path:
    """Return the folder of a model: the folder itself, or where refitting a study has put it.

    Args:
        model: The folder, or a study as for the other verbs. A folder without a model may have
            the name of a study: that of its images.
        overrides: Overrides of the study file.
        name: Name of the study, where it is not that of the file.
        storage: Storage of the study.

    Raises:
        UserError: When there is neither, or the study has not been refitted.
    """
    from autotune.storage.paths import MODEL_RECORD  # imports sqlalchemy

    folder = Path(os.path.expanduser(model))
    is_study = bool(overrides or name)
    if not is_study and (folder / MODEL_RECORD).exists():
        return folder
    if not is_study and folder.is_file() and (folder.parent / MODEL_RECORD).exists():
        raise ModelError(
            f"{model!r} must be the folder of a model, but it is a file of one: give "
            f"{str(folder.parent)!r}"
        )
    try:
        opened = open_study(model, overrides, name, storage)
    except (StudyError, StorageError) as error:
        if is_study or model in presets():
            raise
        if folder.exists() or folder.name != model:
            return folder  # which is no model, as loading it says
        raise ModelError(
            f"{model!r} must be the folder of a model, or a study, but there is no such folder; "
            f"{error}"
        ) from None
    folder = opened.files.model(opened.name)
    if not (folder / MODEL_RECORD).exists():
        raise ModelError(
            f"the study {opened.name!r} has no model in {folder}; 'autotune refit' makes it (make "
            "refit), or name the folder of a model"
        )
    return folder


def refresh_report(opened: OpenStudy, stdout: Console | None = None) -> None:
    """Write the report beside a study anew where there is one, and print its path."""
    from autotune.results.report.formats import refresh_report

    if (path := refresh_report(opened)) and stdout is not None:
        stdout.print(f"report: {relative_path(path)}", soft_wrap=True)


#: Checks of a place before anything is computed for it.
check_writable, check_folder = atomic.check_file, atomic.check_folder


def print_plugins(stdout: Console, config: StudyConfig) -> None:
    """Print which Python files and commands a study file runs, and whom it notifies."""
    from autotune.config.notification import masked
    from autotune.search.plugins import plugin_refs

    if refs := plugin_refs(config):
        files = ", ".join(f"{ref.path} ({key})" for key, ref in refs.items())
        stdout.print(f"this study file runs its own Python: {files}")
    if config.notify is not None:
        stdout.print(f"at its end, a run notifies {masked(config.notify)}", highlight=False)
