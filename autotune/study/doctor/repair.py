"""Repairing what the doctor found: requeueing by the one failure policy, removing orphans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autotune.storage.artifacts import read_references
from autotune.storage.rdb.connection import storage_errors
from autotune.study.doctor.collect import take_snapshot
from autotune.study.doctor.finding import Finding, FindingKind
from autotune.study.setup.opening import OpenStudy


def repair(handle: OpenStudy, findings: Iterable[Finding]) -> list[str]:
    """Repair what the doctor has found, and return what was done, or why not, a line each.

    Everything is looked at again before it is changed: a worker may have come back.
    """
    fixable = [finding for finding in findings if finding.is_fixable]
    lost = [finding.trial for finding in fixable if finding.trial is not None]
    with storage_errors(handle.url):
        done = _requeue(handle, lost) if lost else []
        if lost or any(finding.kind == FindingKind.ENDED for finding in fixable):
            handle.trial_queue().reopen()
        done += [_remove_files(handle, finding) for finding in fixable if finding.files]
    return done


def _requeue(handle: OpenStudy, numbers: Sequence[int]) -> list[str]:
    handle.trial_queue().reclaim_stale()
    running = {trial.number for trial in take_snapshot(handle).running}
    return [
        f"trial {number} "
        + ("runs again: its worker came back" if number in running else "was requeued")
        for number in numbers
    ]


def _remove_files(handle: OpenStudy, finding: Finding) -> str:
    """Remove files; an artifact that something refers to by now stays."""
    referred = {item.artifact for item in read_references(handle.storage)}
    removed, problems = 0, []
    for file in finding.files:
        if finding.kind == FindingKind.ORPHANS and file.path.name in referred:
            continue
        try:
            file.path.unlink(missing_ok=True)
            removed += 1
        except OSError as error:
            problems.append(f"; {file.path} stays: {error.strerror}")
    return f"{finding.kind}: {removed} removed" + "".join(problems[:1])
