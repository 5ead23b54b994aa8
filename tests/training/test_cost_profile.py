"""What a network costs, and that finding it out leaves no trace."""

from __future__ import annotations

import copy
import os
import tempfile
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from autotune.config.schema import COSTS, OPTIMIZERS
from autotune.training import cost_profile
from autotune.training.cost_profile import (
    count_parameters,
    fast_quantile,
    latency_ms,
    measure_costs,
    memory_mb,
    saved_bytes,
    turns_ms,
)
from tests.support.cuda import pretend_gpus
from tests.support.marks import slow
from tests.support.models.backbones import SMALL, plan, same_state, training


class Chain(nn.Module):
    """Linear layers with an activation whose output, and nothing else, is saved."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers:
            images = layer(images).sigmoid()
        return images


def test_parameters_are_those_of_the_whole_network() -> None:
    for depth in (0, 2):
        made = training(plan("test_resnet", depth, 8))
        expected = sum(value.numel() for value in dict(made.network.named_parameters()).values())
        costs = measure_costs(made, ())
        assert costs == {"parameters": expected}
        assert count_parameters(made.network) == expected


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("amp", ["off", slow("bf16")])
def test_measuring_leaves_no_trace(name: str, amp: str) -> None:
    """Not in weights, statistics, modes, gradients, generators; nor in the training after it."""
    made = training(plan(name, 2, 8, dropout=0.2), dropping=True, precision=amp, epochs=1)
    twin = copy.deepcopy(made.network)
    made.network.eval()
    made.network.head.train()
    modes = [module.training for module in made.network.modules()]
    random = torch.get_rng_state()
    costs = measure_costs(made, COSTS)
    assert set(costs) == set(COSTS) and min(costs.values()) > 0
    assert same_state(made.network, twin) and torch.equal(random, torch.get_rng_state())
    assert modes == [module.training for module in made.network.modules()]
    assert all(parameter.grad is None for parameter in made.network.parameters())
    other = training(
        plan(name, 2, 8, dropout=0.2), dropping=True, precision=amp, epochs=1, net=twin
    )
    assert [one.loss for one in made.run()] == [one.loss for one in other.run()]


def test_the_time_of_a_pass_that_nothing_made_late() -> None:
    """A neighbor on the GPU makes nine passes of ten late, or all but one of a few."""
    assert fast_quantile([2.0] * 10) == 2.0
    assert fast_quantile([9.0] * 180 + [2.0] * 20) == 2.0
    assert fast_quantile([9.0, 2.0, 9.0]) == 2.0
    assert fast_quantile([1.0] + [2.0] * 199) == 2.0  # and not the luckiest one of many
    assert fast_quantile([5.0]) == 5.0


@pytest.mark.parametrize("measuring", [False, True])
def test_one_process_times_its_network_on_a_gpu_at_a_time(
    measuring: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cost_profile, "LOCK_TIMEOUT_S", 0.05)
    pretend_gpus(monkeypatch, "NVIDIA H200", uuid="8932f937")
    device = torch.device("cuda", 0)
    lock = FileLock(tmp_path / f"autotune-{os.getuid()}-8932f937.lock")
    if measuring:
        lock.acquire()
    # Where another process measures, it is waited for in vain, and measured all the same.
    with cost_profile._gpu_lock(device), pytest.raises(Timeout):
        FileLock(lock.lock_file).acquire(timeout=0)
    lock.release(force=True)
    with FileLock(lock.lock_file).acquire(timeout=0):
        pass


def test_a_folder_that_cannot_be_written_keeps_nobody_from_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    (tmp_path / "none").touch()
    pretend_gpus(monkeypatch, "NVIDIA H200")
    with cost_profile._gpu_lock(torch.device("cuda", 0)):
        pass


def test_saved_activations_are_counted_once_and_parameters_never() -> None:
    """Every layer saves its input and the output of its activation: the same tensor but once."""
    made = training(plan("test_resnet", 1))
    images = 4
    width = 3 * 32 * 32

    class Flat(Chain):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels.flatten(1))[:, :10]

    for depth in (1, 3):
        made.network = Flat(depth, width)  # type: ignore[assignment]
        # The input, one output a layer; of the loss the log-probabilities, labels, total weight.
        activations = (depth + 1) * images * width * 4
        rest = saved_bytes(made, images) - activations
        assert images * (10 * 4 + 8) <= rest <= images * (10 * 4 + 8) + 64


def test_frozen_layers_save_nothing() -> None:
    found = [memory_mb(training(plan("test_resnet", depth))) for depth in range(6)]
    assert found == sorted(found) and len(set(found)) == 6
    frozen = training(plan("test_resnet", 0))
    assert saved_bytes(frozen, 4) < 4 * 32 * 32 * 4  # features, logits, labels


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimiser_is_counted(name: str) -> None:
    made = training(plan("test_resnet", 2, optimizer=name))
    before = memory_mb(made)
    for _ in made.run():
        break
    held = sum(
        value.nbytes
        for state in made.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.ndim
    )
    trainable = sum(one.nbytes for one in made.network.parameters() if one.requires_grad)
    weights = sum(one.nbytes for one in (*made.network.parameters(), *made.network.buffers()))
    few, more = saved_bytes(made, 2), saved_bytes(made, 4)
    expected = weights + trainable + held + few + 7 * (more - few)  # of 16 images
    assert before == pytest.approx(expected / 2**20)


@pytest.mark.parametrize(("options", "ema"), [({}, 0.9), ({"l2_sp": 0.1}, None)])
def test_copies_of_weights_are_counted(options: dict[str, float], ema: float | None) -> None:
    """An average is one more network, L2-SP keeps the initial weights of trainable layers."""
    plain = training(plan("test_resnet", 2))
    more = training(plan("test_resnet", 2, **options), ema=ema)
    network = plain.network
    copied = [*network.parameters(), *network.buffers()]
    if ema is None:
        copied = [one for _, one, layer in network.layer_of_parameters() if layer > 0]
    size = sum(one.nbytes for one in copied)
    assert memory_mb(more) - memory_mb(plain) == pytest.approx(size / 2**20)


def test_latency_is_that_of_a_pass_that_nothing_made_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) ** 2 / 1e6)
    count = cost_profile.WARM_UP_PASSES
    passes = 0

    class Counted(Chain):
        def forward(self, pixels: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            return super().forward(pixels.flatten(1)[:, :8])

    made = training(plan("test_resnet", 0))
    clock = iter(range(10_000))
    made.network = Counted(1, 8)  # type: ignore[assignment]
    found = latency_ms(made)
    # A pass takes the time between two readings: 1, 5, 9, ... millionths of a second.
    timed = [(2 * (2 * i) + 1) / 1e6 for i in range(count, passes)]
    assert passes == count + cost_profile.TIMED_PASSES
    assert found == pytest.approx(1000 * fast_quantile(timed))


def test_two_networks_take_turns() -> None:
    slow, fast = Chain(40, 64), Chain(2, 64)
    pixels = torch.randn(1, 64)
    turns = turns_ms((fast.train(), pixels), (slow, pixels))
    assert len(turns) >= 3 and fast.training
    assert all(0 < quick < late for quick, late in turns)


def test_mixed_targets_are_counted() -> None:
    """A share of every class instead of a label, once they are mixed."""
    plain, mixed = (
        training(plan("test_resnet", 2, mixup=mixup, cutmix=mixup)) for mixup in (0.0, 0.2)
    )
    classes = plain.network.head.classes
    random = torch.get_rng_state()
    for images in (2, 4):
        more = saved_bytes(mixed, images) - saved_bytes(plain, images)
        assert 0 < more <= 4 * images * classes
    assert torch.equal(random, torch.get_rng_state())


def test_the_threads_of_the_worker_are_left_alone() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        latency_ms(training(plan("test_resnet", 0)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
