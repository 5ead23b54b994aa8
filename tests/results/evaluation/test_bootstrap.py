"""Figures of the test part and their intervals."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import top_k_accuracy_score
from torch import Tensor

from autotune.results.evaluation import bootstrap
from autotune.results.evaluation.bootstrap import (
    BINS,
    CALIBRATION_ERROR,
    TOP_ACCURACY,
    Assessment,
    compare,
)
from autotune.training.metrics import compute_metrics


def answers(images: int, classes: int, seed: int, edge: float = 1.5) -> tuple[Tensor, Tensor]:
    """Draw logits and labels: of later classes more images are found."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    logits = torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += edge + torch.linspace(-1, 1, classes)[labels]
    return logits, labels


def test_values_are_those_of_scikit_learn() -> None:
    logits, labels = answers(300, 7, seed=0)
    both = compare(logits, logits, labels)
    assert {(one.low, one.value, one.high) for one in both.difference.values()} == {
        (0.0, 0.0, 0.0)
    }
    found = both.model.values
    scores = compute_metrics(logits, labels).to_json()
    assert {name: found[name] for name in scores} == scores
    top = top_k_accuracy_score(labels, logits, k=5, labels=np.arange(7))
    assert found[TOP_ACCURACY] == pytest.approx(top)
    probability, predicted = logits.double().softmax(dim=1).max(dim=1)
    right = (predicted == labels).numpy()
    shares, means = calibration_curve(right, probability.numpy(), n_bins=BINS)
    counts, _ = np.histogram(probability.numpy(), np.linspace(0, 1, BINS + 1))
    expected = (np.abs(shares - means) * counts[counts > 0]).sum() / 300
    assert found[CALIBRATION_ERROR] == pytest.approx(expected)
    # What is drawn is computed from its own sums: of every image once it is the same.
    own = bootstrap._ImageSums.from_logits(logits, labels).metrics(np.ones((300, 1)))[0]
    assert list(found.values()) == pytest.approx(own.tolist())


def test_intervals_are_those_of_a_loop() -> None:
    """Draws of images one after the other, scored by scikit-learn, make the same intervals."""
    logits, labels = answers(200, 6, seed=3)
    found = compare(logits, logits, labels).model.estimates
    generator = np.random.default_rng(1)
    rows = generator.integers(0, 200, (300, 200))
    drawn = [compute_metrics(logits[row], labels[row]).to_json() for row in rows]
    for name in drawn[0]:
        low, high = np.quantile([one[name] for one in drawn], [0.025, 0.975])
        width = high - low
        assert found[name].low == pytest.approx(low, abs=0.2 * width), name
        assert found[name].high == pytest.approx(high, abs=0.2 * width), name


def test_a_class_without_images_counts_in_the_draws_as_in_the_value() -> None:
    """Its F1 is zero: an interval that left it out would lie above the value."""
    logits, labels = answers(60, 2, seed=0)
    for third in (logits.mean(dim=1), torch.full((60,), -20.0)):  # predicted, and never predicted
        model = torch.cat([logits, third[:, None]], dim=1)
        found = compare(model, model.roll(1, 1), labels).model.estimates["macro_f1"]
        assert found.low < found.value < found.high < 2 / 3 + 0.01


def test_equal_draws_for_equal_seeds_and_in_any_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = answers(60, 3, seed=0)
    first = compare(logits, -logits, labels)
    assert TOP_ACCURACY not in first.model.estimates  # of three classes
    assert compare(logits, -logits, labels) == first
    monkeypatch.setattr(bootstrap, "_MAX_WEIGHTS", 60 * 37)
    others = compare(logits, -logits, labels, seed=1)
    for name, figure in others.model.estimates.items():
        assert figure.value == first.model.estimates[name].value
        assert figure.low == pytest.approx(first.model.estimates[name].low, abs=0.05)


def test_a_difference_is_paired() -> None:
    """Two models that err on nearly the same images: the difference is known better than both."""
    logits, labels = answers(500, 4, seed=0)
    other = logits.clone()
    other[:25] = -other[:25]
    found = compare(logits, other, labels)
    gap, alone = found.difference["accuracy"], found.model.estimates["accuracy"]
    assert gap.high - gap.low < 0.5 * (alone.high - alone.low)
    assert gap.low <= gap.value <= gap.high
    assert not gap.low <= 0.0 <= gap.high


def test_bins_hold_every_image_once() -> None:
    logits, labels = answers(400, 3, seed=0)
    bins = compare(logits, logits, labels).model.bins
    assert len(bins) == BINS and sum(one.images for one in bins) == 400
    for one in bins:
        assert not one.images or one.low < one.probability <= one.high
    certain = torch.tensor([[200.0, 0.0]] * 3)
    bins = compare(certain, certain, torch.tensor([0, 0, 1])).model.bins
    assert (bins[-1].images, bins[-1].probability) == (3, 1.0)
    assert bins[-1].accuracy == pytest.approx(2 / 3)


def test_intervals_hold_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test parts of 200 images of 10 classes; docs/models.md has more of such."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 250)
    truth = _found(40000, seed=0)
    tries = 100
    names = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
    held = dict.fromkeys((*names, "gain"), 0)
    for seed in range(1, tries + 1):
        model, gain = _found(200, seed)
        for name in names:
            known = model.estimates[name]
            held[name] += known.low <= truth[0].values[name] <= known.high
        held["gain"] += gain[0] <= truth[1][2] <= gain[1]
    # 95 of 100; less than 88 of 100 happens by chance in one of a thousand such tests.
    assert all(count >= 0.88 * tries for count in held.values()), held


def _found(images: int, seed: int) -> tuple[Assessment, tuple[float, float, float]]:
    logits, labels = answers(images, 10, seed)
    generator = torch.Generator().manual_seed(seed + 10_000)
    other = logits + 0.7 * torch.randn(logits.shape, generator=generator)
    found = compare(logits, other, labels)
    gain = found.difference["accuracy"]
    return found.model, (gain.low, gain.high, gain.value)


def test_many_images_and_classes_take_seconds() -> None:
    logits, labels = answers(10_000, 200, seed=0)
    before = time.process_time()
    compare(logits, logits + 0.1, labels)
    assert time.process_time() - before < 10
