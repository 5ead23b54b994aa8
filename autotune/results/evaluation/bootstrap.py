"""What a classifier scores on the test part, and how far that is known from so many images.

The intervals are bootstrap percentile intervals (Efron and Tibshirani 1993, chapter 13): the test
images are drawn anew with repeats, as many as there are, and every figure is computed from each
draw. Model and baseline are scored on the same draws, so that their difference has an interval of
its own (paired). Images are drawn whatever their class: within classes of five images, draws would
vary too little.

The calibration error alone has a basic interval (the draws mirrored at the value). It grows with
noise, so that nearly all draws lie above the value, and the value above the truth.

Every figure follows from sums over images, of an image's own numbers and of counts by class. A
draw weighs the images, and all draws together are one product of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from sklearn.metrics import top_k_accuracy_score
from torch import Tensor

from autotune.training.metrics import compute_metrics

#: Probability with which an interval is to hold.
LEVEL = 0.95
#: Draws of the test images.
RESAMPLES = 2000
#: Bins of equal width for the probability of the predicted class (Guo et al. 2017, section 2).
BINS = 15
#: Among how many of the most likely classes the right one has to be, where there are more.
TOP = 5
TOP_ACCURACY, CALIBRATION_ERROR = "top5_accuracy", "calibration_error"
#: Weights of images that are held at a time.
_AT_A_TIME = 4_000_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval.

    Args:
        value: On the test part as it is.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def contains_zero(self) -> bool:
        """Whether 0 lies in the interval: of a difference, that none is shown."""
        return self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class Bin:
    """Images that were classified with about the same probability.

    Args:
        low: The probability of the predicted class is above this,
        high: and at most this.
        images: How many.
        probability: Mean probability of the predicted class; 0 without images.
        accuracy: Share that is right; 0 without images.
    """

    low: float
    high: float
    images: int
    probability: float
    accuracy: float


@dataclass(frozen=True)
class Assessment:
    """What one classifier scores.

    Args:
        figures: By name of the metric.
        bins: What its probabilities are worth, from the lowest to the highest.
    """

    estimates: Mapping[str, Estimate]
    bins: tuple[Bin, ...]

    @property
    def values(self) -> dict[str, float]:
        """The figures without their intervals."""
        return {name: one.value for name, one in self.estimates.items()}

    @property
    def intervals(self) -> dict[str, list[float]]:
        """The intervals alone."""
        return {name: [one.low, one.high] for name, one in self.estimates.items()}


@dataclass(frozen=True)
class Comparison:
    """A model and the baseline on the same images.

    Args:
        model: What the model scores.
        baseline: What the baseline scores.
        difference: Model minus baseline, by name of the metric.
    """

    model: Assessment
    baseline: Assessment
    difference: Mapping[str, Estimate]

    def to_json(self) -> dict[str, Any]:
        """Return intervals, differences and bins as plain JSON values."""
        return {
            "level": LEVEL,
            "resamples": RESAMPLES,
            "test": self.model.intervals,
            "baseline": self.baseline.intervals,
            "difference": {name: asdict(one) for name, one in self.difference.items()},
        }


def compare(model: Tensor, baseline: Tensor, labels: Tensor, seed: int = 0) -> Comparison:
    """Score a model and the baseline on the same images.

    Args:
        model: Logits ``(N, classes)`` of the model.
        baseline: Those of the baseline.
        labels: ``(N,)`` class indices.
        seed: Of the draws.

    Raises:
        DivergedError: When a logit is not finite.
    """
    logits = (model, baseline)
    values = [_values(one, labels) for one in logits]
    answers = [_ImageSums.of(one, labels) for one in logits]
    drawn: tuple[list[Floats], list[Floats]] = ([], [])
    for weights in _draws(len(labels), seed):
        for one, found in zip(answers, drawn, strict=True):
            found.append(one.estimates(weights))
    mine, its = (np.concatenate(one) for one in drawn)
    names = list(values[0])
    mine_assessed, its_assessed = [
        Assessment(_of_an_error(_figures(names, list(one.values()), found)), some.bins())
        for one, found, some in zip(values, (mine, its), answers, strict=True)
    ]
    gaps = [values[0][name] - values[1][name] for name in names]
    return Comparison(mine_assessed, its_assessed, _figures(names, gaps, mine - its))


def _figures(names: list[str], values: list[float], drawn: Floats) -> dict[str, Estimate]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0).tolist()
    found = {
        name: Estimate(value, one, other)
        for name, value, one, other in zip(names, values, low, high, strict=True)
    }
    error = found[CALIBRATION_ERROR]
    mirrored = Estimate(error.value, 2 * error.value - error.high, 2 * error.value - error.low)
    return found | {CALIBRATION_ERROR: mirrored}


def _of_an_error(figures: dict[str, Estimate]) -> dict[str, Estimate]:
    """Cut the interval of the calibration error off at 0."""
    error = figures[CALIBRATION_ERROR]
    return figures | {
        CALIBRATION_ERROR: Estimate(error.value, max(0.0, error.low), max(0.0, error.high))
    }


def _values(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return all figures, in the order of :meth:`_ImageSums.estimates`."""
    values = compute_metrics(logits, labels).to_json()
    classes = logits.shape[1]
    if classes > TOP:
        scores = logits.double().numpy()
        found = top_k_accuracy_score(labels.numpy(), scores, k=TOP, labels=np.arange(classes))
        values[TOP_ACCURACY] = float(found)
    values[CALIBRATION_ERROR] = calibration_error(_ImageSums.of(logits, labels).bins())
    return values


