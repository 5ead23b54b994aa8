"""Solved heads: their loss, the chosen strength, few images, and features as they are."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from autotune.training.checkpoint import Checkpoint
from autotune.training.linear_head import STRENGTHS, solve_head
from tests.support.models.backbones import differing, folds, plan, training


def clouds(
    count: int, classes: int = 3, features: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw normal clouds around one center for each class, of different scales."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    noise = torch.randn(count, features, generator=generator)
    scales = 10.0 ** torch.linspace(-3, 3, features)
    return (centers[labels] + noise) * scales + 5.0, labels


def log_loss(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> float:
    return float(cross_entropy(features @ weight.T + bias, labels))


def test_the_solution_is_that_of_another_solver() -> None:
    features, labels = clouds(90)
    head = solve_head((features, labels), clouds(60, seed=1), 3)
    standard = (features - features.mean(0)) / features.std(0, correction=0)
    inverse = features.shape[1] / (head.strength * len(labels))
    other = LogisticRegression(C=inverse, tol=1e-8, max_iter=2000).fit(standard, labels)
    expected = torch.from_numpy(other.predict_proba(standard))
    found = torch.softmax(features @ head.weight.T + head.bias, 1)
    assert torch.allclose(found.double(), expected, atol=2e-3)
    assert head.loss == pytest.approx(log_loss(features, labels, head.weight, head.bias), rel=1e-4)


def test_held_out_images_choose_the_strength() -> None:
    """Of few images with many features, the weakest penalty fits noise."""
    train, held_out = clouds(24, features=64), clouds(300, features=64, seed=1)
    head = solve_head(train, held_out, 3)
    assert STRENGTHS[-1] < head.strength < STRENGTHS[0]
    alone = solve_head(train, None, 3)
    assert log_loss(*held_out, alone.weight, alone.bias) < math.log(3)


@pytest.mark.parametrize("count", [3, 4, 14])
def test_few_images_and_no_others(count: int) -> None:
    head = solve_head(clouds(count), None, 3)
    assert head.weight.isfinite().all() and head.bias.isfinite().all()


def test_odd_features_and_classes() -> None:
    """A feature that never changes, one class without images, balanced classes."""
    features, labels = clouds(60)
    features[:, 2] = 7.0
    head = solve_head((features, labels), (features, labels), 5)
    assert head.weight.shape == (5, 8) and not head.weight[:, 2].any()
    assert head.weight.isfinite().all()
    few = torch.cat([torch.arange(60)[labels != 0], torch.arange(60)[labels == 0][:2]])
    rare = (features[few], labels[few])
    share = [
        float((rare[0] @ one.weight.T + one.bias).softmax(1)[:, 0].mean())
        for one in (solve_head(rare, None, 3), solve_head(rare, None, 3, balanced=True))
    ]
    assert share[0] < share[1]


# In a training


def solved(depth: int = 0) -> dict[str, Tensor]:
    run = training(plan("test_resnet", depth, head_start="solved"))
    list(run.run())
    return run.network.trainable_state()


def test_without_trainable_layers_the_head_is_all() -> None:
    run = training(plan("test_resnet", head_start="solved"))
    trained = training(plan("test_resnet", lr=0.01))
    results, others = list(run.run()), list(trained.run())
    assert [one.epoch for one in results] == [run.config.epochs]
    assert results[0].loss < others[-1].loss
    assert differing(run.network.trainable_state(), solved()) == []


def test_with_trainable_layers_training_starts_there() -> None:
    start, random = (
        list(training(plan("test_vit", 1, lr=1e-4, head_start=kind)).run())
        for kind in ("solved", "random")
    )
    assert len(start) == len(random)
    assert start[0].loss < random[-1].loss


def test_a_checkpoint_continues_without_solving_again(tmp_path: Path) -> None:
    whole = solved(1)
    checkpoint = Checkpoint(tmp_path / "one.ckpt")
    epochs = training(plan("test_resnet", 1, head_start="solved")).run(checkpoint)
    next(epochs)
    next(epochs)
    again = training(plan("test_resnet", 1, head_start="solved"))
    assert [one.epoch for one in again.run(checkpoint)] == [2, 3]
    assert differing(again.network.trainable_state(), whole) == []


def test_hidden_layers_are_trained() -> None:
    results = list(training(plan("test_resnet", 0, 8, head_start="solved")).run())
    assert len(results) > 1


def test_every_fold_is_solved_by_itself() -> None:
    run = folds(plan("test_resnet", head_start="solved"))
    (result,) = list(run.run())
    weights = [fold.network.head[-1].weight for fold in run.folds]
    assert not torch.equal(weights[0], weights[1])
    assert result.metrics is not None


def test_a_refit_chooses_the_strength_by_its_own_images() -> None:
    run = training(plan("test_resnet", head_start="solved"), validation=None)
    (result,) = list(run.run())
    assert result.metrics is None and math.isfinite(result.loss)
