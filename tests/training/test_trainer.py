from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autotune.errors import DivergedError, TrialInterruptedError
from autotune.models.network import build_network
from autotune.training.checkpoint import Checkpoint
from autotune.training.inputs.batches import num_batches, num_micro_batches
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.metrics import compute_metrics
from autotune.training.trainer import Trainer
from tests.support.models.backbones import (
    CPU,
    backbone,
    plan,
    some_digits,
    state_of,
    step,
    training,
)


@settings(max_examples=60, deadline=None)
@given(images=st.integers(1, 60), batch_size=st.integers(1, 70))
def test_batches_are_counted_as_they_come(images: int, batch_size: int) -> None:
    """No batch and no micro-batch has a single image, unless there is but one."""
    views = some_digits(60)
    order = torch.arange(images)
    batches = list(views.batches(order, torch.zeros(60, dtype=torch.int64), batch_size))
    assert len(batches) == num_batches(images, batch_size)
    sizes = [len(one) for one in order.tensor_split(num_micro_batches(images, batch_size))]
    assert images == 1 or min(sizes) >= 2
    assert max(sizes) <= max(batch_size, 3)


def test_images_are_normalised_as_timm_does() -> None:
    config = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    batch = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    found = Normalizer.from_config(config, CPU)(batch)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(found, (batch / 255 - mean) / std, atol=1e-6)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_about_the_same(amp: str) -> None:
    """The loss is taken in float32, whatever the network computes in."""
    exact = [one.loss for one in training(plan("test_resnet", 2, lr=0.01)).run()]
    mixed_run = training(plan("test_resnet", 2, lr=0.01), precision=amp)
    mixed = [one.loss for one in mixed_run.run()]
    assert mixed == pytest.approx(exact, rel=0.1)
    assert mixed != exact
    assert all(parameter.dtype == torch.float32 for parameter in mixed_run.network.parameters())


@pytest.mark.parametrize("scale", [2.0**18, 2.0**20, 2.0**40])
def test_steps_that_overflow_are_counted_on_the_device_until_the_epoch_ends(scale: float) -> None:
    """As on a GPU, where asking at once would wait for the device in every step."""
    found = plan("test_resnet", 1, lr=0.01)

    def trained(late: bool) -> tuple[Trainer, list[tuple[int, float, float]], int]:
        run = training(found, precision="fp16", count=64, epochs=2, ema=0.9)
        run.defers_skip_check = late
        run.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        steps = 0
        step = run.schedule.step

        def follow() -> None:
            nonlocal steps
            step()
            steps += 1

        run.schedule.step = follow  # type: ignore[method-assign]
        group = run.optimizer.param_groups[0]
        ends = [(run.schedule.last_epoch, group["lr"], run.scaler.get_scale()) for _ in run.run()]
        return run, ends, steps

    at_once, expected, taken = trained(late=False)
    late, ends, gone = trained(late=True)  # whose rate is a few steps ahead within an epoch
    assert ends == expected  # the same steps were left out, and none of them counts
    assert taken == at_once.schedule.last_epoch < gone == 8
    assert late.epoch == 2


def test_the_gradient_is_clipped() -> None:
    found = plan("test_resnet", 1, optimizer="sgd", lr=1.0, weight_decay=0.0)

    def moved(clip_norm: float | None) -> float:
        run = training(found, clip_grad_norm=clip_norm, warmup=0.0)
        before = [p.detach().clone() for _, p, _ in run.network.layer_of_parameters()]
        step(run, run.network(torch.randn(4, 3, 32, 32)).pow(2).sum() * 1e3)
        after = [p.detach() for _, p, _ in run.network.layer_of_parameters()]
        deltas = [(a - b).flatten() for a, b in zip(after, before, strict=True)]
        return float(torch.cat(deltas).norm())

    torch.manual_seed(0)
    # Nesterov's first step is 1.9 times the gradient.
    assert moved(0.25) == pytest.approx(1.9 * 0.25, rel=1e-3)
    assert moved(None) > 1.0


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_the_gradients_of_parts_add_up_to_that_of_the_batch(mixup: float) -> None:
    """Where no trainable layer has a batch norm: that one would see other batches."""
    found = plan("test_vit", 2, optimizer="sgd", lr=0.01, label_smoothing=0.1, mixup=mixup)

    def trained(micro_batch_size: int | None) -> tuple[list[float], dict[str, Tensor]]:
        run = training(found, batch_size=16, epochs=2, micro_batch_size=micro_batch_size)
        return [one.loss for one in run.run()], state_of(run.network)

    (whole, expected), (parts, state) = trained(None), trained(3)
    assert parts == pytest.approx(whole, rel=1e-4)
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, atol=1e-4, rtol=1e-3)


