"""What is wrong with a study: findings, each with what it means; and their repair.

The checks are pure functions of the :class:`~autotune.study.doctor.collect.Evidence`. A healthy
study has no findings, whether it runs, was stopped or has ended.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from autotune import optuna_private
from autotune.errors import LockedError
from autotune.storage.artifacts import read_references
from autotune.storage.rdb.connection import (
    GRACE_PERIOD_S,
    HEARTBEAT_INTERVAL_S,
    storage_errors,
)
from autotune.study.doctor.collect import (
    LOCK_TIMEOUT_S,
    Evidence,
    Snapshot,
    gather,
    take_snapshot,
)
from autotune.study.doctor.file_checks import (
    full_disks,
    missing_artifacts,
    orphaned_artifacts,
    orphaned_checkpoints,
)
from autotune.study.doctor.finding import LISTED, Finding, FindingKind
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.budget import startable_queue
from autotune.study.state.no_result import find_no_result
from autotune.study.state.retries import lost_without_retry
from autotune.text import join_some

#: Difference of clocks that does no harm.
SKEW_S = 5.0
#: The same for a worker's clock, which is known from its last heartbeat, to one interval.
WORKER_SKEW_S = 2.0 * HEARTBEAT_INTERVAL_S


@dataclass(frozen=True)
class StudyCheck:
    """What is wrong with a study, and the evidence, unless it could not be collected."""

    evidence: Evidence | None
    findings: tuple[Finding, ...]


def check_study(handle: OpenStudy, lock_timeout_s: float = LOCK_TIMEOUT_S) -> StudyCheck:
    """Look at a study and return what is wrong with it; nothing is changed."""
    try:
        evidence = gather(handle, lock_timeout_s)
    except LockedError as error:
        return StudyCheck(None, (Finding(FindingKind.LOCK, str(error)),))
    return StudyCheck(evidence, tuple(examine(evidence)))


def examine(evidence: Evidence) -> list[Finding]:
    """Return everything that is wrong with a study, the worst first."""
    snapshot = evidence.snapshot
    return [
        *unreadable(evidence),
        *missing_result(snapshot),
        *zombies(snapshot),
        *lost_trials(snapshot),
        *after_the_end(snapshot),
        *shared_numbers(evidence),
        *broken_chains(snapshot),
        *cut_curves(snapshot),
        *trained_twice(snapshot),
        *over_budget(snapshot),
        *missing_artifacts(evidence),
        *orphaned_artifacts(evidence),
        *orphaned_checkpoints(evidence),
        *skewed_clocks(snapshot),
        *full_disks(evidence),
    ]


def unreadable(evidence: Evidence) -> Iterator[Finding]:
    """Find what of a study this version does not understand."""
    for what in evidence.unreadable:
        yield Finding(
            FindingKind.DEFINITION,
            f"this version of autotune cannot read {what}: no worker of this version can continue "
            "the study; use the version that made it",
        )


def missing_result(snapshot: Snapshot) -> Iterator[Finding]:
    """Find that the study has ended, and no trial has a result."""
    found = find_no_result(snapshot.trials, snapshot.attributes)
    if found is not None:
        yield Finding(FindingKind.NO_RESULT, found.describe())


def zombies(snapshot: Snapshot) -> Iterator[Finding]:
    """Find running trials whose workers are dead."""
    for trial in snapshot.running:
        worker = trial.user_attrs.get(attrs.WORKER)
        if worker is not None and not snapshot.is_gone(trial):
            continue
        silent = snapshot.silent_s(trial)
        if worker is None:
            why = "has no worker: whoever claimed it was lost during the claim"
        elif optuna_private.trial_id(trial) not in snapshot.heartbeats.age_s:
            since = "" if silent is None else f" in {silent:.0f} s"
            why = f"its worker {worker} never gave a sign of life{since}"
        else:
            why = f"its worker {worker} has been silent for {silent:.0f} s"
        yield Finding(
            FindingKind.ZOMBIE,
            f"trial {trial.number} is RUNNING and {why} (a live worker writes every "
            f"{HEARTBEAT_INTERVAL_S} s); it holds a place of the budget, and samplers avoid its "
            "plan",
            fix="fail it and queue its successor, which continues from its checkpoint",
            trial=trial.number,
        )


def lost_trials(snapshot: Snapshot) -> Iterator[Finding]:
    """Find trials that were failed for their silent workers, and never retried."""
    for number in lost_without_retry(snapshot.trials):
        yield Finding(
            FindingKind.LOST,
            f"trial {number} failed because its worker was lost, and was never retried: the "
            "process that failed it was killed before it had a successor. It counts as a finished "
            "trial",
            fix="queue its successor, which continues from its checkpoint",
            trial=number,
        )


def after_the_end(snapshot: Snapshot) -> Iterator[Finding]:
    """Find what runs, or should run, in a study that has ended.

    What waits after the budget is used up is no fault: a run with a larger one begins with it.
    """
    if snapshot.ended is None:
        return
    ended = f"the study has ended ({snapshot.ended.text}), yet trials"
    live = [trial.number for trial in snapshot.live]
    if live and not snapshot.ended.is_request:  # else they are about to stop
        yield Finding(
            FindingKind.ENDED,
            f"{ended} {join_some(live, LISTED)} run: they were started outside autotune, and "
            "they count beyond the budget",
        )
    waiting = [trial.number for trial in startable_queue(snapshot.trials, snapshot.ended)]
    if waiting:
        yield Finding(
            FindingKind.ENDED,
            f"{ended} {join_some(waiting, LISTED)} wait to be retried: nothing will start them",
            fix="forget the end; the next 'autotune run' starts them",
        )


def shared_numbers(evidence: Evidence) -> Iterator[Finding]:
    """Find trials that share a number, and gaps."""
    counts = Counter(evidence.numbers)
    shared = sorted(number for number, count in counts.items() if count > 1)
    if shared:
        yield Finding(
            FindingKind.NUMBERS,
            f"several trials have the number {join_some(shared, LISTED)}: everything that goes "
            "by numbers, retries and reports too, sees one of them; was the database merged or "
            "restored by hand?",
        )
    elif counts and max(counts) != len(counts) - 1:
        yield Finding(
            FindingKind.NUMBERS,
            f"there are {len(counts)} trials, and the last number is {max(counts)}: some are "
            "missing; were trials deleted by hand?",
        )


def broken_chains(snapshot: Snapshot) -> Iterator[Finding]:
    """Find retries whose earlier attempts are not what they should be."""
    trials = {trial.number: trial for trial in snapshot.trials}
    successors: dict[int, list[int]] = defaultdict(list)
    for number, trial in trials.items():
        earlier = attrs.earlier_attempts(trial)
        unknown = [other for other in earlier if other not in trials or other >= number]
        if not unknown and earlier:
            successors[earlier[-1]].append(number)
        if problem := _chain_problem(trials, earlier, unknown):
            yield Finding(FindingKind.CHAIN, f"trial {number} {problem}")
    for number, followers in successors.items():
        if len(followers) > 1:
            yield Finding(
                FindingKind.CHAIN,
                f"trials {join_some(followers, LISTED)} all continue trial {number}: the same "
                "plan may run, or have run, more than once, with one checkpoint",
            )


def _chain_problem(
    trials: dict[int, FrozenTrial], earlier: Sequence[int], unknown: Sequence[int]
) -> str:
    if unknown:
        return (
            f"continues trial {join_some(unknown, LISTED)}, which does not exist before it: its "
            "checkpoint and its curve may be another trial's"
        )
    last = trials[earlier[-1]] if earlier else None
    if last is not None and last.state != TrialState.FAIL:
        return (
            f"continues trial {last.number}, which is {last.state.name} and not failed: both may "
            "run, or have run"
        )
    if last is not None and [*attrs.earlier_attempts(last), last.number] != earlier:
        return (
            f"names the earlier attempts {join_some(earlier, LISTED)}, but trial {last.number}, "
            "the last of them, names others"
        )
    return ""


def cut_curves(snapshot: Snapshot) -> Iterator[Finding]:
    """Find trials that have ended with a value, and whose curves lack epochs."""
    epochs = snapshot.attributes.get(attrs.DEFINITION, {}).get("training", {}).get("epochs")
    for trial in snapshot.trials:
        trained = trial.user_attrs.get(attrs.EPOCHS)
        is_complete = trial.state == TrialState.COMPLETE and trained is not None
        if not is_complete and (trial.state != TrialState.PRUNED or not trained):
            continue
        last = max([*trial.intermediate_values, int(trained or 0)])
        if is_complete and epochs is not None:
            last = max(last, int(epochs))
        first = last if attrs.is_solved(trial) else 1
        missing = [one for one in range(first, last + 1) if one not in trial.intermediate_values]
        if missing:
            yield Finding(
                FindingKind.CURVE,
                f"the curve of trial {trial.number} lacks the epochs "
                f"{join_some(missing, LISTED)}: they were trained, and their values are lost. A "
                "pruner compares other trials with what is there; 'autotune reproduce' tells "
                "whether its value holds",
            )


def trained_twice(snapshot: Snapshot) -> Iterator[Finding]:
    """Find plans that several trials have trained to the end."""
    by_plan: dict[str, list[int]] = defaultdict(list)
    for trial in snapshot.trials:
        if trial.state == TrialState.COMPLETE and attrs.PLAN in trial.user_attrs:
            plan = json.dumps(_rounded(trial.user_attrs[attrs.PLAN]), sort_keys=True)
            by_plan[plan].append(trial.number)
    for numbers in by_plan.values():
        if len(numbers) > 1:
            yield Finding(
                FindingKind.TWICE,
                f"trials {join_some(numbers, LISTED)} have trained the same plan to the end: "
                "their values are equal except for rounding, and all but one were superfluous",
            )


def _rounded(value: Any) -> Any:
    """Round the numbers of a plan to twelve digits: 0.1 * 3 is 0.3."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def over_budget(snapshot: Snapshot) -> Iterator[Finding]:
    """Find finished trials beyond the budget."""
    progress = snapshot.progress
    if progress.finished > progress.budget > 0:
        yield Finding(
            FindingKind.BUDGET,
            f"{progress.finished} trials are finished, and the budget is {progress.budget}: the "
            "last run had a smaller budget than one before it, or trials were started outside "
            f"autotune; a run with search.trials={progress.finished} includes them",
        )


