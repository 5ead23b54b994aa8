"""Mixup and CutMix."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from autotune.training.inputs.batches import make_mixing
from tests.support.models.backbones import plan, state_of, training

CLASSES = 5


def mixed(seed: int = 0, device: str = "cpu", **policy: Any) -> tuple[Tensor, ...]:
    """Mix a batch whose images and labels all differ."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(CLASSES, 3, 16, 16, generator=generator).to(device)
    labels = torch.arange(CLASSES).to(device)
    mixing = make_mixing(plan("r", **policy).policy, CLASSES)
    assert mixing is not None
    torch.manual_seed(seed)
    return images, labels, *mixing(images, labels)


def shares(labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of each image's own class and of its neighbour's."""
    own = targets.gather(1, labels[:, None])[:, 0]
    return own, targets.gather(1, labels.roll(1)[:, None])[:, 0]


@pytest.mark.parametrize("seed", range(3))
def test_mixup_mixes_images_and_labels_alike(seed: int) -> None:
    images, labels, found, targets = mixed(seed, mixup=1.0)
    own, other = shares(labels, targets)
    assert torch.allclose(targets.sum(1), torch.ones(CLASSES))
    assert torch.allclose(own + other, torch.ones(CLASSES))
    share = own.view(-1, 1, 1, 1)
    assert torch.allclose(found, share * images + (1 - share) * images.roll(1, 0), atol=1e-6)
    assert 0 < float(own[0]) < 1


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_takes_a_box_from_the_neighbour(seed: int) -> None:
    images, labels, found, targets = mixed(seed, cutmix=1.0)
    own, other = shares(labels, targets)
    kept, taken = found == images, found == images.roll(1, 0)
    assert bool((kept | taken).all())
    assert torch.allclose(kept.float().mean((1, 2, 3)), own, atol=1e-6)
    assert torch.allclose(own + other, torch.ones(CLASSES))


def test_each_batch_gets_one_of_the_two() -> None:
    kinds = []
    for seed in range(40):
        images, _, found, targets = mixed(seed, mixup=1.0, cutmix=1.0)
        cut = bool(((found == images) | (found == images.roll(1, 0))).all())
        if 0 < float(targets[0, 0]) < 1:
            kinds.append(cut)
    assert 10 < sum(kinds) < len(kinds) - 10


def test_the_seed_of_the_global_generator_decides() -> None:
    for policy in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}):
        first, again, other = (mixed(seed, **policy) for seed in (1, 1, 2))
        assert torch.equal(first[2], again[2]) and torch.equal(first[3], again[3])
        assert not torch.equal(first[2], other[2])


@pytest.mark.gpu
@pytest.mark.parametrize("policy", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 1, "cutmix": 1}])
def test_a_gpu_mixes_as_the_cpu_does(policy: dict[str, float]) -> None:
    for seed in range(10):
        here, there = mixed(seed, **policy), mixed(seed, "cuda:0", **policy)
        assert there[2].is_cuda and there[3].is_cuda
        assert torch.allclose(here[2], there[2].cpu(), atol=1e-6)
        assert torch.allclose(here[3], there[3].cpu(), atol=1e-6)


@pytest.mark.parametrize(
    "policy", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}]
)
def test_the_training_is_mixed_and_the_validation_is_not(policy: dict[str, float]) -> None:
    """At a rate at which no weight moves, the losses differ and the scores do not."""
    still = {"optimizer": "sgd", "lr": 1e-30, "weight_decay": 0.0, "label_smoothing": 0.1}
    plain, other = (
        training(plan("test_resnet", **still)),
        training(plan("test_resnet", **still, **policy)),
    )
    with torch.no_grad():  # a head that tells the classes apart
        for run in (plain, other):
            torch.manual_seed(5)
            run.network.head[-1].weight.normal_()
    before = state_of(other.network)
    losses = [[one.loss for one in run.run()] for run in (plain, other)]
    assert all(math.isfinite(one) for one in losses[1])
    assert all(loss != two for loss, two in zip(*losses, strict=True))
    after = state_of(other.network)
    assert all(torch.allclose(before[key], after[key], rtol=0, atol=1e-20) for key in before)
    assert plain.validation_logits is not None and other.validation_logits is not None
    assert torch.equal(plain.validation_logits, other.validation_logits)
    assert plain.metrics == other.metrics
