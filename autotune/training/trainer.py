"""The training loop: every trial, every refit and every rerun goes through here.

Randomness is derived from (seed, epoch) at the start of every epoch, so that a training resumed
at an epoch continues exactly as one that was never interrupted, without any generator state in
the checkpoint.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autotune.config.schema import TrainingConfig
from autotune.errors import DivergedError, TrialInterruptedError
from autotune.models.network import Network
from autotune.models.prefix.split import PrefixSplit
from autotune.plan import TrainingPolicy
from autotune.training.checkpoint import Checkpoint
from autotune.training.compute.amp import AmpPolicy, keep_slow_convs_fp32
from autotune.training.compute.cuda_graphs import (
    MIN_STEPS,
    Capture,
    CapturedStep,
    CaptureError,
    is_usable,
    log_not_captured,
    make_capture,
)
from autotune.training.compute.micro_batches import MicroBatcher, empty_cache, run_halving
from autotune.training.inputs.batches import Batches, Inputs, micro_batches, to_channels_last
from autotune.training.inputs.epoch_sampler import epoch_order
from autotune.training.inputs.mixup import make_mixing
from autotune.training.inputs.placement import place_on_device, release_copy
from autotune.training.metrics import Metrics, compute_metrics
from autotune.training.optim.ema import WeightAverage
from autotune.training.optim.norm_recalibration import (
    BATCH_SIZE,
    recalibrate_batch_norms,
    sample_batches,
)
from autotune.training.optim.optimizer import make_optimizer, make_schedule
from autotune.training.optim.phases import Phases

logger = logging.getLogger(__name__)

#: Training images on which stale norm statistics are measured.
NORM_IMAGES = 512
#: Fewer images are no batch for a norm that trains.
LEAST_BATCH = 2


@dataclass(frozen=True)
class EpochResult:
    """What one epoch brought.

    Args:
        epoch: Counted from 1.
        loss: Mean training loss per image: the cross-entropy with what the policy makes of the
            labels (smoothed, mixed), without weight decay or L2-SP.
        metrics: Scores on the validation part, ``None`` where there is none (the final fit).
        seconds: Wall time of the epoch, validation included.
    """

    epoch: int
    loss: float
    metrics: Metrics | None
    seconds: float


@dataclass(frozen=True)
class Normalizer:
    """Bring uint8 images to what the backbone expects.

    Args:
        mean: ``(1, C, 1, 1)``, of values between 0 and 255.
        std: ``(1, C, 1, 1)``, of values between 0 and 255.
    """

    mean: Tensor
    std: Tensor

    @staticmethod
    def from_config(data_config: Mapping[str, Any], device: torch.device) -> Normalizer:
        """Take mean and std from timm's data configuration."""
        mean, std = (
            torch.tensor(data_config[key], device=device).view(1, -1, 1, 1) * 255.0
            for key in ("mean", "std")
        )
        return Normalizer(mean, std)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize ``(N, C, H, W)`` uint8 images on their way to the device."""
        images = images.to(self.mean.device, non_blocking=True)
        return to_channels_last((images.float() - self.mean) / self.std)


class Trainer:
    """The training of one network under one policy.

    Args:
        network: The network, already on ``device``.
        policy: Optimizer, learning rates and so on.
        config: What all trials of the study share.
        train: Training images and their views.
        validation: Validation images, or ``None`` in the final fit.
        normalize: Brings images to what the backbone expects.
        seed: Seed of batches, dropout and views.
        stopped: Asked after every batch; true interrupts the training.
        loader_workers: Processes that prepare images which do not fit into memory.
        micro_batch_size: Images that go through the network at a time; by default the whole
            batch. The gradients of its micro-batches add up; batch norm sees one micro-batch.
        amp: Mixed precision; by default what ``config.precision`` names, and none for ``auto``.
        cuda_graphs: Whether steps may be captured in CUDA graphs, see
            :class:`autotune.training.compute.cuda_graphs.CapturedStep`: of trainings that are long
            enough, on a GPU, of batches that go through the network as a whole. Not with fp16,
            whose scaler decides on the host what a step does.

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
    ) -> None:
        self.network = network
        self.policy = policy
        self.config = config
        #: Why the backbone cannot be split, where it cannot.
        self.unsplit_reason = ""
        self.normalize = normalize
        self.seed = seed
        self.stopped = stopped
        self.loader_workers = loader_workers
        self.micro_batch_size = config.batch_size if micro_batch_size is None else micro_batch_size
        self.device = next(network.parameters()).device
        # What did not fit as a whole batch leaves no memory for images that stay on the device.
        stays = self.micro_batch_size >= config.batch_size
        for one in (train, validation):
            if one is not None and not stays:
                release_copy(one)
        #: The training images themselves, also where features take their place.
        self.raw_train = place_on_device(train, self.device, stays)
        self.train = self.raw_train
        self.validation = (
            None if validation is None else place_on_device(validation, self.device, stays)
        )
        self.amp = AmpPolicy.from_mode(config.precision, self.device) if amp is None else amp
        keep_slow_convs_fp32(network, self.amp)
        self.loss = nn.CrossEntropyLoss(label_smoothing=policy.label_smoothing)
        self.mixing = make_mixing(policy, network.head.classes)
        self.optimizer = make_optimizer(network, policy)
        batches = num_batches(len(train), config.batch_size)
        self.steps = config.epochs * batches
        self.phases = Phases.from_policy(network, policy, config.epochs, batches)
        self.schedule = make_schedule(
            self.optimizer, self.steps, config.warmup, self.phases.head_steps
        )
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.amp.dtype is torch.float16
        )
        #: Whether a step that fp16 leaves out is known on the device alone, until the epoch ends:
        #: to ask at once would make the host wait for every step. The fused kernel leaves such a
        #: step out by itself; for other optimizers the scaler asks in any case.
        self.defers_skip_check = self.device.type == "cuda" and bool(
            self.optimizer.defaults.get("fused")
        )
        self._left_out = torch.zeros((), dtype=torch.int64, device=self.device)
        self._unit = torch.ones((), device=self.device)
        self.ema = WeightAverage(network, config.ema) if config.ema else None
        fits = cuda_graphs and self.device.type == "cuda" and stays and self.steps >= MIN_STEPS
        plain = self.mixing is not None or self.scaler.is_enabled()
        #: Captures a step; ``None`` where all steps are plain.
        self.record: Capture | None = make_capture(self.device) if fits and not plain else None
        self._captured: dict[bool, CapturedStep] = {}
        self.epoch = 0
        self._judging = MicroBatcher("validation", self.device)
        # Of the last validate(): logits (N, classes) and scores.
        self.validation_logits: Tensor | None = None
        self.metrics: Metrics | None = None

    def use_features(self, split: PrefixSplit, train: Batches, validation: Batches) -> None:
        """Train on features in place of images, with the same values to rounding.

        Args:
            split: What the features are of.
            train: Features of the training images.
            validation: Features of the validation images.
        """
        self.network.attach(split)
        if self.ema is not None:
            self.ema.module.attach(split)
        self.train = train
        self.validation = validation

    def to_inputs(self, batch: Inputs) -> Inputs:
        """Bring what a batch holds to what the network takes: features are that already."""
        return batch if isinstance(batch, tuple) else self.normalize(batch)

    def run(self, checkpoint: Checkpoint | None = None) -> Iterator[EpochResult]:
        """Train to the last epoch, yielding after each; resume where a checkpoint ends.

        Args:
            checkpoint: Where the state after the last finished epoch is kept.

        Raises:
            DivergedError: When the loss or the validation logits are not finite.
            TrialInterruptedError: When a stop was asked for; the checkpoint keeps what was done.
        """
        if checkpoint is not None:
            state = checkpoint.load(self.state())
            if state is not None:
                self.load_state(state)
        if self.epoch == 0:
            self.recalibrate_norms()
        while self.epoch < self.config.epochs:
            start = time.perf_counter()
            loss = self._train_epoch()
            self.epoch += 1
            metrics = None if self.validation is None else self.validate()
            yield EpochResult(self.epoch, loss, metrics, time.perf_counter() - start)
            # After the caller has taken the result in: a crash between the two repeats the
            # epoch, where the other order would lose its result.
            if checkpoint is not None:
                checkpoint.save(self.state(), self.epoch)

    def recalibrate_norms(self) -> None:
        """Measure the norm statistics that the plan has made stale, on training images.

        Where a batch does not fit into the memory of a GPU, it begins again with half as many
        images in each. That is no matter of rounding alone, because the norms see other batches:
        the statistics are means over more and smaller ones, as good an estimate of the same.
        """
        if not self.network.stale_norms:
            return

        def measured(batch: int) -> None:
            images = sample_batches(
                self.train, NORM_IMAGES, self.to_inputs, self.seed, self.loader_workers, batch
            )
            with self.amp.autocast():
                recalibrate_batch_norms(self.network, images)

        run_halving(measured, BATCH_SIZE, LEAST_BATCH, "norm statistics", self.device)
        if self.ema is not None:
            self.ema.set()

    def _train_epoch(self) -> float:
        torch.manual_seed(_mix(self.seed, self.epoch))
        order = epoch_order(self.train.labels, self.config.sampling)
        views = self.train.views_for_epoch(self.epoch)
        self.network.freeze_all_but_head(self.phases.is_head_only(self.epoch))
        total = torch.zeros((), device=self.device)
        for images, labels in self.train.batches(
            order, views, self.config.batch_size, self.loader_workers
        ):
            if self.stopped():
                raise TrialInterruptedError(f"stopped in epoch {self.epoch + 1}")
            inputs, targets = self.to_inputs(images), labels.to(self.device, non_blocking=True)
            if self.mixing is not None:
                inputs, targets = self.mixing(inputs, targets)
            total += self._step(inputs, targets) * len(labels)
        mean = float(total) / len(self.train)
        self._take_back(int(self._left_out) if self.scaler.is_enabled() else 0)
        if not math.isfinite(mean):
            raise DivergedError(f"the loss is {mean} in epoch {self.epoch + 1}")
        return mean

    def _step(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """Take one step on a batch; return its mean loss."""
        loss = self._gradients_again(inputs, targets)
        if loss is None:
            loss = self._gradients(inputs, targets)
        self._update()
        return loss

    def _gradients_again(self, inputs: Inputs, targets: Tensor) -> Tensor | None:
        """Compute the gradients of a batch by a captured step, where there can be one.

        Returns:
            Its mean loss, or ``None`` where a plain step has to be taken.
        """
        if (
            self.record is None
            or not is_usable(self.device)
            or not isinstance(inputs, tuple)
            or len(targets) != self.config.batch_size
            # Weights in half precision, which autocast keeps while it lasts, would be captured.
            or torch.is_autocast_enabled(self.device.type)
        ):
            return None
        alone = self.phases.is_head_only(self.epoch)
        if alone not in self._captured:
            self._captured.clear()  # of the phase before
            trainable = [p for group in self.optimizer.param_groups for p in group["params"]]
            single = self.amp.dtype is None
            try:
                self._captured[alone] = CapturedStep(
                    self._gradients, self.network, trainable, inputs, targets, self.record, single
                )
            except CaptureError as error:
                log_not_captured(str(error))
                self.record = None
            if self.record is None:  # outside of the except block, which holds its memory
                empty_cache(self.device)
                return None
        return self._captured[alone](inputs, targets)

    def _gradients(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """Compute and clip the gradients of a batch; return its mean loss.

        This is captured where it can be: what changes from step to step on the host belongs into
        :meth:`_update`.
        """
        self.optimizer.zero_grad(set_to_none=True)
        parts = num_micro_batches(len(targets), self.micro_batch_size)
        total: Tensor | None = None
        for some, goals in zip(
            micro_batches(inputs, parts), targets.tensor_split(parts), strict=True
        ):
            with self.amp.autocast():
                logits = self.network(some)
            loss = self.loss(logits.float(), goals) * (len(goals) / len(targets))
            self.scaler.scale(loss).backward()
            total = loss.detach() if total is None else total + loss.detach()
        self._clip()
        assert total is not None, "a batch has at least one micro-batch"
        return total

    def _clip(self) -> None:
        if self.config.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            trainable = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(trainable, self.config.clip_grad_norm)

    def _update(self) -> None:
        if self._step_is_left_out():
            return
        self.schedule.step()
        if self.ema is not None:
            # Counted from the unfreezing: the average of the trainable layers must not be held
            # back by the steps in which they could not move.
            self.ema.update(self.phases.steps_of_phase(self.schedule.last_epoch))

    def _step_is_left_out(self) -> bool:
        """Take the optimizer's step; tell whether it was left out, where that is known."""
        if not self.scaler.is_enabled():
            self.optimizer.step()
            return False
        scale = self.scaler.scale(self._unit)  # get_scale() would wait for the device
        self.scaler.step(self.optimizer)
        self.scaler.update()
        left_out = self.scaler.scale(self._unit) < scale  # a gradient overflowed in fp16
        if not self.defers_skip_check:
            return bool(left_out)
        self._left_out += left_out
        return False

    def _take_back(self, steps: int) -> None:
        """Take back steps of the schedule that fp16 has left out in an epoch.

        Until then the rate was that many steps ahead, and the average of the weights took in
        unchanged weights as often.
        """
        if not steps:
            return
        self._left_out.zero_()
        self.schedule.last_epoch -= steps
        for group, peak, factor in zip(
            self.optimizer.param_groups,
            self.schedule.base_lrs,
            self.schedule.lr_lambdas,
            strict=True,
        ):
            group["lr"] = peak * factor(self.schedule.last_epoch)

    @property
    def eval_model(self) -> Network:
        """The network to judge: the moving average of the weights where one is kept."""
        return self.network if self.ema is None else self.ema.module

    def validate(self) -> Metrics:
        """Score the network as it is now on the validation part.

        Raises:
            DivergedError: When its logits are not finite.
        """
        assert self.validation is not None
        self.validation_logits, labels = self.predict(self.validation)
        self.metrics = compute_metrics(self.validation_logits, labels)
        return self.metrics

    @property
    def _eval_batch_size(self) -> int:
        """Images of a batch without gradients: a GPU wants many, the caches of a CPU do not."""
        return 4 * self.micro_batch_size if self.device.type == "cuda" else self.micro_batch_size

    @torch.no_grad()
    def predict(self, views: Batches) -> tuple[Tensor, Tensor]:
        """Return logits ``(N, classes)`` and labels ``(N,)`` of the evaluation views."""
        network = self.eval_model.eval()
        order = torch.arange(len(views))
        outputs: list[Tensor] = []

        def judged(images: Inputs) -> Tensor:
            with self.amp.autocast():
                logits: Tensor = network(self.to_inputs(images))
            return logits.float()

        there = place_on_device(views, self.device, stays=False)
        for images, _ in there.batches(
            order, views.views_for_epoch(None), self._eval_batch_size, self.loader_workers
        ):
            if self.stopped():
                raise TrialInterruptedError(f"stopped in the validation of epoch {self.epoch}")
            outputs += self._judging.run(judged, images)
        return torch.cat(outputs), views.labels

    def eval_state(self) -> dict[str, Tensor]:
        """Return what training has changed of the network to judge."""
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
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.epoch = state["epoch"]
        self.network.load_trainable_state(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_trainable_state(state["ema"])


def _mix(seed: int, epoch: int) -> int:
    """Derive the seed of an epoch; neighbouring seeds and epochs must not meet."""
    return (seed * 1_000_003 + epoch * 7_919 + 1) % (2**63)


def num_batches(images: int, batch_size: int) -> int:
    """Count the batches of an epoch: a single image left over joins the batch before it."""
    batches = math.ceil(images / batch_size)
    left_over = images - (batches - 1) * batch_size
    return batches - (batches > 1 and left_over == 1)


def num_micro_batches(images: int, micro_batch_size: int) -> int:
    """Count the parts of a batch: none has a single image, which batch norm refuses."""
    return max(1, min(math.ceil(images / micro_batch_size), images // 2))
