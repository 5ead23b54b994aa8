"""What is wrong with the files of a study: artifacts, checkpoints, full disks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from optuna.trial import FrozenTrial

from autotune.storage.artifacts import StoredFile
from autotune.study.doctor.collect import Evidence
from autotune.study.doctor.finding import LISTED, Finding, FindingKind
from autotune.study.state import attrs
from autotune.text import join_some

#: Age below which a file is no orphan: a worker may be about to write the reference to it.
ORPHAN_AFTER_S = 3600.0
#: Free disk space that checkpoints and weights soon use up.
FREE_BYTES = 1 << 30


def missing_artifacts(evidence: Evidence) -> Iterator[Finding]:
    """Find artifacts that trials of this study refer to, and whose files do not exist."""
    if evidence.root is None:
        return
    existing = {file.path.name for file in evidence.artifacts}
    # A trial that runs may be about to write the file: Optuna writes the reference first.
    live = {trial.number for trial in evidence.snapshot.running}
    gone = [
        item
        for item in evidence.own_references
        if item.artifact not in existing and item.trial not in live
    ]
    folder = evidence.root / "artifacts"
    way_out = "bring the folder back from a backup, or name it with --files"
    of_study = sorted({item.name for item in gone if item.trial is None})
    if of_study:
        yield Finding(
            FindingKind.MISSING,
            f"the artifacts {', '.join(of_study)} of the study itself are not in {folder}: "
            "without its split, files that are added to its images make it another data set; "
            f"{way_out}",
        )
    of_trials = [item for item in gone if item.trial is not None]
    if of_trials:
        numbers = sorted({item.trial for item in of_trials if item.trial is not None})
        names = sorted({item.name for item in of_trials})
        yield Finding(
            FindingKind.MISSING,
            f"{len(of_trials)} artifacts ({', '.join(names)}) of trials "
            f"{join_some(numbers, LISTED)} are not in {folder}: the dashboard cannot show them, "
            f"and weights among them are lost; {way_out}",
        )


def orphaned_artifacts(evidence: Evidence) -> Iterator[Finding]:
    """Find files of artifacts that no study of the storage refers to."""
    orphans = unreferenced(evidence.artifacts, {item.artifact for item in evidence.references})
    if not orphans or evidence.root is None:
        return
    text = (
        f"{len(orphans)} files ({_megabytes(orphans)}) in {evidence.root / 'artifacts'} belong to "
        "no study of this storage"
    )
    if not evidence.foreign_studies:
        text += ": they only waste disk space"
        yield Finding(FindingKind.ORPHANS, text, fix="remove them", files=orphans)
        return
    yield Finding(
        FindingKind.ORPHANS,
        f"{text}. They are left alone: the studies {', '.join(evidence.foreign_studies)} also "
        f"have files in {evidence.root} and are not in this storage; if they were deleted, "
        "'autotune gc --deleted' removes what they left",
    )


def orphaned_checkpoints(evidence: Evidence) -> Iterator[Finding]:
    """Find checkpoints of trials that have ended for good."""
    orphans = superfluous_checkpoints(evidence.checkpoints, evidence.snapshot.trials)
    if orphans:
        yield Finding(
            FindingKind.CHECKPOINTS,
            f"{len(orphans)} checkpoints ({_megabytes(orphans)}) in {orphans[0].path.parent} are "
            "those of trials that have ended: they only waste disk space",
            fix="remove them",
            files=orphans,
        )


def unreferenced(
    artifacts: Sequence[StoredFile], referred: Collection[str]
) -> tuple[StoredFile, ...]:
    """Return the artifacts that nothing refers to, and that nobody is about to refer to."""
    return tuple(
        file
        for file in artifacts
        if file.path.name not in referred and file.age_s > ORPHAN_AFTER_S
    )


def superfluous_checkpoints(
    checkpoints: Sequence[StoredFile], trials: Sequence[FrozenTrial]
) -> tuple[StoredFile, ...]:
    """Return the checkpoints from which no trial will continue."""
    live = {attrs.first_attempt(trial) for trial in trials if not trial.state.is_finished()}
    return tuple(
        file
        for file in checkpoints
        if not (file.path.stem.isdecimal() and int(file.path.stem) in live)
        and file.age_s > ORPHAN_AFTER_S
    )


def _megabytes(files: Sequence[StoredFile]) -> str:
    return f"{sum(file.size_bytes for file in files) / 2**20:,.1f} MB"


def full_disks(evidence: Evidence) -> Iterator[Finding]:
    """Find disks that are nearly full."""
    for disk in evidence.disks:
        if disk.free_bytes < FREE_BYTES:
            yield Finding(
                FindingKind.DISK,
                f"{disk.free_bytes / 2**20:,.0f} MB are free on the disk of the {disk.what} "
                f"({disk.path}): a worker that cannot write stops, and requeues its trial; free "
                "some space",
            )
