"""Cross-validation: one network for each fold, trained on all images except its validation images.

The networks train in lockstep, an epoch of each before the next epoch. So an epoch has one value,
the mean over the folds, and a trial is judged by all folds at once.
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
from autotune.training.curves import EpochResult, Stored, add_epoch, load_curves, save_curves
from autotune.training.inputs.batches import Batches, SubsetBatches
from autotune.training.metrics import LowestLoss, Metrics, mean_metrics, std_metrics
from autotune.training.trainer import Trainer


class CrossValidationTrainer:
    """Trains a plan on all folds, with the interface of :class:`Trainer`.

    The networks share the tensors that training does not change: those of the first network.

    Args:
        trainers: One for each fold. Each may be made when it is requested, so memory for one
            network more than is kept is enough.
        train: Positions of the training images of each fold, int64.
        validation: Positions of its validation images, likewise; together they are all images.

    Attributes:
        folds: The trainers.
        unsplit_reason: Why the backbone cannot be split; empty if it can.
        curves: What the epochs so far have brought, as means over the folds.
    """

    def __init__(
        self,
        trainers: Iterable[Trainer],
        train: Sequence[Tensor],
        validation: Sequence[Tensor],
    ) -> None:
        self.folds: tuple[Trainer, ...] = ()
        for trainer in trainers:
            _share_frozen((self.folds or (trainer,))[0].network, trainer)
            trainer.lowest = None  # of all folds together
            self.folds += (trainer,)
        self._train = train
        self._validation = validation
        self.unsplit_reason = ""
        self.lowest = LowestLoss()
        self.curves: Stored = {}

    @property
    def network(self) -> Network:
        """The network of the first fold; the others have its shape."""
        return self.folds[0].network

    @property
    def config(self) -> TrainingConfig:
        """Settings that all trials of the study share."""
        return self.folds[0].config

    def use_features(self, split: PrefixSplit, train: Batches, validation: Batches) -> None:
        """Train on features instead of images; the values are the same up to rounding."""
        for fold, trained, held_out in zip(self.folds, self._train, self._validation, strict=True):
            fold.use_features(
                split, SubsetBatches(train, trained), SubsetBatches(validation, held_out)
            )

    def run(self, checkpoint: Checkpoint | None = None) -> Iterator[EpochResult]:
        """Train, yielding after each epoch of all folds; see :meth:`Trainer.run`.

        A training that is interrupted between two folds repeats the epoch from the first fold.
        """
        if checkpoint is not None and (state := checkpoint.load(self.state())) is not None:
            self.load_state(state)
        for results in zip(*map(_epochs, self.folds), strict=True):
            logits, labels = self.validation_logits, self._in_order(self._labels())
            assert logits is not None
            result = EpochResult(
                results[0].epoch,
                statistics.fmean(result.loss for result in results),
                self.metrics,
                sum(result.seconds for result in results),
                {
                    layer: statistics.fmean(result.learning_rates[layer] for result in results)
                    for layer in results[0].learning_rates
                },
                self.lowest.update(logits, labels),
            )
            self.curves = add_epoch(self.curves, result)
            yield result
            if checkpoint is not None:
                checkpoint.save(self.state(), results[0].epoch)

    def validate(self) -> Metrics:
        """Score every network on its validation images; return the mean."""
        return mean_metrics([fold.validate() for fold in self.folds])

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
        scores = [fold.metrics for fold in self.folds if fold.metrics is not None]
        return scores if len(scores) == len(self.folds) else []

    @property
    def validation_logits(self) -> Tensor | None:
        """Logits ``(N, classes)`` of all images, each by the network that did not train on it."""
        logits = [f.validation_logits for f in self.folds if f.validation_logits is not None]
        if len(logits) < len(self.folds):
            return None
        return self._in_order(logits)

    def _labels(self) -> list[Tensor]:
        return [fold.validation.labels for fold in self.folds if fold.validation is not None]

    def _in_order(self, of_folds: Sequence[Tensor]) -> Tensor:
        """Join the rows of the validation images of all folds, in the order of the images."""
        joined = torch.cat(list(of_folds))
        positions = torch.cat(list(self._validation)).to(joined.device)
        return torch.empty_like(joined).index_copy_(0, positions, joined)

    def eval_state(self) -> dict[str, Tensor]:
        """Return the changed tensors of all models to evaluate: ``fold1.`` and so on."""
        return {
            f"fold{number}.{name}": value
            for number, fold in enumerate(self.folds, start=1)
            for name, value in fold.eval_state().items()
        }

    def state(self) -> dict[str, Any]:
        """Return everything that resumed trainings need."""
        folds = {"folds": [fold.state() for fold in self.folds]}
        return {**folds, **save_curves(self.curves), **self.lowest.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        for fold, own in zip(self.folds, state["folds"], strict=True):
            fold.load_state(own)
        self.lowest.load_state(state)
        self.curves = load_curves(state)


def trainers_of(trainer: Trainer | CrossValidationTrainer) -> tuple[Trainer, ...]:
    """Return the trainers of a trial: one, or one for each fold."""
    return trainer.folds if isinstance(trainer, CrossValidationTrainer) else (trainer,)


def _epochs(trainer: Trainer) -> Iterator[EpochResult]:
    for result in trainer.run():
        trainer.optimizer.zero_grad(set_to_none=True)  # one fold's gradients at a time
        yield result


def _share_frozen(network: Network, trainer: Trainer) -> None:
    """Have the networks of a trainer hold the frozen tensors of another network of the plan."""
    shared = dict(network.named_parameters()) | dict(network.named_buffers())
    changing = network.trainable_state().keys()
    for copy in {trainer.network, trainer.eval_model}:
        for name, tensor in (*copy.named_parameters(), *copy.named_buffers()):
            if name not in changing:
                tensor.data = shared[name].data
