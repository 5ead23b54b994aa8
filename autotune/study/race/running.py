"""Run a study whose backbones a race chooses: the race first, once, and the study then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.study import Study

from autotune.config.backbones import Race
from autotune.config.schema import OBJECTIVES, StudyConfig
from autotune.data.sources.registry import needs_download
from autotune.errors import ChangedStudyError, StudyError, UserError
from autotune.study.engine import launcher
from autotune.study.engine.launcher import RunResult
from autotune.study.race.entrants import Entrants
from autotune.study.race.rounds import (
    TUNINGS,
    Score,
    best_so_far,
    choose,
    is_round,
    rank,
    read_round,
    round_config,
    round_name,
    tunings,
)
from autotune.study.setup.definition import open_dataset
from autotune.study.setup.definition_changes import refuse_race
from autotune.study.setup.manifest_store import find_study
from autotune.study.setup.opening import find_existing
from autotune.study.state import attrs
from autotune.study.state.race_record import RaceEntry, RaceRecord, describe_left_out
from autotune.study.trial.run import EventCallback
from autotune.study.upkeep.removal import remove_study
from autotune.text import join_some


def run_study_with_race(
    config: StudyConfig, *, on_event: EventCallback = lambda event: None, **options: Any
) -> RunResult:
    """Run a study, and the race among its backbones before it is made.

    The arguments and errors are those of :func:`autotune.study.engine.launcher.run_study`. A race
    that was interrupted continues; its result then is that of the round that was interrupted.
    """
    if config.race is None:
        return launcher.run_study(config, on_event=on_event, **options)
    stored = find_study(config.name, config.storage)
    if stored is not None and attrs.DEFINITION in stored[0].user_attrs:
        config = with_stored_backbones(config, stored[0])
        if attrs.RACE not in stored[0].user_attrs:
            names = join_some(list(config.backbones))
            on_event(_lines(f"race: none, because the study has its backbone: {names}"))
        result = launcher.run_study(config, on_event=on_event, **options)
    else:
        race = run_race(config, on_event=on_event, **options)
        if isinstance(race, RunResult):
            return race
        chosen = config.with_backbones(race.kept)
        result = launcher.run_study(chosen, race=race, on_event=on_event, **options)
    remove_rounds(config)
    return result


def with_stored_backbones(config: StudyConfig, study: Study) -> StudyConfig:
    """Return the study file with the backbones of its study, which exists: it needs no race.

    ``race`` alone leaves the choice open, so a study keeps its backbones however they were chosen.
    A race that names its list or how many to keep has to be the one that has chosen them.

    Raises:
        ChangedStudyError: When the study has other backbones than a race like this has chosen.
    """
    assert config.race is not None
    stored = study.user_attrs.get(attrs.RACE)
    is_same = stored is not None and stored["asked"] == config.race.to_json()
    if not is_same and config.race != Race():
        raise refuse_race(study, config.backbone)
    names = attrs.definition(study.user_attrs)["backbone"]
    return config.with_backbones([names] if isinstance(names, str) else names)


def run_race(
    config: StudyConfig, *, on_event: EventCallback = lambda event: None, **options: Any
) -> RaceRecord | RunResult:
    """Run the race of a study file, or continue it.

    Returns:
        What it has found; the result of a round that was interrupted.

    Raises:
        UserError: When no backbone can be had, or none is within the limits.
    """
    options["loggers"] = ()
    check_names(config)
    try:
        return _Race(config, on_event, options).run()
    except ChangedStudyError:  # of a round: the study file has changed since it was interrupted
        on_event(
            _lines("race: it begins again, because the study file or the images have changed")
        )
        remove_rounds(config)
        return _Race(config, on_event, options).run()


def remove_rounds(config: StudyConfig) -> None:
    """Remove the studies of the rounds; what was found is stored with the study."""
    for number in range(len(TUNINGS) + 1):
        name = round_name(config.name or "study", number)
        found = find_study(name, config.storage)
        if found is None or not is_round(found[0]):
            continue
        handle = find_existing(name, config.storage, config.files)
        if handle is not None:
            remove_study(handle, results=True)


def check_names(config: StudyConfig) -> None:
    """Refuse a race for whose rounds the storage has other studies of their names.

    Raises:
        StudyError: With the name of the first one.
    """
    for number in range(len(TUNINGS) + 1):
        name = round_name(config.name or "study", number)
        study, _ = find_study(name, config.storage) or (None, None)
        if study is not None and attrs.DEFINITION in study.user_attrs and not is_round(study):
            raise StudyError(
                f"the study {name!r} has the name of a round of the race for {config.name!r}; "
                "rename it, or give the new study another name with --name"
            )


def _lines(*lines: str) -> dict[str, Any]:
    return {"event": "race", "lines": lines}


@dataclass
class _Race:
    config: StudyConfig
    on_event: EventCallback
    options: dict[str, Any]
    _notes: set[str] = field(default_factory=set)

    def run(self) -> RaceRecord | RunResult:
        record = self._stored() or self._entrants()
        names = [entry.backbone for entry in record.running]
        if len(names) == 1:
            self.on_event(_lines(f"race: {names[0]} alone can take part"))
            return replace(record, kept=tuple(names))
        rounds = [(len(names), 0), *tunings(self.config, len(names))]
        scores: dict[str, Score] = {}
        for number, (most, epochs) in enumerate(rounds):
            names = names[:most]
            record = replace(record, epochs=(*record.epochs[:number], epochs))
            what = f"race, round {number + 1} of {len(rounds)} ({record.describe_round(number)})"
            self.on_event(_lines(f"{what}: {join_some(list(names), 30)}"))
            result = self._run_round(record, names, number, epochs)
            if result.interrupted:
                return result
            found = read_round(result.handle.study, names, tuned=epochs > 0)
            before, record = record, _with_scores(record, found)
            best = best_so_far(scores, found, record.metric)
            if not best:
                if number:  # nothing can be tuned: the round before decides
                    record = before
                    break
                raise self._none_left(record)
            scores, names = best, rank(best, record.metric)
            values = (f"{name} {scores[name].value:.4g}" for name in names)
            self.on_event(_lines(f"race: validation {record.metric}: {', '.join(values)}"))
        kept = choose(names, scores, self.config.kept)
        enter = "enters" if len(kept) == 1 else "enter"
        self.on_event(_lines(f"race: {join_some(kept)} {enter} the study"))
        return replace(record, kept=tuple(kept), entries=_sorted(record, kept))

    def _stored(self) -> RaceRecord | None:
        """Return who takes part in a race that was interrupted."""
        race, name = self.config.race, round_name(self.config.name or "study", 0)
        found = find_study(name, self.config.storage)
        attributes = {} if found is None else found[0].user_attrs
        if attrs.DEFINITION not in attributes or attrs.RACE not in attributes:
            return None
        record = RaceRecord.from_json(attributes[attrs.RACE])
        assert race is not None
        if record.asked != race.to_json():
            raise ChangedStudyError("the race has changed", {})
        return record

    def _entrants(self) -> RaceRecord:
        race = self.config.race
        assert race is not None
        entrants = Entrants.of(
            self.config, self.options.get("gpus"), self.options.get("gpus_per_worker")
        )
        entrants.check_any()
        dataset = None if needs_download(self.config.dataset) else open_dataset(self.config)
        self.on_event(_lines(f"race: {entrants.describe()}"))
        if costs := entrants.describe_costs(dataset, self._gpus()):
            self.on_event(_lines(f"race: {costs}"))
        entrants.load(self.on_event)
        left_out = describe_left_out(entrants.entries)
        self.on_event(_lines(*(f"race: without {line}" for line in left_out)))
        return RaceRecord(
            race.to_json(),
            entrants.listed,
            self.config.training.objective,
            entries=tuple(entrants.entries),
            packaged=tuple(entrants.packaged),
        )

    def _gpus(self) -> int:
        """Return the number of GPUs that train."""
        if self.options.get("engine") == "ray":
            has_gpus = bool(self.options.get("gpus_per_worker"))
            return (self.options.get("workers") or 1) * has_gpus
        return len(launcher.resolve_gpus(self.options.get("gpus")))

    def _run_round(
        self, record: RaceRecord, names: Sequence[str], number: int, epochs: int
    ) -> RunResult:
        by_size = {entry.backbone: entry.parameters or 0 for entry in record.entries}
        ordered = sorted(names, key=lambda name: by_size[name])
        config = round_config(self.config, ordered, number, epochs)
        return launcher.run_study(config, race=record, on_event=self._pass_on, **self.options)

    def _pass_on(self, event: dict[str, Any]) -> None:
        """Pass on an event of a round; what concerns the images is told by the study."""
        match event["event"]:
            case "notes":
                new = tuple(note for note in event["notes"] if note not in self._notes)
                self._notes.update(new)
                event = {**event, "notes": new}
            case "opened":
                event = {**event, "is_round": True}
        self.on_event(event)

    def _none_left(self, record: RaceRecord) -> UserError:
        lines = [f"  {line}" for line in describe_left_out(record.entries)]
        remove_rounds(self.config)
        return UserError("\n".join(["no backbone of the race is left:", *lines]))


def _with_scores(record: RaceRecord, scores: Any) -> RaceRecord:
    entries: dict[str, RaceEntry] = {}
    for entry in record.entries:
        score = scores.get(entry.backbone)
        if score is None:
            continue
        values = entry.values if score.value is None else (*entry.values, score.value)
        latency = entry.latency_ms if score.latency_ms is None else round(score.latency_ms, 4)
        entries[entry.backbone] = replace(
            entry,
            values=values,
            latency_ms=latency,
            seconds=round(entry.seconds + score.seconds, 3),
            left_out=score.reason,
        )
    return record.changed(entries)


def _sorted(record: RaceRecord, kept: Sequence[str]) -> tuple[RaceEntry, ...]:
    """Return the entries: who is kept, then who went furthest, and who was left out last."""
    sign = -1.0 if OBJECTIVES[record.metric] == "maximize" else 1.0

    def place(entry: RaceEntry) -> tuple[bool, int, int, float]:
        rank = kept.index(entry.backbone) if entry.backbone in kept else len(kept)
        best = min((sign * value for value in entry.values), default=0.0)
        return bool(entry.left_out), rank, -len(entry.values), best

    return tuple(sorted(record.entries, key=place))
