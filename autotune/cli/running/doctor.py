"""``autotune doctor``: check a study, and repair it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from autotune.display import console
from autotune.errors import SchemaError
from autotune.text import format_bytes, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autotune.study.doctor.collect import Evidence
    from autotune.study.doctor.finding import Finding


def doctor(
    study: console.ExistingArgument = "digits",
    overrides: console.Overrides = None,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
    files: console.FilesOption = None,
    fix: Annotated[bool, typer.Option("--fix", help="Repair what can be repaired.")] = False,
) -> None:
    """Report what is wrong with a study; changes nothing without --fix.

    Exit code 0: nothing is wrong, or all of it was repaired. 1: something remains.
    """
    located = console.locate(study, overrides, name, storage)
    from autotune.study.doctor.checks import check_study, repair
    from autotune.study.doctor.finding import Finding, FindingKind
    from autotune.study.setup.opening import open_existing

    stdout = console.stdout()
    try:
        opened = open_existing(located.name, located.storage, files or located.files)
    except SchemaError as error:
        finding = Finding(FindingKind.SCHEMA, str(error))
        _print_findings(stdout, located.name, [finding], fix=fix)
        raise typer.Exit(1) from None
    diagnosis = check_study(opened)
    if fix and any(finding.is_fixable for finding in diagnosis.findings):
        _print_findings(stdout, opened.name, diagnosis.findings, fix=True)
        for line in repair(opened, diagnosis.findings):
            stdout.print(f"done: {line}")
        stdout.print()
        diagnosis = check_study(opened)
    _print_findings(stdout, opened.name, diagnosis.findings, fix=fix)
    if diagnosis.evidence is not None:
        stdout.print(_describe_evidence(diagnosis.evidence), style="dim")
    if diagnosis.findings:
        raise typer.Exit(1)


def _print_findings(stdout: Console, name: str, findings: Sequence[Finding], *, fix: bool) -> None:
    count = plural(len(findings), "finding") if findings else "nothing is wrong"
    stdout.print(f"study {name}: {count}")
    for finding in findings:
        stdout.print(Text(finding.kind, style="bold red"))
        stdout.print(_indent(stdout, Text(finding.message)))
        if finding.is_fixable and not fix:
            stdout.print(_indent(stdout, Text(f"--fix: {finding.fix}", style="green")))


def _indent(stdout: Console, text: Text) -> RenderableType:
    """Indent a text; without a terminal it is one line, which padding would cut."""
    return Text.assemble("  ", text) if stdout.soft_wrap else Padding(text, (0, 0, 0, 2))


def _describe_evidence(evidence: Evidence) -> str:
    """Return what was checked, and what could not be."""
    snapshot = evidence.snapshot
    parts = [
        f"{plural(len(snapshot.trials), 'trial')} ({len(snapshot.running)} running)",
        f"a database of {format_bytes(evidence.database_bytes)}",
    ]
    if evidence.root is None:
        parts.append("no files: their folder is not on this machine (give it with --files)")
    else:
        size = format_bytes(sum(artifact.size_bytes for artifact in evidence.artifacts))
        parts += [
            f"{plural(len(evidence.artifacts), 'artifact')} ({size})",
            plural(len(evidence.checkpoints), "checkpoint"),
        ]
    parts += [f"{format_bytes(disk.free_bytes)} free for {disk.what}" for disk in evidence.disks]
    return f"checked: {', '.join(parts)}"
