"""The stages of a greedy search as a table, for the report and the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.config.schema import StudyConfig
from autotune.format_versions import reading
from autotune.results.study_results import StudyResults
from autotune.results.values.objective import Objective
from autotune.search.greedy import StageResult, greedy_state
from autotune.study.state import attrs
from autotune.text import count_of


@dataclass(frozen=True)
class StageRow:
    """One line of the table of stages.

    Args:
        name: Name of the stage.
        searched: What it varies, in words.
        trials: How many of its trials have finished: ``1 of 3``.
        best: Its best value, or a dash.
        gain: How far that is from the incumbent before it; empty where there is none.
        verdict: Its outcome.
        trial: Number of its best trial, or ``None``.
    """

    name: str
    searched: str
    trials: str
    best: str
    gain: str
    verdict: str
    trial: int | None


def stage_rows(results: StudyResults) -> tuple[StageRow, ...]:
    """Describe the stages of a greedy search, those begun or skipped; nothing in another order."""
    if results.definition.get("search", {}).get("strategy") != "greedy":
        return ()
    by = attrs.written_by_version(results.attributes)
    with reading(f"the definition of the study {results.name!r}", by=by):
        config = StudyConfig.model_validate(results.definition)
    space = attrs.study_space(results.study)
    state = greedy_state(
        space,
        results.trials,
        results.direction,
        config.search.greedy,
        results.budget.trials,
        space.nearest(space.baseline(config.baseline)),
    )
    margin, has_ended = config.search.greedy.margin, results.stop_reason is not None
    return tuple(_row(stage, results.objective, margin, has_ended) for stage in state.results)


def _row(result: StageResult, objective: Objective, margin: float, has_ended: bool) -> StageRow:
    best, gain = result.best, ""
    if best is not None and best.value is not None and result.value_before is not None:
        gain = objective.format_difference(best.value, result.value_before)
    return StageRow(
        name=result.stage.name,
        searched=_searched(result),
        trials="" if result.skipped else count_of(result.finished, result.quota),
        best="" if result.skipped else objective.format_value(best.value if best else None),
        gain=gain,
        verdict=_verdict(result, margin, has_ended),
        trial=best.number if best else None,
    )


def _searched(result: StageResult) -> str:
    if result.stage.is_layer:
        names = [name.rsplit(".", 1)[-1] for name in result.stage.free if name != "inherit"]
        return ", ".join(dict.fromkeys(names)) or "trainable or not"
    names = [name.split(".")[1].replace("_", " ") for name in result.stage.free]
    return ", ".join(dict.fromkeys(names))


def _verdict(result: StageResult, margin: float, has_ended: bool) -> str:
    if result.skipped:
        return "skipped: the layer before it gained nothing"
    if not result.is_finished:
        return "not finished when the study ended" if has_ended else "in progress"
    if result.accepted:
        return "accepted"
    return f"not accepted: no gain above {margin:g}" if margin else "not accepted: no gain"
