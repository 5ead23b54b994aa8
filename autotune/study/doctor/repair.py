"""Putting right what the doctor found, by the one failure policy and by removing orphans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optuna.trial import TrialState

from autotune.storage.artifacts import read_references
from autotune.storage.rdb.connection import storage_errors
from autotune.study.doctor.finding import ENDED, ORPHANS, Finding
from autotune.study.doctor.snapshot import take_snapshot
from autotune.study.setup.opening import OpenStudy
from autotune.study.state.trial_queue import TrialQueue


def repair(opened: OpenStudy, findings: Iterable[Finding]) -> list[str]:
    """Put right what can be.

    Everything is looked at once more before it is changed: a worker may have come back.

    Args:
        opened: The study.
        findings: What :func:`~autotune.study.doctor.checks.examine` has found.

    Returns:
        What was done, or why not, a line each.
    """
    fixable = [one for one in findings if one.is_fixable]
    done = []
    with storage_errors(opened.url):
        if lost := [one.trial for one in fixable if one.trial is not None]:
            done += _give_back(opened, opened.trial_queue(), lost)
        if any(one.kind == ENDED for one in fixable) or lost:
            opened.trial_queue().reopen()
        for finding in fixable:
            if finding.files:
                done.append(_remove(opened, finding))
    return done


def _give_back(opened: OpenStudy, claims: TrialQueue, lost: Sequence[int]) -> list[str]:
    claims.reclaim_stale()
    trials = take_snapshot(opened).trials
    running = {one.number for one in trials if one.state == TrialState.RUNNING}
    return [
        f"trial {number} "
        + ("runs again: its worker came back" if number in running else "was given back")
        for number in lost
    ]


def _remove(opened: OpenStudy, finding: Finding) -> str:
    """Remove files; an artifact that is somebody's by now stays."""
    kept = {one.artifact for one in read_references(opened.storage)}
    removed, problems = 0, []
    for file in finding.files:
        if finding.kind == ORPHANS and file.path.name in kept:
            continue
        try:
            file.path.unlink(missing_ok=True)
            removed += 1
        except OSError as error:
            problems.append(f"; {file.path} stays: {error.strerror}")
    return f"{finding.kind}: {removed} removed" + "".join(problems[:1])
