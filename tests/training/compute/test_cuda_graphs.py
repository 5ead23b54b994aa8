"""Captured steps give the values of plain ones, or are not used."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autotune.plan import TrialPlan
from autotune.training import trainer
from autotune.training.checkpoint import Checkpoint
from autotune.training.compute import cuda_graphs
from autotune.training.compute.cuda_graphs import CapturedStep
from autotune.training.trainer import Trainer
from tests.support.models.backbones import (
    differing,
    flat,
    plan,
)
from tests.support.simulated_gpu import SimulatedGpu, simulated_gpu
from tests.training.compute.test_on_gpu import (
    GPU,
    losses,
    on_features,
    on_gpu,
    slow_lines,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have steps captured also in trainings as short as these."""
    monkeypatch.setattr(trainer, "MIN_STEPS", 1)
    monkeypatch.setattr(cuda_graphs, "_broken", set())
    cuda_graphs.log_not_captured.cache_clear()
    gc.collect()


@pytest.fixture
def graphs(short: None) -> Iterator[SimulatedGpu]:
    with simulated_gpu(graphs=True) as device:
        yield device


#: Everything that a step can be made of; 44 images are two batches of 16 and one of 12.
CAPTURED: dict[str, tuple[TrialPlan, dict[str, Any]]] = {
    "head": (plan("test_resnet", 0, lr=0.01), {}),
    "hidden": (plan("test_resnet", 0, 8, dropout=0.3, label_smoothing=0.1), {"ema": None}),
    "tail": (plan("test_resnet", 2, 8, dropout=0.3, lr=0.01), {}),
    "drops": (plan("test_vit", 2, lr=0.01), {"dropping": True, "clip_grad_norm": None}),
    "phases": (plan("test_resnet", 2, 8, dropout=0.3, head_epochs=2), {}),
    "sgd": (plan("test_resnet", 1, optimizer="sgd", lr=0.01, momentum=0.5), {}),
    "adagrad": (plan("test_efficientnet", 1, optimizer="adagrad", lr=0.01), {}),
    "pulled": (plan("test_resnet", 2, l2_sp=0.1, layer_decay=0.7), {}),
    "bf16": (plan("test_resnet", 2, 8, dropout=0.3), {"precision": "bf16"}),
}


