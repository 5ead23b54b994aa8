"""A plan trained once more, apart from the search: as its trial was, or under another seed."""

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
from autotune.study.trial.build import build_trial
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.run import describe_precision
from autotune.training.folds import CrossValidationTrainer, trainers_of
from autotune.training.metrics import Metrics
from autotune.training.trainer import EpochResult, Trainer

#: Told of an epoch.
EpochCallback = Callable[[int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Trained:
    """What a training has reached.

    Args:
        metrics: Scores on the validation part after the last epoch; with folds, means over them.
        curve: The objective after each epoch, counted from 1.
        compute: In which precision, see :func:`autotune.study.trial.run.describe_precision`.
    """

    metrics: Metrics
    curve: dict[int, float]
    compute: dict[str, Any]


def retrain(
    plan: TrialPlan,
    ctx: WorkerContext,
    on_epoch: EpochCallback = lambda epoch: None,
    *,
    seed: int | None = None,
    micro_batch_size: int | None = None,
    epochs: int | None = None,
) -> Trained:
    """Train a plan on the training part of a study and judge it on the validation part.

    Where a batch does not fit into the memory of the device, it goes through the network in
    halves, quarters and so on, as that of a trial; the training goes on from its last epoch.

    Args:
        plan: The plan.
        ctx: What the study trains with.
        on_epoch: Called after every epoch.
        seed: Training seed; by default the study's.
        micro_batch_size: Images that go through the network at a time; by default the whole batch.
        epochs: After how many epochs it ends, the schedule being that of all; by default all.

    Raises:
        DivergedError: When the training does.
        UserError: When not even two images fit into memory.
    """
    micro_batch_size = (
        ctx.config.training.batch_size if micro_batch_size is None else micro_batch_size
    )
    reached = TrainingProgress()
    curve: dict[int, float] = {}
    return with_oom_backoff(
        lambda size: _train(plan, ctx, on_epoch, seed, size, epochs, reached, curve),
        micro_batch_size,
        ctx.device,
    )


@dataclass
class TrainingProgress:
    """How far a training has come, for another attempt to go on from there.

    Args:
        state: What :meth:`Trainer.state` returned after the last epoch, on the CPU.
    """

    state: dict[str, Any] | None = None

    def go_on(self, training: Trainer | CrossValidationTrainer) -> Iterator[EpochResult]:
        """Train from where the last attempt ended, yielding after each epoch."""
        if self.state is not None:
            training.load_state(self.state)
        for result in training.run():
            yield result
            self.state = tree_map_only(
                Tensor, lambda one: one.detach().to("cpu", copy=True), training.state()
            )


def with_oom_backoff(work: Callable[[int], T], micro_batch_size: int, device: torch.device) -> T:
    """Do something apart from the search with so many images at a time, or as many as fit.

    Args:
        work: What to do, told how many images go through the network at a time.
        micro_batch_size: How many at first.
        device: Where the network is.

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


def _train(
    plan: TrialPlan,
    ctx: WorkerContext,
    on_epoch: EpochCallback,
    seed: int | None,
    micro_batch_size: int,
    epochs: int | None,
    reached: TrainingProgress,
    curve: dict[int, float],
) -> Trained:
    objective = ctx.config.training.objective
    training = build_trial(plan, ctx, micro_batch_size=micro_batch_size, seed=seed)
    for result in reached.go_on(training):
        assert result.metrics is not None
        value = result.metrics.objective(objective)
        if not math.isfinite(value):
            raise DivergedError(f"the {objective} is {value} in epoch {result.epoch}")
        curve[result.epoch] = value
        on_epoch(result.epoch)
        if result.epoch == epochs:
            break
    metrics = training.metrics
    assert metrics is not None
    return Trained(metrics, curve, describe_precision(trainers_of(training)[0]))
