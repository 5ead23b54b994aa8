"""A plan trained once more, apart from the search: as its trial was, or under another seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from autotune.errors import DivergedError, UserError
from autotune.plan import TrialPlan
from autotune.study import failures, memory
from autotune.study.preparing import Workbench, prepare_trial
from autotune.study.trial import LEAST_PART, free_memory
from autotune.training.metrics import Metrics

#: Told of an epoch.
Listener = Callable[[int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Trained:
    """What a training has reached.

    Args:
        metrics: Scores on the validation part after the last epoch; with folds, means over them.
        curve: The objective after each epoch, counted from 1.
    """

    metrics: Metrics
    curve: dict[int, float]


def train_again(
    plan: TrialPlan,
    bench: Workbench,
    listener: Listener = lambda epoch: None,
    *,
    seed: int | None = None,
    part: int | None = None,
    epochs: int | None = None,
) -> Trained:
    """Train a plan on the training part of a study and judge it on the validation part.

    Where a batch does not fit into the memory of the device, it goes through the network in
    halves, quarters and so on, as that of a trial.

    Args:
        plan: The plan.
        bench: What the study trains with.
        listener: Told of every epoch.
        seed: Training seed; by default the study's.
        part: Images that go through the network at a time; by default the whole batch.
        epochs: After how many epochs it ends, the schedule being that of all; by default all.

    Raises:
        DivergedError: When the training does.
        UserError: When not even two images fit into memory.
    """
    part = bench.config.training.batch_size if part is None else part
    return in_parts_that_fit(
        lambda part: _train(plan, bench, listener, seed, part, epochs), part, bench.device
    )


def in_parts_that_fit(work: Callable[[int], T], part: int, device: torch.device) -> T:
    """Do something with so many images at a time, with half as many where they do not fit.

    Args:
        work: What to do, told how many images go through the network at a time.
        part: How many at first.
        device: Where the network is.

    Raises:
        UserError: When not even two images fit into memory.
    """
    while True:
        try:
            return work(part)
        except Exception as error:
            if failures.kind_of(error, device) != failures.Kind.MEMORY:
                raise
            need = memory.need_of(error, device)
        finally:
            free_memory()
        if part <= LEAST_PART:
            raise UserError(
                f"the plan must fit into memory, but even with {LEAST_PART} images at a time "
                f"{need.in_words()}; take a larger device, or stop what else is on this one"
            )
        part = max(LEAST_PART, part // 2)


def _train(
    plan: TrialPlan,
    bench: Workbench,
    listener: Listener,
    seed: int | None,
    part: int,
    epochs: int | None,
) -> Trained:
    objective = bench.config.training.objective
    training = prepare_trial(plan, bench, part=part, seed=seed)
    curve: dict[int, float] = {}
    for result in training.run():
        assert result.metrics is not None
        value = result.metrics.objective(objective)
        if not math.isfinite(value):
            raise DivergedError(f"the {objective} is {value} in epoch {result.epoch}")
        curve[result.epoch] = value
        listener(result.epoch)
        if result.epoch == epochs:
            break
    metrics = training.metrics
    assert metrics is not None
    return Trained(metrics, curve)
