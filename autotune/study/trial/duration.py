"""How long trials take by the number of trainable layers, measured before a study starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autotune.config.fields import largest
from autotune.config.schema import StudyConfig
from autotune.errors import SplitError
from autotune.models.backbone import Backbone
from autotune.models.layers import list_layers
from autotune.models.network import Network, build_network
from autotune.models.prefix.split import Prefix
from autotune.plan import LayerPlan, TrainingPolicy, TrialPlan
from autotune.study.setup.definition import Definition
from autotune.study.trial.feature_reuse import find_split
from autotune.training.compute.amp import AmpPolicy
from autotune.training.optim.optimizer import make_optimizer

#: Numbers of trainable layers that are timed: none, all and two between.
_DEPTHS = 4
#: Timed passes, until one of the two is reached.
_PASSES, _SECONDS = 4, 1.0


@dataclass(frozen=True)
class TrialDuration:
    """Seconds of trials that train some of the last layers, unchanged ones, on one device.

    Args:
        depth: Number of trainable layers.
        trial: Seconds of the epochs of one trial, validation included.
        features: Seconds for the features of the frozen layers, once for all such trials; 0 where
            features are not cached.
    """

    depth: int
    trial: float
    features: float


def trial_durations(
    definition: Definition, backbone: Backbone, device: torch.device
) -> tuple[TrialDuration, ...]:
    """Time steps on random images, and multiply by the steps of a trial.

    The images are not read: what reading them takes beside the training is not included.
    """
    deepest = min(definition.space.max_depth, len(list_layers(backbone.fresh())))
    depths = sorted({round(deepest * part / (_DEPTHS - 1)) for part in range(_DEPTHS)})
    amp = AmpPolicy.from_mode(definition.config.training.precision, device)
    return tuple(_measure(definition, backbone, depth, amp) for depth in depths)


def _measure(
    definition: Definition, backbone: Backbone, depth: int, amp: AmpPolicy
) -> TrialDuration:
    config, device = definition.config, amp.device
    train, validation = _images_per_epoch(definition)
    batch = min(config.training.batch_size, train)
    plan = TrialPlan(backbone.name, depth, (LayerPlan(),) * depth)
    classes = len(definition.dataset.source.classes)
    network = build_network(backbone, plan, classes, seed=0)
    network.to(device).to(memory_format=torch.channels_last)
    images = torch.randn(batch, *backbone.data_config["input_size"], device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % classes
    inputs: Tensor | tuple[Tensor, ...] = images
    features = 0.0
    with torch.no_grad(), amp.autocast():
        prefix = _attach_split(network, images, config, amp)
        if prefix is not None:
            inputs = prefix(images)
            seconds = _timed(lambda: prefix(images), device) / batch
            views = config.training.view_count * len(definition.dataset.split.train)
            features = seconds * (views + validation)
        network.eval()
        forward = _timed(lambda: network(inputs), device) / batch
    network.train()
    optimizer = make_optimizer(network, TrainingPolicy(lr=1e-6))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with amp.autocast():
            logits = network(inputs)
        torch.autograd.backward(nn.functional.cross_entropy(logits.float(), labels))
        optimizer.step()

    epoch = train * _timed(step, device) / batch + validation * forward
    return TrialDuration(depth, config.training.epochs * epoch, features)


def _images_per_epoch(definition: Definition) -> tuple[int, int]:
    """Count the images that an epoch trains on and validates, over all folds."""
    parts = definition.dataset.folds or (definition.dataset.split,)
    return sum(len(part.train) for part in parts), sum(len(part.validation) for part in parts)


def _attach_split(
    network: Network, images: Tensor, config: StudyConfig, amp: AmpPolicy
) -> Prefix | None:
    """Let a network start from features, where trials do; return what computes them."""
    policy = config.space.training
    is_mixed = bool(largest(policy.mixup) or largest(policy.cutmix))
    try:
        split = find_split(network, lambda: images, config, amp, is_mixed=is_mixed)
    except SplitError:
        return None
    if split is None:
        return None
    network.attach(split)
    return split.prefix()


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the shortest time of a few passes, in seconds; of a long one, that of the first."""
    times: list[float] = []
    while not times or (len(times) < _PASSES and sum(times) < _SECONDS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
