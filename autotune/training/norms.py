"""Norm statistics of reshaped layers, measured anew before they are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from autotune.data.views import Views
from autotune.models.network import Network

#: Images in a batch.
_BATCH = 64


def sample(
    views: Views,
    count: int,
    normalise: Callable[[Tensor], Tensor],
    seed: int,
    loader_workers: int = 0,
) -> Iterator[Tensor]:
    """Draw some images as they are evaluated, always the same ones.

    Args:
        views: The images.
        count: How many, or all where there are fewer.
        normalise: Brings them to what the backbone expects.
        seed: Of the draw.
        loader_workers: Processes that prepare images which do not fit into memory.

    Yields:
        Normalised images ``(N, C, H, W)``.
    """
    order = torch.randperm(len(views), generator=torch.Generator().manual_seed(seed))[:count]
    evaluated = torch.zeros(len(views), dtype=torch.int64)
    for images, _ in views.batches(order, evaluated, _BATCH, loader_workers):
        yield normalise(images)


@torch.no_grad()
def measure_norms(network: Network, batches: Iterable[Tensor]) -> None:
    """Measure the statistics of batch norms that see other features than the pretrained ones.

    As after a weight average (Izmailov et al. 2018, section 3.2): one pass, the mean over the
    batches. Locked norms keep theirs.

    Args:
        network: The network; the buffers of ``network.stale_norms`` change.
        batches: Normalised images ``(N, C, H, W)``, at least two in each.
    """
    momenta = [norm.momentum for norm in network.stale_norms]
    network.eval()
    for norm in network.stale_norms:
        norm.reset_running_stats()
        norm.momentum = None  # counts every batch alike
        norm.training = True  # alone: timm's norms hold activations and dropout
    try:
        for images in batches:
            network(images)
    finally:
        for norm, momentum in zip(network.stale_norms, momenta, strict=True):
            norm.momentum = momentum
            norm.training = False
