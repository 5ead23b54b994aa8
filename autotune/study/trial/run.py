"""One trial: from its parameters to its value.

plan -> network -> train, report, prune -> attributes and artifacts -> tell
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optuna.trial import Trial, TrialState
from safetensors.torch import save_file

from autotune import optuna_private
from autotune.config.schema import ONLINE, StudyConfig
from autotune.data.cache.decoded_images import ImageStore
from autotune.errors import DeviceBusyError, DivergedError, UserError, disk_full_as_user_error
from autotune.models.network import Network
from autotune.search import ranking
from autotune.search.study_view import DEVICE_MEMORY
from autotune.storage.artifacts import add_artifact
from autotune.study.devices import gpu_name
from autotune.study.setup.resources import BackboneResources
from autotune.study.state import attrs, oom
from autotune.study.state import constraints as limits
from autotune.study.trial.build import build_trial
from autotune.study.trial.cache_stats import CacheStats
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.identity import checkpoint_for
from autotune.study.trial.plots import draw_confusion, draw_curve, draw_worst, worst
from autotune.training.checkpoint import Checkpoint
from autotune.training.compute.amp import float32_precision, is_kept_fp32
from autotune.training.cost_profile import measure_costs
from autotune.training.folds import CrossValidationTrainer, trainers_of
from autotune.training.metrics import confusion
from autotune.training.trainer import Trainer

logger = logging.getLogger(__name__)

EventCallback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Args:
        state: ``COMPLETE`` or ``PRUNED``.
        value: Objective after the last epoch that was trained, ``None`` of an infeasible plan.
        cost: The second objective, in a study of two.
    """

    state: TrialState
    value: float | None
    cost: float | None = None

    @property
    def values(self) -> list[float] | None:
        """What the study is told: a value for each objective, of a complete trial alone."""
        if self.state != TrialState.COMPLETE or self.value is None:
            return None
        return [self.value] if self.cost is None else [self.value, self.cost]

    @property
    def word(self) -> str:
        """The state in a word: ``complete``, ``pruned`` or ``infeasible``."""
        return attrs.INFEASIBLE if self.value is None else self.state.name.lower()


def run_trial(
    trial: Trial, ctx: WorkerContext, stopped: Callable[[], bool], on_event: EventCallback
) -> Outcome:
    """Train what a trial's plan says, and record what comes of it.

    Where a batch does not fit into the memory of the device, it goes through the network in
    halves, quarters and so on, whose gradients add up; the trial goes on from its checkpoint. A
    retry begins with the size that fitted, but for one that others on the device have forced. A
    plan of which not even two images fit is infeasible, unless others hold the memory.

    Args:
        trial: A claimed trial.
        ctx: What the worker has at hand.
        stopped: Asked after every batch.
        on_event: Called with every epoch.

    Raises:
        PlanError: When the plan does not fit the backbone.
        DivergedError: When the training does.
        TrialInterruptedError: When a stop was asked for.
        DeviceBusyError: When not even two images fit beside what others hold on the device.
        UserError: When the baseline does not fit.
    """
    whole = ctx.config.training.batch_size
    micro_batch_size = int(trial.user_attrs.get(attrs.MICRO_BATCH, whole))
    before_s = float(trial.user_attrs.get(attrs.SECONDS, 0.0))
    start = time.perf_counter()

    def remember(micro_batch_size: int, need: oom.MemoryShortage) -> None:
        if not need.is_shared_device:  # else there may be more room the next time
            trial.set_user_attr(attrs.MICRO_BATCH, micro_batch_size)

    try:
        return oom.with_oom_backoff(
            lambda size: _run(trial, ctx, stopped, on_event, size),
            micro_batch_size,
            ctx.device,
            stopped=stopped,
            on_halved=remember,
        )
    except oom.DoesNotFitError as error:
        need = error.shortage
        logger.warning("trial %d does not fit: %s", trial.number, need.describe())
        if need.is_shared_device:
            raise DeviceBusyError(
                f"others hold the memory of the device: {need.describe()}"
            ) from error
        if trial.user_attrs.get(attrs.ROLE) == attrs.BASELINE:
            trial.set_user_attr(attrs.MICRO_BATCH, whole)  # on a larger device
            raise UserError(
                "the baseline does not fit into memory: even with "
                f"{oom.MIN_MICRO_BATCH} images at a time {need.describe()}; every trial is "
                "compared with it, so take a smaller data.image_size, another backbone, or a "
                "larger device"
            ) from error
        trial.set_user_attr(attrs.SECONDS, round(before_s + time.perf_counter() - start, 3))
        return _infeasible(trial, ctx, need)
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # they hold the network, and what is its
        raise
    finally:
        oom.release_memory(ctx.device)


