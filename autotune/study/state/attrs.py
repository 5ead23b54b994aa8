"""User attributes of studies and trials: their names, and functions that read and count them.

Long data (plots, matrices, weights) are artifacts; attributes stay short, because the dashboard
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
from autotune.data.quality.checks import dataset_warnings, describe_counts
from autotune.format_versions import ATTRIBUTE as _FORMAT
from autotune.format_versions import STUDY, check_format, reading
from autotune.plan import TrialPlan
from autotune.search import greedy, ranking, study_view
from autotune.search.space import Space
from autotune.storage import paths
from autotune.storage.rdb import fast_rdb, statements

# Of a study
UUID = statements.UUID  # str: random; a study that is made anew under its name has another
DEFINITION = "definition"  # dict: StudyConfig.identity()
BUDGET = "budget"  # dict: Budget.to_json() of the last run
CACHE = "cache"  # dict: CacheConfig of the last run
FIT = "fit"  # dict: RefitConfig of the last run
LOGGERS = "loggers"  # list of str: names of the loggers of the last run, for workers elsewhere
ENDED = "ended"  # dict: StopReason.to_json(); None until the study has ended
DATASET = "dataset"  # dict: DatasetInfo.to_json()
SPLIT = "split"  # str: id of the artifact that holds the Manifest of its images
SURVEY = "survey"  # dict: the results of the checks of its images, see data/quality/checks.py
# dict: name -> {"weights_hash", "parameters", "layers": [Layer.to_json()]}, the baseline's first;
# also "package", the package that has the weights, where they are of one
BACKBONES = "backbones"
SPACE = "space"  # dict: Space.to_json()
FILES = (
    paths.ATTRIBUTE
)  # str: folder of its files; None: beside its database, see storage/paths.py
PRECISION = "precision"  # dict: backbone -> {device: "off", "bf16" or "fp16"}, for amp: auto
FLOAT32 = "float32_precision"  # dict: GPU -> "tf32" or "ieee": how it computes in float32
ENVIRONMENT = "environment"  # dict: package -> version
FORMAT = _FORMAT  # dict: format_versions.stamp() of the version that last opened it for a run
PLUGINS = "own"  # dict: key such as "search.sampler" -> SHA-256 of the file that it names
# list of dict: {"time", "trial", "test": Metrics.to_json(), "baseline": the same}, one a reading
TEST_READS = "test_reads"
CONFIRMED = "confirmed"  # dict: Verdict.to_json() of the last ``autotune confirm``
RACE = "race"  # dict: RaceRecord.to_json() of the race that has chosen its backbones
WARM_START = "warm_start"  # dict: {"taken": [title], "dropped": [[title, reason]]}

# Of a trial
PLAN = "plan"  # dict: TrialPlan.to_json()
ROLE = "role"  # "baseline" for trial 0 and its retries
# str: why a trial was queued: "warm start: trial 3 of x" at the start, or BY_HAND ... later
ORIGIN = "origin"
STAGE = greedy.STAGE  # str: stage of a greedy search in which it was drawn
# str: host/process/index-random of its worker; without the random part in older studies
WORKER = fast_rdb.WORKER
CLAIMED_AT = "claimed"  # float: when it was claimed, in seconds of the Unix epoch (UTC)
DEVICE_SECONDS = "held"  # float: seconds for which this attempt has held its device so far
DEVICE = "device"  # str: e.g. "cpu" or "NVIDIA H200"
GPU = "gpu"  # str: which GPU of its machine, e.g. "GPU 2 (8932f937)", where it trained on one
# dict: {"half": "bf16", "fp16" or "off", "float32": "tf32" or "ieee"} and, where some modules stay
# in float32 because half precision gets them wrong, or slow, {"kept": their names}
COMPUTE = "compute"
THREADS = "threads"  # int: CPU threads, where it trained on the CPU
EPOCHS = "epochs"  # int: epochs trained, including those of earlier attempts
SECONDS = "seconds"  # float: wall time of the training, including that of earlier attempts
TRAINABLE_PARAMETERS = "parameters_tuned"  # int
# dict: {"decoded": "once" or "anew"}, and where features are cached {"computed": number of images,
# "seconds": time for them}, including those of earlier attempts
CACHES = "caches"
UNSPLIT_REASON = "trains_whole"  # str: why the backbone cannot be split, so no features are cached
MICRO_BATCH = "part"  # int: micro-batch size, where a whole batch does not fit into memory
# floats: peak of the training's memory on its GPU (of a plan that did not fit: the least that it
# wanted), and the memory of the device
PEAK_MEMORY_MB = study_view.PEAK_MEMORY_MB
DEVICE_MEMORY_MB = study_view.DEVICE_MEMORY_MB
COSTS = "costs"  # dict: cost -> float, as measured before training
# dict: Metrics.to_json() of the last epoch; with folds, means over them
METRICS = ranking.METRICS
DEVIATIONS = "metrics_deviation"  # dict: standard deviations of the same over folds
# dict: losses, learning rates and seconds by epoch, see training/curves.py; written with a report
CURVES = "curves"
# dict: encode_scores() of its validation images, for the metric; of complete trials
IMAGE_SCORES = "image_scores"
REASON = "reason"  # str: why a trial failed, was requeued or was not trained
FAILED_PLAN = study_view.FAILED_PLAN  # true: it failed because of its plan; samplers use that
RETRIES = "retries"  # list of int: numbers of the earlier attempts, in order
LOST_ATTEMPTS = "losses"  # int: attempts that were lost since one trained a further epoch
RESUMED = "resumed"  # int: the epoch after which a retry continues, 0 for the start

BASELINE = "baseline"
BY_HAND = "enqueued by hand"  # how the origin of such a trial begins
INFEASIBLE = "infeasible"  # how a trial ended whose plan exceeds a limit, or the device's memory


@dataclass(frozen=True)
class Progress:
    """Counts of a study's trials.

    Args:
        complete: Trials trained to the last epoch.
        pruned: Trials that the pruner ended.
        failed: Trials that ended with an error and will not be retried.
        retried: Attempts that were interrupted or lost and have a successor.
        running: Trials that a worker trains.
        waiting: Trials in the queue.
        budget: Finished trials that the study is to have.
        infeasible: Trials whose plans cost too much, or do not fit into memory.
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
        """Attempts of workers at trials."""
        return self.finished + self.retried + self.running


