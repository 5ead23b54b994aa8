"""A training on a simulated GPU: what lies there, what crosses, and where the host would wait.

Real kernels, streams and speed are not seen here: see :mod:`tests.support.simulated_gpu`.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autotune.data.cache.array_cache import ArrayCache
from autotune.data.views.views import Views
from autotune.plan import TrialPlan
from autotune.training.features import Features
from autotune.training.inputs import placement, transfer
from autotune.training.inputs.batches import SubsetBatches
from autotune.training.inputs.placement import place_on_device, release_copy
from autotune.training.trainer import Trainer
from tests.support.cuda import accelerator_error
from tests.support.models.backbones import (
    differing,
    flat,
    plan,
    some_digits,
    state_of,
    training,
)
from tests.support.models.surgery import change
from tests.support.simulated_gpu import Kind, SimulatedGpu, simulated_gpu
from tests.training import test_features

GPU = torch.device("cuda", 0)
#: What no step may do.
SLOW = (Kind.WAIT, Kind.PAGEABLE_TO_DEVICE, Kind.TO_HOST)
FOUND = plan("test_resnet", 2, lr=0.01)


def on_gpu(found: TrialPlan = FOUND, **named: Any) -> Trainer:
    named = {"num_views": 2, "ema": 0.9, "epochs": 4, **named}
    return training(found, device=GPU, shown=some_digits(44, named["num_views"]), **named)


def on_features(
    folder: Path, found: TrialPlan = FOUND, stays: bool = True, **named: Any
) -> Trainer:
    """Make a training that goes on from features, on the device or on the CPU."""
    named = {"num_views": 2, "ema": 0.9, "epochs": 4, "device": GPU, **named}
    return test_features.on_features(found, folder, stays=stays, **named)


def losses(run: Trainer) -> list[float]:
    return [one.loss for one in run.run()]


def slow_lines(gpu: SimulatedGpu) -> list[str]:
    """List what crossed or waited in the steps; the loss of an epoch may, and making features."""
    return [
        one.line
        for one in gpu.traffic.of(*SLOW, within="_train_epoch")
        if not one.is_within("FeatureCache.open") and "Trainer._train_epoch" not in one.callers[0]
    ]


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("stays", [True, False])
def test_a_network_that_trains_whole_waits_for_nothing(
    stays: bool, amp: str, gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not stays:
        monkeypatch.setattr(transfer, "DEVICE_SHARE", 0.0)
    run = on_gpu(precision=amp)
    gpu.traffic.reset()
    found = losses(run)
    assert slow_lines(gpu) == []
    # Once an epoch: the loss, and with fp16 how many steps were left out.
    waits = [one.callers[0] for one in gpu.traffic.of(*SLOW, within="_train_epoch")]
    assert sum("Trainer._train_epoch" in line for line in waits) == (8 if amp == "fp16" else 4)
    assert bool(transfer.resident_bytes(GPU)) == stays
    assert all(np.isfinite(found))


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("stays", [True, False])
def test_a_tail_waits_for_nothing(
    stays: bool, amp: str, gpu: SimulatedGpu, tmp_path: Path
) -> None:
    run = on_features(tmp_path, stays=stays, precision=amp)
    gpu.traffic.reset()
    assert all(np.isfinite(losses(run)))
    assert slow_lines(gpu) == []
    assert isinstance(run.train, Features)
    assert len(run.train._resident) == (2 if stays else 0)  # the views of two epochs


@pytest.mark.parametrize("policy", [{"mixup": 0.4, "cutmix": 1.0}, {"l2_sp": 0.1}])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adagrad"])
def test_no_policy_makes_a_step_wait(
    optimizer: str, policy: dict[str, float], gpu: SimulatedGpu
) -> None:
    run = on_gpu(plan("test_resnet", 2, 8, dropout=0.3, optimizer=optimizer, **policy))
    gpu.traffic.reset()
    losses(run)
    assert slow_lines(gpu) == []


@pytest.mark.slow
def test_where_images_lie_changes_no_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views and features that stay or are read ahead, in small chunks, under any order."""
    whole = losses(training(FOUND, num_views=2, ema=0.9, epochs=4))
    on_cpu = losses(on_features(tmp_path / "cpu", device=torch.device("cpu")))
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1 << 12)
    for share in (0.25, 0.0):
        monkeypatch.setattr(transfer, "DEVICE_SHARE", share)
        with simulated_gpu():
            # On a GPU weights lie in another order, and sums are rounded by it.
            assert losses(on_gpu()) == pytest.approx(whole, rel=1e-5)
            folder = tmp_path / str(share)
            run = on_features(folder)
            assert losses(run) == pytest.approx(on_cpu, rel=1e-5)
            assert losses(on_features(folder, stays=False)) == losses(on_features(folder))