def skewed_clocks(snapshot: Snapshot) -> Iterator[Finding]:
    """Find clocks that differ from the database's: this machine's, and the workers'."""
    skews = {}
    if abs(snapshot.heartbeats.clock_skew_s) > SKEW_S:
        skews["this machine"] = -snapshot.heartbeats.clock_skew_s
    for trial in snapshot.running:
        ahead_s = worker_ahead_s(snapshot, trial)
        if ahead_s is not None and abs(ahead_s) > WORKER_SKEW_S and not snapshot.is_gone(trial):
            skews[str(trial.user_attrs.get(attrs.WORKER))] = ahead_s
    for whose, ahead_s in skews.items():
        yield Finding(
            FindingKind.CLOCK,
            f"the clock of {whose} is {abs(ahead_s):.0f} s "
            f"{'ahead of' if ahead_s > 0 else 'behind'} that of the database: limits of time and "
            "device-hours, and the order in which trials ended, go by the workers' clocks, and a "
            f"claim without a heartbeat is given {GRACE_PERIOD_S} s; heartbeats go by the "
            "database's clock and are safe. Set the clocks by NTP",
        )


def worker_ahead_s(snapshot: Snapshot, trial: FrozenTrial) -> float | None:
    """Return by how many seconds a worker's clock is ahead of the database's.

    With every heartbeat, a worker writes for how long it has held its trial: the result is exact
    to one interval of heartbeats, and ``None`` before the first one.
    """
    age = snapshot.heartbeats.age_s.get(optuna_private.trial_id(trial))
    if age is None or not {attrs.CLAIMED_AT, attrs.DEVICE_SECONDS} <= trial.user_attrs.keys():
        return None
    return attrs.last_sign_of_life(trial) - (snapshot.heartbeats.now - age)


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