def _infeasible(trial: Trial, ctx: WorkerContext, need: oom.MemoryShortage) -> Outcome:
    """Record that a plan does not fit, for the samplers to keep away from there."""
    frozen = ctx.handle.study.get_trials(deepcopy=False)[trial.number]
    trial.set_constraint(DEVICE_MEMORY, need.excess)
    attributes = {
        attrs.PEAK_MEMORY_MB: round(need.wanted_bytes / oom.MIB, 1),
        attrs.REASON: f"{attrs.INFEASIBLE}: memory: {need.describe()}",
        attrs.EPOCHS: frozen.last_step or 0,
    }
    if need.device_bytes:
        attributes[attrs.DEVICE_MEMORY_MB] = round(need.device_bytes / oom.MIB, 1)
    _set_user_attrs(trial, ctx, attributes)
    checkpoint = ctx.handle.files.checkpoint(ctx.handle.name, attrs.first_attempt(frozen))
    checkpoint.unlink(missing_ok=True)
    return Outcome(TrialState.PRUNED, None)


def _run(
    trial: Trial,
    ctx: WorkerContext,
    stopped: Callable[[], bool],
    on_event: EventCallback,
    micro_batch_size: int,
) -> Outcome:
    start = time.perf_counter()
    frozen = ctx.handle.study.get_trials(deepcopy=False)[trial.number]
    earlier_s = float(frozen.user_attrs.get(attrs.SECONDS, 0.0))
    before = ctx.stats.copy()
    checkpoint = checkpoint_for(ctx.handle, ctx.config, frozen)
    plan = attrs.trial_plan(frozen)
    assert plan is not None, "a claimed trial has its plan"
    words = plan.describe(named=len(ctx.space.backbones) > 1)
    on_event({"event": "start", "trial": trial.number, "plan": words})
    training = build_trial(plan, ctx, stopped, micro_batch_size)
    attributes: dict[str, Any] = {
        attrs.DEVICE: device_name(ctx.device),
        attrs.COMPUTE: describe_precision(trainers_of(training)[0]),
        attrs.TRAINABLE_PARAMETERS: count_trainable_parameters(training.network),
    }
    if ctx.device.type == "cuda":
        attributes[attrs.GPU] = gpu_name(ctx.device)
    if ctx.device.type == "cpu":  # sums are rounded by how many share them
        attributes[attrs.THREADS] = torch.get_num_threads()
    if training.unsplit_reason:
        attributes[attrs.UNSPLIT_REASON] = training.unsplit_reason
    _set_user_attrs(trial, ctx, attributes)
    costs = measure_trial_costs(trial, training, ctx.config)
    if exceeds_limits(trial, costs, ctx.config):
        seconds = round(time.perf_counter() - start, 3)
        _set_user_attrs(trial, ctx, {attrs.SECONDS: seconds, attrs.EPOCHS: 0})
        return Outcome(TrialState.PRUNED, None)
    try:
        pruned = _train(trial, training, checkpoint, set(frozen.intermediate_values), on_event)
    finally:
        seconds = earlier_s + time.perf_counter() - start
        earlier = frozen.user_attrs.get(attrs.CACHES, {})
        store = ctx.resources.of(plan.backbone).task.store
        caches = _of_caches(training, store, ctx.stats.since(before), earlier)
        last = ctx.handle.study.get_trials(deepcopy=False)[trial.number].last_step
        attributes = {attrs.CACHES: caches, attrs.EPOCHS: last or 0}
        _set_user_attrs(trial, ctx, {attrs.SECONDS: round(seconds, 3), **attributes})
    metrics = training.validate() if training.validation_logits is None else training.metrics
    assert metrics is not None
    attributes = {attrs.METRICS: metrics.to_json()}
    if isinstance(training, CrossValidationTrainer) and training.metrics_std is not None:
        attributes[attrs.DEVIATIONS] = training.metrics_std.to_json()
    if ctx.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(ctx.device) / oom.MIB
        attributes[attrs.PEAK_MEMORY_MB] = round(peak, 1)
        there = oom.device_bytes(ctx.device)
        if there:
            attributes[attrs.DEVICE_MEMORY_MB] = round(there / oom.MIB, 1)
    _set_user_attrs(trial, ctx, attributes)
    outcome = Outcome(
        TrialState.PRUNED if pruned else TrialState.COMPLETE,
        metrics.objective(ctx.config.training.objective),
        next((costs[name] for name in ctx.config.directions if name in costs), None),
    )
    store_artifacts(trial, ctx, ctx.resources.of(plan.backbone), training, outcome)
    checkpoint.path.unlink(missing_ok=True)
    return outcome


