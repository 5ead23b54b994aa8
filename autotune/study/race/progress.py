"""How far a race is whose study does not exist yet."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.study.race.rounds import TUNINGS, round_name
from autotune.study.setup.opening import OpenStudy, find_existing
from autotune.study.state import attrs
from autotune.study.state.race_record import RaceRecord
from autotune.text import join_some


@dataclass(frozen=True)
class RaceProgress:
    """The latest round of a race.

    Args:
        study: Name of the study that the race is for.
        number: Number of the round; the first one is 0.
        record: What the rounds before have found.
        opened: The study of the round.
    """

    study: str
    number: int
    record: RaceRecord
    opened: OpenStudy

    def describe(self) -> str:
        """Say which round it is, and which backbones are in it."""
        what = self.record.describe_round(self.number)
        names = self.opened.config().backbones
        return (
            f"the study {self.study!r} is made when its race has ended; the race is in round "
            f"{self.number + 1} ({what}): {join_some(list(names), 30)}"
        )


def find_race(name: str, url: str, files: str | None = None) -> RaceProgress | None:
    """Return the latest round of the race for a study; ``None`` where there is no race.

    Raises:
        StorageError: When the storage cannot be used.
    """
    for number in reversed(range(len(TUNINGS) + 1)):
        opened = find_existing(round_name(name, number), url, files)
        stored = None if opened is None else opened.study.user_attrs.get(attrs.RACE)
        if opened is not None and stored:
            return RaceProgress(name, number, RaceRecord.from_json(stored), opened)
    return None
