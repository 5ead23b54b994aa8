from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autotune.data.cache.array_cache import ArrayCache
from autotune.models.network import build_network
from autotune.models.prefix.split import PrefixSplit, split_network
from autotune.plan import LayerPlan, TrialPlan
from autotune.training import features as features_module
from autotune.training.checkpoint import Checkpoint
from autotune.training.features import FeatureCache, Features, bytes_per_image
from autotune.training.trainer import Trainer
from tests.support.marks import slow
from tests.support.models.backbones import (
    SMALL,
    backbone,
    images,
    network,
    plan,
    some_digits,
    state_of,
    training,
)


def cut(name: str, depth: int) -> PrefixSplit:
    return split_network(network(name, depth), images(name, 2))


def cache_of(
    run: Trainer, folder: Path, root: PrefixSplit | None = None, stays: bool = True, **limit: Any
) -> FeatureCache:
    shelf = ArrayCache(folder, **limit)
    weights = backbone("test_resnet").weights_hash
    return FeatureCache(shelf, weights, run.normalize, run.amp, root, on_device=stays)


def on_features(
    found: TrialPlan,
    folder: Path,
    root: PrefixSplit | None = None,
    limit: int | None = None,
    stays: bool = True,
    **named: Any,
) -> Trainer:
    """Make a training of a plan that goes on from features."""
    shown = some_digits(named.get("count", 44), named.get("num_views", 1))
    judged = some_digits(20, start=600)
    run = training(found, shown=shown, **named)
    cache = cache_of(run, folder, root, stays, limit_bytes=limit)
    with run.amp.autocast():
        parts = split_network(run.network, images(found.backbone, 2).to(run.device))
    run.use_features(parts, Features(cache, parts, shown), Features(cache, parts, judged))
    return run


def course(run: Trainer, checkpoint: Path | None = None) -> list[tuple[float, float]]:
    found = []
    for result in run.run(Checkpoint(checkpoint) if checkpoint else None):
        assert result.metrics is not None
        found.append((result.loss, result.metrics.log_loss))
    return found


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("depth", [0, slow(1), 2])
def test_training_on_features_is_training_on_images(name: str, depth: int, tmp_path: Path) -> None:
    found = plan(name, depth, lr=0.01)
    whole, parted = training(found, num_views=2), on_features(found, tmp_path, num_views=2)
    before = state_of(parted.network)
    expected = np.array(course(whole))
    assert np.array(course(parted)) == pytest.approx(expected, rel=0.02)
    # Half precision tells the two apart, so that it is features that were trained on.
    assert course(training(found, num_views=2)) == [tuple(one) for one in expected.tolist()]
    after = state_of(parted.network)
    trainable = parted.network.trainable_state().keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) or key in trainable
    # An epoch shows a view of each image: two of training, and one of validation.
    assert len(ArrayCache(tmp_path).keys("features")) == 3


def test_features_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = course(on_features(plan("test_resnet", 1, lr=0.01), tmp_path, num_views=2))

    def never(*args: object) -> None:
        raise AssertionError("features were computed again")

    monkeypatch.setattr(FeatureCache, "_computed", never)
    assert course(on_features(plan("test_resnet", 1, lr=0.01), tmp_path, num_views=2)) == first
    changed = plan("test_resnet", 1, 8, lr=0.02, weight_decay=0.1)
    course(on_features(changed, tmp_path, num_views=2))
    with pytest.raises(AssertionError):
        course(on_features(plan("test_resnet", 2), tmp_path, num_views=2))
    with pytest.raises(AssertionError):
        course(on_features(plan("test_resnet", 1), tmp_path, num_views=3))


def rows_of(cache: FeatureCache, parts: PrefixSplit, **views: Any) -> np.ndarray:
    shown = some_digits(70, views=3)
    positions = torch.arange(70)
    return cache.open(parts, shown, positions, positions % 3).array("0")


def test_values_do_not_depend_on_what_was_kept_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training(plan("test_resnet"))
    root, last = cut("test_resnet", 3), cut("test_resnet", 0)
    alone = cache_of(run, tmp_path / "a", root)
    later = cache_of(run, tmp_path / "b", root)
    found = rows_of(alone, last)
    assert len(alone.array_cache.keys()) == 2  # with those of the root
    rows_of(later, cut("test_resnet", 1))
    rows_of(later, root)
    monkeypatch.setattr(features_module, "available_cpus", lambda: 3)
    assert np.array_equal(found, rows_of(later, last))
    # From the images they are the same to rounding, and kept apart.
    direct = cache_of(run, tmp_path / "b")
    images_alone = rows_of(direct, last)
    assert images_alone == pytest.approx(found, rel=0.02, abs=0.01)
    assert len(later.array_cache.keys()) == 4


def test_other_weights_and_other_images_are_other_features(tmp_path: Path) -> None:
    run = training(plan("test_resnet"))
    parts = cut("test_resnet", 0)
    shelf = ArrayCache(tmp_path)
    positions = torch.arange(20)

    def count(weights: str, start: int, seed: int, view: int) -> int:
        cache = FeatureCache(shelf, weights, run.normalize, run.amp, None)
        shown = some_digits(20, views=3, start=start, seed=seed)
        cache.open(parts, shown, positions, torch.full((20,), view))
        return len(shelf.keys())

    # Two orders of the digits have the same evaluated images: the seed tells augmented ones apart.
    asked = [("a", 0, 0, 1), ("b", 0, 0, 1), ("a", 20, 0, 1), ("a", 0, 1, 1), ("a", 0, 0, 2)]
    assert [count(*one) for one in asked] == [1, 2, 3, 4, 5]
    assert [count(*one) for one in asked] == [5] * 5
    assert [count("a", 0, seed, 0) for seed in (0, 1)] == [6, 6]


