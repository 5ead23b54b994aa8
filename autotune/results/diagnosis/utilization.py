"""Measure how much of their time the workers of a study held a trial, and where they waited."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from optuna.trial import FrozenTrial, TrialState

from autotune.results.figures.history import last_moment
from autotune.study.state import attrs

#: Least seconds without any trial, and longer than the longest trial, that count as a pause of the
#: study.
_MIN_PAUSE_S = 60.0


@dataclass(frozen=True)
class WorkerTime:
    """The time of a worker.

    Args:
        worker: Its name.
        device: What it trained on; empty where no trial says so.
        trials: Attempts at trials that it held.
        busy_s: Seconds for which it held one.
        present_s: Seconds from its first claim to its last end, without pauses of the study.
        longest_s: The longest wait between two trials.
        before: Number of the trial that it waited for the longest, ``None`` when it had only one.
    """

    worker: str
    device: str
    trials: int
    busy_s: float
    present_s: float
    longest_s: float
    before: int | None

    @property
    def share(self) -> float:
        """Share of the time in which it held a trial."""
        return _share(self.busy_s, self.present_s)


@dataclass(frozen=True)
class Utilization:
    """The time of all workers of a study.

    Args:
        workers: A row for each, by name.
        share: Share of the time between the first claim of the study and its last end, times the
            places for a worker, in which a trial was held.
        places: How many workers ran at a time; one that replaced another is not counted.
        paused_s: Seconds in which the study was not running.
    """

    workers: tuple[WorkerTime, ...]
    share: float
    places: int
    paused_s: float

    @property
    def longest(self) -> WorkerTime:
        """The worker with the longest wait between two trials."""
        return max(self.workers, key=lambda row: row.longest_s)


def _share(busy_s: float, present_s: float) -> float:
    return min(1.0, busy_s / present_s) if present_s > 0 else 1.0


@dataclass(frozen=True)
class _Attempt:
    number: int
    begin: float
    end: float
    device: str


def measure_utilization(trials: Sequence[FrozenTrial]) -> Utilization | None:
    """Measure how busy the workers of a study were; ``None`` before a trial has ended."""
    by_worker = _attempts_by_worker(trials)
    if not by_worker:
        return None
    attempts = [attempt for of_worker in by_worker.values() for attempt in of_worker]
    pauses = list(_pauses(attempts))
    workers = tuple(_row(name, some, pauses) for name, some in sorted(by_worker.items()))
    begin = min(attempt.begin for attempt in attempts)
    end = max(attempt.end for attempt in attempts)
    places = _count_places(by_worker)
    present_s = places * (end - begin - _within(pauses, begin, end))
    share = _share(sum(row.busy_s for row in workers), present_s)
    return Utilization(workers, share, places, sum(end - begin for begin, end in pauses))


def _attempts_by_worker(trials: Sequence[FrozenTrial]) -> dict[str, list[_Attempt]]:
    """Return the attempts of each worker, in order."""
    now = last_moment(trials)
    by_worker: dict[str, list[_Attempt]] = {}
    for trial in trials:
        worker = trial.user_attrs.get(attrs.WORKER)
        if worker is None or trial.datetime_start is None or now is None:
            continue
        begin, is_running = attrs.started_at(trial), trial.state == TrialState.RUNNING
        end = now.timestamp() if is_running else attrs.ended_at(trial)
        attempt = _Attempt(trial.number, begin, max(begin, end), attrs.device_name(trial))
        by_worker.setdefault(str(worker), []).append(attempt)
    for attempts in by_worker.values():
        attempts.sort(key=lambda attempt: (attempt.begin, attempt.end))
    return by_worker


def _pauses(attempts: Sequence[_Attempt]) -> Iterator[tuple[float, float]]:
    """Find when the study was not running: between two runs of it."""
    least = max(_MIN_PAUSE_S, max(attempt.end - attempt.begin for attempt in attempts))
    ordered = sorted(attempts, key=lambda attempt: attempt.begin)
    until = ordered[0].end
    for attempt in ordered[1:]:
        if attempt.begin - until > least:
            yield until, attempt.begin
        until = max(until, attempt.end)


def _within(pauses: Iterable[tuple[float, float]], begin: float, end: float) -> float:
    return sum(max(0.0, min(end, to) - max(begin, since)) for since, to in pauses)


def _row(
    worker: str, attempts: Sequence[_Attempt], pauses: Sequence[tuple[float, float]]
) -> WorkerTime:
    waits = [
        (after.begin - before.end - _within(pauses, before.end, after.begin), after.number)
        for before, after in pairwise(attempts)
    ]
    longest, number = max(waits, default=(0.0, None), key=lambda wait: wait[0])
    begin, end = attempts[0].begin, max(attempt.end for attempt in attempts)
    return WorkerTime(
        worker,
        next((attempt.device for attempt in reversed(attempts) if attempt.device), ""),
        len(attempts),
        sum(attempt.end - attempt.begin for attempt in attempts),
        end - begin - _within(pauses, begin, end),
        max(0.0, longest),
        number,
    )


def _count_places(by_worker: Mapping[str, Sequence[_Attempt]]) -> int:
    """Count the workers that ran at the same time.

    A worker that follows another of the same host and position has replaced it. Two that overlap
    are two: every ``autotune worker`` is the first of its process, and containers may share the
    name of a host.
    """
    spans: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for worker, attempts in by_worker.items():
        host, _, rest = worker.partition("/")
        place = (host, rest.rpartition("/")[2].partition("-")[0])
        span = attempts[0].begin, max(attempt.end for attempt in attempts)
        spans.setdefault(place, []).append(span)
    return sum(
        max(sum(begin <= moment < end for begin, end in of_place) for moment, _ in of_place) or 1
        for of_place in spans.values()
    )