def _set_user_attrs(trial: Trial, ctx: WorkerContext, attributes: Mapping[str, Any]) -> None:
    """Write attributes of a trial in one transaction; Optuna has one for each."""
    ctx.handle.storage.set_trial_user_attrs(optuna_private.trial_id(trial), attributes)
    optuna_private.update_user_attrs(trial, attributes)


def _of_caches(
    training: Trainer | CrossValidationTrainer,
    store: ImageStore,
    stats: CacheStats,
    earlier: Mapping[str, Any],
) -> dict[str, Any]:
    """Say whether images are decoded once for all trials, and what features were computed.

    Of features that are not kept, or for some of which there was no room, nothing is said.
    """
    found: dict[str, Any] = {"decoded": "once" if store.is_cached else "anew"}
    one = trainers_of(training)[0]
    refused = stats.refused or (earlier and "computed" not in earlier)
    if one.train is one.raw_train or one.config.num_views == ONLINE or refused:
        return found
    computed = int(earlier.get("computed", 0)) + stats.computed
    seconds = float(earlier.get("seconds", 0.0)) + stats.seconds
    return {**found, "computed": computed, "seconds": round(seconds, 3)}


def measure_trial_costs(
    trial: Trial, training: Trainer | CrossValidationTrainer, config: StudyConfig
) -> dict[str, float]:
    """Return what a trial's network costs, and record it.

    A retry has the costs of its first attempt: a latency measured anew would differ a little, and
    might refuse what was trained half-way.
    """
    known: dict[str, float] | None = trial.user_attrs.get(attrs.COSTS)
    if known is None:
        parts = trainers_of(training)
        known = measure_costs(parts[0], config.costs, len(parts))
        trial.set_user_attr(attrs.COSTS, known)
    return known


def exceeds_limits(trial: Trial, costs: Mapping[str, float], config: StudyConfig) -> bool:
    """Hold a plan against the limits of its study, and tell whether it is not to be trained.

    The baseline is trained even where it is beyond them: everything is compared with it.
    """
    allowed = config.constraints.limits
    limits.set_constraints(trial, costs, allowed)
    beyond = limits.violations(costs, allowed)
    if beyond:
        trial.set_user_attr(attrs.REASON, f"{attrs.INFEASIBLE}: {beyond}")
    return bool(beyond) and trial.user_attrs.get(attrs.ROLE) != attrs.BASELINE