def test_all_trials_and_folds_share_one_copy_of_the_images(gpu: SimulatedGpu) -> None:
    shown = some_digits(44, 2)
    order = torch.randperm(44)
    first = place_on_device(shown, GPU)
    second = place_on_device(SubsetBatches(shown, order[:30]), GPU)
    planned = shown.views_for_epoch(0)
    seen = [torch.cat(one).cpu() for one in zip(*first.batches(order, planned, 8), strict=True)]
    held = transfer.resident_bytes(GPU)
    assert held == shown.cache_bytes
    gpu.traffic.reset()
    rows = torch.arange(30).flip(0)
    again = [torch.cat(one).cpu() for one in zip(*second.batches(rows, planned, 8), strict=True)]
    assert all(torch.equal(one, two[:30].flip(0)) for one, two in zip(again, seen, strict=True))
    assert torch.equal(seen[1], shown.labels[order])
    # Nothing but the numbers of rows and the labels came from the host.
    sent = gpu.traffic.of(Kind.PINNED_TO_DEVICE)
    assert sum(one.nbytes for one in sent) == 2 * 30 * 8
    assert transfer.resident_bytes(GPU) == held
    release_copy(second)
    assert transfer.resident_bytes(GPU) == 0


def test_a_look_at_some_images_copies_no_others(gpu: SimulatedGpu) -> None:
    shown = some_digits(44, 2)
    ((some, labels),) = place_on_device(shown, GPU).batches(
        torch.arange(4), shown.views_for_epoch(None), 8
    )
    assert some.device == labels.device == GPU
    assert transfer.resident_bytes(GPU) == 0


def test_views_that_the_host_does_not_keep_do_not_stay(gpu: SimulatedGpu) -> None:
    """Those of ``num_views: online`` are shown once each."""
    kept = some_digits(44, 2)
    maker = kept._renderer
    online = Views(maker.store, maker.rows, maker.spec, maker.augment, 2, 0, memory_limit_bytes=0)
    order = torch.randperm(44)
    found = list(place_on_device(online, GPU).batches(order, online.views_for_epoch(1), 8))
    expected = kept.batches(order, kept.views_for_epoch(1), 8)
    for (images, labels), (others, numbers) in zip(found, expected, strict=True):
        assert torch.equal(images.cpu(), others) and torch.equal(labels.cpu(), numbers)
    assert transfer.resident_bytes(GPU) == 0


def test_a_training_that_ran_out_of_memory_gives_back_what_images_take(
    gpu: SimulatedGpu,
) -> None:
    shown = some_digits(44, 2)
    run = training(FOUND, device=GPU, shown=shown, num_views=2, epochs=1)
    losses(run)
    assert shown in placement._copies
    smaller = training(FOUND, device=GPU, shown=shown, num_views=2, epochs=1, micro_batch_size=8)
    losses(smaller)
    assert shown not in placement._copies


