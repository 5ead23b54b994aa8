"""One trial: from its parameters to its value.

plan -> network -> train, report, prune -> attributes and artifacts -> value
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
from optuna.trial import FrozenTrial, Trial, TrialState
from safetensors.torch import save_file

from autotune import optuna_private
from autotune.config.schema import ONLINE
from autotune.data.cache.decoded_images import ImageStore
from autotune.errors import DeviceBusyError, DivergedError, UserError, disk_full_as_user_error
from autotune.search import ranking
from autotune.search.study_view import DEVICE_MEMORY
from autotune.storage.artifacts import add_artifact
from autotune.study.devices import gpu_name
from autotune.study.setup.resources import BackboneResources
from autotune.study.state import attrs, oom
from autotune.study.state.constraints import set_constraints, violations
from autotune.study.state.predictions import encode_scores
from autotune.study.trial.build import AnyTrainer, build_trial_trainer
from autotune.study.trial.context import CacheStats, WorkerContext
from autotune.study.trial.plots import draw_confusion, draw_curve
from autotune.study.trial.predictions import Predicted
from autotune.study.trial.trainings import checkpoint_for
from autotune.training.checkpoint import Checkpoint
from autotune.training.compute.amp import float32_precision, is_kept_fp32
from autotune.training.cost_profile import measure_costs
from autotune.training.curves import EpochResult, add_epoch, epoch_values, has_epoch
from autotune.training.folds import CrossValidationTrainer, trainers_of
from autotune.training.metrics import Metrics, confusion, image_scores
from autotune.training.trainer import Trainer

logger = logging.getLogger(__name__)

EventCallback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Args:
        state: ``COMPLETE`` or ``PRUNED``.
        value: Objective after the last trained epoch; ``None`` for an infeasible plan.
        cost: The second objective, in a study of two.
    """

    state: TrialState
    value: float | None
    cost: float | None = None

    @property
    def values(self) -> list[float] | None:
        """A value for each objective if the trial is complete, else ``None``."""
        if self.state != TrialState.COMPLETE or self.value is None:
            return None
        return [self.value] if self.cost is None else [self.value, self.cost]

    @property
    def state_name(self) -> str:
        """``complete``, ``pruned`` or ``infeasible``."""
        return attrs.INFEASIBLE if self.value is None else self.state.name.lower()


def run_trial(
    trial: Trial, ctx: WorkerContext, stopped: Callable[[], bool], on_event: EventCallback
) -> Outcome:
    """Train the plan of a trial, and record the results.

    If a batch does not fit into the memory of the device, it is split into micro-batches of half
    the size, a quarter and so on, whose gradients add up; the trial resumes from its checkpoint. A
    retry starts with the size that fitted, unless other processes forced that size. A plan of
    which not even two images fit is infeasible, unless other processes hold the memory.

    Raises:
        PlanError: When the plan does not fit the backbone.
        DivergedError: When the training diverges.
        TrialInterruptedError: When a stop was requested.
        DeviceBusyError: When not even two images fit beside other processes on the device.
        UserError: When the baseline does not fit.
    """
    batch_size = ctx.config.training.batch_size
    earlier_s = float(trial.user_attrs.get(attrs.SECONDS, 0.0))
    start = time.perf_counter()

    def store_size(micro_batch_size: int, shortage: oom.MemoryShortage) -> None:
        if not shortage.is_shared_device:  # else there may be more memory the next time
            trial.set_user_attr(attrs.MICRO_BATCH, micro_batch_size)

    try:
        return oom.with_oom_backoff(
            lambda size: _Run(trial, ctx, stopped, on_event).run(size),
            int(trial.user_attrs.get(attrs.MICRO_BATCH, batch_size)),
            ctx.device,
            stopped=stopped,
            on_halved=store_size,
        )
    except oom.DoesNotFitError as error:
        shortage = error.shortage
        logger.warning("trial %d does not fit: %s", trial.number, shortage.describe())
        if shortage.is_shared_device:
            raise DeviceBusyError(
                f"other processes are using the memory of the device: {shortage.describe()}"
            ) from error
        if trial.user_attrs.get(attrs.ROLE) == attrs.BASELINE:
            trial.set_user_attr(attrs.MICRO_BATCH, batch_size)  # for a larger device
            raise UserError(
                f"the baseline does not fit into memory: even with {oom.MIN_MICRO_BATCH} images "
                f"at a time {shortage.describe()}; every trial is compared with it, so take a "
                "smaller data.image_size, another backbone, or a larger device"
            ) from error
        seconds = earlier_s + time.perf_counter() - start
        return _end_infeasible(trial, ctx, shortage, round(seconds, 3))
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # they hold the network and its tensors
        raise
    finally:
        oom.release_memory(ctx.device)


