"""What is wrong with a study: findings, each with what it means and what would put it right.

Pure functions of the :class:`~autotune.study.doctor.collect.Evidence`. Of a healthy study there
are no findings, whether it runs, was stopped or has ended.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from autotune import optuna_private
from autotune.errors import LockedError
from autotune.storage.rdb.connection import HEARTBEAT_INTERVAL_S
from autotune.study.doctor.collect import LOCK_TIMEOUT_S, Evidence, gather, in_words
from autotune.study.doctor.file_checks import (
    full_disks,
    missing_artifacts,
    orphaned_artifacts,
    orphaned_checkpoints,
    skewed_clocks,
)
from autotune.study.doctor.finding import (
    BUDGET,
    CHAIN,
    CURVE,
    DEFINITION,
    ENDED,
    LOCK,
    LOST,
    NUMBERS,
    TWICE,
    ZOMBIE,
    Finding,
)
from autotune.study.doctor.snapshot import Snapshot
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.budget import startable_queue
from autotune.study.state.trial_queue import lost_without_retry


@dataclass(frozen=True)
class Diagnosis:
    """What a look at a study brought.

    Args:
        evidence: What was looked at; ``None`` when the study could not be looked at.
        findings: What is wrong.
    """

    evidence: Evidence | None
    findings: tuple[Finding, ...]


def diagnose(opened: OpenStudy, lock_timeout_s: float = LOCK_TIMEOUT_S) -> Diagnosis:
    """Look at a study and say what is wrong with it; nothing is changed.

    Args:
        opened: The study.
        lock_timeout_s: For how long to wait for its lock.
    """
    try:
        evidence = gather(opened, lock_timeout_s)
    except LockedError as error:
        return Diagnosis(None, (Finding(LOCK, str(error)),))
    return Diagnosis(evidence, tuple(examine(evidence)))


def examine(evidence: Evidence) -> list[Finding]:
    """List everything that is wrong with a study, the worst first."""
    snapshot = evidence.snapshot
    return [
        *unreadable(evidence),
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
            DEFINITION,
            f"this version of autotune cannot read {what}: no worker of this version can go on "
            "with the study; use the version that made it",
        )


def zombies(snapshot: Snapshot) -> Iterator[Finding]:
    """Find running trials whose workers are gone."""
    for trial in snapshot.running:
        if attrs.WORKER in trial.user_attrs and not snapshot.is_gone(trial):
            continue
        silent = snapshot.silent_s(trial)
        worker = trial.user_attrs.get(attrs.WORKER)
        if worker is None:
            why = "nobody's: whoever claimed it was lost before it was a worker's"
        elif optuna_private.trial_id(trial) not in snapshot.heartbeats.age_s:
            since = "" if silent is None else f" in {silent:.0f} s"
            why = f"that of {worker}, which never gave a sign of life{since}"
        else:
            why = f"that of {worker}, which has been silent for {silent:.0f} s"
        yield Finding(
            ZOMBIE,
            f"trial {trial.number} is RUNNING and {why} (a live worker writes every "
            f"{HEARTBEAT_INTERVAL_S} s); it holds a place of the budget, and samplers avoid its "
            "plan",
            fix="fail it and queue its successor, which goes on from its checkpoint",
            trial=trial.number,
        )


def lost_trials(snapshot: Snapshot) -> Iterator[Finding]:
    """Find trials that were failed for their silent workers, and never tried again."""
    for number in lost_without_retry(snapshot.trials):
        yield Finding(
            LOST,
            f"trial {number} failed because its worker was lost, and was never tried again: who "
            "gave it back was killed before it had a successor. It counts as a finished trial",
            fix="queue its successor, which goes on from its checkpoint",
            trial=number,
        )


def after_the_end(snapshot: Snapshot) -> Iterator[Finding]:
    """Find what runs, or should run, in a study that has ended.

    What waits after the budget is used up is no fault: a run with a larger one begins with it.
    """
    if snapshot.ended is None:
        return
    live = [one.number for one in snapshot.running if not snapshot.is_gone(one)]
    if live:
        yield Finding(
            ENDED,
            f"the study has ended ({snapshot.ended.words}), yet trials {in_words(live)} run: "
            "somebody started them behind its back, and they count beyond the budget",
        )
    waiting = [one.number for one in startable_queue(snapshot.trials, snapshot.ended)]
    if waiting:
        yield Finding(
            ENDED,
            f"the study has ended ({snapshot.ended.words}), yet trials {in_words(waiting)} wait "
            "to be tried again: nothing will start them",
            fix="forget the end; the next 'autotune run' starts them",
        )


def shared_numbers(evidence: Evidence) -> Iterator[Finding]:
    """Find trials that share a number, and gaps."""
    counts = Counter(evidence.numbers)
    shared = sorted(number for number, count in counts.items() if count > 1)
    if shared:
        yield Finding(
            NUMBERS,
            f"several trials have the number {in_words(shared)}: everything that goes by numbers, "
            "retries and reports too, sees one of them; was the database merged or restored by "
            "hand?",
        )
    elif counts and max(counts) != len(counts) - 1:
        yield Finding(
            NUMBERS,
            f"there are {len(counts)} trials, and the last number is {max(counts)}: some are "
            "missing; were trials deleted by hand?",
        )


def broken_chains(snapshot: Snapshot) -> Iterator[Finding]:
    """Find retries whose earlier attempts are not what they should be."""
    trials = {one.number: one for one in snapshot.trials}
    successors: dict[int, list[int]] = defaultdict(list)
    for trial in snapshot.trials:
        earlier = attrs.earlier_attempts(trial)
        unknown = [number for number in earlier if number not in trials or number >= trial.number]
        if unknown:
            yield Finding(
                CHAIN,
                f"trial {trial.number} goes on with trial {in_words(unknown)}, which does not "
                "exist before it: its checkpoint and its curve may be another one's",
            )
        elif earlier:
            successors[earlier[-1]].append(trial.number)
            last = trials[earlier[-1]]
            if last.state != TrialState.FAIL:
                yield Finding(
                    CHAIN,
                    f"trial {trial.number} goes on with trial {last.number}, which is "
                    f"{last.state.name} and not failed: both may run, or have run",
                )
            elif [*attrs.earlier_attempts(last), last.number] != earlier:
                yield Finding(
                    CHAIN,
                    f"trial {trial.number} names the earlier attempts {in_words(earlier)}, but "
                    f"trial {last.number}, the last of them, names others",
                )
    for number, followers in successors.items():
        if len(followers) > 1:
            yield Finding(
                CHAIN,
                f"trials {in_words(followers)} all go on with trial {number}: the same plan may "
                "run, or have run, more than once, with one checkpoint",
            )


def cut_curves(snapshot: Snapshot) -> Iterator[Finding]:
    """Find trials that have ended with a value, and whose curves lack epochs."""
    epochs = snapshot.attributes.get(attrs.DEFINITION, {}).get("training", {}).get("epochs")
    for trial in snapshot.trials:
        trained = trial.user_attrs.get(attrs.EPOCHS)
        whole = trial.state == TrialState.COMPLETE and trained is not None
        if not whole and (trial.state != TrialState.PRUNED or not trained):
            continue
        last = max([*trial.intermediate_values, int(trained or 0)])
        if trial.state == TrialState.COMPLETE and epochs is not None:
            last = max(last, int(epochs))
        missing = [one for one in range(1, last + 1) if one not in trial.intermediate_values]
        if missing:
            yield Finding(
                CURVE,
                f"the curve of trial {trial.number} lacks the epochs {in_words(missing)}: they "
                "were trained, and their values are lost. A pruner compares other trials with "
                f"what is there; 'autotune reproduce' tells whether its value holds",
            )


def trained_twice(snapshot: Snapshot) -> Iterator[Finding]:
    """Find plans that several trials have trained to the end."""
    by_plan: dict[str, list[int]] = defaultdict(list)
    for trial in snapshot.trials:
        if trial.state == TrialState.COMPLETE and attrs.PLAN in trial.user_attrs:
            by_plan[_key_of(trial)].append(trial.number)
    for trials in by_plan.values():
        if len(trials) > 1:
            yield Finding(
                TWICE,
                f"trials {in_words(trials)} have trained the same plan to the end: their values "
                "are equal but for rounding, and all but one were for nothing",
            )


def _key_of(trial: FrozenTrial) -> str:
    """Return what tells plans apart; numbers to twelve digits, as 0.1 * 3 is 0.3."""
    return json.dumps(_rounded(trial.user_attrs[attrs.PLAN]), sort_keys=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def over_budget(snapshot: Snapshot) -> Iterator[Finding]:
    """Find finished trials beyond the budget."""
    progress = snapshot.progress
    if progress.finished > progress.budget > 0:
        yield Finding(
            BUDGET,
            f"{progress.finished} trials are finished, and the budget is {progress.budget}: the "
            "last run had a smaller budget than one before it, or trials were started around "
            "autotune; a run with search.trials="
            f"{progress.finished} takes them in",
        )
