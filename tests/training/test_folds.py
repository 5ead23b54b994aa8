"""Networks of one plan, each trained on all images but its own validation part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autotune.data.cache.array_cache import ArrayCache
from autotune.models.prefix.split import split_network
from autotune.plan import TrialPlan
from autotune.training.cost_profile import memory_mb
from autotune.training.features import FeatureCache, Features
from autotune.training.folds import CrossValidationTrainer, trainers_of
from autotune.training.inputs.batches import SubsetBatches
from autotune.training.trainer import Trainer
from tests.support.models.backbones import (
    differing,
    folds,
    images,
    plan,
    some_digits,
    state_of,
    training,
)
from tests.training.test_features import cache_of


def test_some_images_share_what_the_whole_set_keeps() -> None:
    whole = some_digits(30, views=3)
    positions = torch.tensor([2, 5, 7, 20, 29])
    some = SubsetBatches(whole, positions)
    assert len(some) == 5 and torch.equal(some.labels, whole.labels[positions])
    views = some.views_for_epoch(1)
    assert torch.equal(views, whole.views_for_epoch(1))
    (found,) = some.batches(torch.tensor([4, 0, 1]), views, 8)
    for image, label, place in zip(*found, (29, 2, 5), strict=True):
        assert torch.equal(image, whole.view(place, int(views[place])))
        assert label == whole.labels[place]
    assert not some.views_for_epoch(None).any()


def test_an_epoch_is_one_of_all_folds_and_has_their_mean() -> None:
    run = folds(plan("test_resnet", 1, lr=0.01))
    asked: list[tuple[int, int]] = []
    for number, one in enumerate(run.folds):
        inner = one._train_epoch

        def noted(number: int = number, one: Trainer = one, inner: Any = inner) -> Any:
            asked.append((one.epoch, number))
            return inner()

        one._train_epoch = noted  # type: ignore[method-assign]
    results = list(run.run())
    assert asked == [(epoch, fold) for epoch in range(3) for fold in range(3)]
    assert [one.epoch for one in results] == [1, 2, 3]
    assert results[0].loss_error is None
    assert all(one.loss_error is not None and one.loss_error > 0 for one in results[1:])
    assert results[-1].learning_rates == run.folds[0]._mean_rates(
        results[-1].learning_rates[0] / 0.01
    )
    scores = [one.metrics for one in run.folds if one.metrics is not None]
    assert results[-1].metrics == run.metrics
    found = [one.accuracy for one in scores]
    assert run.metrics is not None and run.metrics_std is not None
    assert run.metrics.accuracy == pytest.approx(np.mean(found))
    assert run.metrics_std.accuracy == pytest.approx(np.std(found, ddof=1))
    assert run.metrics.log_loss == pytest.approx(np.mean([one.log_loss for one in scores]))


def test_folds_differ_by_their_images_and_their_luck_alone() -> None:
    found = plan("test_resnet", 1, 8, dropout=0.3, lr=0.01)
    run = folds(found)
    first, second = (one.network.trainable_state() for one in run.folds[:2])
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len({one.seed for one in run.folds}) == 3
    list(run.run())
    assert not all(torch.equal(first[name], second[name]) for name in first)
    # A fold by itself is what it is among the others.
    alone = folds(found).folds[1]
    list(alone.run())
    assert alone.metrics == run.folds[1].metrics


def test_every_image_is_judged_by_the_network_that_did_not_train_on_it() -> None:
    run = folds(plan("test_resnet", 1, lr=0.01))
    assert run.validation_logits is None and run.metrics is None
    run.validate()
    logits = run.validation_logits
    assert logits is not None and logits.shape == (45, 10)
    assert "fold1.head.0.weight" in run.eval_state() and trainers_of(run) == run.folds
    for one, positions in zip(run.folds, run._validation, strict=True):
        assert one.validation_logits is not None
        assert torch.equal(logits[positions], one.validation_logits)


def held_bytes(run: CrossValidationTrainer) -> int:
    storages: dict[int, int] = {}
    for one in run.folds:
        networks = {one.network, one.eval_model}
        tensors: list[Tensor] = [
            tensor for net in networks for tensor in (*net.parameters(), *net.buffers())
        ]
        for state in one.optimizer.state.values():
            tensors += [tensor for tensor in state.values() if tensor.ndim]
        tensors += [one.grad for one in tensors if one.grad is not None]
        storages |= {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("ema", [None, 0.9])
def test_networks_share_what_is_locked(ema: float | None) -> None:
    run = folds(plan("test_resnet", 2, lr=0.01), ema=ema)
    changing = run.network.trainable_state().keys()
    networks = {id(net): net for one in run.folds for net in (one.network, one.eval_model)}
    found = [
        {name: one.data_ptr() for name, one in (*net.named_parameters(), *net.named_buffers())}
        for net in networks.values()
    ]
    assert len(found) == (6 if ema else 3)
    for name in found[0]:
        assert len({one[name] for one in found}) == (len(found) if name in changing else 1)
    before = state_of(run.network)
    list(run.run())
    assert set(differing(before, state_of(run.network))) <= changing
    # What is counted beforehand is what is there, activations aside; no gradient is left over.
    alone = training(plan("test_resnet", 2, lr=0.01), ema=ema)
    list(alone.run())
    gradients = sum(one.grad.nbytes for one in alone.network.parameters() if one.grad is not None)
    one_more = (memory_mb(alone, 3) - memory_mb(alone, 2)) * 2**20
    frozen = sum(
        one.nbytes for name, one in run.network.state_dict().items() if name not in changing
    )
    assert gradients > 0
    assert held_bytes(run) == pytest.approx(frozen + 3 * one_more, rel=0.001)


def on_features(found: TrialPlan, folder: Path, **named: Any) -> CrossValidationTrainer:
    run = folds(found, num_views=2, **named)
    cache = cache_of(run.folds[0], folder)
    parts = split_network(run.network, images(found.backbone, 2))
    whole = some_digits(45, 2)
    both = (Features(cache, parts, whole, together=True) for _ in range(2))
    run.use_features(parts, *both)
    return run


def test_features_are_computed_once_for_all_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan("test_resnet", 1, lr=0.01)
    computed: list[int] = []
    inner = FeatureCache._computed

    def counted(self: FeatureCache, parts: Any, views: Any, positions: Tensor, *rest: Any) -> Any:
        computed.append(len(positions))
        return inner(self, parts, views, positions, *rest)

    monkeypatch.setattr(FeatureCache, "_computed", counted)
    run = on_features(found, tmp_path)
    losses = [one.loss for one in run.run()]
    # Two views in training and one in validation, of all 45 images each.
    assert computed == [45, 45, 45]
    assert len(ArrayCache(tmp_path).keys("features")) == 3
    assert losses == pytest.approx([one.loss for one in folds(found, num_views=2).run()], rel=0.02)
    reshaped = on_features(plan("test_resnet", 1, 8, lr=0.02), tmp_path)
    list(reshaped.run())
    assert len(computed) == 3
