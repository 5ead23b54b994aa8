"""``autotune doctor``: what is wrong with a study, and what can be put right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from autotune.display.console import (
    ExistingArgument,
    NameOption,
    Overrides,
    StorageOption,
    console,
    locate,
)
from autotune.errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autotune.study.doctor.checks import Finding
    from autotune.study.doctor.collect import Evidence


def doctor(
    study: ExistingArgument = "digits",
    overrides: Overrides = None,
    name: NameOption = None,
    storage: StorageOption = None,
    files: Annotated[
        str | None, typer.Option(help="Folder of the study's files, where it is mounted here.")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Put right what can be.")] = False,
) -> None:
    """Say what is wrong with a study; changes nothing without --fix.

    Exit code 0: all is well, or was put right. 1: something remains.
    """
    located = locate(study, overrides, name, storage)
    from autotune.study.doctor.checks import Finding, FindingKind, check_study
    from autotune.study.doctor.repair import repair
    from autotune.study.setup.opening import open_existing

    shown = console()
    try:
        opened = open_existing(located.name, located.storage, files or located.files)
    except SchemaError as error:
        _print_findings(shown, located.name, [Finding(FindingKind.SCHEMA, str(error))], fix=fix)
        raise typer.Exit(1) from None
    diagnosis = check_study(opened)
    if fix and any(one.is_fixable for one in diagnosis.findings):
        _print_findings(shown, opened.name, diagnosis.findings, fix=True)
        for line in repair(opened, diagnosis.findings):
            shown.print(Text(f"done: {line}"))
        shown.print()
        diagnosis = check_study(opened)
    _print_findings(shown, opened.name, diagnosis.findings, fix=fix)
    if diagnosis.evidence is not None:
        shown.print(Text(_looked_at(diagnosis.evidence), style="dim"))
    if diagnosis.findings:
        raise typer.Exit(1)


def _print_findings(console: Console, name: str, found: Sequence[Finding], *, fix: bool) -> None:
    if not found:
        console.print(Text(f"study {name}: nothing is wrong"))
        return
    many = "s" if len(found) != 1 else ""
    console.print(Text(f"study {name}: {len(found)} finding{many}"))
    for one in found:
        console.print(Text(one.kind, style="bold red"))
        console.print(Padding(Text(one.message), (0, 0, 0, 2)))
        if one.is_fixable and not fix:
            console.print(Padding(Text(f"--fix: {one.fix}", style="green"), (0, 0, 0, 2)))


def _looked_at(evidence: Evidence) -> str:
    """Say what was looked at, and what could not be."""
    snapshot = evidence.snapshot
    parts = [
        f"{len(snapshot.trials)} trials ({len(snapshot.running)} running)",
        f"a database of {evidence.database_bytes / 2**20:,.1f} MB",
    ]
    if evidence.root is None:
        parts.append("no files: their folder is not on this machine (give it with --files)")
    else:
        size = sum(one.size_bytes for one in evidence.artifacts) / 2**20
        parts += [
            f"{len(evidence.artifacts)} artifacts ({size:,.1f} MB)",
            f"{len(evidence.checkpoints)} checkpoints",
        ]
    parts += [f"{one.free_bytes / 2**30:,.1f} GB free for {one.what}" for one in evidence.disks]
    return f"looked at: {', '.join(parts)}"
