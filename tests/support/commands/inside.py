"""Running the command inside this process: all of it but the start of Python and its imports."""

from __future__ import annotations

import functools
import hashlib
import io
import signal
import sys
from collections.abc import Iterator
from contextlib import (
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
)
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main

from autotune.cli.main import main

#: Typer reads the signatures of all verbs whenever the command is called.
get_command = functools.cache(typer.main.get_command)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def call(*arguments: str, cwd: Path, processes: bool = False, **extra: str) -> Ended:
    """Run the command to its end; what is no exit, a traceback that is, is raised here.

    Args:
        arguments: What follows ``autotune``.
        cwd: The folder to run it in.
        processes: Whether workers are processes, and not threads of this one.
        extra: Changes of the environment.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        _shortcuts(arguments[0], processes) if arguments else nullcontext(),
        _same_signals(),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        patch.chdir(cwd)
        patch.delenv("AUTOTUNE_STORAGE", raising=False)
        for name, value in {"COLUMNS": "200", **extra}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["autotune", *arguments])
        patch.setattr(typer.main, "get_command", get_command)
        main()
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())


@contextmanager
def _shortcuts(verb: str, processes: bool) -> Iterator[None]:
    with ExitStack() as stack:
        if verb in ("run", "validate", "layers", "confirm", "refit", "reproduce"):
            from tests.support.study.small import backbones_analyzed_once  # imports torch

            stack.enter_context(backbones_analyzed_once())
        if verb in ("run", "confirm", "refit") and not processes:
            from tests.support.commands.inline import workers_inline

            stack.enter_context(workers_inline())
        yield


@contextmanager
def _same_signals() -> Iterator[None]:
    """Put back the handlers of signals, which some commands change."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def contents(folder: Path) -> dict[str, str]:
    """List a folder with a digest of every file; SQLite's scratch files do not count."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name.endswith(("-wal", "-shm")):
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(folder))] = digest
    return found