def test_an_epoch_has_the_mean_learning_rate_of_its_steps() -> None:
    decayed = plan("test_resnet", 2, lr=0.01, layer_decay=0.5, head_epochs=1)
    run, rates = training(decayed, epochs=3, count=33), list[dict[float, float]]()
    update = run._update

    def noted() -> None:
        rates.append({group["initial_lr"]: group["lr"] for group in run.optimizer.param_groups})
        update()

    run._update = noted  # type: ignore[method-assign]
    first, *others = (one.learning_rates for one in run.run())
    assert first == {0: pytest.approx((rates[0][0.01] + rates[1][0.01]) / 2), 1: 0.0, 2: 0.0}
    for epoch, found in enumerate(others, start=1):
        steps = rates[2 * epoch : 2 * epoch + 2]
        assert list(found) == [0, 1, 2]
        for layer, rate in found.items():
            assert rate == pytest.approx(sum(step[0.01 * 0.5**layer] for step in steps) / 2)


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    run = training(
        plan("test_resnet", 5, optimizer="sgd", lr=1e20), clip_grad_norm=None, warmup=0.0
    )
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) in epoch 1"):
        list(run.run(Checkpoint(tmp_path / "0.pt")))
    assert not (tmp_path / "0.pt").exists()


@pytest.mark.parametrize(
    ("after", "message"), [(2, "stopped in epoch 1"), (3, "in the validation")]
)
def test_a_stop_is_heard(after: int, message: str) -> None:
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > after

    run = training(plan("test_resnet"), stopped=stopped, count=44)
    with pytest.raises(TrialInterruptedError, match=message):
        list(run.run())


def test_without_a_validation_part() -> None:
    run = training(plan("test_resnet"), validation=None, epochs=2)
    results = list(run.run())
    assert [(one.metrics, one.loss_error) for one in results] == [(None, None)] * 2
    assert len({one.learning_rates[0] for one in results}) == 2


def test_predictions_come_in_the_order_of_the_images() -> None:
    run = training(plan("test_resnet", 0, 8, dropout=0.5), batch_size=2, epochs=1)
    views = some_digits(21)
    logits, labels = run.predict(views)
    assert torch.equal(labels, views.labels)
    assert not logits.requires_grad
    with torch.no_grad():
        each = [
            run.network(run.normalize(views.view(i, 0).unsqueeze(0))) for i in range(len(views))
        ]
    assert torch.allclose(logits, torch.cat(each), atol=1e-5)
    results = list(run.run())
    assert run.validation_logits is not None
    assert results[-1].metrics == compute_metrics(run.validation_logits, run.validation.labels)


def test_a_finished_training_leaves_nothing_behind() -> None:
    run = training(plan("test_resnet", 5), epochs=1, ema=0.9)
    list(run.run())
    networks = [weakref.ref(run.network), weakref.ref(run.eval_model)]
    del run
    gc.collect()
    assert [one() for one in networks] == [None, None]


@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    """Every layer trainable from random weights, a hundred digits learnt by heart."""
    views = some_digits(100)
    source = backbone("test_resnet")
    found = plan("test_resnet", 5, lr=0.01)
    run = training(found, count=100, epochs=25, num_views=1, batch_size=20)
    run.validation = views
    losses = [one.loss for one in run.run(Checkpoint(tmp_path / "0.pt"))]
    assert losses[0] > 2.0 > 0.5 > losses[-1]
    assert run.metrics is not None
    assert run.metrics.accuracy > 0.95
    # The weights alone are the model: a new network that loads them predicts the same.
    other = build_network(source, found, 10, seed=5)
    other.load_trainable_state(copy.deepcopy(run.eval_model.trainable_state()))
    run.network = other
    logits, labels = run.predict(views)
    assert compute_metrics(logits, labels) == run.metrics


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_training_on_a_gpu(amp: str) -> None:
    cuda = torch.device("cuda", 0)
    found = plan("test_resnet", 5, 16, dropout=0.2, lr=0.01)
    net = build_network(backbone("test_resnet"), found, 10, seed=0).to(cuda)
    run: Trainer = training(found, net=net, count=100, epochs=15, precision=amp, ema=0.9)
    run.normalize = Normalizer.from_config(backbone("test_resnet").data_config, cuda)
    losses = [one.loss for one in run.run()]
    assert losses[-1] < losses[0] / 2
