"""What is wrong around a study: its artifacts and checkpoints, clocks and disks."""

from __future__ import annotations

from collections.abc import Iterator

from optuna.trial import FrozenTrial

from autotune import optuna_private
from autotune.storage.artifacts import StoredFile
from autotune.storage.rdb.connection import GRACE_PERIOD_S, HEARTBEAT_INTERVAL_S
from autotune.study.doctor.collect import Evidence, in_words
from autotune.study.doctor.finding import CHECKPOINTS, CLOCK, DISK, MISSING, ORPHANS, Finding
from autotune.study.doctor.snapshot import Snapshot
from autotune.study.state import attrs

#: A file must be older than this to be nobody's: a worker may be about to say whose it is.
ORPHAN_AFTER_S = 3600.0
#: Clocks that are apart by less do no harm.
SKEW_S = 5.0
#: A worker's clock is known from its last heartbeat alone, one beat more or less.
WORKER_SKEW_S = 2.0 * HEARTBEAT_INTERVAL_S
#: Less than this is soon used up by checkpoints and weights.
FREE_BYTES = 1 << 30


def missing_artifacts(evidence: Evidence) -> Iterator[Finding]:
    """Find artifacts that trials of this study refer to, and whose files are not there."""
    if evidence.root is None:
        return
    there = {one.path.name for one in evidence.artifacts}
    # A trial that runs may be about to write the file: Optuna writes the reference first.
    live = {one.number for one in evidence.snapshot.running}
    gone = [
        one
        for one in evidence.own_references
        if one.artifact not in there and one.trial not in live
    ]
    folder = evidence.root / "artifacts"
    way_out = "bring the folder back from a backup, or name it with --files"
    of_study = sorted({one.name for one in gone if one.trial is None})
    if of_study:
        yield Finding(
            MISSING,
            f"the artifacts {', '.join(of_study)} of the study itself are not in {folder}: "
            "without its split, files that come to its images make it another data set; "
            f"{way_out}",
        )
    of_trials = [one for one in gone if one.trial is not None]
    if of_trials:
        whose = sorted({one.trial for one in of_trials if one.trial is not None})
        names = sorted({one.name for one in of_trials})
        yield Finding(
            MISSING,
            f"{len(of_trials)} artifacts ({', '.join(names)}) of trials {in_words(whose)} are not "
            f"in {folder}: the dashboard cannot show them, and weights among them are lost; "
            f"{way_out}",
        )


def orphaned_artifacts(evidence: Evidence) -> Iterator[Finding]:
    """Find files of artifacts that no study of the storage refers to."""
    referred = {one.artifact for one in evidence.references}
    orphans = tuple(
        one
        for one in evidence.artifacts
        if one.path.name not in referred and one.age_s > ORPHAN_AFTER_S
    )
    if not orphans or evidence.root is None:
        return
    folder = evidence.root / "artifacts"
    what = f"{len(orphans)} files ({_megabytes(orphans)}) in {folder}"
    if evidence.foreign_studies:
        yield Finding(
            ORPHANS,
            f"{what} belong to no study of this storage. They are left alone: the studies "
            f"{', '.join(evidence.foreign_studies)} have files in {evidence.root} as well and are "
            "not in this storage; if they were deleted, remove what they left in checkpoints/, "
            "logs/, models/ and reports/, and ask again",
        )
    else:
        yield Finding(
            ORPHANS,
            f"{what} belong to no study of this storage: they take space for nothing",
            fix="remove them",
            files=orphans,
        )


def orphaned_checkpoints(evidence: Evidence) -> Iterator[Finding]:
    """Find checkpoints of trials that have ended for good."""
    live = {
        attrs.first_attempt(one) for one in evidence.snapshot.trials if not one.state.is_finished()
    }
    orphans = tuple(
        one
        for one in evidence.checkpoints
        if not (one.path.stem.isdecimal() and int(one.path.stem) in live)
        and one.age_s > ORPHAN_AFTER_S
    )
    if orphans:
        yield Finding(
            CHECKPOINTS,
            f"{len(orphans)} checkpoints ({_megabytes(orphans)}) in {orphans[0].path.parent} are "
            "those of trials that have ended: they take space for nothing",
            fix="remove them",
            files=orphans,
        )


def skewed_clocks(snapshot: Snapshot) -> Iterator[Finding]:
    """Find clocks that differ: this machine's, and the workers', from the database's."""
    what_it_means = (
        "limits of time and device-hours, and the order in which trials ended, go by the "
        f"workers' clocks, and a claim without a heartbeat is given {GRACE_PERIOD_S} s; "
        "heartbeats go by the database's clock and are safe. Set the clocks by NTP"
    )
    if abs(snapshot.heartbeats.clock_skew_s) > SKEW_S:
        yield Finding(
            CLOCK,
            f"the clock of this machine is {_apart(-snapshot.heartbeats.clock_skew_s)} that of "
            f"the database: {what_it_means}",
        )
    for trial in snapshot.running:
        ahead = worker_ahead_s(snapshot, trial)
        if ahead is not None and abs(ahead) > WORKER_SKEW_S and not snapshot.is_gone(trial):
            yield Finding(
                CLOCK,
                f"the clock of {trial.user_attrs.get(attrs.WORKER)} is {_apart(ahead)} that of "
                f"the database: {what_it_means}",
            )


def worker_ahead_s(snapshot: Snapshot, trial: FrozenTrial) -> float | None:
    """Tell by how many seconds a worker's clock is ahead of the database's.

    With every heartbeat, a worker writes down for how long it has held its trial.

    Returns:
        The seconds, to one heartbeat; ``None`` before its first one.
    """
    age = snapshot.heartbeats.age_s.get(optuna_private.trial_id(trial))
    attributes = trial.user_attrs
    if age is None or attrs.CLAIMED_AT not in attributes or attrs.DEVICE_SECONDS not in attributes:
        return None
    beat = snapshot.heartbeats.now - age
    return float(attributes[attrs.CLAIMED_AT]) + float(attributes[attrs.DEVICE_SECONDS]) - beat


def full_disks(evidence: Evidence) -> Iterator[Finding]:
    """Find disks that are nearly full."""
    for disk in evidence.disks:
        if disk.free_bytes < FREE_BYTES:
            yield Finding(
                DISK,
                f"{disk.free_bytes / 2**20:,.0f} MB are free on the disk of the {disk.what} "
                f"({disk.path}): a worker that cannot write stops, and gives its trial back; "
                "free some space",
            )


def _apart(ahead_s: float) -> str:
    return f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'}"


def _megabytes(files: tuple[StoredFile, ...]) -> str:
    return f"{sum(one.size_bytes for one in files) / 2**20:,.1f} MB"
