"""A plan trained outside of the search: like its trial, or with another seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from autotune.errors import DivergedError, UserError
from autotune.plan import TrialPlan
from autotune.study.state import oom
from autotune.study.trial.build import AnyTrainer, build_trial_trainer
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.predictions import Predicted
from autotune.study.trial.run import precision_record
from autotune.training.curves import EpochResult
from autotune.training.folds import trainers_of
from autotune.training.metrics import Metrics

#: Called with the number of an epoch after it.
EpochCallback = Callable[[int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Trained:
    """The result of a training: last metrics (means over folds), objective by epoch, precision.

    ``predicted`` are the predictions for the validation images.
    """

    metrics: Metrics
    curve: dict[int, float]
    compute: dict[str, Any]
    predicted: Predicted


def retrain(
    plan: TrialPlan,
    ctx: WorkerContext,
    on_epoch: EpochCallback = lambda epoch: None,
    *,
    seed: int | None = None,
    micro_batch_size: int | None = None,
    epochs: int | None = None,
) -> Trained:
    """Train a plan on the training split of a study and evaluate it on the validation split.

    A batch that does not fit into memory is split as in a trial; the training resumes after its
    last epoch.

    Args:
        plan: The plan.
        ctx: The context of the study.
        on_epoch: Called after every epoch.
        seed: Training seed; by default the study's.
        micro_batch_size: Images that go through the network at a time; by default the batch.
        epochs: Stop after this epoch, without a change of the schedule; by default train all.

    Raises:
        DivergedError: When the training diverges.
        UserError: When not even two images fit into memory.
    """
    progress, curve = ResumableTraining(), dict[int, float]()
    objective = ctx.config.training.objective

    def train(size: int) -> Trained:
        training = build_trial_trainer(plan, ctx, micro_batch_size=size, seed=seed)
        for result in progress.resume(training):
            assert result.metrics is not None
            value = result.metrics.objective(objective)
            if not math.isfinite(value):
                raise DivergedError(f"the {objective} is {value} in epoch {result.epoch}")
            curve[result.epoch] = value
            on_epoch(result.epoch)
            if result.epoch == epochs:
                break
        assert training.metrics is not None
        compute = precision_record(trainers_of(training)[0])
        predicted = Predicted.of_trial(training, ctx.resources.get(plan.backbone))
        return Trained(training.metrics, curve, compute, predicted)

    size = ctx.config.training.batch_size if micro_batch_size is None else micro_batch_size
    return with_oom_as_user_error(train, size, ctx.device)


@dataclass
class ResumableTraining:
    """The state of a trainer after the last epoch, on the CPU: another attempt resumes from it."""

    state: dict[str, Any] | None = None

    def resume(self, training: AnyTrainer) -> Iterator[EpochResult]:
        """Train from where the last attempt ended, yielding after each epoch."""
        if self.state is not None:
            training.load_state(self.state)
        for result in training.run():
            yield result
            self.state = tree_map_only(
                Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), training.state()
            )


def with_oom_as_user_error(
    work: Callable[[int], T], micro_batch_size: int, device: torch.device
) -> T:
    """Call :func:`autotune.study.state.oom.with_oom_as_user_error` for work outside of the search.

    Raises:
        UserError: When not even two images fit into memory.
    """
    try:
        return oom.with_oom_backoff(work, micro_batch_size, device)
    except oom.DoesNotFitError as error:
        raise UserError(
            f"the plan must fit into memory, but even with {oom.MIN_MICRO_BATCH} images at a time "
            f"{error}; take a larger device, or stop what else is on this one"
        ) from error
    finally:
        oom.release_memory(device)
