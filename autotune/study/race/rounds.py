"""The rounds of a race: studies with a plan for each backbone, and who goes on.

Heads are solved on frozen features first, then the best are tuned for a few epochs and fewer of
them for more: successive halving (Jamieson and Talwalkar 2016). A round is a study of the same
storage, so that it has workers, devices, caches and retries as any other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import TrialState

from autotune.config.fields import ALL, largest, values_of_dimension
from autotune.config.schema import MAX_NAME, OBJECTIVES, StudyConfig
from autotune.plan import SOLVED
from autotune.search import ranking
from autotune.search.initial_plans import LAYER_DECAY
from autotune.search.parameters.by_optimizer import FINE_TUNING_LR
from autotune.study.setup.opening import OpenStudy, find_existing
from autotune.study.state import attrs
from autotune.study.state.predictions import decode_scores
from autotune.study.state.race_record import RaceRecord
from autotune.text import join_some

#: Backbones of each round of tunings, and its share of the epochs of the study.
TUNINGS = ((6, 0.1), (3, 0.3))
#: A limit that measures the latency and is never reached, in ms.
_NO_LIMIT = 1e9
#: Standard errors by which a backbone has to be behind the best to be left.
CLEARLY_BEHIND = 2.0


@dataclass(frozen=True)
class Score:
    """The result of a backbone in a round.

    Args:
        value: The validation metric; ``None`` without a result.
        scores: What it scored on single validation images.
        latency_ms: Latency of an image, if it was measured.
        seconds: Seconds of the training.
        reason: Why there is no result.
        log_loss: The validation log loss, if it is stored.
    """

    value: float | None
    scores: Sequence[float] = ()
    latency_ms: float | None = None
    seconds: float = 0.0
    reason: str = ""
    log_loss: float | None = None


def round_name(study: str, number: int) -> str:
    """Return the name of the study of a round."""
    ending = f".race{number}"
    return study[: MAX_NAME - len(ending)] + ending


def is_round(study: Study) -> bool:
    """Tell whether a study is a round of a race, not one for which a race has chosen backbones."""
    race = study.user_attrs.get(attrs.RACE)
    return race is not None and not race["kept"]


def tuned_depth(config: StudyConfig) -> int | str:
    """Return the number of layers that tunings train: the most that the study may."""
    dimension = config.space.trainable_layers
    ends = [dimension["high"]] if isinstance(dimension, dict) else values_of_dimension(dimension)
    return ALL if ALL in ends else int(largest(ends))


def round_config(
    config: StudyConfig, names: Sequence[str], number: int, epochs: int
) -> StudyConfig:
    """Return the study of a round.

    Args:
        config: The study that the race is for.
        names: The backbones of the round; the first one is that of the baseline.
        number: Number of the round; the first one is 0.
        epochs: Epochs of the tunings; 0 solves heads.
    """
    # With several image sizes or augmentations, its images are those of the baseline.
    strength = min(values_of_dimension(config.training.augment.strength))
    chosen = config.with_backbones(names).for_images(config.image_sizes[0], strength)
    values = chosen.model_dump(mode="json", exclude={"notify", "name", "objectives"})
    limits = values["constraints"]
    values |= {
        "name": round_name(config.name or "study", number),
        "description": f"a round of the race among the backbones of {config.name}",
        "loggers": [],
        "init": "pretrained",
        "baseline": {"head_start": SOLVED},
        "space": _space(config, epochs),
        "search": {
            "sampler": "random",
            "pruner": "none",
            "default_plans": False,
            "trials": len(names) + (epochs > 0),  # without tunings, the baseline is one of them
            "seed": config.search.seed,
        },
        "training": {**values["training"], "epochs": max(1, epochs), "ema": None},
        # A round has one division into training and validation images; the test split is the same.
        "data": {
            **values["data"],
            "folds": None,
            "duplicates": "group" if config.data.duplicates == "group" else "off",
        },
        # What a network costs is measured with its solved head; tunings do not change it.
        "constraints": {"max_memory_mb": limits["max_memory_mb"]}
        if epochs
        else {**limits, "max_latency_ms": limits["max_latency_ms"] or _NO_LIMIT},
    }
    made = StudyConfig.model_validate(values)
    return made.model_copy(update={"cache": config.cache, "files": config.files})


def _space(config: StudyConfig, epochs: int) -> dict[str, Any]:
    if not epochs:
        return {"trainable_layers": 0, "training": {"head_start": SOLVED}}
    optimizer = str(values_of_dimension(config.space.training.optimizer)[0])
    policy = {
        "optimizer": optimizer,
        "lr": FINE_TUNING_LR[optimizer],
        "layer_decay": LAYER_DECAY,
        "head_start": SOLVED,
    }
    return {"trainable_layers": tuned_depth(config), "training": policy}


def tunings(config: StudyConfig, backbones: int) -> list[tuple[int, int]]:
    """Return backbones and epochs of each round of tunings; none where only heads may train.

    Args:
        config: The study.
        backbones: Backbones that can take part.
    """
    if tuned_depth(config) == 0:
        return []
    rounds = [
        (max(most, config.kept + 1), max(1, round(share * config.training.epochs)))
        for most, share in TUNINGS
    ]
    *earlier, last = rounds
    return [*(each for each in earlier if min(backbones, each[0]) > last[0]), last]


def read_round(study: Study, names: Sequence[str], tuned: bool) -> dict[str, Score]:
    """Return the result of each backbone in the study of a round."""
    scores = {name: Score(None, reason="it was not trained") for name in names}
    for trial in study.get_trials(deepcopy=False):
        plan = attrs.trial_plan(trial)
        if plan is None or plan.backbone not in scores or bool(plan.depth) != tuned:
            continue
        values = trial.user_attrs
        is_complete = trial.state == TrialState.COMPLETE and not ranking.is_infeasible(trial)
        if not is_complete and not trial.state.is_finished():
            continue
        reason = str(values.get(attrs.REASON, "it has no result"))
        stored = values.get(attrs.IMAGE_SCORES)
        scores[plan.backbone] = Score(
            attrs.metric_value(trial) if is_complete else None,
            tuple(decode_scores(stored)) if stored and is_complete else (),
            values.get(attrs.COSTS, {}).get("latency_ms"),
            float(values.get(attrs.SECONDS, 0.0)),
            "" if is_complete else reason.removeprefix(f"{attrs.INFEASIBLE}: "),
            ranking.log_loss_of(trial),
        )
    return scores


def best_so_far(
    earlier: Mapping[str, Score], found: Mapping[str, Score], metric: str
) -> dict[str, Score]:
    """Return the better result of each backbone that has one in this round.

    A few epochs can make a network worse than its solved head, which the study can have again.
    """
    best = {}
    for name in rank(found, metric):
        pair = {"found": found[name], "earlier": earlier.get(name, found[name])}
        best[name] = pair[rank(pair, metric)[0]]
    return best


def rank(scores: Mapping[str, Score], metric: str) -> list[str]:
    """Return the backbones with a result, the best first, as trials are ordered.

    Of equal ones the first given comes first.
    """
    direction = StudyDirection[OBJECTIVES[metric].upper()]
    keys = {
        name: ranking.rank_key([each.value], each.log_loss, direction)
        for name, each in scores.items()
        if each.value is not None
    }
    return sorted(keys, key=lambda name: keys[name])


def choose(ranked: Sequence[str], scores: Mapping[str, Score], keep: int) -> list[str]:
    """Return the backbones that enter the study: without those that are clearly behind the best.

    Both are scored on the same validation images, so the differences of single images tell.
    """
    best = ranked[0]
    return [
        name
        for name in ranked[:keep]
        if name == best or not is_clearly_behind(scores[name].scores, scores[best].scores)
    ]


def is_clearly_behind(scores: Sequence[float], best: Sequence[float]) -> bool:
    """Tell whether the mean difference of two backbones is beyond its error."""
    if len(scores) < 2 or len(scores) != len(best):
        return False
    differences = [one - other for one, other in zip(best, scores, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return error > 0 and abs(statistics.fmean(differences)) > CLEARLY_BEHIND * error


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
        if opened is not None and is_round(opened.study):
            record = RaceRecord.from_json(opened.study.user_attrs[attrs.RACE])
            return RaceProgress(name, number, record, opened)
    return None
