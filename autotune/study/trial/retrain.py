"""A plan trained outside of the search: like its trial, or with another seed, and its scores."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from autotune.atomic import atomic_file
from autotune.errors import DivergedError, UserError
from autotune.format_versions import CONFIRMATION, check_format, reading, refuse_unknown, stamp
from autotune.plan import TrialPlan
from autotune.study.state import oom
from autotune.study.trial.build import AnyTrainer, build_trial_trainer
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.predictions import Predicted
from autotune.study.trial.run import precision_record
from autotune.study.trial.trainings import Training, TrainingFiles, digest
from autotune.training.checkpoint import Checkpoint
from autotune.training.curves import EpochResult, Stored
from autotune.training.folds import trainers_of
from autotune.training.metrics import Metrics

logger = logging.getLogger(__name__)

#: Called after an epoch with its number, and the objective.
EpochCallback = Callable[[int, float], None]
T = TypeVar("T")
#: Fields of the file of one training.
FIELDS = (
    *("format", "autotune", "plan", "seed", "split_seed"),
    *("metrics", "failed", "curves", "checksum"),
)


@dataclass(frozen=True)
class Trained:
    """The result of a training: last metrics (means over folds), objective by epoch, precision.

    ``predicted`` are the predictions for the validation images, ``curves`` the losses and more by
    epoch.
    """

    metrics: Metrics
    curve: dict[int, float]
    compute: dict[str, Any]
    predicted: Predicted
    curves: Stored


def retrain(
    plan: TrialPlan,
    ctx: WorkerContext,
    on_epoch: EpochCallback = lambda epoch, value: None,
    *,
    seed: int | None = None,
    start_seed: int | None = None,
    micro_batch_size: int | None = None,
    epochs: int | None = None,
    checkpoint: Checkpoint | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train a plan on the training split of a study and evaluate it on the validation split.

    A batch that does not fit into memory is split as in a trial; the training resumes after its
    last epoch.

    Args:
        plan: The plan.
        ctx: The context of the study.
        on_epoch: Called after every epoch.
        seed: Training seed; by default the study's.
        start_seed: Seed of the initial weights alone, where it is another one.
        micro_batch_size: Images that go through the network at a time; by default the batch.
        epochs: Stop after this epoch, without a change of the schedule; by default train all.
        checkpoint: Holds the state after every epoch; the training starts from what it holds, and
            the curve of what was trained before is not known.
        stopped: Called after every batch; true interrupts the training.

    Raises:
        DivergedError: When the training diverges.
        TrialInterruptedError: When a stop was requested.
        UserError: When not even two images fit into memory.
    """
    progress, curve = ResumableTraining(), dict[int, float]()
    objective = ctx.config.training.objective

    def train(size: int) -> Trained:
        training = build_trial_trainer(plan, ctx, stopped, size, seed, start_seed)
        for result in progress.resume(training, checkpoint):
            assert result.metrics is not None
            value = result.metrics.objective(objective)
            if not math.isfinite(value):
                raise DivergedError(f"the {objective} is {value} in epoch {result.epoch}")
            curve[result.epoch] = value
            on_epoch(result.epoch, value)
            if result.epoch == epochs:
                break
        # A checkpoint after the last epoch leaves nothing to train.
        metrics = training.metrics or training.validate()
        compute = precision_record(trainers_of(training)[0])
        predicted = Predicted.of_trial(training, ctx.resources.of(plan))
        return Trained(metrics, curve, compute, predicted, training.curves)

    size = ctx.config.training.batch_size if micro_batch_size is None else micro_batch_size
    return with_oom_as_user_error(train, size, ctx.device, stopped)


@dataclass
class ResumableTraining:
    """The state of a trainer after the last epoch, on the CPU: another attempt resumes from it."""

    state: dict[str, Any] | None = None

    def resume(
        self, training: AnyTrainer, checkpoint: Checkpoint | None = None
    ) -> Iterator[EpochResult]:
        """Train from where the last attempt ended, yielding after each epoch.

        Args:
            training: What to train.
            checkpoint: Holds the state instead, so that another process can resume from it.
        """
        if checkpoint is not None:
            yield from training.run(checkpoint)
            return
        if self.state is not None:
            training.load_state(self.state)
        for result in training.run():
            yield result
            self.state = tree_map_only(
                Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), training.state()
            )


