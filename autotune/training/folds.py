"""Folds: networks of one plan, each trained on all images but its own validation part.

They train in lockstep, an epoch of each and then the next. So an epoch has one value, the mean of
the folds, and whoever judges a trial by its epochs judges all folds at once.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from autotune.config.schema import TrainingConfig
from autotune.models.network import Network
from autotune.models.prefix.split import PrefixSplit
from autotune.training.checkpoint import Checkpoint
from autotune.training.inputs.batches import Batches, SubsetBatches
from autotune.training.metrics import Metrics, mean_metrics, std_metrics
from autotune.training.trainer import EpochResult, Trainer


class CrossValidationTrainer:
    """The trainings of a plan, one a fold, as one training.

    The tensors that no training changes are held once for all: the networks share those of the
    first.

    Args:
        trainings: One a fold. Each may be made when it is asked for, so that the memory of one
            network more than is kept is enough.
        train: Positions of the training images of each fold, int64.
        validation: Positions of its validation images, likewise; together they are all images.
    """

    def __init__(
        self,
        trainings: Iterable[Trainer],
        train: Sequence[Tensor],
        validation: Sequence[Tensor],
    ) -> None:
        self.folds: tuple[Trainer, ...] = ()
        for one in trainings:
            _share_frozen((self.folds or (one,))[0].network, one)
            self.folds += (one,)
        self._train = train
        self._validation = validation
        #: Why the backbone cannot be split, where it cannot.
        self.unsplit_reason = ""

    @property
    def network(self) -> Network:
        """The network of the first fold; the others have its shape."""
        return self.folds[0].network

    @property
    def config(self) -> TrainingConfig:
        """What all trials of the study share."""
        return self.folds[0].config

    def use_features(self, split: PrefixSplit, train: Batches, validation: Batches) -> None:
        """Train on features in place of images, with the same values to rounding.

        Args:
            split: Of the first network; it serves all of them.
            train: Features of the images that take turns, as they are trained on.
            validation: Features of the same images, as they are evaluated.
        """
        for one, trained, judged in zip(self.folds, self._train, self._validation, strict=True):
            one.use_features(
                split, SubsetBatches(train, trained), SubsetBatches(validation, judged)
            )

    def run(self, checkpoint: Checkpoint | None = None) -> Iterator[EpochResult]:
        """Train to the last epoch, yielding after each one of all folds.

        See :meth:`Trainer.run`. What is interrupted between two folds of an epoch repeats the
        epoch from the first.

        Args:
            checkpoint: Where the state after the last finished epoch is kept.
        """
        if checkpoint is not None:
            state = checkpoint.load(self.state())
            if state is not None:
                self.load_state(state)
        for results in zip(*map(_epochs, self.folds), strict=True):
            yield EpochResult(
                results[0].epoch,
                statistics.fmean(one.loss for one in results),
                self.metrics,
                sum(one.seconds for one in results),
            )
            if checkpoint is not None:
                checkpoint.save(self.state(), results[0].epoch)

    def validate(self) -> Metrics:
        """Score every network on the images that it has not trained on; return the mean.

        Raises:
            DivergedError: When logits are not finite.
        """
        return mean_metrics([one.validate() for one in self.folds])

    @property
    def metrics(self) -> Metrics | None:
        """Mean scores over the folds, of the last validation."""
        scores = self._scores()
        return mean_metrics(scores) if scores else None

    @property
    def metrics_std(self) -> Metrics | None:
        """Standard deviation of the scores over the folds, of the last validation."""
        scores = self._scores()
        return std_metrics(scores) if scores else None

    def _scores(self) -> list[Metrics]:
        scores = [one.metrics for one in self.folds if one.metrics is not None]
        return scores if len(scores) == len(self.folds) else []

    @property
    def validation_logits(self) -> Tensor | None:
        """Logits ``(N, classes)`` of all images, each by the network that did not train on it."""
        logits = [one.validation_logits for one in self.folds if one.validation_logits is not None]
        if len(logits) < len(self.folds):
            return None
        joined = torch.cat(logits)
        return torch.empty_like(joined).index_copy_(
            0, torch.cat(list(self._validation)).to(joined.device), joined
        )

    def eval_state(self) -> dict[str, Tensor]:
        """Return what training has changed of all networks to judge: ``fold1.`` and so on."""
        return {
            f"fold{number}.{name}": value
            for number, one in enumerate(self.folds, start=1)
            for name, value in one.eval_state().items()
        }

    def state(self) -> dict[str, Any]:
        """Return everything that resumed trainings need."""
        return {"folds": [one.state() for one in self.folds]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        for one, its in zip(self.folds, state["folds"], strict=True):
            one.load_state(its)


def trainers_of(training: Trainer | CrossValidationTrainer) -> tuple[Trainer, ...]:
    """Return the trainings that a trial consists of: one, or one a fold."""
    return training.folds if isinstance(training, CrossValidationTrainer) else (training,)


def _epochs(training: Trainer) -> Iterator[EpochResult]:
    for result in training.run():
        training.optimizer.zero_grad(set_to_none=True)  # one fold's gradients at a time
        yield result


def _share_frozen(network: Network, training: Trainer) -> None:
    """Have the networks of a training hold the frozen tensors of another one of the plan."""
    theirs = dict(network.named_parameters()) | dict(network.named_buffers())
    changing = network.trainable_state().keys()
    for copy in {training.network, training.eval_model}:
        for name, tensor in (*copy.named_parameters(), *copy.named_buffers()):
            if name not in changing:
                tensor.data = theirs[name].data
