"""Fit changed layers to the pretrained ones before they train (`init: fitted`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from autotune.errors import SplitError
from autotune.models.fitting.layers import HELD_OUT, fit_layers, is_held_out
from autotune.models.fitting.sites import Runner, find_sites
from autotune.models.network import FittedStart, Network
from autotune.models.prefix.split import PrefixSplit, split_network
from autotune.training.inputs.batches import Inputs
from autotune.training.optim.norm_recalibration import recalibrate_batch_norms

logger = logging.getLogger(__name__)

#: Limits the images of a batch.
BATCH_SIZE = 32
#: Limits the bytes of inputs that stay in memory from layer to layer; more are read again.
_KEPT_BYTES = 1 << 28

#: Gives the same batches of a size at every call.
Batches = Callable[[], Iterable[Inputs]]


def batch_size(images: int, most: int) -> int:
    """Return the size of batches of which there are enough to hold some out."""
    return max(2, min(most, images // (2 * HELD_OUT)))


@torch.no_grad()
def fit_start(
    network: Network, split: PrefixSplit | None, inputs: Batches, images: Batches
) -> bool:
    """Fit the changed layers of a network, in place, where that brings it nearer to what it was.

    What it was is the pretrained network. But where its norms pass on less of these images than
    of those of the pretraining, see :func:`_fades`, they take the statistics of these images
    first: fitted to fading outputs, a network of the digits learned worse with a new head.

    Args:
        network: The network with ``network.start``; its norm statistics were measured anew.
        split: Where it is cut; ``None`` if it trains whole.
        inputs: Inputs of the network, the tensors of the split or images.
        images: The same images as normalized images.

    Returns:
        Whether the fitted weights were taken: the pooled features of the images that are held
        out are nearer to the pretrained ones than before.
    """
    assert network.start is not None
    if sum(1 for _ in images()) < HELD_OUT:
        return False  # too few images to fit and to check
    device = next(network.parameters()).device
    pretrained = network.start.unchanged().to(device).to(memory_format=torch.channels_last).eval()
    network.eval()
    if split is not None and not _attach_same(pretrained, split, images):
        inputs = images
    batches = _kept(inputs)
    before = {name: value.clone() for name, value in network.trainable_state().items()}
    student = Runner(network.backbone, network.features)
    teacher = Runner(pretrained.backbone, pretrained.features)
    try:
        if _fades(pretrained, batches):
            for both in (pretrained, network):
                recalibrate_batch_norms(both, batches(), _trainable_norms(both))
        first = next(iter(batches()))
        sites = find_sites(student, teacher, *_names(network, network.start), first)
        plain = _distance(student, teacher, batches)
        fit_layers(student, teacher, sites, batches)
    except RuntimeError as error:
        network.load_trainable_state(before)
        if isinstance(error, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            # Features that are not finite.
            logger.warning("changed layers are not fitted: %s", error)
            return False
        raise  # does not fit into memory: it starts over
    fitted = _distance(student, teacher, batches)
    logger.info(
        "fitted %d layers: features differ from the pretrained ones by %.3g of their size, "
        "%.3g before",
        *(len(sites), fitted, plain),
    )
    if fitted <= plain:
        return True
    network.load_trainable_state(before)
    return False


def _names(
    network: Network, start: FittedStart
) -> tuple[frozenset[str], frozenset[str], dict[str, Tensor]]:
    """Return the modules of the changed layers, those with stale norms, and the channels left."""
    changed = [network.layers[index - 1] for index in start.plan.reshaped]
    stale = set(network.stale_norms)
    norms = (name for name, module in network.backbone.named_modules() if module in stale)
    layers = frozenset(name for layer in changed for name in layer.modules)
    return layers, frozenset(norms), dict(start.channels)


def _trainable_norms(network: Network) -> list[_BatchNorm]:
    """Return the trainable batch norms of the backbone that have statistics."""
    of_head = {*network.head.modules()}
    return [
        norm
        for norm in network.trainable_norms
        if norm not in of_head and norm.running_var is not None
    ]


@torch.no_grad()
def _fades(network: Network, batches: Batches) -> bool:
    """Tell whether the trainable norms pass on less of these images than of the pretraining's.

    What a norm passes on is the variance of its outputs, in sum over its channels; its statistics
    tell that of the pretraining. The geometric mean of the ratios decides for all norms: it is
    0.55 for digits behind weights that know printed letters, and 1.1 for photographs of 96 px
    behind a MobileNetV2 that knows those of ImageNet.
    """
    norms = _trainable_norms(network)
    sums: dict[_BatchNorm, Tensor] = {norm: torch.zeros(3, 1) for norm in norms}

    def add(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach().to("cpu", torch.float64).transpose(0, 1).flatten(1)
        count = torch.full_like(values[:, 0], values.shape[1])
        sums[norm] = sums[norm] + torch.stack([count, values.sum(1), values.square().sum(1)])

    with ExitStack() as stack:
        for norm in norms:
            stack.callback(norm.register_forward_pre_hook(add).remove)
        for batch in batches():
            network.features(batch)
    ratios = torch.tensor([_ratio(norm, *sums[norm]) for norm in norms])
    ratios = ratios[ratios.isfinite()].clamp_min(1e-6)  # one that does not run has none
    return bool(len(ratios)) and float(ratios.log().mean()) < 0


def _ratio(norm: Any, count: Tensor, total: Tensor, squares: Tensor) -> float:
    """Return what a norm passes on of inputs with these sums, relative to the pretraining."""
    weight = torch.ones_like(total) if norm.weight is None else norm.weight.cpu().double().square()
    variance = squares / count - (total / count).square()
    passed_on = weight * variance / (norm.running_var.cpu().double() + norm.eps)
    return float(passed_on.sum() / weight.sum())


def _attach_same(pretrained: Network, split: PrefixSplit, images: Batches) -> bool:
    """Cut the pretrained network at the same place; tell whether that was possible."""
    image = next(iter(images()))
    assert isinstance(image, Tensor)
    try:
        same = split_network(pretrained, image[:2])
    except SplitError:
        return False
    pretrained.attach(same)
    return same.keys == split.keys


def _kept(batches: Batches) -> Batches:
    """Keep all batches in memory if they are small enough; else read them at every call."""
    first = next(iter(batches()))
    parts = first if isinstance(first, tuple) else (first,)
    total = sum(part.nbytes for part in parts) * sum(1 for _ in batches())
    if total > _KEPT_BYTES:
        return batches
    kept = list(batches())
    return lambda: kept


def _distance(student: Runner, teacher: Runner, batches: Batches) -> float:
    """Return the relative distance of the features of two networks on the images held out.

    Zero where they have another number, because the width of the last layer has changed.
    """
    off = size = 0.0
    for number, batch in enumerate(batches()):
        if is_held_out(number):
            features, goal = student.run(batch).float(), teacher.run(batch).float()
            if features.shape != goal.shape:
                return 0.0
            off += float((features - goal).square().sum())
            size += float(goal.square().sum())
    distance = (off / size) ** 0.5 if size else 0.0
    return distance if distance == distance else float("inf")