def test_what_others_hold_is_left_to_them(gpu: SimulatedGpu) -> None:
    total = gpu.memory.total_bytes
    assert [transfer.has_room(int(share * total), GPU) for share in (0.2, 0.3)] == [True, False]
    gpu.memory.crowd(total // 2)
    assert [transfer.has_room(int(share * total), GPU) for share in (0.1, 0.2)] == [True, False]


def test_all_that_stays_counts_together(
    gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "DEVICE_SHARE", (1 << 20) / gpu.memory.total_bytes)
    layouts = [((600,), torch.uint8)]
    first = transfer.allocate_resident(layouts, 1024, GPU)
    assert first is not None and transfer.allocate_resident(layouts, 1024, GPU) is None
    del first
    gc.collect()
    assert transfer.allocate_resident(layouts, 1024, GPU) is not None


@pytest.mark.parametrize("sizes", [[], [3], [2, 5, 1, 4, 3]])
def test_rows_are_read_ahead_in_order(sizes: list[int], gpu: SimulatedGpu) -> None:
    table = torch.arange(100).view(20, 5)
    wanted = [torch.randint(20, (size,)) for size in sizes]

    def gather(rows: Tensor, out: Any) -> None:
        torch.index_select(table, 0, rows, out=out[0])

    layout = [((5,), torch.int64)]
    found = [one.cpu() for (one,) in transfer.prefetch(wanted, layout, gather, GPU)]
    assert len(found) == len(wanted)
    assert all(torch.equal(one, table[rows]) for one, rows in zip(found, wanted, strict=True))


def test_what_fails_while_reading_ahead_is_told(gpu: SimulatedGpu) -> None:
    def gather(rows: Tensor, out: Any) -> None:
        raise OSError(5, "the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(transfer.prefetch([torch.arange(2)], [((1,), torch.int64)], gather, GPU))


OOM = 3  # more images than these find no memory


@pytest.mark.parametrize("stays", [True, False])
def test_a_machine_without_memory_to_pin_trains_all_the_same(
    stays: bool, gpu: SimulatedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no lack of memory of the GPU: a plan would be halved, and called infeasible for it."""
    expected = losses(on_features(tmp_path / "pinned", stays=stays))
    empty = torch.empty

    def refuse(*args: Any, pin_memory: bool = False, **named: Any) -> Tensor:
        if pin_memory:
            raise accelerator_error("out of memory", "cudaErrorMemoryAllocation")
        return empty(*args, **named)

    monkeypatch.setattr(torch, "empty", refuse)
    assert losses(on_features(tmp_path / "pageable", stays=stays)) == expected


def test_features_are_computed_in_smaller_parts_where_memory_gives_out(
    tmp_path: Path, gpu: SimulatedGpu, caplog: pytest.LogCaptureFixture
) -> None:
    expected = losses(on_features(tmp_path / "whole"))
    rule = gpu.memory.provoke(OOM, inside="FeatureCache._mapped")
    run = on_features(tmp_path / "parts")
    assert losses(run) == pytest.approx(expected, rel=1e-3)
    assert rule.count > 0
    assert "features: 32 images at a time do not fit" in caplog.text
    whole, parts = (entries(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for key, one in whole.items():
        assert parts[key] == pytest.approx(one, rel=2**-10, abs=1e-5)


def entries(folder: Path) -> dict[str, np.ndarray]:
    shelf = ArrayCache(folder)
    found = {key: shelf.get(key) for key in shelf.keys("features")}
    return {key: one.array("0").astype(np.float32) for key, one in found.items() if one}


def test_online_features_are_computed_in_smaller_parts(gpu: SimulatedGpu, tmp_path: Path) -> None:
    def online(name: str) -> list[float]:
        run = on_features(tmp_path / name)
        assert isinstance(run.train, Features)
        cache, parts, views = run.train._cache, run.train._split, run.train._views
        run.train = Features(cache, parts, views, online=True)
        return losses(run)

    expected = online("a")
    rule = gpu.memory.provoke(OOM, inside="Features.batches")
    assert online("b") == pytest.approx(expected, rel=1e-4)
    assert rule.count > 0


def test_validation_goes_on_in_smaller_parts(gpu: SimulatedGpu) -> None:
    run = on_gpu(epochs=1)
    losses(run)
    logits, labels = run.predict(some_digits(20, start=600))
    rule = gpu.memory.provoke(OOM, inside="Trainer.predict")
    again, same = run.predict(some_digits(20, start=600))
    torch.testing.assert_close(again.cpu(), logits.cpu(), atol=1e-5, rtol=1e-4)
    assert torch.equal(labels, same)
    assert rule.count == 3  # of 20 images: 20, 10 and 5 do not fit, 3 do
    run.predict(some_digits(20, start=600))
    assert rule.count == 3  # the next validation begins with so few


def test_norm_statistics_are_measured_on_smaller_batches(gpu: SimulatedGpu) -> None:
    found = change("test_resnet", {1: {"width": 0.5}})
    run, whole = on_gpu(found), on_gpu(found)
    whole.recalibrate_norms()
    rule = gpu.memory.provoke(16, inside="Trainer.recalibrate_norms")
    run.recalibrate_norms()
    assert rule.count == 2  # 64 and 32
    momenta = {one.momentum for one in run.network.stale_norms}
    assert momenta == {one.momentum for one in whole.network.stale_norms} != {None}
    first, second = flat(state_of(run.network)), flat(state_of(whole.network))
    for key in differing(first, second):
        if not key.endswith("num_batches_tracked"):
            assert "running_" in key
            assert (first[key] - second[key]).norm() < 0.2 * second[key].norm()


def test_not_even_one_image_fits(gpu: SimulatedGpu, tmp_path: Path) -> None:
    gpu.memory.provoke(0, inside="FeatureCache._mapped")
    with pytest.raises(torch.OutOfMemoryError):
        losses(on_features(tmp_path))