def test_what_half_precision_cannot_hold_is_kept_in_single(tmp_path: Path) -> None:
    run = training(plan("test_resnet"))
    large = build_network(backbone("test_resnet"), plan("test_resnet"), 3, seed=0)
    with torch.no_grad():
        # Norms in evaluation do not bring it back to where it was.
        large.backbone.get_parameter("bn1.weight").mul_(1e7)
    parts = split_network(large, images("test_resnet", 2))
    cache = cache_of(run, tmp_path)
    found = rows_of(cache, parts)
    assert found.dtype == np.float32
    assert np.isfinite(found).all() and found.max() > 65504
    (key,) = cache.array_cache.keys()
    assert np.array_equal(rows_of(cache, parts), found)
    assert cache.array_cache.keys() == [key]


def test_without_room_features_are_computed_whenever_they_are_needed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = plan("test_resnet", 1, lr=0.01)
    with caplog.at_level(logging.WARNING):
        run = on_features(found, tmp_path, limit=1000, num_views=2)
        expected = np.array(course(training(found, num_views=2)))
        assert np.array(course(run)) == pytest.approx(expected, rel=1e-3)
    said = [one.getMessage() for one in caplog.records if "computed again" in one.getMessage()]
    assert len(said) == 2  # of training and of validation images, once each
    assert "cache.disk_gb" in said[0]
    assert ArrayCache(tmp_path).keys() == []


def test_online_views_are_not_kept(tmp_path: Path) -> None:
    found = plan("test_resnet", 1, lr=0.01)
    run = on_features(found, tmp_path, num_views=3)
    assert isinstance(run.train, Features)
    run.train = Features(run.train._cache, run.train._split, run.raw_train, online=True)
    expected = np.array(course(training(found, num_views=3)))
    assert np.array(course(run)) == pytest.approx(expected, rel=0.01)
    assert len(ArrayCache(tmp_path).keys()) == 1  # of the validation images


def test_a_resumed_training_goes_on_bit_by_bit(tmp_path: Path) -> None:
    found = plan("test_resnet", 1, 8, dropout=0.3, lr=0.01, head_epochs=1)
    named: dict[str, Any] = {"num_views": 2, "ema": 0.9, "epochs": 4}
    whole = course(on_features(found, tmp_path / "cache", **named))
    checkpoint = tmp_path / "a.pt"
    first = on_features(found, tmp_path / "cache", **named)
    begun = []
    for result in first.run(Checkpoint(checkpoint)):
        assert result.metrics is not None
        begun.append((result.loss, result.metrics.log_loss))
        if result.epoch == 3:  # of which the checkpoint knows two
            break
    rest = course(on_features(found, tmp_path / "cache", **named), checkpoint)
    assert [*begun[:2], *rest] == whole


@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_surgery_average_and_phases_go_with_features(
    micro_batch_size: int | None, tmp_path: Path
) -> None:
    layers = (LayerPlan(width=0.5), LayerPlan(kernel=5))
    base = plan("test_resnet", 2, lr=0.01, head_epochs=1)
    found = TrialPlan(base.backbone, 2, layers, base.head, base.policy)
    named: dict[str, Any] = {"num_views": 2, "ema": 0.9, "micro_batch_size": micro_batch_size}
    whole, parted = training(found, **named), on_features(found, tmp_path, **named)
    assert parted.network.stale_norms
    for run in (whole, parted):
        run.recalibrate_norms()
    for mine, theirs in zip(whole.network.buffers(), parted.network.buffers(), strict=True):
        assert torch.allclose(mine.float(), theirs.float(), rtol=0.01, atol=0.001)
    assert np.array(course(parted)) == pytest.approx(np.array(course(whole)), rel=0.03)


def test_epochs_that_are_kept_in_memory_stay_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views come in turn: each would be given up just before it is shown again."""
    found = plan("test_resnet", 0, lr=0.01)
    everything = course(on_features(found, tmp_path, num_views=3, epochs=6))
    run = on_features(found, tmp_path, num_views=3, epochs=6)
    assert isinstance(run.train, Features)
    size = bytes_per_image(run.train._split) * len(run.train) * 2  # float32 in memory
    monkeypatch.setattr(features_module, "_CPU_BYTES", int(1.2 * size))
    opened: list[bytes] = []
    open_entry = FeatureCache.open

    def count(cache: FeatureCache, parts: PrefixSplit, views: Any, *which: Tensor) -> Any:
        if views is run.raw_train:
            opened.append(which[1].numpy().tobytes())
        return open_entry(cache, parts, views, *which)

    monkeypatch.setattr(FeatureCache, "open", count)
    assert course(run) == everything
    # The first of three sets of views stays; the two others are read from disk every time.
    assert [opened.count(key) for key in dict.fromkeys(opened)] == [1, 2, 2]


def test_features_of_some_images_are_not_kept_in_memory(tmp_path: Path) -> None:
    """As for norm statistics: they are asked for once, and would keep others out."""
    run = on_features(plan("test_resnet", 0), tmp_path)
    assert isinstance(run.train, Features)
    planned = run.train.views_for_epoch(None)
    order = torch.tensor([3, 1, 2, 30])
    (((few,), labels),) = run.train.batches(order, planned, 8)
    assert not run.train._resident
    ((whole,), _) = next(run.train.batches(torch.arange(44), planned, 44))
    assert torch.equal(few, whole[order])
    assert torch.equal(labels, run.train.labels[order])
    assert len(run.train._resident) == 1