def device_name(trial: FrozenTrial) -> str:
    """Return the device of a trial, and which one it is; empty until it is known."""
    return ", ".join(
        str(trial.user_attrs[key]) for key in (DEVICE, GPU) if trial.user_attrs.get(key)
    )


def count_progress(trials: Sequence[FrozenTrial], budget: int) -> Progress:
    """Count the trials of a study.

    A failed attempt that has a successor does not count: the successor does.
    """
    retried = retried_numbers(trials)
    states = [
        "retried"
        if trial.state == TrialState.FAIL and trial.number in retried
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
    """Return the number of finished trials that a study is to have."""
    return int(study.user_attrs.get(BUDGET, {}).get("trials", 0))


def earlier_attempts(trial: FrozenTrial | Trial) -> list[int]:
    """Return the numbers of the earlier attempts at a trial, in order."""
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
        (trial for trial in trials if is_baseline(trial) and trial.state == TrialState.COMPLETE),
        None,
    )


def ended_infeasible(trial: FrozenTrial) -> bool:
    """Tell whether a trial ended because its plan is infeasible; the baseline does not.

    If memory ran out later, it has a few epochs, and no value that counts.
    """
    return trial.state == TrialState.PRUNED and ranking.is_infeasible(trial)


def has_diverged(trial: FrozenTrial) -> bool:
    """Tell whether a trial failed because its loss or its logits were not finite."""
    reason = str(trial.user_attrs.get(REASON, ""))  # earlier versions wrote the name of the error
    return trial.state == TrialState.FAIL and reason.startswith(("diverged", "DivergedError"))


def metric_direction(study: Study) -> StudyDirection:
    """Return the direction of the metric; the second objective, a cost, is always minimized."""
    return study.directions[0]


def metric_value(trial: FrozenTrial) -> float | None:
    """Return the metric of a trial, the first of its objectives, or ``None``."""
    return trial.values[0] if trial.values else None


def metric_deviation(trial: FrozenTrial, metric: str) -> float | None:
    """Return the standard deviation of a metric over the folds, ``None`` where there are none."""
    deviation = trial.user_attrs.get(DEVIATIONS, {}).get(metric)
    return None if deviation is None else float(deviation)


def trial_origin(trial: FrozenTrial) -> str:
    """Return why a trial was queued; empty for the baseline and sampled trials."""
    return str(trial.user_attrs.get(ORIGIN, ""))


def is_enqueued(trial: FrozenTrial) -> bool:
    """Tell whether somebody has enqueued the plan of a trial by hand."""
    return trial_origin(trial).startswith(BY_HAND)


def describe_warm_start(study: Study) -> list[str]:
    """Describe which plans of other studies were queued, and which were dropped and why."""
    plans = study.user_attrs.get(WARM_START, {"taken": [], "dropped": []})
    return [
        *(f"{title} is queued" for title in plans["taken"]),
        *(f"{title} is dropped: {reason}" for title, reason in plans["dropped"]),
    ]


