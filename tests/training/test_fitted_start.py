"""Changed layers that are fitted compute about what the pretrained ones did."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autotune.models.network import Network
from autotune.plan import TrainingPolicy
from autotune.training import fitted_start
from autotune.training.fitted_start import batch_size, fit_start
from autotune.training.optim.l2_sp import L2SP
from autotune.training.optim.norm_recalibration import recalibrate_batch_norms
from tests.support.backbones import same_state, state_of, training
from tests.support.marks import slow
from tests.support.surgery import built, capabilities, change, difference, gives_features, pictures
from tests.training.test_features import on_features

#: The share of the difference from the pretrained features that is left, at most.
LEFT = 0.6
#: Dense, depthwise with gates, a transformer; slow: grouped, norms first, layer norm, no norm.
QUICK = {"test_resnet": ("kernel",), "test_vit": ("width", "bridge")}
SLOW = {
    "test_resnet": ("width", "bridge"),
    "test_efficientnet": ("kernel", "width"),
    "resnext50_32x4d": ("kernel", "width"),
    "densenet121": ("kernel", "width"),
    "test_convnext": ("kernel", "width"),
    "test_nfnet": ("width", "bridge"),
    "vgg11": ("kernel",),
}
VALUES: dict[str, Any] = {"kernel": 1, "width": 0.5, "bridge": 0.25}
CASES = [
    *((name, field) for name, fields in QUICK.items() for field in fields),
    *(slow(name, field) for name, fields in SLOW.items() for field in fields),
]


def batches(name: str, count: int = 8) -> list[Tensor]:
    return [pictures(name, 4, seed=10 + number) for number in range(count)]


def measured(name: str, field: str) -> Network:
    """Change a field of the last layers that keep the number of features; measure the norms."""
    value = VALUES[field]
    changes = {
        offer.index: {field: value}
        for offer in capabilities(name)[:2]
        if not offer.reason_unsupported(field, value)
        and not offer.is_noop(field, value)
        and not (field == "width" and gives_features(offer))
    }
    net = built(change(name, changes, inherit="fit"))
    recalibrate_batch_norms(net, batches(name))
    return net.eval()


@pytest.mark.parametrize(("name", "field"), CASES)
def test_features_are_nearer_to_the_pretrained_ones(name: str, field: str) -> None:
    net = measured(name, field)
    before = difference(net, change(name, {}))
    frozen = {key: value for key, value in state_of(net).items() if key not in _trainable(net)}
    assert fit_start(net, None, lambda: batches(name), lambda: batches(name))
    assert difference(net, change(name, {})) < LEFT * before
    after = state_of(net)
    assert all(torch.equal(after[key], value) for key, value in frozen.items())


def _trainable(net: Network) -> set[str]:
    return set(net.trainable_state())


def test_a_norm_computes_the_same_with_the_statistics_of_the_images() -> None:
    """Measured anew after the fit, the statistics change nothing: they are true."""
    net = measured("test_resnet", "kernel")
    images = batches("test_resnet")
    fit_start(net, None, lambda: images, lambda: images)
    fitted = difference(net, change("test_resnet", {}))
    recalibrate_batch_norms(net, images)
    assert difference(net.eval(), change("test_resnet", {})) < 1.5 * fitted


def test_what_is_not_better_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(student: Any, *_: Any) -> None:
        for parameter in student.module.parameters():
            parameter.add_(parameter.abs().max() * 0.1)

    net = measured("test_vit", "width")
    twin = copy.deepcopy(net)
    monkeypatch.setattr(fitted_start, "fit_layers", spoil)
    few = batches("test_vit")
    # Frozen parameters would be no part of what is put back.
    net.frozen.clear()
    monkeypatch.setattr(net, "trainable_state", net.state_dict)
    assert not fit_start(net, None, lambda: few, lambda: few)
    assert same_state(net, twin)


def test_too_few_images_leave_the_start_as_it_is() -> None:
    net = measured("test_vit", "width")
    twin = copy.deepcopy(net)
    few = batches("test_vit", 3)
    assert not fit_start(net, None, lambda: few, lambda: few)
    assert same_state(net, twin)
    assert [batch_size(images, 32) for images in (2, 60, 512)] == [2, 7, 32]


def test_a_training_fits_on_its_features_as_on_its_images(tmp_path: Path) -> None:
    plan = change("test_vit", {1: {"width": 0.5}}, inherit="fit")
    whole, cut = training(plan, count=80, ema=0.9), on_features(plan, tmp_path, count=80)
    plain = state_of(whole.network)
    for trainer in (whole, cut):
        trainer.start_layers()
    first, second = state_of(whole.network), state_of(cut.network)
    assert any(not torch.equal(plain[key], first[key]) for key in first)
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0.05, atol=0.02)
    assert whole.ema is not None and same_state(whole.ema.module, whole.network)


def test_l2_sp_pulls_towards_the_fitted_weights() -> None:
    plan = change("test_resnet", {1: {"kernel": 1}}, inherit="fit")
    run = training(replace(plan, policy=TrainingPolicy(l2_sp=0.1)), count=40)
    run.start_layers()
    (pull,) = run.optimizer._optimizer_step_pre_hooks.values()
    assert isinstance(pull, L2SP) and pull.starts
    assert all(torch.equal(parameter, start) for parameter, start in pull.starts.items())
