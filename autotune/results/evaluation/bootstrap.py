"""Metrics of the model and the baseline on the test split, with bootstrap intervals.

The intervals are percentile intervals (Efron and Tibshirani 1993, chapter 13): the test images are
drawn again with replacement, as many as there are, and every metric is computed from each draw.
Model and baseline are scored on the same draws, so their difference has a paired interval. Draws
are not stratified: within classes of five images they would vary too little.

Only the calibration error has a basic interval (the draws mirrored at the value). It grows with
noise, so nearly all draws lie above the value, and the value above the truth.

Every metric follows from sums over images. A draw weights the images, so all draws together are
one product of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from torch import Tensor

from autotune.results.values.intervals import Estimate
from autotune.training.metrics import compute_metrics

#: Confidence level of the intervals.
LEVEL = 0.95
#: Number of draws of the test images.
RESAMPLES = 2000
#: Bins of equal width for the probability of the predicted class (Guo et al. 2017, section 2).
BINS = 15
#: Top-k accuracy is computed for this k when there are more classes.
TOP_K = 5
TOP_ACCURACY, CALIBRATION_ERROR = "top5_accuracy", "calibration_error"
#: Most weights of images that are in memory at a time.
_MAX_WEIGHTS = 4_000_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """The images whose predicted class has a probability in ``(low, high]``.

    Args:
        probability: Mean probability of the predicted class; 0 without images.
        accuracy: Share of correct predictions; 0 without images.
    """

    low: float
    high: float
    images: int
    probability: float
    accuracy: float


@dataclass(frozen=True)
class Assessment:
    """The metrics of one classifier by name, and its calibration by rising probability."""

    estimates: Mapping[str, Estimate]
    bins: tuple[Bin, ...]

    @property
    def values(self) -> dict[str, float]:
        """The metrics without their intervals."""
        return {name: estimate.value for name, estimate in self.estimates.items()}

    @property
    def intervals(self) -> dict[str, list[float]]:
        """The intervals alone."""
        return {name: [estimate.low, estimate.high] for name, estimate in self.estimates.items()}


@dataclass(frozen=True)
class Comparison:
    """A model and the baseline on the same images; ``difference`` is model minus baseline."""

    model: Assessment
    baseline: Assessment
    difference: Mapping[str, Estimate]

    def to_json(self) -> dict[str, Any]:
        """Return intervals and differences as plain JSON values."""
        return {
            "level": LEVEL,
            "resamples": RESAMPLES,
            "test": self.model.intervals,
            "baseline": self.baseline.intervals,
            "difference": {name: asdict(gap) for name, gap in self.difference.items()},
        }


def compare(model: Tensor, baseline: Tensor, labels: Tensor, seed: int = 0) -> Comparison:
    """Score a model and the baseline on the same images.

    Args:
        model: Logits ``(N, classes)`` of the model.
        baseline: Logits of the baseline.
        labels: Class indices ``(N,)``.
        seed: Seed of the draws.

    Raises:
        DivergedError: When a logit is not finite.
    """
    metrics = [compute_metrics(logits, labels).to_json() for logits in (model, baseline)]
    sums = [_ImageSums.from_logits(logits, labels) for logits in (model, baseline)]
    top = [TOP_ACCURACY] if sums[0].classes > TOP_K else []
    names = [*metrics[0], *top, CALIBRATION_ERROR]
    once = np.ones((len(labels), 1))
    values = [
        {**dict(zip(names, one.metrics(once)[0].tolist(), strict=True)), **measured}
        for one, measured in zip(sums, metrics, strict=True)
    ]
    pairs = [[one.metrics(weights) for one in sums] for weights in _draws(len(labels), seed)]
    drawn = [np.concatenate(portions) for portions in zip(*pairs, strict=True)]
    gaps = {name: values[0][name] - values[1][name] for name in names}
    return Comparison(
        model=_assess(sums[0], values[0], drawn[0]),
        baseline=_assess(sums[1], values[1], drawn[1]),
        difference=_estimates(gaps, drawn[0] - drawn[1]),
    )


def _assess(sums: _ImageSums, values: Mapping[str, float], drawn: Floats) -> Assessment:
    estimates = _estimates(values, drawn)
    error = estimates[CALIBRATION_ERROR]  # never negative, unlike a mirrored interval
    cut = Estimate(error.value, max(0.0, error.low), max(0.0, error.high))
    return Assessment(estimates | {CALIBRATION_ERROR: cut}, sums.bins())


def _estimates(values: Mapping[str, float], drawn: Floats) -> dict[str, Estimate]:
    tail = (1 - LEVEL) / 2
    ends = np.quantile(drawn, [tail, 1 - tail], axis=0).T.tolist()
    estimates = {
        name: Estimate(value, *interval)
        for (name, value), interval in zip(values.items(), ends, strict=True)
    }
    error = estimates[CALIBRATION_ERROR]
    mirrored = Estimate(error.value, 2 * error.value - error.high, 2 * error.value - error.low)
    return estimates | {CALIBRATION_ERROR: mirrored}


def _draws(images: int, seed: int) -> Iterator[Floats]:
    """Yield how often each image is drawn, ``(images, draws)``, until there are enough draws."""
    generator = np.random.default_rng(seed)
    size = max(1, min(RESAMPLES, _MAX_WEIGHTS // images))
    for start in range(0, RESAMPLES, size):
        draws = min(size, RESAMPLES - start)
        # A number for each pair of image and draw, so that one count serves all draws.
        pairs = generator.integers(0, images, (draws, images)) * draws
        pairs += np.arange(draws)[:, None]
        counts = np.bincount(pairs.ravel(), minlength=draws * images)
        yield counts.reshape(images, draws).astype(np.float64)


@dataclass(frozen=True)
class _ImageSums:
    """What the metrics are sums of, image by image.

    Args:
        correct: Whether each image was classified correctly, 0 or 1.
        probability: Probability of the predicted class.
        terms: ``(terms, images)``: correct, correct in the top k, loss, calibration gap by bin;
            then true class, predicted class and correct, each by class.
        classes: Number of classes.
    """

    correct: Floats
    probability: Floats
    terms: csr_array[Any, Any]
    classes: int

    @classmethod
    def from_logits(cls, logits: Tensor, labels: Tensor) -> _ImageSums:
        images, classes = logits.shape
        probabilities = logits.double().softmax(dim=1).numpy()
        truth, predicted = labels.numpy(), logits.argmax(dim=1).numpy()
        index = np.arange(images)
        correct = (truth == predicted).astype(np.float64)
        probability = probabilities[index, predicted]
        tiny = np.finfo(np.float64).eps  # scikit-learn's
        loss = -np.log(np.maximum(probabilities[index, truth], tiny))
        best = logits.topk(min(TOP_K, classes), dim=1).indices.numpy()
        in_top = (best == truth[:, None]).any(axis=1).astype(np.float64)
        first = 3 + BINS
        terms = [
            (np.zeros_like(truth), correct),
            (np.ones_like(truth), in_top),
            (np.full_like(truth, 2), loss),
            (3 + _bin_of(probability), correct - probability),
            (first + truth, np.ones(images)),
            (first + classes + predicted, np.ones(images)),
            (first + 2 * classes + truth, correct),
        ]
        rows, numbers = (np.concatenate(column) for column in zip(*terms, strict=True))
        shape = (first + 3 * classes, images)
        matrix = csr_array((numbers, (rows, np.tile(index, len(terms)))), shape=shape)
        return cls(correct, probability, matrix, classes)

    def metrics(self, weights: Floats) -> Floats:
        """Return all metrics ``(draws, metrics)`` for weights ``(images, draws)``.

        The means over classes leave out a class of which a draw has no image. But macro F1 counts
        one of which there is no image at all, as :class:`~autotune.training.metrics.Metrics` does.
        """
        sums = (self.terms @ weights).T
        images = float(len(self.correct))
        first = 3 + BINS
        truth, predicted, correct = np.split(sums[:, first:], 3, axis=1)
        has_images = truth > 0
        absent = self.classes - np.count_nonzero(self.terms.sum(axis=1)[first:][: self.classes])
        recall = np.divide(correct, truth, out=np.zeros_like(correct), where=has_images)
        both = truth + predicted
        f1 = np.divide(2 * correct, both, out=np.zeros_like(correct), where=has_images)
        columns = [
            sums[:, 0] / images,
            recall.sum(axis=1) / has_images.sum(axis=1),
            f1.sum(axis=1) / (has_images.sum(axis=1) + absent),
            sums[:, 2] / images,
            *([sums[:, 1] / images] if self.classes > TOP_K else []),
            np.abs(sums[:, 3:first]).sum(axis=1) / images,
        ]
        return np.stack(columns, axis=1)

    def bins(self) -> tuple[Bin, ...]:
        """Sort the images by the probability of the predicted class."""
        place = _bin_of(self.probability)
        counts, probability, accuracy = (
            np.bincount(place, weights, minlength=BINS)
            for weights in (None, self.probability, self.correct)
        )
        images = np.maximum(1, counts)
        columns = (counts, probability / images, accuracy / images)
        return tuple(
            Bin(number / BINS, (number + 1) / BINS, int(count), *means)
            for number, (count, *means) in enumerate(
                zip(*(column.tolist() for column in columns), strict=True)
            )
        )


def _bin_of(probability: Floats) -> npt.NDArray[np.int64]:
    """Return the bin of each probability: above its lower end, at most its upper end."""
    return np.clip(np.ceil(probability * BINS).astype(np.int64) - 1, 0, BINS - 1)
