"""A plan trained for good: on training and validation images, the way a final fit trains.

What differs from a trial: what is judged is an average of the weights over the last steps, and the
images may be augmented anew in every epoch. Both are the same for the best plan and the baseline.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from autotune.config.schema import AUTO, ONLINE, RefitConfig, StudyConfig
from autotune.data.views.study_data import StudyData
from autotune.data.views.views import Views
from autotune.plan import TrialPlan
from autotune.study.trial.build import build_trainer
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.retrain import TrainingProgress, with_oom_backoff
from autotune.training.trainer import Trainer, num_batches

#: ``refit.ema: auto`` averages over this share of the steps in which the trainable layers train.
AVERAGED = 0.05

#: Told of an epoch.
EpochCallback = Callable[[int], None]


@dataclass(frozen=True)
class TrainingSummary:
    """How a plan was trained.

    Args:
        images: Training images.
        views: ``online``, or how many views each image has; 1 is no augmentation.
        epochs: Epochs.
        ema: Decay of the average of the weights, ``None`` where there is none.
        micro_batch_size: Images that went through the network at a time.
        seconds: Wall time.
    """

    images: int
    views: int | str
    epochs: int
    ema: float | None
    micro_batch_size: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        names = {"micro_batch_size": "part"}  # as it has been stored from the first
        return {names.get(name, name): value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Refit:
    """A plan that is trained.

    Args:
        training: Its training, at its end.
        summary: How it was trained.
    """

    training: Trainer
    summary: TrainingSummary

    def predict(self, views: Views) -> tuple[Tensor, Tensor]:
        """Return logits and labels on the CPU, in parts that fit into memory."""

        def predict(micro_batch_size: int) -> tuple[Tensor, Tensor]:
            self.training.micro_batch_size = micro_batch_size
            logits, labels = self.training.predict(views)
            return logits.cpu(), labels.cpu()

        return with_oom_backoff(predict, self.training.micro_batch_size, self.training.device)


def refit_views(
    task: StudyData, config: StudyConfig, settings: RefitConfig, memory_bytes: int
) -> Views:
    """Return training and validation images as a final fit sees them.

    Args:
        task: The images.
        config: The study's configuration.
        settings: How a final fit trains.
        memory_bytes: Most memory that kept views may take; new ones are not kept.
    """
    training = config.training
    online = _is_online(config, settings)
    count = training.epochs if online else training.view_count
    left = 0 if online else memory_bytes
    return task.train_validation_views(training.augment, count, config.search.seed, left)


def refit(
    plan: TrialPlan,
    ctx: WorkerContext,
    views: Views,
    settings: RefitConfig,
    on_epoch: EpochCallback = lambda epoch: None,
    micro_batch_size: int | None = None,
) -> Refit:
    """Train a plan on the images of a final fit.

    Where a batch does not fit into the memory of the device, it goes through the network in
    halves, quarters and so on, as that of a trial; the training goes on from its last epoch.

    Args:
        plan: The plan.
        ctx: What the study trains with.
        views: What :func:`refit_views` returned.
        settings: How a final fit trains.
        on_epoch: Called after every epoch.
        micro_batch_size: Images that go through the network at a time; by default the whole batch.

    Raises:
        DivergedError: When the training diverges.
        UserError: When not even two images fit into memory.
    """
    config = ctx.config
    ema = ema_decay(config, settings, plan, len(views))
    changed = config.model_copy(
        update={"training": config.training.model_copy(update={"ema": ema})}
    )
    ctx = dataclasses.replace(ctx, config=changed)
    start = time.perf_counter()

    reached = TrainingProgress()

    def train(micro_batch_size: int) -> Trainer:
        training = build_trainer(plan, ctx, refit=views, micro_batch_size=micro_batch_size)
        for result in reached.go_on(training):
            on_epoch(result.epoch)
        return training

    whole = config.training.batch_size
    training = with_oom_backoff(
        train, whole if micro_batch_size is None else micro_batch_size, ctx.device
    )
    summary = TrainingSummary(
        images=len(views),
        views=ONLINE if _is_online(config, settings) else views.views,
        epochs=config.training.epochs,
        ema=ema,
        micro_batch_size=min(whole, training.micro_batch_size),
        seconds=round(time.perf_counter() - start, 3),
    )
    return Refit(training, summary)


def ema_decay(
    config: StudyConfig, settings: RefitConfig, plan: TrialPlan, images: int
) -> float | None:
    """Return the decay of the average of the weights, or ``None`` for none.

    By itself it is that of the study, or as long as suits the steps: too long an average would
    hold what was learnt at a high learning rate.

    Args:
        config: The study's configuration.
        settings: How a final fit trains.
        plan: The plan; epochs in which its head trains alone are not averaged over.
        images: Training images.
    """
    training = config.training
    if settings.ema == "off":
        return None
    if settings.ema != AUTO:
        return float(settings.ema)
    if training.ema is not None:
        return training.ema
    epochs = training.epochs - (plan.policy.head_epochs if plan.depth else 0)
    steps = AVERAGED * epochs * num_batches(images, training.batch_size)
    return 1 - 1 / steps if steps >= 2 else None


def _is_online(config: StudyConfig, settings: RefitConfig) -> bool:
    """Tell whether images are augmented anew in every epoch: not where they never are."""
    return config.training.num_views == ONLINE or (
        settings.views == ONLINE and config.training.view_count > 1
    )
