"""What a study remembers, by name: the user attributes of studies and trials, read and counted.

Long data (curves, matrices, weights) are artifacts; attributes stay short, because the dashboard
and every worker read them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from autotune.config.old_names import with_new_names
from autotune.data.quality.checks import dataset_warnings
from autotune.format_versions import ATTRIBUTE as _FORMAT
from autotune.format_versions import STUDY, check_format, reading
from autotune.plan import TrialPlan
from autotune.search import greedy, ranking, study_view
from autotune.search.space import Space
from autotune.storage import paths
from autotune.storage.rdb import fast_rdb

# Of a study
UUID = fast_rdb.UUID  # str: drawn when it is made; a study made anew under its name has another
DEFINITION = "definition"  # dict: what StudyConfig.identity() returned
BUDGET = "budget"  # dict: Budget.to_json() of the last run
CACHE = "cache"  # dict: CacheConfig of the last run
FIT = "fit"  # dict: RefitConfig of the last run
ENDED = "ended"  # dict: StopReason.to_json() of what ended the study; None while it goes on
DATASET = "dataset"  # dict: what TaskInfo.to_json() returned
SPLIT = "split"  # str: id of the artifact that holds the Manifest of its images
SURVEY = "survey"  # dict: what is odd about the images, see data/survey.py
# dict: name -> {"weights_hash", "parameters", "layers": [Layer.to_json()]}, the baseline's first
BACKBONES = "backbones"
SPACE = "space"  # dict: what Space.to_json() returned
FILES = paths.ATTRIBUTE  # str: folder of the study's files
PRECISION = "precision"  # dict: backbone -> {device: "off", "bf16" or "fp16"}, for amp: auto
FLOAT32 = "float32_precision"  # dict: GPU -> "tf32" or "ieee": how it computes in float32
ENVIRONMENT = "environment"  # dict: package -> version
FORMAT = _FORMAT  # dict: formats.stamp() of the version that opened it for a run last
PLUGINS = "own"  # dict: key such as "search.sampler" -> SHA-256 of the file that it names
# list of dict: {"time", "trial", "test": Metrics.to_json(), "baseline": the same}, one a reading
TEST_READS = "test_reads"
CONFIRMED = "confirmed"  # dict: Verdict.to_json() of the last ``autotune confirm``
WARM_START = "warm_start"  # dict: {"taken": [title], "dropped": [[title, reason]]}

# Of a trial
PLAN = "plan"  # dict: TrialPlan.to_json()
ROLE = "role"  # "baseline" for trial 0 and its retries
ORIGIN = "origin"  # str: why a trial was queued at the start, e.g. "warm start: trial 3 of x"
STAGE = greedy.STAGE  # str: stage of a greedy search that it was drawn in
WORKER = (
    fast_rdb.WORKER
)  # str: host/process/index-random of the worker; no random part in older ones
CLAIMED_AT = "claimed"  # float: when it was claimed, in seconds of the Unix epoch (UTC)
DEVICE_SECONDS = "held"  # float: seconds for which this attempt has held its device so far
DEVICE = "device"  # str: e.g. "cpu" or "NVIDIA H200"
GPU = "gpu"  # str: which one of its machine, e.g. "GPU 2 (8932f937)", where it trained on a GPU
# dict: {"half": "bf16", "fp16" or "off", "float32": "tf32" or "ieee"} and where some modules stay
# in float32 because half precision gets them wrong, or slow, {"kept": their names}
COMPUTE = "compute"
THREADS = "threads"  # int: CPU threads that it trained on, where it trained on the CPU
EPOCHS = "epochs"  # int: epochs trained, those of earlier attempts included
SECONDS = "seconds"  # float: wall time of the training, that of earlier attempts included
TRAINABLE_PARAMETERS = "parameters_tuned"  # int
# dict: {"decoded": "once" or "anew"}, and where features are kept {"computed": of how many images,
# "seconds": what that took}, those of earlier attempts included
CACHES = "caches"
UNSPLIT_REASON = (
    "trains_whole"  # str: why no features are kept, where the backbone cannot be split
)
MICRO_BATCH = "part"  # int: images at a time, where a whole batch does not fit into memory
# floats: what the training held on its GPU at most (of a plan that did not fit: what it wanted at
# least), and what the device has
PEAK_MEMORY_MB = study_view.PEAK_MEMORY_MB
DEVICE_MEMORY_MB = study_view.DEVICE_MEMORY_MB
COSTS = "costs"  # dict: cost -> float, as measured before training
METRICS = "metrics"  # dict: Metrics.to_json() of the last epoch; with folds, means over them
DEVIATIONS = "metrics_deviation"  # dict: standard deviations over folds of the same
REASON = "reason"  # str: why a trial failed, was given back or not trained
FAILED_PLAN = (
    study_view.FAILED_PLAN
)  # true: it failed because of its plan; samplers learn from that
RETRIES = "retries"  # list of int: numbers of the earlier attempts, first one first
LOST_ATTEMPTS = "losses"  # int: how many attempts were lost since one had a further epoch
RESUMED = "resumed"  # int: the epoch after which a retry goes on, 0 for the start

BASELINE = "baseline"
INFEASIBLE = "infeasible"  # how a trial ended that is beyond a limit, or the memory, there is


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Args:
        complete: Trials trained to the last epoch.
        pruned: Trials that the pruner ended.
        failed: Trials that ended with an error and will not be tried again.
        retried: Attempts that were interrupted or lost and have a successor.
        running: Trials that a worker is at.
        waiting: Trials that are queued.
        budget: Finished trials that the study is to have.
        infeasible: Trials whose plans cost too much, or do not fit into the memory there is.
    """

    complete: int
    pruned: int
    failed: int
    retried: int
    running: int
    waiting: int
    budget: int
    infeasible: int = 0

    @property
    def finished(self) -> int:
        """Trials that count towards the budget."""
        return self.complete + self.pruned + self.failed + self.infeasible

    @property
    def attempts(self) -> int:
        """How often a worker has started at a trial."""
        return self.finished + self.retried + self.running