@pytest.mark.parametrize("case", CAPTURED)
def test_captured_steps_give_the_values_of_plain_ones(
    case: str, graphs: SimulatedGpu, tmp_path: Path
) -> None:
    """Weights, optimizer, average and random numbers, bit by bit on the simulated device."""
    found, named = CAPTURED[case]
    plain = on_features(tmp_path, found, **named)
    assert plain.capture is None
    expected = losses(plain)
    run = on_features(tmp_path, found, graphs=True, **named)
    again = 0
    replay = CapturedStep.__call__

    def count(step: CapturedStep, features: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        nonlocal again
        again += 1
        return replay(step, features, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CapturedStep, "__call__", count)
        graphs.traffic.reset()
        assert losses(run) == expected
    assert run.capture is not None
    captures = 2 if found.policy.head_epochs else 1
    assert again == 4 * 2 + 2 * captures  # two full batches an epoch, and two comparisons
    assert differing(flat(plain.state()), flat(run.state())) == []
    assert differing(flat(plain.eval_state()), flat(run.eval_state())) == []
    # Comparing waits, once; no step does.
    waits = [one for one in slow_lines(graphs) if "cuda_graphs.py" not in one]
    assert waits == []


def test_a_resumed_training_captures_again(graphs: SimulatedGpu, tmp_path: Path) -> None:
    found, _ = CAPTURED["phases"]
    whole = on_features(tmp_path / "features", found, graphs=True)
    expected = losses(whole)
    path = tmp_path / "0.pt"
    seen: list[float] = []
    for last in range(1, 5):
        run = on_features(tmp_path / "features", found, graphs=True)
        for result in run.run(Checkpoint(path)):
            if result.epoch > last:
                break
            seen.append(result.loss)
        assert run.capture is not None
    assert seen == expected
    final = on_features(tmp_path / "features", found, graphs=True)
    assert list(final.run(Checkpoint(path))) == []
    assert differing(flat(whole.state()), flat(final.state())) == []


def test_a_captured_step_that_differs_is_not_used(
    graphs: SimulatedGpu,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one whose network computes something on the host, which a capture would fix."""
    found = plan("test_resnet", 1, lr=0.01)
    expected = losses(on_features(tmp_path, found))

    def wrong(device: torch.device, compute: Any) -> Any:
        replay = cuda_graphs.capture_graph(device, compute)
        parameters = [one for one in run.network.parameters() if one.requires_grad]

        def work() -> None:
            replay()
            for gradient in held:
                gradient.mul_(1.1)

        held = [one.grad for one in parameters if one.grad is not None]
        return work

    for _ in range(2):
        run = on_features(tmp_path, found, graphs=True)
        run.capture = functools.partial(wrong, GPU)
        assert losses(run) == expected
        assert run.capture is None
    # Said once, though it happened twice.
    assert caplog.text.count("steps are launched one by one") == 1
    assert "its gradients differ by 1.0e-01 from those of a plain step" in caplog.text


def test_random_numbers_of_the_host_cannot_be_captured(
    graphs: SimulatedGpu, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = plan("test_resnet", 0, 8)

    class Noisy(torch.nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return values * (1 + 0.5 * float(torch.rand(())))

    def noisy(graphs: bool) -> Trainer:
        run = on_features(tmp_path, found, graphs=graphs)
        run.network.head.insert(0, Noisy())
        return run

    expected = losses(noisy(False))
    run = noisy(True)
    assert losses(run) == expected
    assert run.capture is None
    assert "steps are launched one by one" in caplog.text


@pytest.mark.usefixtures("short")
def test_a_device_that_captures_nothing_takes_plain_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with simulated_gpu(graphs=False):
        found, _ = CAPTURED["tail"]
        plain, run = (on_features(tmp_path, found, graphs=graphs) for graphs in (False, True))
        assert losses(plain) == losses(run)
        assert differing(flat(plain.state()), flat(run.state())) == []
    assert run.capture is None
    assert caplog.text.count("operation not supported") == 1


def test_what_is_not_captured(graphs: SimulatedGpu, tmp_path: Path) -> None:
    for mixup, named in [
        (0.0, {"precision": "fp16"}),
        (0.0, {"micro_batch_size": 8}),
        (0.2, {}),
        (0.0, {"graphs": False}),
    ]:
        found = plan("test_resnet", 1, mixup=mixup)
        assert on_features(tmp_path, found, **{"graphs": True, **named}).capture is None
    images = on_gpu(graphs=True)
    losses(images)
    assert not images._captured


def test_short_trainings_are_not_captured(gpu: SimulatedGpu, tmp_path: Path) -> None:
    assert on_features(tmp_path, graphs=True).capture is None  # 12 steps
    assert on_features(tmp_path, graphs=True, epochs=100).capture is not None


def test_a_capture_that_breaks_off_ends_all_replays_of_the_process(
    graphs: SimulatedGpu, tmp_path: Path
) -> None:
    found, _ = CAPTURED["tail"]
    expected = losses(on_features(tmp_path, found))
    first = on_features(tmp_path, found, graphs=True)
    course = first.run()
    seen = [next(course).loss]
    assert first._captured

    def broken(device: torch.device, compute: Any) -> Any:
        def half() -> None:
            compute()
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError("operation failed due to a previous error during capture")

        return cuda_graphs.capture_graph(device, half)

    second = on_features(tmp_path, found, graphs=True)
    second.capture = functools.partial(broken, GPU)
    assert losses(second) == expected
    assert not cuda_graphs.is_usable(GPU)
    seen += [one.loss for one in course]
    assert seen == expected


def test_a_training_of_captured_steps_leaves_nothing_behind(
    graphs: SimulatedGpu, tmp_path: Path
) -> None:
    run = on_features(tmp_path, graphs=True)
    losses(run)
    assert run._captured
    networks = [weakref.ref(run.network), weakref.ref(run.eval_model)]
    del run
    gc.collect()
    assert [one() for one in networks] == [None, None]
