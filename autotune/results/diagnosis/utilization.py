"""How much of their time the workers of a study held a trial, and where they waited for one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from optuna.trial import FrozenTrial, TrialState

from autotune.results.figures.history import last_moment
from autotune.study.state import attrs

#: When nobody has held a trial for so long, and for longer than the longest trial, the study was
#: not running.
_REST_S = 60.0


@dataclass(frozen=True)
class Utilised:
    """The time of a worker, or of all of them.

    Args:
        worker: Its name; empty for all workers together.
        trials: Attempts at trials that it held.
        busy_s: Seconds for which it held one.
        there_s: Seconds from its first claim to its last end, without those in which the study
            was not running. Of all workers: from the first claim of the study to its last end,
            times the places for a worker.
        longest_s: The longest wait between two trials.
        before: Number of the trial that it waited for the longest, ``None`` when it had but one.
        device: What it trained on; empty where no trial says so, and of all workers.
    """

    worker: str
    trials: int
    busy_s: float
    there_s: float
    longest_s: float = 0.0
    before: int | None = None
    device: str = ""

    @property
    def share(self) -> float:
        """Share of the time in which it held a trial."""
        return min(1.0, self.busy_s / self.there_s) if self.there_s > 0 else 1.0


@dataclass(frozen=True)
class Utilisation:
    """The time of all workers of a study.

    Args:
        workers: A row for each, by name.
        whole: All of them together.
        places: How many workers there were, those that took the place of another not counted.
        rest_s: Seconds in which the study was not running.
    """

    workers: tuple[Utilised, ...]
    whole: Utilised
    places: int
    rest_s: float


@dataclass(frozen=True)
class _Held:
    number: int
    begin: float
    end: float
    device: str


def utilisation_of(trials: Sequence[FrozenTrial]) -> Utilisation | None:
    """Measure how busy the workers of a study were; ``None`` before a trial has ended.

    Args:
        trials: All trials of the study.
    """
    held = _by_worker(trials)
    if not held:
        return None
    rests = list(_rests([one for some in held.values() for one in some]))
    workers = tuple(_row(worker, some, rests) for worker, some in sorted(held.items()))
    begin = min(one.begin for some in held.values() for one in some)
    end = max(one.end for some in held.values() for one in some)
    places = _count_places(held)
    longest = max(workers, key=lambda row: row.longest_s)
    whole = Utilised(
        "",
        sum(row.trials for row in workers),
        sum(row.busy_s for row in workers),
        places * (end - begin - _within(rests, begin, end)),
        longest.longest_s,
        longest.before,
    )
    return Utilisation(workers, whole, places, sum(end - begin for begin, end in rests))


def _by_worker(trials: Sequence[FrozenTrial]) -> dict[str, list[_Held]]:
    """Return what each worker held, in order."""
    now = last_moment(trials)
    found: dict[str, list[_Held]] = {}
    for one in trials:
        worker = one.user_attrs.get(attrs.WORKER)
        if worker is None or one.datetime_start is None or now is None:
            continue
        begin = float(one.user_attrs.get(attrs.CLAIMED_AT, one.datetime_start.timestamp()))
        if one.state == TrialState.RUNNING:
            end = now.timestamp()
        elif attrs.CLAIMED_AT in one.user_attrs:
            end = attrs.ended_at(one)
        else:
            end = (one.datetime_complete or now).timestamp()
        found.setdefault(str(worker), []).append(
            _Held(one.number, begin, max(begin, end), attrs.device_name(one))
        )
    return {
        worker: sorted(some, key=lambda held: (held.begin, held.end))
        for worker, some in found.items()
    }


def _rests(held: Sequence[_Held]) -> Iterator[tuple[float, float]]:
    """Find when the study was not running: between two runs of it."""
    least = max(_REST_S, max(one.end - one.begin for one in held))
    ordered = sorted(held, key=lambda one: one.begin)
    until = ordered[0].end
    for one in ordered[1:]:
        if one.begin - until > least:
            yield until, one.begin
        until = max(until, one.end)


def _within(rests: Iterable[tuple[float, float]], begin: float, end: float) -> float:
    return sum(max(0.0, min(end, to) - max(begin, since)) for since, to in rests)


def _row(worker: str, held: Sequence[_Held], rests: Sequence[tuple[float, float]]) -> Utilised:
    waits = [
        (after.begin - before.end - _within(rests, before.end, after.begin), after.number)
        for before, after in pairwise(held)
    ]
    longest, number = max(waits, default=(0.0, None), key=lambda wait: wait[0])
    begin, end = held[0].begin, max(one.end for one in held)
    return Utilised(
        worker,
        len(held),
        sum(one.end - one.begin for one in held),
        end - begin - _within(rests, begin, end),
        max(0.0, longest),
        number,
        next((one.device for one in reversed(held) if one.device), ""),
    )


def _count_places(held: Mapping[str, Sequence[_Held]]) -> int:
    """Count the workers that there were at a time.

    One that follows another of the same host and position has taken its place. Two that were
    there at once are two: every ``autotune worker`` is the first of its process, and containers
    may share the name of a host.
    """
    spans: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for worker, some in held.items():
        host, _, rest = worker.partition("/")
        place = (host, rest.rpartition("/")[2].partition("-")[0])
        spans.setdefault(place, []).append((some[0].begin, max(one.end for one in some)))
    return sum(
        max(sum(begin <= moment < end for begin, end in of_place) for moment, _ in of_place) or 1
        for of_place in spans.values()
    )