def definition(study_attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study file that a study was made from, with the key names of this version."""
    return with_new_names(study_attrs.get(DEFINITION) or {})[0]


def image_counts(study_attrs: Mapping[str, Any]) -> list[str]:
    """Return how many files were read, unreadable and passed over, a sentence each."""
    return describe_counts(study_attrs.get(DATASET, {}), study_attrs.get(SURVEY, {}))


def image_warnings(study_attrs: Mapping[str, Any]) -> list[str]:
    """Return warnings about the images of a study, a sentence each."""
    training = study_attrs.get(DEFINITION, {}).get("training", {})
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


def is_solved(trial: FrozenTrial) -> bool:
    """Tell whether a trial computed its head and trained nothing: its curve has one epoch."""
    plan = trial_plan(trial)
    return plan is not None and plan.is_solved


def load_study(name: str, storage: BaseStorage) -> Study:
    """Load a study; refuse one that a later version of autotune has written."""
    study = optuna.load_study(study_name=name, storage=storage)
    check_version(study)
    return study


def check_version(study: Study) -> None:
    """Refuse a study that a later version of autotune has written."""
    check_format(study.user_attrs.get(FORMAT), STUDY, f"the study {study.study_name!r}")


def study_space(study: Study) -> Space:
    """Return the space of a study; refuse one that another version has written."""
    written_by = written_by_version(study.user_attrs)
    with reading(f"the space of the study {study.study_name!r}", by=written_by):
        return Space.from_json(study.user_attrs[SPACE])


def written_by_version(study_attrs: Mapping[str, Any]) -> str:
    """Return the version of autotune that has written a study; empty where it is unknown."""
    for key in (FORMAT, ENVIRONMENT):
        values = study_attrs.get(key)
        if isinstance(values, Mapping) and "autotune" in values:
            return str(values["autotune"])
    return ""


def backbone_layers(
    study_attrs: Mapping[str, Any], plan: TrialPlan | None
) -> Sequence[dict[str, Any]]:
    """Return the stored layers of a plan's backbone, or of the first one, the last layer first."""
    backbones: Mapping[str, Any] = study_attrs.get(BACKBONES, {})
    name = plan.backbone if plan else next(iter(backbones), "")
    return tuple(backbones.get(name, {}).get("layers", ()))


def has_several_backbones(study_attrs: Mapping[str, Any]) -> bool:
    """Tell whether a study has several backbones, so that a plan has to name its own."""
    return len(study_attrs.get(BACKBONES, ())) > 1


def device_seconds(trial: FrozenTrial, now: float) -> float:
    """Return the seconds for which an attempt at a trial, without earlier ones, held its device.

    One that ended counts up to its end; one whose worker was lost, up to its last sign of life.
    ``now`` is in seconds of the Unix epoch.
    """
    claimed_at = trial.user_attrs.get(CLAIMED_AT)
    if claimed_at is not None and trial.state == TrialState.RUNNING:
        return max(0.0, now - float(claimed_at))
    if claimed_at is not None or WORKER not in trial.user_attrs:
        return float(trial.user_attrs.get(DEVICE_SECONDS, 0.0))
    # Of a study that was made before claims had a time.
    return trial.duration.total_seconds() if trial.duration else 0.0


def own_seconds(trial: FrozenTrial) -> float:
    """Return the seconds of a trial's training, without those of features for all trials.

    The first trial that needs features computes them for all, and would look slow.
    """
    shared = trial.user_attrs.get(CACHES, {}).get("seconds", 0.0)
    return max(0.0, float(trial.user_attrs.get(SECONDS, 0.0)) - float(shared))


def started_at(trial: FrozenTrial) -> float:
    """Return when an attempt at a trial began, in seconds of the Unix epoch; 0 before it has."""
    if CLAIMED_AT in trial.user_attrs:
        return float(trial.user_attrs[CLAIMED_AT])
    return trial.datetime_start.timestamp() if trial.datetime_start else 0.0


def ended_at(trial: FrozenTrial) -> float:
    """Return when a trial ended, in seconds of the Unix epoch; 0 before it has.

    Optuna's own times have no time zone, and workers may be in several.
    """
    if CLAIMED_AT in trial.user_attrs and DEVICE_SECONDS in trial.user_attrs:
        return last_sign_of_life(trial)
    return trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0


def last_sign_of_life(trial: FrozenTrial) -> float:
    """Return when the worker of a trial was last known alive, in seconds of the Unix epoch."""
    return started_at(trial) + float(trial.user_attrs.get(DEVICE_SECONDS, 0.0))


def trained_epochs(trial: FrozenTrial) -> int:
    """Return the number of epochs that a trial has trained, including its earlier attempts."""
    epochs = trial.user_attrs.get(EPOCHS)
    return int(epochs) if epochs is not None else max(trial.intermediate_values, default=0)


def pruned_epochs(trials: Iterable[FrozenTrial], epochs: int) -> int:
    """Count the epochs that pruned trials did not train; infeasible trials are not pruned."""
    return sum(
        max(0, epochs - trained_epochs(trial))
        for trial in trials
        if trial.state == TrialState.PRUNED and not ended_infeasible(trial)
    )


def first_start(trials: Iterable[FrozenTrial]) -> datetime | None:
    """Return when the first trial of a study started."""
    return min((trial.datetime_start for trial in trials if trial.datetime_start), default=None)
