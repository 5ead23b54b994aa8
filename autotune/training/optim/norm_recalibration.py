"""Measure the norm statistics of reshaped layers before they are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from autotune.models.network import Network
from autotune.training.inputs.batches import Batches, Inputs

T = TypeVar("T")

#: Images in a batch, and in the smallest batch of a norm that trains.
BATCH_SIZE, MIN_BATCH = 64, 2


def sample_batches(
    views: Batches,
    count: int,
    normalize: Callable[[Any], T],
    seed: int,
    loader_workers: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Iterator[T]:
    """Draw random images in their evaluation views, for one seed always the same."""
    order = torch.randperm(len(views), generator=torch.Generator().manual_seed(seed))[:count]
    numbers = views.views_for_epoch(None)
    for images, _ in views.batches(order, numbers, batch_size, loader_workers):
        yield normalize(images)


@torch.no_grad()
def recalibrate_batch_norms(
    network: Network,
    batches: Iterable[Inputs],
    norms: Sequence[nn.modules.batchnorm._BatchNorm] | None = None,
) -> None:
    """Measure the statistics of batch norms that see other features than before.

    As after a weight average (Izmailov et al. 2018, section 3.2): one pass, the mean over the
    batches. Other norms keep their statistics.

    Args:
        network: The network.
        batches: Its inputs.
        norms: The norms; by default those that the plan has made stale.
    """
    norms = network.stale_norms if norms is None else norms
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # counts every batch alike
        norm.training = True  # not its children: timm's norms hold activations and dropout
    try:
        for images in batches:
            network(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.training = False
