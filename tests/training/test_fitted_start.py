"""Changed layers that are fitted compute about what the pretrained ones did."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autotune.models.backbone import load_backbone
from autotune.models.network import Network, build_network
from autotune.plan import TrainingPolicy
from autotune.training import fitted_start
from autotune.training.fitted_start import batch_size, fit_start
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.optim.l2_sp import L2SP
from autotune.training.optim.norm_recalibration import recalibrate_batch_norms, sample_batches
from tests.support.marks import slow
from tests.support.models.backbones import SIZE, same_state, some_digits, state_of, training
from tests.support.models.surgery import (
    built,
    capabilities,
    change,
    gives_features,
    pictures,
)
from tests.training.test_features import on_features

#: The share of the difference from the pretrained features that is left, at most.
LEFT = 0.85
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


def goal_of(pretrained: Network, images: list[Tensor]) -> Network:
    """Give a pretrained network the norm statistics with which it is what others are fitted to."""
    if fitted_start._fades(pretrained, lambda: images):
        recalibrate_batch_norms(pretrained, images, pretrained.trainable_norms)
    return pretrained.eval()


@torch.no_grad()
def distance(net: Network, goal: Network, images: list[Tensor]) -> float:
    """Return how far the features are from those of another network, relative to their size."""
    found, expected = (torch.cat([one.eval().backbone(x) for x in images]) for one in (net, goal))
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("name", "field"), CASES)
def test_features_are_nearer_to_the_pretrained_ones(name: str, field: str) -> None:
    net, images = measured(name, field), batches(name)
    goal = goal_of(built(change(name, {}, depth=net.depth)), images)
    before = distance(net, goal, images)
    twin = copy.deepcopy(net)
    trainable = net.trainable_state().keys()
    frozen = {key: value for key, value in state_of(net).items() if key not in trainable}
    if fit_start(net, None, lambda: images, lambda: images):
        assert distance(net, goal, images) < before * (1 if field == "kernel" else LEFT)
    else:  # in noise, no pixel tells of its neighbors: what they gave may be lost
        assert field == "kernel" and same_state(net, twin)
    after = state_of(net)
    assert all(torch.equal(after[key], value) for key, value in frozen.items())


@pytest.mark.parametrize("field", VALUES)
def test_real_weights_see_real_images_as_before(field: str) -> None:
    """Letters have taught them, and digits are what they see."""
    letters = load_backbone("test_resnet.letters", image_size=SIZE)
    normalize = Normalizer.from_config(letters.data_config, torch.device("cpu"))
    images = [*sample_batches(some_digits(128), 128, normalize, 0, batch_size=16)]
    layers = {2: {field: VALUES[field]}} | (
        {} if field == "width" else {1: {field: VALUES[field]}}
    )
    net, goal = (
        build_network(letters, plan, 10, 0).eval()
        for plan in (
            change(letters.name, layers, inherit="fit"),
            change(letters.name, {}, depth=2),
        )
    )
    recalibrate_batch_norms(net, images)
    goal = goal_of(goal, images)
    before = distance(net, goal, images)
    assert fit_start(net, None, lambda: images, lambda: images)
    assert distance(net, goal, images) < 0.6 * before


def test_norms_take_the_statistics_of_images_that_fade_behind_them() -> None:
    images = batches("test_resnet")
    plain = built(change("test_resnet", {}, depth=2))
    recalibrate_batch_norms(plain, images, plain.trainable_norms)
    plain.eval()
    assert fitted_start._fades(plain, lambda: [batch / 2 for batch in images])
    assert not fitted_start._fades(plain, lambda: [batch * 2 for batch in images])
    assert not fitted_start._fades(built(change("test_vit", {}, depth=2)), lambda: [])
    for norm in plain.trainable_norms:
        norm.running_mean = norm.running_var = None
    assert not fitted_start._fades(plain, lambda: images)


@pytest.mark.parametrize("place", ["_fades", "fit_layers"])
def test_statistics_come_back_when_memory_runs_out(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    net, images = measured("test_resnet", "kernel"), batches("test_resnet")
    twin = copy.deepcopy(net)
    monkeypatch.setattr(fitted_start, "_fades", lambda *_: True)
    monkeypatch.setattr(fitted_start, place, fail)
    with pytest.raises(torch.OutOfMemoryError):
        fit_start(net, None, lambda: images, lambda: images)
    assert same_state(net, twin)


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
