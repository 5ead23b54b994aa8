"""A plan refitted on training and validation images.

Two things differ from a trial: the model is an average of the weights over the last steps, and
every epoch may augment the images again. Both are the same for the best plan and the baseline.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from autotune.config.schema import AUTO, ONLINE, RefitConfig, StudyConfig
from autotune.data.preprocessing import ImageSpec
from autotune.data.views.study_data import StudyData, open_test_views
from autotune.data.views.views import Views
from autotune.models.ensemble import Ensemble
from autotune.plan import TrialPlan
from autotune.study.setup.manifest_store import read_manifest
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.trial.build import build_trainer
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.retrain import ResumableTraining, with_oom_as_user_error
from autotune.study.trial.trainings import Training, TrainingFiles
from autotune.training.checkpoint import Checkpoint
from autotune.training.curves import Stored
from autotune.training.inputs.batches import num_batches
from autotune.training.optim.distillation import Teacher
from autotune.training.trainer import Trainer

#: Share of the steps in which the trainable layers train that ``refit.ema: auto`` averages over.
AVERAGED = 0.05


@dataclass(frozen=True)
class TrainingSummary:
    """How a plan was trained.

    Args:
        images: Training images.
        views: ``online``, or the views of each image; 1 is no augmentation.
        epochs: Epochs.
        ema: Decay of the average of the weights, ``None`` if there is none.
        micro_batch_size: Images that went through the network at a time.
        seconds: Wall time; where it was interrupted, as if all epochs took as long as the last.
        curves: Training loss, learning rates and seconds by epoch, see
            :mod:`autotune.training.curves`.
    """

    images: int
    views: int | str
    epochs: int
    ema: float | None
    micro_batch_size: int
    seconds: float
    curves: Stored = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, under the names of the first release."""
        values = asdict(self)
        values["part"] = values.pop("micro_batch_size")
        return values

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> TrainingSummary:
        """Return what :meth:`to_json` has written."""
        others = {name: values[name] for name in values if name != "part"}
        return TrainingSummary(micro_batch_size=values["part"], **others)


@dataclass(frozen=True)
class Refit:
    """A refitted plan: its trainer after the last epoch, and how it was trained."""

    training: Trainer
    summary: TrainingSummary

    def predict(self, views: Views) -> tuple[Tensor, Tensor]:
        """Return logits and labels on the CPU, in micro-batches that fit into memory."""

        def predict(micro_batch_size: int) -> tuple[Tensor, Tensor]:
            self.training.micro_batch_size = micro_batch_size
            logits, labels = self.training.predict(views)
            return logits.cpu(), labels.cpu()

        return with_oom_as_user_error(
            predict, self.training.micro_batch_size, self.training.device
        )


def refit_views(
    data: StudyData, config: StudyConfig, fit: RefitConfig, memory_bytes: int
) -> Views:
    """Return the training and validation images for a refit; online views are not cached.

    ``config`` has the size of the images and the strength of augmentation of the plan.
    """
    training = config.training
    is_online = _is_online(config, fit)
    count = training.epochs if is_online else training.view_count
    limit = 0 if is_online else memory_bytes
    return data.train_validation_views(training.augment, count, config.search.seed, limit)


def open_refit_tests(handle: OpenStudy, config: StudyConfig, spec: ImageSpec) -> Views:
    """Return the test images of a study, see :func:`open_test_views`."""
    return open_test_views(
        config.dataset,
        config.data,
        spec,
        handle.files.cache,
        config.cache.disk_bytes,
        read_manifest(handle.study, handle.files),
        handle.study.user_attrs[attrs.DATASET].get("test_fingerprint"),
    )


def train_refit(
    training: Training,
    ctx: WorkerContext,
    views: Views,
    on_epoch: Callable[[int], None] = lambda epoch: None,
    checkpoint: Checkpoint | None = None,
    stopped: Callable[[], bool] = lambda: False,
    teacher: Teacher | None = None,
) -> Refit:
    """Train a plan on training and validation images.

    A batch that does not fit into memory is split as in a trial; the training resumes after its
    last epoch.

    Args:
        training: The plan, and the settings of the refit.
        ctx: The context of the study.
        views: The result of :func:`refit_views`.
        on_epoch: Called after every epoch.
        checkpoint: Holds the state after every epoch; the training starts from what it holds.
        stopped: Called after every batch; true interrupts the training.
        teacher: A network whose probabilities the network learns too.

    Raises:
        DivergedError: When the training diverges.
        TrialInterruptedError: When a stop was requested.
        UserError: When not even two images fit into memory.
    """
    plan, fit, config = training.plan, training.refit, ctx.config
    assert fit is not None
    ema = ema_decay(config, fit, plan, len(views))
    changed = {"training": config.training.model_copy(update={"ema": ema})}
    ctx = dataclasses.replace(ctx, config=config.model_copy(update=changed))
    start = time.perf_counter()
    progress, trained = ResumableTraining(), set[int]()

    def train(size: int) -> Trainer:
        trainer = build_trainer(
            plan,
            ctx,
            stopped,
            refit=views,
            micro_batch_size=size,
            seed=training.seed,
            start_seed=config.search.seed if training.same_start else None,
            teacher=teacher,
        )
        for result in progress.resume(trainer, checkpoint):
            trained.add(result.epoch)
            on_epoch(result.epoch)
        return trainer

    batch_size = config.training.batch_size
    size = training.micro_batch_size or batch_size
    trainer = with_oom_as_user_error(train, size, ctx.device, stopped)
    seconds = time.perf_counter() - start
    summary = TrainingSummary(
        images=len(views),
        views=ONLINE if _is_online(config, fit) else views.views,
        epochs=config.training.epochs,
        ema=ema,
        micro_batch_size=min(batch_size, trainer.micro_batch_size),
        seconds=round(seconds * config.training.epochs / max(1, len(trained)), 3),
        curves=dict(trainer.curves),
    )
    return Refit(trainer, summary)