def _end_infeasible(
    trial: Trial, ctx: WorkerContext, shortage: oom.MemoryShortage, seconds: float
) -> Outcome:
    """Record that a plan does not fit, so that the samplers avoid plans like it."""
    frozen = ctx.handle.study.get_trials(deepcopy=False)[trial.number]
    trial.set_constraint(DEVICE_MEMORY, shortage.excess)
    record: dict[str, Any] = {
        attrs.SECONDS: seconds,
        attrs.PEAK_MEMORY_MB: round(shortage.wanted_bytes / oom.MIB, 1),
        attrs.REASON: f"{attrs.INFEASIBLE}: memory: {shortage.describe()}",
        attrs.EPOCHS: frozen.last_step or 0,
    }
    if shortage.device_bytes:
        record[attrs.DEVICE_MEMORY_MB] = round(shortage.device_bytes / oom.MIB, 1)
    _write_record(trial, ctx, record)
    checkpoint = ctx.handle.files.checkpoint(ctx.handle.name, attrs.first_attempt(frozen))
    checkpoint.unlink(missing_ok=True)
    return Outcome(TrialState.PRUNED, None)


def _write_record(trial: Trial, ctx: WorkerContext, record: Mapping[str, Any]) -> None:
    """Write attributes of a trial in one transaction; Optuna needs one for each."""
    ctx.handle.storage.set_trial_user_attrs(optuna_private.trial_id(trial), record)
    optuna_private.update_user_attrs(trial, record)


