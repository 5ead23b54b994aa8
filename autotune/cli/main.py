"""The command ``autotune``: its verbs, and how errors end."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import typer
from rich.text import Text
from typer.core import TyperGroup

from autotune.cli.resources import cp, data, layers, ls, storage, weights
from autotune.cli.results import (
    best,
    confirm,
    dashboard,
    export,
    predict,
    refit,
    report,
    reproduce,
)
from autotune.cli.running import doctor, run, status, validate, worker
from autotune.cli.sigint import interrupt_between_imports
from autotune.config.old_names import REMOVED_IN
from autotune.display.console import error_console, fail
from autotune.errors import AutotuneError, hide_passwords
from autotune.runtime import fast_exit, raise_gc_threshold
from autotune.text import guard_standard_error

#: Old name of a verb -> its new name.
_OLD_VERBS = {"fit": "refit", "rerun": "reproduce"}


class _Verbs(TyperGroup):
    """Accept a verb under its old name, with one line that tells the new one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if new := _OLD_VERBS.get(args[0]):
            _warn(f"'autotune {args[0]}' is now called 'autotune {new}'; {_UNTIL}")
            args = [new, *args[1:]]
        return super().resolve_command(ctx, args)


_UNTIL = f"the old name works until autotune {REMOVED_IN}"

app = typer.Typer(
    cls=_Verbs,
    name="autotune",
    help="Find out by experiment which layers of a pretrained vision backbone to re-train.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("run")(run.run)
app.command("worker")(worker.worker)
app.command("status")(status.status)
app.command("doctor")(doctor.doctor)
app.command("best")(best.best)
app.command("report")(report.report)
app.command("dashboard")(dashboard.dashboard)
app.command("confirm")(confirm.confirm)
app.command("reproduce")(reproduce.reproduce)
app.command("refit")(refit.refit)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("layers")(layers.layers)
app.command("ls")(ls.ls)
app.command("cp")(cp.cp)
app.command("validate")(validate.validate)
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
app.add_typer(storage.app, name="storage")


@app.callback(invoke_without_command=True)
def version(
    show: bool = typer.Option(False, "--version", help="Show the version and leave."),
) -> None:
    """Find out by experiment which layers of a pretrained vision backbone to re-train."""
    if show:
        from autotune import __version__

        typer.echo(f"autotune {__version__}")
        raise typer.Exit


def _warn(text: str) -> None:
    error_console(soft_wrap=True, highlight=False).print(
        Text.assemble(("warning:", "yellow"), f" {text}")
    )


def main() -> None:
    """Run the command; what a user can get wrong ends in one message, without a traceback."""
    interrupt_between_imports()
    if any(hide_passwords(argument) != argument for argument in sys.argv[1:]):
        _warn(
            "every user of this machine can read a password on the command line; give the URL in "
            "AUTOTUNE_STORAGE, or the password in ~/.pgpass"
        )
    try:
        app(prog_name="autotune")  # also as python -m autotune.cli.main
    except AutotuneError as error:
        sys.exit(fail(error))
    except KeyboardInterrupt:
        sys.exit(130)


def process() -> NoReturn:
    """Be the process of the command."""
    raise_gc_threshold()
    guard_standard_error()
    try:
        main()
    except SystemExit as end:
        fast_exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    fast_exit(0)


if __name__ == "__main__":
    process()