def _train(
    trial: Trial,
    training: Trainer | CrossValidationTrainer,
    checkpoint: Checkpoint,
    reported: set[int],
    on_event: EventCallback,
) -> bool:
    """Train epoch by epoch; return whether the pruner ended it."""
    config = training.config
    alone = len(trial.study.directions) == 1
    # A pruner looks at the last value there is. Where epochs are trained again whose values are
    # known, it would judge a later epoch than the one that the trial is at.
    known = max(reported, default=0)
    for result in training.run(checkpoint):
        assert result.metrics is not None
        value = result.metrics.objective(config.objective)
        if not math.isfinite(value):  # a pruner would take it for a bad value and prune
            raise DivergedError(f"the {config.objective} is {value} in epoch {result.epoch}")
        if result.epoch not in reported:  # a retry has the curve of its earlier attempts
            if alone:
                trial.report(value, result.epoch)
            else:  # Trial.report refuses two objectives; the storage takes the curve all the same
                trial.storage.set_trial_intermediate_value(
                    optuna_private.trial_id(trial), result.epoch, value
                )
        on_event(
            {
                "event": "epoch",
                "trial": trial.number,
                "epoch": result.epoch,
                "epochs": config.epochs,
                "value": value,
            }
        )
        if alone and known <= result.epoch < config.epochs and trial.should_prune():
            return True
    return False


def count_trainable_parameters(network: Network) -> int:
    """Count the values that training changes."""
    return sum(parameter.numel() for _, parameter, _ in network.layer_of_parameters())


def describe_precision(training: Trainer) -> dict[str, Any]:
    """Say in which precision a training computes, for the record."""
    found: dict[str, Any] = {
        "half": training.amp.mode,
        "float32": float32_precision(training.device),
    }
    kept = [name for name, one in training.network.named_modules() if is_kept_fp32(one)]
    return {**found, "kept": kept} if kept else found


def device_name(device: torch.device) -> str:
    """Name a device for the record."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def store_artifacts(
    trial: Trial,
    ctx: WorkerContext,
    material: BackboneResources,
    training: Trainer | CrossValidationTrainer,
    outcome: Outcome,
) -> None:
    """Upload the pictures of a trial, and its weights when it is the best so far.

    Of two objectives, the best are those of the Pareto front.

    The picture of a pruned trial is its learning curve; a complete one has a confusion matrix and
    its worst-classified images too.

    Raises:
        DiskFullError: When there is no space left.
    """
    handle = ctx.handle
    objective = ctx.config.training.objective
    frozen = handle.study.get_trials(deepcopy=False)[trial.number]
    with (
        disk_full_as_user_error(handle.files.artifacts),
        tempfile.TemporaryDirectory(prefix="autotune-") as folder,
    ):
        pictures = [draw_curve(Path(folder), frozen.intermediate_values, objective)]
        if outcome.state == TrialState.COMPLETE:
            assert training.validation_logits is not None
            classes = material.task.classes
            logits, labels = training.validation_logits, material.validation.labels
            matrix = confusion(logits, labels, classes)
            pictures.append(draw_confusion(Path(folder), matrix, classes))
            judged = [
                (one, material.validation.view(one.position, 0)) for one in worst(logits, labels)
            ]
            pictures.append(draw_worst(Path(folder), judged, classes))
            assert outcome.values is not None
            trials = handle.study.get_trials(deepcopy=False)
            if not ranking.is_infeasible(frozen) and not ranking.is_dominated(
                outcome.values, trials, attrs.metric_direction(handle.study)
            ):
                weights = Path(folder) / "weights.safetensors"
                state = training.eval_state()
                # On the host: to lay them out on a GPU would take memory of it.
                laid_out = {key: value.cpu().contiguous() for key, value in state.items()}
                save_file(laid_out, weights)
                pictures.append(weights)
        handle.files.artifacts.mkdir(parents=True, exist_ok=True)
        for path in pictures:
            add_artifact(trial, path, handle.files.artifacts)
