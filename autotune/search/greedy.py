"""The greedy strategy of AutoTune (Basha et al. 2020): one part of the network after the other.

The search goes through *stages*: layer 1 (the last), layer 2, ... , the head, the training
policy. A stage varies the parameters of its part and leaves all others as the *incumbent* has
them, the best plan of the stages before. A stage is accepted, and its best plan becomes the
incumbent, when it gains more than a margin. The layer stages end with the first that does not, as
in the paper, or with the last one (``stop: never``).

Only the stage of each trial is stored. The state of the search is derived from the trials every
time, so any number of workers agree, and a late result, a crash or a larger budget corrects it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune.config.schema import GreedyConfig
from autotune.plan import OF_IMAGES
from autotune.search import ranking
from autotune.search.deduplication import nearest_unseen, seen_keys
from autotune.search.parameters.by_optimizer import LR, optimizer_of, shared_name
from autotune.search.parameters.dimensions import integer_values
from autotune.search.space import Params, Space
from autotune.search.study_view import FAILED_PLAN

#: User attribute of a trial: name of the stage that it was drawn in.
STAGE = "stage"
LAYER = "layer"


@dataclass(frozen=True)
class Stage:
    """One part of the network, or of its training.

    Args:
        name: ``layer 3``, ``layers 3-4``, ``head``, ``training`` or ``images``.
        free: The parameters that it varies.
        depth: How many layers it trains; ``None`` leaves the depth as it is.
    """

    name: str
    free: tuple[str, ...]
    depth: int | None = None

    @property
    def is_layer(self) -> bool:
        """Whether this is a stage of layers; the first of them without gain ends them."""
        return self.name.startswith(LAYER)

    def start(self, incumbent: Params) -> Params:
        """Return the parameters that the stage starts from."""
        return incumbent if self.depth is None else {**incumbent, "depth": self.depth}


@dataclass(frozen=True)
class StageResult:
    """The outcome of a stage so far.

    Args:
        stage: The stage.
        trials: Numbers of its trials, live ones included.
        finished: How many of them have ended.
        quota: How many trials it gets.
        value_before: Value of the incumbent when the stage began, ``None`` if there was none.
        best: Its best complete trial, or ``None``.
        accepted: Whether it gained more than the margin.
        is_finished: Whether it has had its trials, or all of its plans have been tried.
        skipped: Whether it was skipped because an earlier layer gained nothing.
    """

    stage: Stage
    trials: tuple[int, ...] = ()
    finished: int = 0
    quota: int = 0
    value_before: float | None = None
    best: FrozenTrial | None = None
    accepted: bool = False
    is_finished: bool = False
    skipped: bool = False


@dataclass(frozen=True)
class GreedyState:
    """The state of a greedy search.

    Args:
        results: One for each stage that has begun or was skipped, in order.
        current: The stage to draw from, ``None`` if nothing is left to draw.
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
    if depth is None:  # fixed: every trial trains all layers up to it
        layers = sorted({_layer_of(name) for name in names} - {0})
        stages = [Stage(f"{LAYER} {index}", _free(names, index, index)) for index in layers]
    else:
        depths = sorted(integer_values(depth))
        for low, high in zip([0, *depths], depths, strict=False):
            if high > 0:
                title = f"{LAYER} {high}" if high == low + 1 else f"{LAYER}s {low + 1}-{high}"
                stages.append(Stage(title, _free(names, low + 1, high), high))
    for part in ("head", "training"):
        if free := tuple(name for name in names if name.startswith(f"{part}.")):
            stages.append(Stage(part, free))
    if free := tuple(name for name in OF_IMAGES if name in names):
        stages.append(Stage("images", free))
    return tuple(stages)


def _layer_of(name: str) -> int:
    """Return the layer of a parameter, 0 for one of no layer."""
    section, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if section == LAYER else 0


def _free(names: Sequence[str], low: int, high: int) -> tuple[str, ...]:
    """Return the parameters that a stage of some layers varies.

    ``inherit`` goes with changed layers, and so does the learning rate if it is searched: the rate
    of a head alone is too high for trainable layers, and with it no layer ever helps
    (benchmarks/search_quality.py). The paper has one rate for all.
    """
    layers = [name for name in names if low <= _layer_of(name) <= high]
    others = (["inherit"] if layers else []) + [LR]
    rates = (name for name in names if optimizer_of(name) and shared_name(name) == LR)
    return (*layers, *(name for name in others if name in names), *rates)


def greedy_state(
    space: Space,
    trials: Sequence[FrozenTrial],
    direction: StudyDirection,
    config: GreedyConfig,
    budget: int,
    start: Mapping[str, object],
) -> GreedyState:
    """Derive the state of a greedy search from its trials."""
    seen = seen_keys(space, trials)
    trials = [trial for trial in trials if not _is_uninformative(trial)]
    first = [trial for trial in trials if STAGE not in trial.user_attrs]
    baseline = ranking.best_trial(first, direction)
    incumbent, value = dict(start), None if baseline is None else baseline.value
    results: list[StageResult] = []
    layers_ended = False
    used = len(first)
    stages = list_stages(space)
    for position, stage in enumerate(stages):
        if stage.is_layer and layers_ended:
            results.append(StageResult(stage, skipped=True))
            continue
        ahead = [other for other in stages[position:] if not (other.is_layer and layers_ended)]
        quota = config.trials_per_stage or math.ceil(max(0, budget - used) / len(ahead))
        result = _result(stage, trials, direction, value, quota, config.margin)
        left = nearest_unseen(space, stage.start(incumbent), seen, random.Random(0), stage.free)
        is_finished = result.finished >= quota or (
            left is None and result.finished == len(result.trials)
        )
        results.append(replace(result, is_finished=is_finished))
        if left is not None and not is_finished:
            return GreedyState(tuple(results), stage, incumbent)
        used += result.finished
        if result.accepted and result.best is not None:
            incumbent, value = space.canonical(result.best.params), result.best.value
        elif stage.is_layer and is_finished and config.stop == "no_gain":
            layers_ended = True
    return GreedyState(tuple(results), None, incumbent)


def _result(
    stage: Stage,
    trials: Sequence[FrozenTrial],
    direction: StudyDirection,
    before: float | None,
    quota: int,
    margin: float,
) -> StageResult:
    own = [trial for trial in trials if trial.user_attrs.get(STAGE) == stage.name]
    best = ranking.best_trial(own, direction)
    sign = -1.0 if direction == StudyDirection.MINIMIZE else 1.0
    return StageResult(
        stage,
        trials=tuple(trial.number for trial in own),
        finished=sum(trial.state.is_finished() for trial in own),
        quota=quota,
        value_before=before,
        best=best,
        accepted=best is not None
        and (before is None or sign * ((best.value or 0.0) - before) > margin),
    )


def _is_uninformative(trial: FrozenTrial) -> bool:
    """Tell whether a trial says nothing about its plan: interrupted, or its worker was lost."""
    return trial.state == TrialState.FAIL and not trial.user_attrs.get(FAILED_PLAN)