def calibration_error(bins: tuple[Bin, ...]) -> float:
    """Return the expected calibration error: how far probabilities lie from shares, on average."""
    images = sum(one.images for one in bins)
    return sum(one.images * abs(one.accuracy - one.probability) for one in bins) / images


def _draws(images: int, seed: int) -> Iterator[Floats]:
    """Yield how often each image is drawn, ``(images, draws)``, until there are enough draws."""
    generator = np.random.default_rng(seed)
    size = max(1, min(RESAMPLES, _AT_A_TIME // images))
    for start in range(0, RESAMPLES, size):
        draws = min(size, RESAMPLES - start)
        # A number for each pair of image and draw, so that one count serves all draws.
        pairs = generator.integers(0, images, (draws, images)) * draws
        pairs += np.arange(draws)[:, None]
        counts = np.bincount(pairs.ravel(), minlength=draws * images)
        yield counts.reshape(images, draws).astype(np.float64)


@dataclass(frozen=True)
class _ImageSums:
    """What is summed over images.

    Args:
        truth: Class of each image.
        right: Whether it was found, 0 or 1.
        probability: Of the predicted class.
        sums: ``(columns, images)``: what :meth:`figures` takes sums of.
        classes: How many classes.
    """

    truth: npt.NDArray[np.int64]
    right: Floats
    probability: Floats
    sums: csr_array[Any, Any]
    classes: int

    @staticmethod
    def of(logits: Tensor, labels: Tensor) -> _ImageSums:
        images, classes = logits.shape
        probabilities = logits.double().softmax(dim=1).numpy()
        truth, predicted = labels.numpy(), logits.argmax(dim=1).numpy()
        rows = np.arange(images)
        right = (truth == predicted).astype(np.float64)
        probability = probabilities[rows, predicted]
        tiny = np.finfo(np.float64).eps  # scikit-learn's
        loss = -np.log(np.maximum(probabilities[rows, truth], tiny))
        best = logits.topk(min(TOP, classes), dim=1).indices.numpy()
        near = (best == truth[:, None]).any(axis=1).astype(np.float64)
        one = np.ones(images)
        # Column of each image's number; a row of the matrix is a column here.
        columns = [
            (np.zeros_like(truth), right),
            (np.ones_like(truth), near),
            (np.full_like(truth, 2), loss),
            (3 + _bin_of(probability), right - probability),
            (3 + BINS + truth, one),
            (3 + BINS + classes + predicted, one),
            (3 + BINS + 2 * classes + truth, right),
        ]
        where = np.concatenate([place for place, _ in columns])
        numbers = np.concatenate([number for _, number in columns])
        shape = (3 + BINS + 3 * classes, images)
        sums = csr_array((numbers, (where, np.tile(rows, len(columns)))), shape=shape)
        return _ImageSums(truth, right, probability, sums, classes)

    def estimates(self, weights: Floats) -> Floats:
        """Compute all figures for each of several draws.

        A class of which a draw has no image is left out of the means over classes.

        Args:
            weights: ``(images, draws)``: how often each image is drawn.

        Returns:
            ``(draws, figures)``.
        """
        sums = (self.sums @ weights).T
        images = float(len(self.truth))
        first = 3 + BINS
        truth, predicted, right = (
            sums[:, first + part * self.classes : first + (part + 1) * self.classes]
            for part in range(3)
        )
        there = truth > 0
        recall = np.divide(right, truth, out=np.zeros_like(right), where=there)
        f1 = np.divide(2 * right, truth + predicted, out=np.zeros_like(right), where=there)
        found = [
            sums[:, 0] / images,
            recall.sum(axis=1) / there.sum(axis=1),
            f1.sum(axis=1) / there.sum(axis=1),
            sums[:, 2] / images,
            *([sums[:, 1] / images] if self.classes > TOP else []),
            np.abs(sums[:, 3:first]).sum(axis=1) / images,
        ]
        return np.stack(found, axis=1)

    def bins(self) -> tuple[Bin, ...]:
        """Sort the images by the probability of the predicted class."""
        place = _bin_of(self.probability)
        counts = np.bincount(place, minlength=BINS)
        sums = (np.bincount(place, of, minlength=BINS) for of in (self.probability, self.right))
        means = [(one / np.maximum(1, counts)).tolist() for one in sums]
        return tuple(
            Bin(number / BINS, (number + 1) / BINS, int(count), *pair)
            for number, (count, pair) in enumerate(
                zip(counts, zip(*means, strict=True), strict=True)
            )
        )


def _bin_of(probability: Floats) -> npt.NDArray[np.int64]:
    """Return the bin of each probability: above its lower end, at most its upper end."""
    return np.clip(np.ceil(probability * BINS).astype(np.int64) - 1, 0, BINS - 1)