def ema_decay(config: StudyConfig, fit: RefitConfig, plan: TrialPlan, images: int) -> float | None:
    """Return the decay of the average of the weights, or ``None`` for no average.

    ``auto`` takes that of the study, else one that suits the number of steps: too long an average
    would hold what was learned at a high learning rate.

    Args:
        config: The study's configuration.
        fit: The settings of the refit.
        plan: The plan; epochs that train its head alone are not averaged over.
        images: Training images.
    """
    training = config.training
    if fit.ema == "off":
        return None
    if fit.ema != AUTO:
        return float(fit.ema)
    if training.ema is not None:
        return training.ema
    epochs = training.epochs - (plan.policy.head_epochs if plan.depth else 0)
    steps = AVERAGED * epochs * num_batches(images, training.batch_size)
    return 1 - 1 / steps if steps >= 2 else None


def _is_online(config: StudyConfig, fit: RefitConfig) -> bool:
    """Tell whether every epoch augments the images again; a study without views never does."""
    return config.training.num_views == ONLINE or (
        fit.views == ONLINE and config.training.view_count > 1
    )


@dataclass(frozen=True)
class StoredRefit:
    """A refitted plan as another process has trained and measured it.

    Args:
        plan: The plan.
        training: Its trainer, with the weights of the model to evaluate.
        logits: Its logits ``(N, classes)`` of the test images.
        labels: Their labels ``(N,)``.
        summary: How it was trained.
    """

    plan: TrialPlan
    training: Trainer
    logits: Tensor
    labels: Tensor
    summary: TrainingSummary


def store_refit(
    training: Training,
    files: TrainingFiles,
    ctx: WorkerContext,
    train: Views,
    test: Views,
    on_epoch: Callable[[int], None],
    stopped: Callable[[], bool],
) -> None:
    """Refit a plan, from where an earlier attempt has ended, and store what it has become.

    Raises:
        DivergedError: When the training diverges.
        TrialInterruptedError: When a stop was requested; the state of the last epoch stays.
        DiskFullError: When the result cannot be stored.
        UserError: When not even two images fit into memory.
    """
    teacher = read_teacher(training, ctx)
    refit = train_refit(training, ctx, train, on_epoch, files.checkpoint, stopped, teacher)
    logits, labels = refit.predict(test)
    result = {
        "weights": refit.training.eval_state(),
        "logits": logits,
        "labels": labels,
        "summary": refit.summary.to_json(),
    }
    Checkpoint(files.result, files.identity).save(result, ctx.config.training.epochs)
    files.checkpoint.path.unlink(missing_ok=True)


def read_teacher(training: Training, ctx: WorkerContext) -> Teacher | None:
    """Return what a training learns from besides the labels, on the device; ``None`` if nothing.

    Its members take the images of the student, whatever their own backbones expect.
    """
    if not training.teacher:
        return None
    members = [
        (weight, each.plan, read_refit(each, TrainingFiles.of(each, ctx.handle, ctx.config), ctx))
        for weight, each in training.teacher
    ]
    ensemble = Ensemble(
        [refit.training.eval_model for _, _, refit in members],
        [weight for weight, _, _ in members],
        [ctx.resources.of(plan).data.spec for _, plan, _ in members],
        ctx.resources.of(training.plan).data.spec,
    )
    return Teacher(ensemble.to(ctx.device).eval().requires_grad_(False))


def read_result(files: TrainingFiles) -> dict[str, Any] | None:
    """Read the result of a refit, if there is one; one that cannot be used is removed."""
    if not files.result.exists():  # else its first file, which a process writes now, is left alone
        return None
    return Checkpoint(files.result, files.identity).load()


def forget_other_tests(files: TrainingFiles, test: Views) -> None:
    """Remove the result of a refit that was measured when other test images could be read."""
    result = read_result(files)
    if result is not None and not torch.equal(result["labels"], test.labels):
        files.result.unlink(missing_ok=True)


def read_refit(training: Training, files: TrainingFiles, ctx: WorkerContext) -> StoredRefit:
    """Read the result of a refit; its frozen layers are those of the backbone.

    Args:
        training: The training.
        files: Its files.
        ctx: The context of the study; its device is that of the network.
    """
    result = read_result(files)
    assert result is not None and training.refit is not None, "it was stored"
    data = ctx.resources.of(training.plan).data
    config = ctx.config.for_images(*training.plan.images[1:])
    train = refit_views(data, config, training.refit, memory_bytes=0)
    trainer = build_trainer(training.plan, ctx, refit=train)
    trainer.eval_model.load_trainable_state(result["weights"])
    summary = TrainingSummary.from_json(result["summary"])
    return StoredRefit(training.plan, trainer, result["logits"], result["labels"], summary)