def device_name(trial: FrozenTrial) -> str:
    """Name the device that a trial trains on, and which one it is; empty before it has said so."""
    named = (trial.user_attrs.get(DEVICE), trial.user_attrs.get(GPU))
    return ", ".join(str(name) for name in named if name)


def count_progress(trials: Sequence[FrozenTrial], budget: int) -> Progress:
    """Count the trials of a study.

    A failed attempt that has a successor does not count: the successor does.
    """
    replaced = retried_numbers(trials)
    states = [
        "retried"
        if trial.state == TrialState.FAIL and trial.number in replaced
        else INFEASIBLE
        if ended_infeasible(trial)
        else trial.state
        for trial in trials
    ]
    return Progress(
        complete=states.count(TrialState.COMPLETE),
        pruned=states.count(TrialState.PRUNED),
        failed=states.count(TrialState.FAIL),
        retried=states.count("retried"),
        running=states.count(TrialState.RUNNING),
        waiting=states.count(TrialState.WAITING),
        budget=budget,
        infeasible=states.count(INFEASIBLE),
    )


def retried_numbers(trials: Iterable[FrozenTrial]) -> set[int]:
    """Return the numbers of the attempts that have a successor."""
    return {number for trial in trials for number in earlier_attempts(trial)}


def trial_budget(study: Study) -> int:
    """Return how many finished trials a study is to have."""
    return int(study.user_attrs.get(BUDGET, {}).get("trials", 0))


def earlier_attempts(trial: FrozenTrial | Trial) -> list[int]:
    """Return the numbers of the earlier attempts at a trial, the first one first."""
    return list(trial.user_attrs.get(RETRIES, ()))


def first_attempt(trial: FrozenTrial | Trial) -> int:
    """Return the number of the first attempt at a trial: its own, unless it is a retry."""
    return (earlier_attempts(trial) or [trial.number])[0]


def is_baseline(trial: FrozenTrial) -> bool:
    """Tell whether a trial is the baseline or a retry of it."""
    return trial.user_attrs.get(ROLE) == BASELINE


