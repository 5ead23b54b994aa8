"""One trial: from its parameters to its value.

plan -> network -> train, report, prune -> attributes and artifacts -> tell
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optuna.artifacts import upload_artifact
from optuna.study import Study, StudyDirection
from optuna.trial import Trial, TrialState
from safetensors.torch import save_file

from autotune.config import StudyConfig
from autotune.data.task import Task
from autotune.data.views import Views
from autotune.errors import DivergedError, disk_full_as_user_error
from autotune.models.backbone import Backbone
from autotune.models.network import Network, build_network
from autotune.plan import TrialPlan
from autotune.search.space import Space
from autotune.study import record
from autotune.study.opening import OpenStudy
from autotune.study.pictures import draw_confusion, draw_curve
from autotune.training.loop import Normalise, Training
from autotune.training.metrics import confusion
from autotune.training.norms import sample

#: Training images on which `inherit: data` measures how active channels are.
ACTIVITY_IMAGES = 64

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Workbench:
    """What a worker has at hand for all of its trials.

    Args:
        opened: The study.
        config: Its configuration.
        space: Its static space.
        backbone: The pretrained backbone.
        task: Training and validation images.
        train: Views of the training images.
        validation: View 0 of the validation images.
        device: Where networks train.
        loader_workers: Processes that prepare images which do not fit into memory.
    """

    opened: OpenStudy
    config: StudyConfig
    space: Space
    backbone: Backbone
    task: Task
    train: Views
    validation: Views
    device: torch.device
    loader_workers: int


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Args:
        state: ``COMPLETE`` or ``PRUNED``.
        value: Objective after the last epoch that was trained.
    """

    state: TrialState
    value: float


def run_trial(
    trial: Trial, bench: Workbench, stopped: Callable[[], bool], emit: Listener
) -> Outcome:
    """Train what a trial's plan says, and record what comes of it.

    Args:
        trial: A claimed trial.
        bench: What the worker has at hand.
        stopped: Asked after every batch.
        emit: Told of every epoch.

    Raises:
        PlanError: When the plan does not fit the backbone.
        DivergedError: When the training does.
        InterruptedTrial: When a stop was asked for.
    """
    start = time.perf_counter()
    frozen = bench.opened.study.get_trials(deepcopy=False)[trial.number]
    earlier_s = float(frozen.user_attrs.get(record.SECONDS, 0.0))
    checkpoint = bench.opened.files.checkpoint(bench.opened.name, record.first_attempt(frozen))
    plan = record.plan_of(frozen)
    assert plan is not None, "a claimed trial has its plan"
    emit({"event": "start", "trial": trial.number, "plan": plan.in_words()})
    training = prepare_training(plan, bench, stopped)
    trial.set_user_attr(record.DEVICE, device_name(bench.device))
    trial.set_user_attr(record.PARAMETERS_TUNED, tuned_parameters(training.network))
    try:
        pruned = _train(trial, training, checkpoint, set(frozen.intermediate_values), emit)
    finally:
        seconds = earlier_s + time.perf_counter() - start
        trial.set_user_attr(record.SECONDS, round(seconds, 3))
        last = bench.opened.study.get_trials(deepcopy=False)[trial.number].last_step
        trial.set_user_attr(record.EPOCHS, last or 0)
    metrics = training.validate() if training.validation_logits is None else training.metrics
    assert metrics is not None
    trial.set_user_attr(record.METRICS, metrics.to_json())
    if bench.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(bench.device) / 2**20
        trial.set_user_attr(record.PEAK_MEMORY_MB, round(peak, 1))
    outcome = Outcome(
        TrialState.PRUNED if pruned else TrialState.COMPLETE,
        metrics.objective(bench.config.training.objective),
    )
    store_artifacts(trial, bench, training, outcome)
    checkpoint.unlink(missing_ok=True)
    return outcome


def prepare_training(
    plan: TrialPlan,
    bench: Workbench,
    stopped: Callable[[], bool] = lambda: False,
    refit: Views | None = None,
) -> Training:
    """Build the network of a plan and everything that trains it.

    All trials of a study share one training seed: they differ by their plans, not by luck with
    the order of the batches.

    Args:
        plan: The plan.
        bench: What the worker has at hand.
        stopped: Asked after every batch; true interrupts the training.
        refit: Images to train on in place of the study's training part, without validation.
    """
    seed = bench.config.search.seed
    train = bench.train if refit is None else refit
    to_cpu = Normalise.of(bench.backbone.data_config, torch.device("cpu"))
    network = build_network(
        bench.backbone,
        plan,
        len(bench.task.classes),
        seed,
        lambda: next(sample(train, ACTIVITY_IMAGES, to_cpu, seed)),
    )
    network.to(bench.device)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    return Training(
        network,
        plan.policy,
        bench.config.training,
        train,
        bench.validation if refit is None else None,
        Normalise.of(bench.backbone.data_config, bench.device),
        seed,
        stopped,
        bench.loader_workers,
    )


def _train(
    trial: Trial, training: Training, checkpoint: Path, reported: set[int], emit: Listener
) -> bool:
    """Train epoch by epoch; return whether the pruner ended it."""
    config = training.config
    for result in training.run(checkpoint):
        assert result.metrics is not None
        value = result.metrics.objective(config.objective)
        if not math.isfinite(value):  # a pruner would take it for a bad value and prune
            raise DivergedError(f"the {config.objective} is {value} in epoch {result.epoch}")
        if result.epoch not in reported:  # a retry has the curve of its earlier attempts
            trial.report(value, result.epoch)
        emit(
            {
                "event": "epoch",
                "trial": trial.number,
                "epoch": result.epoch,
                "epochs": config.epochs,
                "value": value,
            }
        )
        if result.epoch < config.epochs and trial.should_prune():
            return True
    return False


def tuned_parameters(network: Network) -> int:
    """Count the values that training changes."""
    return sum(one.numel() for one in network.parameters() if one.requires_grad)


def device_name(device: torch.device) -> str:
    """Name a device for the record."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def store_artifacts(trial: Trial, bench: Workbench, training: Training, outcome: Outcome) -> None:
    """Upload the pictures of a trial, and its weights when it is the best so far.

    The picture of a pruned trial is its learning curve; a complete one has a confusion matrix too.

    Raises:
        DiskFullError: When there is no space left.
    """
    opened = bench.opened
    objective = bench.config.training.objective
    frozen = opened.study.get_trials(deepcopy=False)[trial.number]
    with (
        disk_full_as_user_error(opened.files.artifacts),
        tempfile.TemporaryDirectory(prefix="autotune-") as folder,
    ):
        pictures = [draw_curve(Path(folder), frozen.intermediate_values, objective)]
        if outcome.state == TrialState.COMPLETE:
            assert training.validation_logits is not None
            classes = bench.task.classes
            matrix = confusion(training.validation_logits, bench.validation.labels, classes)
            pictures.append(draw_confusion(Path(folder), matrix, classes))
            if _is_best(opened.study, outcome.value):
                weights = Path(folder) / "weights.safetensors"
                state = training.result.tuned_state()
                save_file({key: value.contiguous() for key, value in state.items()}, weights)
                pictures.append(weights)
        for path in pictures:
            upload_artifact(
                artifact_store=opened.artifacts, file_path=str(path), study_or_trial=trial
            )


def _is_best(study: Study, value: float) -> bool:
    best = record.best_of(study.get_trials(deepcopy=False), study.direction)
    if best is None or best.value is None:
        return True
    return value > best.value if study.direction == StudyDirection.MAXIMIZE else value < best.value
