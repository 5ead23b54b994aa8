"""What a race among backbones has found, as it is stored with its study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from autotune.format_versions import reading, refuse_unknown
from autotune.text import join_some


@dataclass(frozen=True)
class RaceEntry:
    """A backbone of a race.

    Args:
        backbone: Its name.
        parameters: Number of its parameters, without a head; ``None`` if it could not be built.
        license: License of its weights; empty if it is not known.
        latency_ms: Latency of one image on the device that trains, with a linear head.
        values: The validation metric in each round that it took part in.
        seconds: Seconds of its trainings.
        left_out: Why it did not take part, or left; empty for the others.
    """

    backbone: str
    parameters: int | None = None
    license: str = ""
    latency_ms: float | None = None
    values: tuple[float, ...] = ()
    seconds: float = 0.0
    left_out: str = ""


def describe_left_out(entries: Iterable[RaceEntry]) -> list[str]:
    """Return a line for each reason for which backbones were left out, with their names."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if entry.left_out:
            reasons.setdefault(entry.left_out, []).append(entry.backbone)
    return [f"{join_some(names)}: {reason}" for reason, names in reasons.items()]


@dataclass(frozen=True)
class RaceRecord:
    """A race among backbones.

    Args:
        asked: What the study file asks for, see :meth:`autotune.config.backbones.Race.to_json`.
        listed: Name of the default list; empty where the study file has the names.
        metric: The objective that ranks the backbones.
        epochs: Epochs of each round; 0 for that of the solved heads.
        entries: The backbones, the best first.
        kept: Those that enter the study, the best first; empty until the race has ended.
        packaged: Those whose weights are of packages.
    """

    asked: Mapping[str, Any]
    listed: str
    metric: str
    epochs: tuple[int, ...] = ()
    entries: tuple[RaceEntry, ...] = ()
    kept: tuple[str, ...] = ()
    packaged: tuple[str, ...] = ()

    @property
    def running(self) -> tuple[RaceEntry, ...]:
        """The entries that were not left out."""
        return tuple(entry for entry in self.entries if not entry.left_out)

    @property
    def seconds(self) -> float:
        """Seconds of all trainings."""
        return sum(entry.seconds for entry in self.entries)

    def changed(self, entries: Mapping[str, RaceEntry]) -> RaceRecord:
        """Return a copy with some entries replaced, by backbone."""
        changed = (entries.get(entry.backbone, entry) for entry in self.entries)
        return replace(self, entries=tuple(changed))

    def describe_round(self, number: int) -> str:
        """Say what a round trains."""
        epochs = self.epochs[number]
        return f"tuned, {epochs} epoch{'s' * (epochs != 1)}" if epochs else "solved head"

    def outcome(self, entry: RaceEntry) -> str:
        """Say what became of a backbone; empty where the race has not decided yet."""
        if entry.backbone in self.kept:
            return "in the study"
        if not self.kept and len(entry.values) >= len(self.epochs) - 1:
            return ""
        return f"out after: {self.describe_round(len(entry.values) - 1)}" if entry.values else ""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values; what an entry does not have is left out."""
        fields = {name: getattr(self, name) for name in ("listed", "metric")}
        lists = {name: list(getattr(self, name)) for name in ("epochs", "kept", "packaged")}
        default = asdict(RaceEntry(""))
        entries = [
            {key: value for key, value in asdict(entry).items() if value != default[key]}
            for entry in self.entries
        ]
        return {"asked": dict(self.asked), **fields, **lists, "entries": entries}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> RaceRecord:
        """Return what :meth:`to_json` returned as a record.

        Raises:
            FormatError: When another version has written it.
        """
        with reading("the race of a study"):
            names = [*RaceRecord.__dataclass_fields__]
            refuse_unknown(values, names, "a race")
            entries = tuple(
                RaceEntry(**{**entry, "values": tuple(entry.get("values", ()))})
                for entry in values["entries"]
            )
            return RaceRecord(
                values["asked"],
                values["listed"],
                values["metric"],
                tuple(values["epochs"]),
                entries,
                tuple(values["kept"]),
                tuple(values["packaged"]),
            )
