"""The stages of a greedy search, for the report and the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.config.schema import StudyConfig
from autotune.format_versions import reading
from autotune.results.values.objective import Objective
from autotune.search.greedy import StageResult, greedy_state
from autotune.study.state import attrs


@dataclass(frozen=True)
class StageRow:
    """One line of the table of stages.

    Args:
        name: Name of the stage.
        searched: What it varies, in words.
        trials: How many trials it has had, of how many that it is to have.
        best: Its best value, or a dash.
        gain: How far that is from the incumbent before it; empty where there is none.
        verdict: What came of it.
        trial: Number of its best trial, or ``None``.
    """

    name: str
    searched: str
    trials: str
    best: str
    gain: str
    verdict: str
    trial: int | None


def stage_rows(study: Study) -> tuple[StageRow, ...]:
    """Describe the stages of a study in greedy order, those begun or skipped.

    Args:
        study: The study.

    Returns:
        One row a stage; none for a study in another order.
    """
    definition = study.user_attrs.get(attrs.DEFINITION)
    if not definition or definition.get("search", {}).get("order") != "greedy":
        return ()
    by = attrs.written_by_version(study.user_attrs)
    with reading(f"the definition of the study {study.study_name!r}", by=by):
        config = StudyConfig.model_validate(definition)
    space = attrs.study_space(study)
    found = greedy_state(
        space,
        study.get_trials(deepcopy=False),
        attrs.metric_direction(study),
        config.search.greedy,
        attrs.trial_budget(study),
        space.nearest(space.baseline(config.baseline)),
    )
    objective = Objective.from_study(study)
    return tuple(_row(one, objective, config.search.greedy.margin) for one in found.results)


def _row(result: StageResult, objective: Objective, margin: float) -> StageRow:
    best = result.best
    return StageRow(
        name=result.stage.name,
        searched=_searched(result),
        trials="" if result.skipped else f"{result.finished} of {result.quota}",
        best="" if result.skipped else objective.format_value(best.value if best else None),
        gain=_gain(result, best, objective),
        verdict=_verdict(result, margin),
        trial=best.number if best else None,
    )


def _searched(result: StageResult) -> str:
    if result.stage.is_layer:
        names = [name.rsplit(".", 1)[-1] for name in result.stage.free if name != "inherit"]
        return ", ".join(dict.fromkeys(names)) or "trainable or not"
    words = [name.split(".")[1].replace("_", " ") for name in result.stage.free]
    return ", ".join(dict.fromkeys(words))


def _gain(result: StageResult, best: FrozenTrial | None, objective: Objective) -> str:
    if best is None or best.value is None or result.value_before is None:
        return ""
    return objective.format_difference(best.value, result.value_before)


def _verdict(result: StageResult, margin: float) -> str:
    if result.skipped:
        return "left out: the layer before it gained nothing"
    if not result.is_finished:
        return "in progress"
    if result.accepted:
        return "accepted"
    return f"not accepted: no gain above {margin:g}" if margin else "not accepted: no gain"
