"""The training loop of every trial, refit and confirmation.

The random state is derived from (seed, epoch) at the start of every epoch. So a training that
resumes at an epoch continues exactly like one that was never interrupted, and a checkpoint needs
no generator state.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autotune.config.schema import TrainingConfig
from autotune.errors import DivergedError, TrialInterruptedError
from autotune.models.network import Network
from autotune.models.prefix.split import PrefixSplit
from autotune.plan import SOLVED, TrainingPolicy
from autotune.training import fitted_start
from autotune.training.checkpoint import Checkpoint
from autotune.training.compute.amp import AmpPolicy, keep_slow_convs_fp32
from autotune.training.compute.cuda_graphs import (
    MIN_STEPS,
    Capture,
    CapturedStep,
    CaptureError,
    capture_graph,
    is_usable,
    log_not_captured,
)
from autotune.training.compute.micro_batches import empty_cache, run_halving
from autotune.training.curves import EpochResult, Stored, add_epoch, load_curves, save_curves
from autotune.training.evaluation import SAMPLED_IMAGES, Evaluator
from autotune.training.inputs.batches import (
    Batches,
    Inputs,
    epoch_order,
    make_mixing,
    micro_batches,
    num_batches,
    num_micro_batches,
)
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.inputs.placement import place_on_device, release_copy
from autotune.training.linear_head import LinearHead, solve_head
from autotune.training.metrics import LowestLoss, Metrics, compute_metrics
from autotune.training.optim.distillation import Teacher
from autotune.training.optim.ema import WeightAverage
from autotune.training.optim.norm_recalibration import MIN_BATCH
from autotune.training.optim.optimizer import layer_rates, make_optimizer, make_schedule
from autotune.training.optim.phases import Phases


class Trainer:
    """Trains one network under one policy.

    Args:
        network: The network, already on its device.
        policy: Optimizer, learning rates and so on.
        config: Settings that all trials of the study share.
        train: Training images and their views.
        validation: Validation images, or ``None`` in the refit.
        normalize: Normalizes images for the backbone.
        seed: Seed of batches, dropout and views.
        stopped: Called after every batch; true interrupts the training.
        loader_workers: Processes that prepare images which do not fit into memory.
        micro_batch_size: Images that go through the network at a time; by default the whole
            batch. The gradients of its micro-batches add up; batch norm sees one micro-batch.
        amp: Mixed precision; by default that of ``config.precision``, and none for ``auto``.
        cuda_graphs: Whether steps may be captured in CUDA graphs, see
            :class:`autotune.training.compute.cuda_graphs.CapturedStep`: in trainings that are long
            enough, on a GPU, if batches go through the network as a whole. Not with fp16, whose
            scaler decides on the host what a step does.
        teacher: A network whose probabilities this one learns too.

    Attributes:
        raw_train: The training images, also after :meth:`use_features`.
        unsplit_reason: Why the backbone cannot be split; empty if it can.
        defers_skip_check: Whether only the device knows, until the epoch ends, that fp16 skipped a
            step: to ask at once would make the host wait for every step. The fused kernel skips
            such a step by itself; for other optimizers the scaler asks in any case.
        capture: Captures a step; ``None`` if all steps are plain.
        validation_logits: Logits ``(N, classes)`` of the last :meth:`validate`.
        metrics: Scores of the last :meth:`validate`.
        lowest: Validation losses of the best epoch so far; ``None`` if somebody else keeps them.
        curves: What the epochs so far have brought, see :mod:`autotune.training.curves`; those
            before a checkpoint included.

    Raises:
        PlanError: When the policy would never train the trainable layers.
    """

    def __init__(
        self,
        network: Network,
        policy: TrainingPolicy,
        config: TrainingConfig,
        train: Batches,
        validation: Batches | None,
        normalize: Normalizer,
        seed: int,
        stopped: Callable[[], bool] = lambda: False,
        loader_workers: int = 0,
        micro_batch_size: int | None = None,
        amp: AmpPolicy | None = None,
        cuda_graphs: bool = False,
        teacher: Teacher | None = None,
    ) -> None:
        self.network = network
        self.policy = policy
        self.config = config
        self.normalize = normalize
        self.seed = seed
        self.stopped = stopped
        self.loader_workers = loader_workers
        self.micro_batch_size = micro_batch_size or config.batch_size
        self.device = next(network.parameters()).device
        self.unsplit_reason = ""
        self.split: PrefixSplit | None = None
        # If a whole batch did not fit, there is no memory for images that stay on the device.
        is_whole = self.micro_batch_size >= config.batch_size
        for images in (train, validation):
            if images is not None and not is_whole:
                release_copy(images)
        self.raw_train = self.train = place_on_device(train, self.device, is_whole)
        self.validation = (
            None if validation is None else place_on_device(validation, self.device, is_whole)
        )
        self.amp = amp or AmpPolicy.from_mode(config.precision, self.device)
        keep_slow_convs_fp32(network, self.amp)
        self.loss = nn.CrossEntropyLoss(label_smoothing=policy.label_smoothing)
        self.teacher = teacher
        self.mixing = make_mixing(policy, network.head.classes)
        self._peaks = layer_rates(network, policy)
        batches = num_batches(len(train), config.batch_size)
        self.steps = config.epochs * batches
        self.phases = Phases.from_policy(network, policy, config.epochs, batches)
        self._make_optimizer()
        uses_fp16, on_gpu = self.amp.dtype is torch.float16, self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=uses_fp16)
        self.defers_skip_check = on_gpu and bool(self.optimizer.defaults.get("fused"))
        self._skipped = torch.zeros((), dtype=torch.int64, device=self.device)
        self._unit = torch.ones((), device=self.device)
        self.ema = WeightAverage(network, config.ema) if config.ema else None
        can_capture = on_gpu and is_whole and self.mixing is None and not uses_fp16
        self.capture: Capture | None = None
        if cuda_graphs and can_capture and self.steps >= MIN_STEPS:
            self.capture = partial(capture_graph, self.device)
        self._captured: dict[bool, CapturedStep] = {}
        self.epoch = 0
        self.evaluator = Evaluator(normalize, self.amp, self.device, seed, loader_workers, stopped)
        self.validation_logits: Tensor | None = None
        self.metrics: Metrics | None = None
        self.lowest: LowestLoss | None = LowestLoss()
        self.curves: Stored = {}

    def _make_optimizer(self) -> None:
        self.optimizer = make_optimizer(self.network, self.policy)
        self.schedule = make_schedule(
            self.optimizer, self.steps, self.config.warmup, self.phases.head_steps
        )

    def use_features(self, split: PrefixSplit, train: Batches, validation: Batches) -> None:
        """Train on features instead of images; the values are the same up to rounding."""
        self.network.attach(split)
        if self.ema is not None:
            self.ema.module.attach(split)
        self.split = split
        self.train = train
        self.validation = validation

    def run(self, checkpoint: Checkpoint | None = None) -> Iterator[EpochResult]:
        """Train to the last epoch, yielding after each; resume where a checkpoint ends.

        Raises:
            DivergedError: When the loss or the validation logits are not finite.
            TrialInterruptedError: When a stop was asked for; the checkpoint has the epochs before.
        """
        if checkpoint is not None and (state := checkpoint.load(self.state())) is not None:
            self.load_state(state)
        start = time.perf_counter()
        solved: LinearHead | None = None
        if self.epoch == 0:
            self.start_layers()
            solved = self.solve_head()
        while self.epoch < self.config.epochs:
            if solved is not None and not self.network.depth:  # there is nothing left to train
                loss, rates = solved.loss, {0: 0.0}
                self.epoch = self.config.epochs
            else:
                loss, rates = self._train_epoch()
                self.epoch += 1
            metrics = error = None
            if self.validation is not None:
                metrics = self.validate()
                assert self.validation_logits is not None
                if self.lowest is not None:
                    error = self.lowest.update(self.validation_logits, self.validation.labels)
            seconds = time.perf_counter() - start
            result = EpochResult(self.epoch, loss, metrics, seconds, rates, error)
            self.curves = add_epoch(self.curves, result)
            yield result
            # After the caller has taken the result: a crash between the two repeats the epoch,
            # where the other order would lose its result.
            if checkpoint is not None:
                checkpoint.save(self.state(), self.epoch)
            start = time.perf_counter()

    def start_layers(self) -> None:
        """Bring changed layers to where they start: statistics of their norms, fitted weights."""
        self.recalibrate_norms()
        if self.network.start is None:
            return

        def fit(most: int) -> bool:
            size = fitted_start.batch_size(min(len(self.train), SAMPLED_IMAGES), most)
            inputs, images = (
                partial(self.evaluator.sample, views, size)
                for views in (self.train, self.raw_train)
            )
            return fitted_start.fit_start(self.network, self.split, inputs, images)

        if run_halving(fit, fitted_start.BATCH_SIZE, MIN_BATCH, "fitted layers", self.device):
            self._make_optimizer()  # L2-SP pulls towards what it finds
            self._restart_average()

    def recalibrate_norms(self) -> None:
        """Measure the norm statistics that the plan has made stale, on training images."""
        if self.network.stale_norms:
            self.evaluator.recalibrate(self.network, self.network.stale_norms, self.train)
            self._restart_average()

    def solve_head(self) -> LinearHead | None:
        """Solve the head for the features of the network as it is, if the policy says so.

        The features are those of the evaluation view of each image. The validation images choose
        the strength of the penalty; in a refit, a share of the training images does.
        """
        if self.policy.head_start != SOLVED or not self.network.head.is_linear:
            return None
        features = partial(self.evaluator.features, self.network, self.micro_batch_size)
        solved = solve_head(
            features(self.train),
            None if self.validation is None else features(self.validation),
            self.network.head.classes,
            self.config.sampling == "balanced",
        )
        self.network.head.set_linear(solved.weight, solved.bias)
        self._restart_average()
        return solved

    def average_weights(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Load the average of what several trainings of this plan have returned as their state.

        The norm statistics of the trainable part are measured again (Izmailov et al. 2018).

        Args:
            states: What :meth:`eval_state` has returned.
        """
        averages = {}
        for name, first in states[0].items():
            values = torch.stack([state[name].double() for state in states])
            averages[name] = values.mean(dim=0).to(first.dtype)
        self.eval_model.load_trainable_state(averages)
        self.evaluator.recalibrate(self.eval_model, self.eval_model.trainable_norms, self.train)

    def _restart_average(self) -> None:
        if self.ema is not None:
            self.ema.reset()

    def _train_epoch(self) -> tuple[float, dict[int, float]]:
        """Train for an epoch; return its mean loss and the mean learning rates of the layers."""
        # Neighboring seeds and epochs must not meet.
        torch.manual_seed((self.seed * 1_000_003 + self.epoch * 7_919 + 1) % (2**63))
        order = epoch_order(self.train.labels, self.config.sampling)
        views = self.train.views_for_epoch(self.epoch)
        self.network.freeze_all_but_head(self.phases.is_head_only(self.epoch))
        total = torch.zeros((), device=self.device)
        factors: list[float] = []
        batch_size, workers = self.config.batch_size, self.loader_workers
        for images, labels in self.train.batches(order, views, batch_size, workers):
            if self.stopped():
                raise TrialInterruptedError(f"stopped in epoch {self.epoch + 1}")
            inputs, targets = (
                self.normalize.to_inputs(images),
                labels.to(self.device, non_blocking=True),
            )
            if self.mixing is not None:
                inputs, targets = self.mixing(inputs, targets)
            factors.append(self.schedule.lr_lambdas[0](self.schedule.last_epoch))
            total += self._step(inputs, targets) * len(labels)
        mean = float(total) / len(self.train)
        if self.scaler.is_enabled():
            self._take_back(int(self._skipped))
        if not math.isfinite(mean):
            raise DivergedError(f"the loss is {mean} in epoch {self.epoch + 1}")
        return mean, self._mean_rates(statistics.fmean(factors))

    def _mean_rates(self, factor: float) -> dict[int, float]:
        """Return the learning rate of each layer, as a share of its peak."""
        peaks = self._peaks if len(set(self._peaks.values())) > 1 else {0: self.policy.lr}
        is_head_only = self.phases.is_head_only(self.epoch)
        return {
            layer: 0.0 if layer and is_head_only else factor * peak
            for layer, peak in peaks.items()
        }

    def _step(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """Take one step on a batch; return its mean loss."""
        captured = self._captured_step(inputs, targets)
        if captured is not None and isinstance(inputs, tuple):
            loss = captured(inputs, targets)
        else:
            loss = self._gradients(inputs, targets)
        self._update()
        return loss

    def _captured_step(self, inputs: Inputs, targets: Tensor) -> CapturedStep | None:
        """Return the captured step for a batch, ``None`` if it needs a plain step."""
        if (
            self.capture is None
            or not is_usable(self.device)
            or not isinstance(inputs, tuple)
            or len(targets) != self.config.batch_size
            # Autocast would cache weights in half precision, and they would be captured.
            or torch.is_autocast_enabled(self.device.type)
        ):
            return None
        head_only = self.phases.is_head_only(self.epoch)
        if head_only in self._captured:
            return self._captured[head_only]
        self._captured.clear()  # of the phase before
        network, parameters, is_single = self.network, self._trainable(), self.amp.dtype is None
        try:
            self._captured[head_only] = CapturedStep(
                self._gradients, network, parameters, inputs, targets, self.capture, is_single
            )
        except CaptureError as error:
            log_not_captured(str(error))
            self.capture = None
        if self.capture is None:  # outside of the except block, which holds its memory
            empty_cache(self.device)
        return self._captured.get(head_only)

    def _trainable(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _gradients(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """Compute and clip the gradients of a batch; return its mean loss.

        This is captured where possible: what changes on the host from step to step belongs into
        :meth:`_update`.
        """
        self.optimizer.zero_grad(set_to_none=True)
        count = num_micro_batches(len(targets), self.micro_batch_size)
        losses: list[Tensor] = []
        parts = zip(micro_batches(inputs, count), targets.tensor_split(count), strict=True)
        for part, labels in parts:
            with self.amp.autocast():
                logits = self.network(part)
            loss = self.loss(logits.float(), labels)
            if self.teacher is not None:
                loss = self.teacher.loss(part, logits.float(), loss)
            loss = loss * (len(labels) / len(targets))
            self.scaler.scale(loss).backward()
            losses.append(loss.detach())
        self._clip()
        return sum(losses[1:], losses[0])

    def _clip(self) -> None:
        if self.config.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self._trainable(), self.config.clip_grad_norm)

    def _update(self) -> None:
        if self._step_optimizer():
            return
        self.schedule.step()
        if self.ema is not None:
            # Counted within the phase: steps in which the trainable layers could not move must
            # not hold back their average.
            self.ema.update(self.phases.steps_of_phase(self.schedule.last_epoch))

    def _step_optimizer(self) -> bool:
        """Take the optimizer's step; tell whether it is known that fp16 skipped it."""
        if not self.scaler.is_enabled():
            self.optimizer.step()
            return False
        scale = self.scaler.scale(self._unit)  # get_scale() would wait for the device
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = self.scaler.scale(self._unit) < scale  # a gradient overflowed in fp16
        if not self.defers_skip_check:
            return bool(skipped)
        self._skipped += skipped
        return False

    def _take_back(self, steps: int) -> None:
        """Take back steps of the schedule that fp16 has skipped in an epoch.

        Until then the rate was that many steps ahead, and the average of the weights took in
        unchanged weights as often.
        """
        if not steps:
            return
        self._skipped.zero_()
        schedule = self.schedule
        schedule.last_epoch -= steps
        for group, peak, factor in zip(
            self.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = peak * factor(schedule.last_epoch)

    @property
    def eval_model(self) -> Network:
        """The model to evaluate: that of the averaged weights if there is an average."""
        return self.network if self.ema is None else self.ema.module

    def validate(self) -> Metrics:
        """Score the model as it is now on the validation split.

        Raises:
            DivergedError: When its logits are not finite.
        """
        assert self.validation is not None
        self.validation_logits, labels = self.predict(self.validation)
        self.metrics = compute_metrics(self.validation_logits, labels)
        return self.metrics

    def predict(self, views: Batches) -> tuple[Tensor, Tensor]:
        """Return logits ``(N, classes)`` and labels ``(N,)`` of the evaluation views."""
        network = self.eval_model.eval()
        return self.evaluator.outputs(network, views, self.micro_batch_size), views.labels

    def eval_state(self) -> dict[str, Tensor]:
        """Return the tensors of the model to evaluate that training has changed."""
        return self.eval_model.trainable_state()

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed training needs."""
        state = {
            "epoch": self.epoch,
            "network": self.network.trainable_state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "scaler": self.scaler.state_dict(),
        }
        if self.ema is not None:
            state["ema"] = self.ema.module.trainable_state()
        lowest = {} if self.lowest is None else self.lowest.state()
        return {**state, **save_curves(self.curves), **lowest}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        if self.policy.l2_sp and self.network.start is not None:
            self.start_layers()  # L2-SP pulls towards where the layers started
        self.epoch = state["epoch"]
        self.network.load_trainable_state(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_trainable_state(state["ema"])
        self.curves = load_curves(state)
        if self.lowest is not None:
            self.lowest.load_state(state)
