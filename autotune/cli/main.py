"""The command ``autotune``: its verbs and its exit codes."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Any, NoReturn

import typer
from rich.text import Text
from typer.core import TyperGroup

from autotune.cli.resources import cp, data, du, gc, layers, ls, rename, rm, storage, weights
from autotune.cli.results import (
    best,
    compare,
    confirm,
    dashboard,
    export,
    predict,
    refit,
    report,
    reproduce,
)
from autotune.cli.running import doctor, enqueue, run, status, stop, validate, worker
from autotune.cli.sigint import interrupt_between_imports
from autotune.config.old_names import REMOVED_IN
from autotune.display import console
from autotune.errors import AutotuneError, hide_passwords, place_error
from autotune.runtime import fast_exit, raise_gc_threshold
from autotune.text import guard_standard_error

#: Old name of a verb -> its new name.
_OLD_VERBS = {"fit": "refit", "rerun": "reproduce"}


class _Verbs(TyperGroup):
    """Accept the old name of a verb, with a warning that has the new one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if new := _OLD_VERBS.get(args[0]):
            _warn(f"'autotune {args[0]}' is now called 'autotune {new}'; {_UNTIL}")
            args = [new, *args[1:]]
        return super().resolve_command(ctx, args)


_UNTIL = f"the old name works until autotune {REMOVED_IN}"

app = console.verb_group(
    "Find out by experiment which layers of a pretrained vision backbone to re-train.",
    cls=_Verbs,
    name="autotune",
    pretty_exceptions_enable=False,
)

for _verb in (
    run.run,
    worker.worker,
    status.status,
    stop.stop,
    enqueue.enqueue,
    doctor.doctor,
    best.best,
    compare.compare,
    report.report,
    dashboard.dashboard,
    confirm.confirm,
    reproduce.reproduce,
    refit.refit,
    predict.predict,
    export.export,
    layers.layers,
    ls.ls,
    rename.rename,
    rm.rm,
    du.du,
    gc.gc,
    cp.cp,
    validate.validate,
):
    app.command()(_verb)
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
    stderr = console.stderr(soft_wrap=True)
    stderr.print(Text.assemble(("warning:", "yellow"), f" {text}"))


def main() -> None:
    """Run the command; an error of the user ends in one message, without a traceback."""
    interrupt_between_imports()
    targets = [argument for argument in sys.argv[1:] if argument.startswith("notify=")]
    if any(target.startswith("notify=http") for target in targets):
        _warn(
            "every user of this machine can read the address on the command line; write it as "
            "'notify:' into a study file"
        )
    others = [argument for argument in sys.argv[1:] if argument not in targets]
    if any(hide_passwords(argument) != argument for argument in others):
        _warn(
            "every user of this machine can read a password on the command line; give the URL in "
            "AUTOTUNE_STORAGE, or the password in ~/.pgpass"
        )
    try:
        app(prog_name="autotune")  # also as python -m autotune
    except AutotuneError as error:
        sys.exit(console.fail(error))
    except OSError as error:
        problem = place_error(error)
        if problem is None:
            raise
        sys.exit(console.fail(problem))
    except KeyboardInterrupt:
        sys.exit(130)


def process() -> NoReturn:
    """Run the command as the process ``autotune``."""
    raise_gc_threshold()
    guard_standard_error()
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal in Latin-1 has no arrows and squares
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except SystemExit as end:
        fast_exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    fast_exit(0)
