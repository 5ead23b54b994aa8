"""The greedy order of AutoTune (Basha et al. 2020): one part of the network after the other.

A study is gone through in *stages*: layer 1 (the last), layer 2, ... , the head, the training
policy. A stage varies the parameters of its part and leaves all others as the *incumbent* has
them, the best plan of the stages before. It is accepted, and becomes the incumbent, when it gains
more than a margin; the layers end with the first that does not, as in the paper, or with the
last (``stop: never``).

Nothing is remembered but the stage of each trial. Where a study stands is worked out from its
trials every time it is asked, so any number of workers agree, and a late result, a crash or a
larger budget puts the course right by itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune.config.schema import GreedyConfig
from autotune.search import ranking
from autotune.search.deduplication import Key, nearest_unseen, seen_keys
from autotune.search.dimensions import integer_values
from autotune.search.space import Params, Space
from autotune.search.study_view import FAILED_PLAN

#: User attribute of a trial: name of the stage that it was drawn in.
STAGE = "stage"
LAYER = "layer"
RATE = "training.lr"


@dataclass(frozen=True)
class Stage:
    """One part of the network, or of its training.

    Args:
        name: ``layer 3``, ``layers 3-4``, ``head`` or ``training``.
        free: The parameters that it varies.
        depth: How many layers it tunes; ``None`` leaves the depth as it is.
    """

    name: str
    free: tuple[str, ...]
    depth: int | None = None

    @property
    def is_layer(self) -> bool:
        """Whether this is a stage of layers, which the first without gain ends."""
        return self.name.startswith(LAYER)

    def start(self, incumbent: Params) -> Params:
        """Return the parameters that the stage starts from."""
        return incumbent if self.depth is None else {**incumbent, "depth": self.depth}


@dataclass(frozen=True)
class StageResult:
    """What came of a stage so far.

    Args:
        stage: The stage.
        trials: Numbers of its trials, live ones included.
        finished: How many of them have ended.
        quota: How many are to.
        before: Value of the incumbent when the stage began, ``None`` when there was none.
        best: Its best complete trial, or ``None``.
        accepted: Whether it gained more than the margin.
        over: Whether it has had its trials, or every plan of it has been tried.
        skipped: Whether it was left out because an earlier layer gained nothing.
    """

    stage: Stage
    trials: tuple[int, ...] = ()
    finished: int = 0
    quota: int = 0
    before: float | None = None
    best: FrozenTrial | None = None
    accepted: bool = False
    over: bool = False
    skipped: bool = False


@dataclass(frozen=True)
class GreedyState:
    """Where a study in greedy order stands.

    Args:
        results: One a stage, in order; those not begun yet are left out.
        current: The stage to draw from, ``None`` when there is nothing to draw.
        incumbent: Canonical parameters of the best plan of the stages before.
    """

    results: tuple[StageResult, ...]
    current: Stage | None
    incumbent: Params


def list_stages(space: Space) -> tuple[Stage, ...]:
    """List the stages of a space, layer 1 first.

    Where the depth has steps, the layers between two of them are one stage.
    """
    names = list(space.distributions)
    depth = space.distributions.get("depth")
    stages = []
    if depth is None:  # fixed: all layers up to it train in every trial
        for index in sorted({int(name.split(".")[1]) for name in names if _is_layer(name)}):
            stages.append(Stage(f"{LAYER} {index}", _free(names, index, index)))
    else:
        depths = sorted(integer_values(depth))
        for low, high in zip([0, *depths], depths, strict=False):
            if high > 0:
                title = f"{LAYER} {high}" if high == low + 1 else f"{LAYER}s {low + 1}-{high}"
                stages.append(Stage(title, _free(names, low + 1, high), high))
    for part in ("head", "training"):
        if free := tuple(name for name in names if name.startswith(f"{part}.")):
            stages.append(Stage(part, free))
    return tuple(stages)


def _is_layer(name: str) -> bool:
    return name.startswith(f"{LAYER}.")


def _free(names: Sequence[str], low: int, high: int) -> tuple[str, ...]:
    """Return what a stage of some layers varies.

    What changed layers start from goes with them, and so does the learning rate where it is
    searched: that of a head alone is too high for trainable layers, and with it no layer ever
    helps
    (benchmarks/search_quality.py). The paper has one rate for all.
    """
    layers = [name for name in names if _is_layer(name) and low <= int(name.split(".")[1]) <= high]
    others = (["inherit"] if layers else []) + [RATE]
    return (*layers, *(name for name in others if name in names))


def greedy_state(
    space: Space,
    trials: Sequence[FrozenTrial],
    direction: StudyDirection,
    config: GreedyConfig,
    budget: int,
    start: Mapping[str, object],
) -> GreedyState:
    """Work out where a study stands.

    Args:
        space: Its static space.
        trials: All its trials.
        direction: Whether more or less of the objective is better.
        config: The ``search.greedy`` section.
        budget: Finished trials that the study is to have.
        start: Canonical parameters of the baseline, or of what is nearest to it in the space.
    """
    seen = seen_keys(space, trials)
    first = [one for one in trials if STAGE not in one.user_attrs and not _gone(one)]
    baseline = ranking.best_trial(first, direction)
    incumbent, value = dict(start), None if baseline is None else baseline.value
    results: list[StageResult] = []
    ended_layers = False
    used = len(first)
    stages = list_stages(space)
    for position, stage in enumerate(stages):
        if stage.is_layer and ended_layers:
            results.append(StageResult(stage, skipped=True))
            continue
        ahead = [one for one in stages[position:] if not (one.is_layer and ended_layers)]
        quota = config.trials_per_stage or math.ceil(max(0, budget - used) / len(ahead))
        result = _result(stage, trials, direction, value, quota, config.margin)
        left = _has_left(space, stage, incumbent, seen)
        over = result.finished >= quota or (not left and result.finished == len(result.trials))
        results.append(replace(result, over=over))
        if left and not over:
            return GreedyState(tuple(results), stage, incumbent)
        used += result.finished
        if result.accepted:
            assert result.best is not None
            incumbent, value = space.canonical(result.best.params), result.best.value
        elif stage.is_layer and over and config.stop == "no_gain":
            ended_layers = True
    return GreedyState(tuple(results), None, incumbent)


def _result(
    stage: Stage,
    trials: Sequence[FrozenTrial],
    direction: StudyDirection,
    before: float | None,
    quota: int,
    margin: float,
) -> StageResult:
    mine = [one for one in trials if one.user_attrs.get(STAGE) == stage.name and not _gone(one)]
    best = ranking.best_trial(mine, direction)
    sign = -1.0 if direction == StudyDirection.MINIMIZE else 1.0
    accepted = best is not None and (
        before is None or sign * ((best.value or 0.0) - before) > margin
    )
    return StageResult(
        stage,
        trials=tuple(one.number for one in mine),
        finished=sum(one.state.is_finished() for one in mine),
        quota=quota,
        before=before,
        best=best,
        accepted=accepted,
    )


def _gone(trial: FrozenTrial) -> bool:
    """Tell whether a trial says nothing of its plan: it was interrupted, or its worker lost."""
    return trial.state == TrialState.FAIL and not trial.user_attrs.get(FAILED_PLAN)


def _has_left(space: Space, stage: Stage, incumbent: Params, seen: set[Key]) -> bool:
    start = stage.start(incumbent)
    return nearest_unseen(space, start, seen, random.Random(0), stage.free) is not None
