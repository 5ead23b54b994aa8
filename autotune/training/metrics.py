"""Metrics of a classifier, from logits and labels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    recall_score,
)
from torch import Tensor
from torch.nn.functional import cross_entropy

from autotune.errors import DivergedError

#: Name of the losses of :class:`LowestLoss` in a checkpoint. Those of earlier versions lack it.
LOWEST_LOSS = "lowest_loss"


@dataclass(frozen=True)
class Metrics:
    """Scores of a classifier on one split of the data.

    Args:
        accuracy: Share of images whose most likely class is right (top-1).
        balanced_accuracy: Mean of the recalls of the classes that have images.
        macro_f1: Mean of the F1 scores of the classes; zero for one without images.
        log_loss: Mean negative log-likelihood in nats.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    log_loss: float

    def to_json(self) -> dict[str, float]:
        """Return the metrics by name."""
        return asdict(self)

    def objective(self, name: str) -> float:
        """Return the metric that a study optimizes."""
        return float(getattr(self, name))


def mean_metrics(scores: Sequence[Metrics]) -> Metrics:
    """Return the mean of each metric over folds."""
    return _aggregate(statistics.fmean, scores)


def std_metrics(scores: Sequence[Metrics]) -> Metrics:
    """Return the standard deviation of each metric over folds, estimated from two or more."""
    return _aggregate(statistics.stdev, scores)


def _aggregate(function: Callable[[list[float]], float], scores: Sequence[Metrics]) -> Metrics:
    names = [field.name for field in fields(Metrics)]
    return Metrics(*(float(function([one.objective(name) for one in scores])) for name in names))


def compute_metrics(logits: Tensor, labels: Tensor) -> Metrics:
    """Compute all metrics.

    Raises:
        DivergedError: When a logit is not finite.
    """
    if not bool(logits.isfinite().all()):
        raise DivergedError("the logits on the validation part are not finite")
    truth = labels.cpu().numpy()
    probabilities = logits.double().softmax(dim=1).cpu().numpy()
    predicted = logits.argmax(dim=1).cpu().numpy()
    classes = np.arange(logits.shape[1])
    return Metrics(
        accuracy=float(accuracy_score(truth, predicted)),
        balanced_accuracy=float(
            recall_score(truth, predicted, labels=np.unique(truth), average="macro")
        ),
        # Zero for a class that no image has; said, or it would print a warning.
        macro_f1=float(
            f1_score(truth, predicted, labels=classes, average="macro", zero_division=0.0)
        ),
        log_loss=float(log_loss(truth, probabilities, labels=classes)),
    )


def image_scores(logits: Tensor, labels: Tensor, metric: str) -> npt.NDArray[np.float64]:
    """Return a score of each image ``(N,)``, whose mean is a metric.

    Macro F1 is no mean over images; its scores are its linear approximation (the delta method),
    whose mean and deviation are those of the metric.
    """
    truth = labels.cpu().numpy()
    if metric == "log_loss":
        losses = cross_entropy(logits.double(), labels.to(logits.device), reduction="none")
        largest = -np.log(np.finfo(np.float64).eps)  # scikit-learn's
        return np.asarray(np.minimum(losses.cpu().numpy(), largest), np.float64)
    predicted = logits.argmax(dim=1).cpu().numpy()
    correct: npt.NDArray[np.float64] = (truth == predicted).astype(np.float64)
    if metric == "accuracy":
        return correct
    images, classes = logits.shape
    counts = np.bincount(truth, minlength=classes)
    if metric == "balanced_accuracy":
        weights = images / (np.count_nonzero(counts) * np.maximum(1, counts))
        return np.asarray(correct * weights[truth], np.float64)
    both = np.maximum(1, counts + np.bincount(predicted, minlength=classes))
    scores = 2 * np.bincount(truth, weights=correct, minlength=classes) / both
    weights = images / (classes * both)
    share = scores * weights
    change = 2 * correct * weights[truth] - share[truth] - share[predicted]
    return np.asarray(scores.mean() + change, np.float64)


@dataclass
class LowestLoss:
    """The validation losses of single images after the epoch in which their mean was lowest.

    They tell how far the loss of a later epoch differs by chance: the same images have been
    judged, so only what changes from image to image counts (paired differences).

    Args:
        losses: float32 ``(N,)`` on the CPU, ``None`` before the first epoch.
    """

    losses: Tensor | None = None

    def update(self, logits: Tensor, labels: Tensor) -> float | None:
        """Compare the losses after an epoch with the lowest before; keep the lower ones.

        Returns:
            The standard error of the mean difference; ``None`` where there is none to compare.
        """
        losses = cross_entropy(logits, labels.to(logits.device), reduction="none").float().cpu()
        lowest, error = self.losses, None
        if lowest is not None and len(losses) > 1:
            error = float((losses - lowest).double().std()) / math.sqrt(len(losses))
        if lowest is None or losses.double().mean() < lowest.double().mean():
            self.losses = losses
        return error

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return {} if self.losses is None else {LOWEST_LOSS: self.losses}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a state with what :meth:`state` returned, if it has it."""
        self.losses = state.get(LOWEST_LOSS)


def confusion(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the confusion matrix ``(classes, classes)``: rows are true, columns predicted."""
    matrix: npt.NDArray[np.int64] = confusion_matrix(
        labels.cpu().numpy(), logits.argmax(dim=1).cpu().numpy(), labels=range(len(classes))
    )
    return matrix
