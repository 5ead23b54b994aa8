"""What a network computes of images without training: outputs, features, norm statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from autotune.errors import TrialInterruptedError
from autotune.models.network import Network
from autotune.training.compute.amp import AmpPolicy
from autotune.training.compute.micro_batches import MicroBatcher, run_halving
from autotune.training.inputs.batches import Batches, Inputs
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.inputs.placement import place_on_device
from autotune.training.optim.norm_recalibration import (
    BATCH_SIZE,
    MIN_BATCH,
    recalibrate_batch_norms,
    sample_batches,
)

#: Training images on which norm statistics are measured, and to which changed layers are fitted.
SAMPLED_IMAGES = 512
#: Most values of the features from which a head is solved, 2 GB.
SOLVED_VALUES = 2**29


class Evaluator:
    """Sends evaluation views of images through a network.

    Args:
        normalize: Normalizes images for the backbone.
        amp: Mixed precision of the forward pass.
        device: The device of the network.
        seed: Seed of the sample of images.
        loader_workers: Processes that prepare images which do not fit into memory.
        stopped: Called after every batch; true interrupts.
    """

    def __init__(
        self,
        normalize: Normalizer,
        amp: AmpPolicy,
        device: torch.device,
        seed: int,
        loader_workers: int,
        stopped: Callable[[], bool],
    ) -> None:
        self.normalize = normalize
        self.amp = amp
        self.device = device
        self.seed = seed
        self.loader_workers = loader_workers
        self.stopped = stopped
        self._batcher = MicroBatcher("validation", device)

    @torch.no_grad()
    def outputs(
        self,
        compute: Callable[[Inputs], Tensor],
        views: Batches,
        micro_batch_size: int,
        order: Tensor | None = None,
    ) -> Tensor:
        """Return what a network in evaluation mode makes of images, float32, by image.

        Args:
            compute: The network, or a part of it.
            views: The images.
            micro_batch_size: Images that go through the network at a time when it trains.
            order: Which images, and in which order; by default all.

        Raises:
            TrialInterruptedError: When a stop was asked for.
        """

        def evaluate(images: Inputs) -> Tensor:
            with self.amp.autocast():
                return compute(self.normalize.to_inputs(images)).float()

        # Larger on GPUs; small batches stay in the caches of a CPU.
        batch_size = micro_batch_size * (4 if self.device.type == "cuda" else 1)
        order = torch.arange(len(views)) if order is None else order
        numbers = views.views_for_epoch(None)
        placed = place_on_device(views, self.device, stays=False)
        outputs: list[Tensor] = []
        for images, _ in placed.batches(order, numbers, batch_size, self.loader_workers):
            if self.stopped():
                raise TrialInterruptedError("stopped in the validation")
            outputs += self._batcher.run(evaluate, images)
        return torch.cat(outputs)

    def features(
        self, network: Network, micro_batch_size: int, views: Batches
    ) -> tuple[Tensor, Tensor]:
        """Return the inputs of the head, float32 ``(N, F)``, and the labels ``(N,)``.

        Of more images than fit into :data:`SOLVED_VALUES`, every second, third, ... is taken.
        """
        step = math.ceil(len(views) * network.head.features / SOLVED_VALUES)
        order = torch.arange(0, len(views), step)
        features = self.outputs(network.eval().features, views, micro_batch_size, order)
        return features, views.labels[order].to(features.device)

    def sample(self, views: Batches, batch_size: int) -> Iterator[Inputs]:
        """Draw inputs of up to :data:`SAMPLED_IMAGES` images, always the same."""
        to_inputs = self.normalize.to_inputs
        return sample_batches(
            views, SAMPLED_IMAGES, to_inputs, self.seed, self.loader_workers, batch_size
        )

    def recalibrate(self, network: Network, norms: Sequence[_BatchNorm], views: Batches) -> None:
        """Measure norm statistics on a sample of images.

        If a batch does not fit into GPU memory, it starts over with half as many images in each.
        This changes more than rounding, because the norms see other batches; the statistics are
        means over more and smaller ones, an equally good estimate of the same.
        """

        def recalibrate(batch_size: int) -> None:
            with self.amp.autocast():
                recalibrate_batch_norms(network, self.sample(views, batch_size), norms)

        if norms:
            run_halving(recalibrate, BATCH_SIZE, MIN_BATCH, "norm statistics", self.device)
