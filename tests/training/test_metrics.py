from __future__ import annotations

import math

import pytest
import torch

from autotune.errors import DivergedError
from autotune.training.metrics import LowestLoss, compute_metrics, confusion, image_scores

LABELS = torch.tensor([0, 0, 0, 1, 1, 2])


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def test_metrics_by_hand() -> None:
    rows = [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]
    rows += [[0.3, 0.6, 0.1], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]]
    found = compute_metrics(logits_of(rows), LABELS)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    likely = (0.8, 0.6, 0.2, 0.6, 0.4, 0.6)
    assert found.log_loss == pytest.approx(-sum(map(math.log, likely)) / 6, rel=1e-6)
    assert found.objective("macro_f1") == found.to_json()["macro_f1"]
    matrix = confusion(logits_of(rows), LABELS, ("a", "b", "c"))
    assert matrix.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_a_class_that_is_never_predicted() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]]).repeat(6, 1)
    found = compute_metrics(logits, LABELS)
    assert found.accuracy == 0.5
    assert found.balanced_accuracy == pytest.approx(1 / 3)
    assert found.macro_f1 == pytest.approx(2 / 3 / 3)
    matrix = confusion(logits, LABELS, ("a", "b", "c"))
    assert matrix.tolist() == [[3, 0, 0], [2, 0, 0], [1, 0, 0]]


def test_a_sure_mistake_has_a_finite_loss() -> None:
    logits = torch.zeros(6, 3)
    logits[:, 0] = 1e4
    assert math.isfinite(compute_metrics(logits, LABELS).log_loss)


def test_accuracy_and_confusion_agree_on_ties() -> None:
    logits = torch.zeros(6, 3)
    logits[:, 2] = 1e-30  # lost in the softmax, not in the logits
    found = compute_metrics(logits, LABELS)
    assert found.accuracy == confusion(logits, LABELS, "abc").trace() / 6


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1", "log_loss"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_mean_of_image_scores_is_the_metric(metric: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (300,), generator=generator)
    logits = scale * (torch.randn(300, 5, generator=generator) + 2 * torch.eye(5)[labels])
    scores = image_scores(logits, labels, metric)
    expected = compute_metrics(logits, labels).objective(metric)
    assert scores.shape == (300,) and scores.mean() == pytest.approx(expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_must_be_finite(value: float) -> None:
    logits = torch.zeros(6, 3)
    logits[4, 1] = value
    with pytest.raises(DivergedError, match="not finite"):
        compute_metrics(logits, LABELS)


def test_the_loss_of_an_epoch_is_compared_with_the_lowest_before() -> None:
    """Image by image, so that images which are hard in every epoch are no noise."""
    labels = torch.zeros(4, dtype=torch.int64)

    def logits(*losses: float) -> torch.Tensor:  # of two classes, by the loss of each image
        share = torch.tensor(losses, dtype=torch.float64).neg().exp()
        return torch.stack([share, 1 - share], dim=1).log()

    lowest = LowestLoss()
    assert lowest.update(logits(0.1, 2.0, 0.1, 2.0), labels) is None
    assert lowest.update(logits(0.2, 2.1, 0.2, 2.1), labels) == pytest.approx(0.0, abs=1e-6)
    again = LowestLoss()
    again.load_state(lowest.state())
    changed = torch.tensor([0.5, 2.0, 0.1, 2.0]) - torch.tensor([0.1, 2.0, 0.1, 2.0])
    error = float(changed.std()) / 2
    for one in (lowest, again):  # compared with the first epoch, not with the second
        assert one.update(logits(0.5, 2.0, 0.1, 2.0), labels) == pytest.approx(error)
    assert LowestLoss().state() == {}
    assert LowestLoss().update(logits(0.1)[:1], labels[:1]) is None