@dataclass
class _Run:
    """One attempt at a trial with one size of its micro-batches."""

    trial: Trial
    ctx: WorkerContext
    stopped: Callable[[], bool]
    on_event: EventCallback

    def run(self, micro_batch_size: int) -> Outcome:
        start = time.perf_counter()
        trial, ctx = self.trial, self.ctx
        frozen = self._frozen()
        earlier_s = float(frozen.user_attrs.get(attrs.SECONDS, 0.0))
        ctx.stats.clear()
        checkpoint = checkpoint_for(ctx.handle, ctx.config, frozen)
        plan = attrs.trial_plan(frozen)
        assert plan is not None, "a claimed trial has its plan"
        text = plan.describe(named=len(ctx.space.backbones) > 1)
        self.on_event({"event": "start", "trial": trial.number, "plan": text})
        training = build_trial_trainer(plan, ctx, self.stopped, micro_batch_size)
        resources = ctx.resources.of(plan)
        record = _describe_run(training, ctx.device)
        try:
            costs = self._measure_costs(training, record)
            if is_infeasible := self._apply_limits(costs, record):
                record[attrs.SECONDS] = round(time.perf_counter() - start, 3)
                record[attrs.EPOCHS] = 0
        finally:
            _write_record(trial, ctx, record)
        if is_infeasible:
            return Outcome(TrialState.PRUNED, None)
        record = {}
        try:
            is_pruned = self._train(training, checkpoint, set(frozen.intermediate_values))
            has_logits = training.validation_logits is not None
            metrics = training.metrics if has_logits else training.validate()
            assert metrics is not None
            record = _describe_results(training, metrics, ctx.device)
            if not is_pruned:
                logits, labels = training.validation_logits, resources.validation.labels
                assert logits is not None, "a complete trial was validated"
                scores = image_scores(logits, labels, ctx.config.training.objective)
                record[attrs.IMAGE_SCORES] = encode_scores(scores)
        finally:  # also after an error: a retry adds to these
            earlier = frozen.user_attrs.get(attrs.CACHES, {})
            store = resources.data.store
            record[attrs.CACHES] = _describe_caches(training, store, ctx.stats, earlier)
            record[attrs.EPOCHS] = self._frozen().last_step or 0
            record[attrs.SECONDS] = round(earlier_s + time.perf_counter() - start, 3)
            _write_record(trial, ctx, record)
        outcome = Outcome(
            TrialState.PRUNED if is_pruned else TrialState.COMPLETE,
            metrics.objective(ctx.config.training.objective),
            next((costs[name] for name in ctx.config.directions if name in costs), None),
        )
        store_artifacts(trial, ctx, resources, training, outcome)
        checkpoint.path.unlink(missing_ok=True)
        return outcome

    def _frozen(self) -> FrozenTrial:
        return self.ctx.handle.study.get_trials(deepcopy=False)[self.trial.number]

    def _measure_costs(self, training: AnyTrainer, record: dict[str, Any]) -> dict[str, float]:
        """Return the costs of the network.

        A retry has the costs of its first attempt: a latency that is measured again differs a
        little, and might refuse a plan that is half trained.
        """
        costs: dict[str, float] | None = self.trial.user_attrs.get(attrs.COSTS)
        if costs is None:
            trainers = trainers_of(training)
            costs = measure_costs(trainers[0], self.ctx.config.costs, len(trainers))
            record[attrs.COSTS] = costs
        return costs

    def _apply_limits(self, costs: Mapping[str, float], record: dict[str, Any]) -> bool:
        """Compare costs with the limits of the study; true if the plan is not trained.

        The baseline is trained even beyond the limits, because everything is compared with it.
        """
        limits = self.ctx.config.constraints.limits
        set_constraints(self.trial, costs, limits)
        beyond = violations(costs, limits)
        if beyond:
            record[attrs.REASON] = f"{attrs.INFEASIBLE}: {beyond}"
        return bool(beyond) and self.trial.user_attrs.get(attrs.ROLE) != attrs.BASELINE

    def _train(self, training: AnyTrainer, checkpoint: Checkpoint, reported: set[int]) -> bool:
        """Train epoch by epoch; return whether the pruner ended the trial."""
        trial, config = self.trial, training.config
        has_one_objective = len(trial.study.directions) == 1
        # A pruner judges the last value there is. While epochs are trained again whose values are
        # stored, that would be a later epoch than the current one.
        last_reported = max(reported, default=0)
        for result in training.run(checkpoint):
            epoch = result.epoch
            assert result.metrics is not None
            value = result.metrics.objective(config.objective)
            if not math.isfinite(value):  # a pruner would take it for a bad value and prune
                raise DivergedError(f"the {config.objective} is {value} in epoch {epoch}")
            self._report(result, value, epoch in reported)
            event = {"event": "epoch", "trial": trial.number, "epoch": epoch, "value": value}
            self.on_event({**event, "epochs": config.epochs, **epoch_values(result)})
            is_new = last_reported <= epoch < config.epochs
            if has_one_objective and is_new and trial.should_prune():
                return True
        return False

    def _report(self, result: EpochResult, value: float, is_reported: bool) -> None:
        """Store the value and the curves of an epoch in one write.

        A retry has both of its earlier attempts, or the values alone where these were made by an
        earlier version.
        """
        trial, epoch = self.trial, result.epoch
        stored = trial.user_attrs.get(attrs.CURVES, {})
        if is_reported and has_epoch(stored, epoch):
            return
        curves = add_epoch(stored, result)
        if is_reported:
            _write_record(trial, self.ctx, {attrs.CURVES: curves})
            return
        id_ = optuna_private.trial_id(trial)
        self.ctx.handle.storage.report_epoch(id_, epoch, value, attrs.CURVES, curves)
        optuna_private.update_reports(trial, epoch, value)
        optuna_private.update_user_attrs(trial, {attrs.CURVES: curves})


def _describe_run(training: AnyTrainer, device: torch.device) -> dict[str, Any]:
    record: dict[str, Any] = {
        attrs.DEVICE: torch_device_name(device),
        attrs.COMPUTE: precision_record(trainers_of(training)[0]),
        attrs.TRAINABLE_PARAMETERS: sum(
            parameter.numel() for _, parameter, _ in training.network.layer_of_parameters()
        ),
    }
    if device.type == "cuda":
        record[attrs.GPU] = gpu_name(device)
    if device.type == "cpu":  # the number of threads changes how sums are rounded
        record[attrs.THREADS] = torch.get_num_threads()
    if training.unsplit_reason:
        record[attrs.UNSPLIT_REASON] = training.unsplit_reason
    return record