def find_baseline(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Return the completed baseline, or ``None``."""
    return next(
        (one for one in trials if is_baseline(one) and one.state == TrialState.COMPLETE), None
    )


def ended_infeasible(trial: FrozenTrial) -> bool:
    """Tell whether a trial ended because its plan is infeasible; the baseline does not.

    Where the memory gave out later, it has a few epochs, and no value that counts.
    """
    return trial.state == TrialState.PRUNED and ranking.is_infeasible(trial)


def metric_direction(study: Study) -> StudyDirection:
    """Return the direction of the metric; the second objective, a cost, is always minimised."""
    return study.directions[0]


def metric_value(trial: FrozenTrial) -> float | None:
    """Return the metric that a trial reached, the first of its objectives, or ``None``."""
    return trial.values[0] if trial.values else None


def metric_deviation(trial: FrozenTrial, metric: str) -> float | None:
    """Return the standard deviation of a metric over the folds, ``None`` where there are none."""
    found = trial.user_attrs.get(DEVIATIONS, {}).get(metric)
    return None if found is None else float(found)


def trial_origin(trial: FrozenTrial) -> str:
    """Say why a trial was queued at the start; empty for the baseline and what was searched."""
    return str(trial.user_attrs.get(ORIGIN, ""))


def describe_warm_start(study: Study) -> list[str]:
    """Say which plans of other studies were taken, and which were dropped and why."""
    known = study.user_attrs.get(WARM_START, {"taken": [], "dropped": []})
    taken = [f"{title} is queued" for title in known["taken"]]
    return taken + [f"{title} is dropped: {reason}" for title, reason in known["dropped"]]


def definition(study_attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study file that a study was made from, with the key names of this version."""
    return with_new_names(study_attrs.get(DEFINITION) or {})[0]


def image_warnings(study_attrs: Mapping[str, Any]) -> list[str]:
    """Say what should be known of the images of a study, in sentences."""
    training = definition(study_attrs).get("training", {})
    return dataset_warnings(study_attrs.get(SURVEY, {}), training)


def trial_plan(trial: FrozenTrial) -> TrialPlan | None:
    """Return the plan of a trial, or ``None`` when it never got one.

    Raises:
        FormatError: When it was written by another version of autotune.
    """
    values: Any = trial.user_attrs.get(PLAN)
    if not values:
        return None
    with reading(f"the plan of trial {trial.number}"):
        return TrialPlan.from_json(values)


def load_study(name: str, storage: BaseStorage) -> Study:
    """Load a study.

    Raises:
        FormatError: When a later version of autotune has written it.
    """
    study = optuna.load_study(study_name=name, storage=storage)
    check_version(study)
    return study


def check_version(study: Study) -> None:
    """Refuse a study that a later version of autotune has written.

    Raises:
        FormatError: With the version.
    """
    check_format(study.user_attrs.get(FORMAT), STUDY, f"the study {study.study_name!r}")


def study_space(study: Study) -> Space:
    """Return the space of a study.

    Raises:
        FormatError: When it was written by another version of autotune.
    """
    with reading(
        f"the space of the study {study.study_name!r}", by=written_by_version(study.user_attrs)
    ):
        return Space.from_json(study.user_attrs[SPACE])


def written_by_version(study_attrs: Mapping[str, Any]) -> str:
    """Return the version of autotune that has written a study; empty where it is not known."""
    for name in (FORMAT, ENVIRONMENT):
        values = study_attrs.get(name)
        if isinstance(values, Mapping) and "autotune" in values:
            return str(values["autotune"])
    return ""


def backbone_layers(
    study_attrs: Mapping[str, Any], plan: TrialPlan | None
) -> Sequence[dict[str, Any]]:
    """Return the layers of a plan's backbone as a study remembers them, the last layer first.

    Args:
        study_attrs: User attributes of the study.
        plan: The plan; without one, the layers of the first backbone.
    """
    backbones: Mapping[str, Any] = study_attrs.get(BACKBONES, {})
    name = plan.backbone if plan else next(iter(backbones), "")
    return tuple(backbones.get(name, {}).get("layers", ()))


def has_several_backbones(study_attrs: Mapping[str, Any]) -> bool:
    """Tell whether a study has several backbones, so that a plan has to name its own."""
    return len(study_attrs.get(BACKBONES, ())) > 1


def wall_seconds(trial: FrozenTrial) -> float | None:
    """Return the wall time between start and end of a trial."""
    if trial.datetime_start is None or trial.datetime_complete is None:
        return None
    return (trial.datetime_complete - trial.datetime_start).total_seconds()


def device_seconds(trial: FrozenTrial, now: float) -> float:
    """Return for how many seconds an attempt at a trial has held its device.

    One that ended counts up to its end; one whose worker was lost, up to its last sign of life.

    Args:
        trial: The attempt; its earlier ones have counts of their own.
        now: In seconds of the Unix epoch.
    """
    claimed = trial.user_attrs.get(CLAIMED_AT)
    if claimed is not None and trial.state == TrialState.RUNNING:
        return max(0.0, now - float(claimed))
    if claimed is not None or WORKER not in trial.user_attrs:
        return float(trial.user_attrs.get(DEVICE_SECONDS, 0.0))
    return wall_seconds(trial) or 0.0  # of a study that was made before there was a claim's time


def started_at(trial: FrozenTrial) -> float:
    """Return when an attempt at a trial began, in seconds of the Unix epoch; 0 before it has."""
    if CLAIMED_AT in trial.user_attrs:
        return float(trial.user_attrs[CLAIMED_AT])
    return trial.datetime_start.timestamp() if trial.datetime_start else 0.0


def ended_at(trial: FrozenTrial) -> float:
    """Return when a trial ended, in seconds of the Unix epoch.

    Optuna's own times have no time zone, and workers may be in several.
    """
    attributes = trial.user_attrs
    if CLAIMED_AT in attributes and DEVICE_SECONDS in attributes:
        return last_sign_of_life(trial)
    return trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0


def last_sign_of_life(trial: FrozenTrial) -> float:
    """Return when the worker of a trial last gave a sign of life, in seconds of the Unix epoch."""
    return started_at(trial) + float(trial.user_attrs.get(DEVICE_SECONDS, 0.0))


def trained_epochs(trial: FrozenTrial) -> int:
    """Return how many epochs a trial has trained, its earlier attempts included."""
    known = trial.user_attrs.get(EPOCHS)
    return int(known) if known is not None else max(trial.intermediate_values, default=0)


def pruned_epochs(trials: Iterable[FrozenTrial], epochs: int) -> int:
    """Count the epochs that pruned trials did not train; infeasible ones are not pruned.

    Args:
        trials: All trials of a study.
        epochs: Epochs of a trial that is not pruned.
    """
    return sum(
        max(0, epochs - trained_epochs(one))
        for one in trials
        if one.state == TrialState.PRUNED and not ended_infeasible(one)
    )


def first_start(trials: Iterable[FrozenTrial]) -> datetime | None:
    """Return when the first trial of a study started."""
    return min((one.datetime_start for one in trials if one.datetime_start), default=None)