def with_oom_as_user_error(
    work: Callable[[int], T],
    micro_batch_size: int,
    device: torch.device,
    stopped: Callable[[], bool] = lambda: False,
) -> T:
    """Call :func:`autotune.study.state.oom.with_oom_backoff` for work outside of the search.

    Raises:
        UserError: When not even two images fit into memory.
    """
    try:
        return oom.with_oom_backoff(work, micro_batch_size, device, stopped=stopped)
    except oom.DoesNotFitError as error:
        raise UserError(
            f"the plan must fit into memory, but even with {oom.MIN_MICRO_BATCH} images at a time "
            f"{error}; take a larger device, or stop what else is on this one"
        ) from error
    finally:
        oom.release_memory(device)


def retrain_and_store(
    training: Training,
    files: TrainingFiles,
    ctx: WorkerContext,
    on_epoch: EpochCallback,
    stopped: Callable[[], bool],
) -> None:
    """Train a plan under a seed, from where an earlier attempt has ended, and store the result.

    A confirmation has scores; if the plan diverges it has none, and the reason. A training from
    the initial weights of the study has the metrics, and the weights of the network, or of that of
    each fold.

    Raises:
        DivergedError: When a training diverges that keeps its weights.
        TrialInterruptedError: When a stop was requested; the state of the last epoch stays.
        DiskFullError: When the result cannot be stored.
        UserError: When not even two images fit into memory.
    """
    metrics, failed, curves = None, "", {}
    try:
        trained = retrain(
            training.plan,
            ctx,
            on_epoch,
            seed=training.seed,
            start_seed=ctx.config.search.seed if training.same_start else None,
            micro_batch_size=training.micro_batch_size,
            checkpoint=files.checkpoint,
            stopped=stopped,
        )
        metrics, curves = trained.metrics.to_json(), dict(trained.curves)
    except DivergedError as error:
        if training.keeps_weights:
            raise
        failed = str(error)
    if training.keeps_weights:
        weights = [trainer.eval_state() for trainer, _ in trained.predicted.trainers]
        result = {"metrics": metrics, "weights": weights}
        Checkpoint(files.result, files.identity).save(result, ctx.config.training.epochs)
    else:
        values = {"metrics": metrics, "failed": failed, "curves": curves}
        write_scores(files.result, {**_expected(training), **values})
    files.checkpoint.path.unlink(missing_ok=True)


def read_scores(path: Path, training: Training) -> dict[str, Any] | None:
    """Read the scores of a training; return ``None`` where it has to be trained.

    Raises:
        FormatError: When a later version has written them.
    """
    try:
        values: Any = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):  # a power cut may leave an empty file
        values = None
    if not isinstance(values, dict) or not _is_intact(values):
        logger.warning("%s is damaged; training the plan again", path)
        return None
    check_format(values, CONFIRMATION, str(path))
    with reading(str(path), CONFIRMATION):
        refuse_unknown(values, FIELDS, "a confirmation")
    if any(values.get(key) != value for key, value in _expected(training).items()):
        logger.warning("%s belongs to another plan or seed; training the plan again", path)
        return None
    return values


def write_scores(path: Path, values: dict[str, Any]) -> None:
    """Write the scores of a training with a checksum; a power cut leaves all of it or nothing."""
    values = {**stamp(CONFIRMATION), **values}
    values["checksum"] = digest(values)
    with atomic_file(path, sync=True) as temporary:
        temporary.write_text(f"{json.dumps(values, indent=2)}\n", "utf-8")


def _expected(training: Training) -> dict[str, Any]:
    """Return what a file has to say of its training, as JSON gives it back: lists, not tuples."""
    values: dict[str, Any] = {"plan": training.plan.to_json(), "seed": training.seed}
    if training.split_seed is not None:
        values["split_seed"] = training.split_seed
    return dict(json.loads(json.dumps(values)))


def _is_intact(values: dict[str, Any]) -> bool:
    """Remove the checksum and compare; the first format has none."""
    checksum = values.pop("checksum", None)
    return bool(values.get("format", 1) == 1 if checksum is None else checksum == digest(values))