def _describe_results(
    training: AnyTrainer, metrics: Metrics, device: torch.device
) -> dict[str, Any]:
    record: dict[str, Any] = {attrs.METRICS: metrics.to_json()}
    if isinstance(training, CrossValidationTrainer) and training.metrics_std is not None:
        record[attrs.DEVIATIONS] = training.metrics_std.to_json()
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / oom.MIB
        record[attrs.PEAK_MEMORY_MB] = round(peak, 1)
        if total := oom.device_bytes(device):
            record[attrs.DEVICE_MEMORY_MB] = round(total / oom.MIB, 1)
    return record


def _describe_caches(
    training: AnyTrainer, store: ImageStore, stats: CacheStats, earlier: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe whether images are decoded once for all trials, and which features were computed.

    The counts of features are left out if features are not cached, or did not all fit.
    """
    record: dict[str, Any] = {"decoded": "once" if store.is_cached else "anew"}
    trainer = trainers_of(training)[0]
    has_refused = stats.refused or (earlier and "computed" not in earlier)
    if trainer.train is trainer.raw_train or trainer.config.num_views == ONLINE or has_refused:
        return record
    computed = int(earlier.get("computed", 0)) + stats.computed
    seconds = float(earlier.get("seconds", 0.0)) + stats.seconds
    return {**record, "computed": computed, "seconds": round(seconds, 3)}


def precision_record(trainer: Trainer) -> dict[str, Any]:
    """Return the precision of a training as it is stored with a trial."""
    record: dict[str, Any] = {
        "half": trainer.amp.mode,
        "float32": float32_precision(trainer.device),
    }
    kept = [name for name, module in trainer.network.named_modules() if is_kept_fp32(module)]
    return {**record, "kept": kept} if kept else record


def torch_device_name(device: torch.device) -> str:
    """Return the name of a device as it is stored with a trial."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def store_artifacts(
    trial: Trial,
    ctx: WorkerContext,
    resources: BackboneResources,
    training: AnyTrainer,
    outcome: Outcome,
) -> None:
    """Store the plots of a trial, and its weights and predictions if it is the best so far.

    With two objectives, the best trials are those of the Pareto front. A pruned trial has its
    learning curve alone; a complete one also has a confusion matrix, its worst images and the
    logits of all validation images. The baseline has predictions too: the best trial is compared
    with it image by image.

    Raises:
        DiskFullError: When there is no space left.
    """
    study, artifacts = ctx.handle.study, ctx.handle.files.artifacts
    trials = study.get_trials(deepcopy=False)
    frozen, objective = trials[trial.number], ctx.config.training.objective
    with (
        disk_full_as_user_error(artifacts),
        tempfile.TemporaryDirectory(prefix="autotune-") as name,
    ):
        folder = Path(name)
        stored = frozen.user_attrs.get(attrs.CURVES, {})
        paths = [draw_curve(folder, frozen.intermediate_values, objective, stored)]
        if outcome.state == TrialState.COMPLETE:
            assert training.validation_logits is not None and outcome.values is not None
            classes, labels = resources.data.classes, resources.validation.labels
            matrix = confusion(training.validation_logits, labels, classes)
            paths.append(draw_confusion(folder, matrix, classes))
            predicted = Predicted.of_trial(training, resources)
            paths.append(predicted.write_logits(folder))
            direction = attrs.metric_direction(study)
            is_best = not ranking.is_infeasible(frozen) and not ranking.is_dominated(
                frozen, outcome.values, trials, direction
            )
            if is_best or attrs.is_baseline(frozen):
                paths += predicted.write(folder)
            else:
                paths.append(predicted.draw_worst(folder))
            if is_best:
                # On the CPU: to make them contiguous on a GPU would take memory there.
                state = {
                    key: value.cpu().contiguous() for key, value in training.eval_state().items()
                }
                paths.append(folder / "weights.safetensors")
                save_file(state, paths[-1])
        artifacts.mkdir(parents=True, exist_ok=True)
        for path in paths:
            add_artifact(trial, path, artifacts)
