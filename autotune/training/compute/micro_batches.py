"""Batches that nothing is learnt from, in smaller parts where the memory of a GPU gives out.

A training that does not fit starts again with fewer images at a time. Here that is not needed:
features, validation and norm statistics go on with the batch at hand. In evaluation mode every
image is computed by itself, so parts differ from the whole by rounding alone: another batch size
may choose another kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from autotune.models.device_errors import is_out_of_memory
from autotune.training.inputs.batches import Inputs, micro_batches

logger = logging.getLogger(__name__)

T = TypeVar("T")


class MicroBatcher:
    """In how many parts batches go through a network: in twice as many where memory gives out.

    Args:
        what: What is computed, for the log: ``features``.
        device: Where.

    Attributes:
        parts: Parts of a batch; the batches to come have as many.
    """

    def __init__(self, what: str, device: torch.device) -> None:
        self.what = what
        self.device = device
        self.parts = 1

    def run(self, work: Callable[[Inputs], T], batch: Inputs) -> list[T]:
        """Compute something of a batch, part by part.

        Args:
            work: What to compute of images.
            batch: Images ``(N, ...)``, or a tuple of tensors of them.

        Returns:
            What comes of each part, in order; of one part where memory suffices.

        Raises:
            RuntimeError: When not even one image fits.
        """
        images = len(batch[0] if isinstance(batch, tuple) else batch)
        while True:
            parts = max(1, min(self.parts, images))
            try:
                return [work(some) for some in micro_batches(batch, parts)]
            except RuntimeError as error:
                if parts >= images or not is_out_of_memory(error):
                    raise
            # Outside of the except block, which would keep the frames and their tensors alive.
            self.parts = 2 * parts
            logger.warning(
                "%s: %d images at a time do not fit into the memory of the device; going on with "
                "parts of %d",
                self.what,
                -(-images // parts),
                -(-images // self.parts),
            )
            empty_cache(self.device)


def run_halving(
    work: Callable[[int], T], count: int, least: int, what: str, device: torch.device
) -> T:
    """Do something with so many images at a time, from its beginning with half as many.

    Args:
        work: What to do, told how many images go through a network at a time.
        count: How many at first.
        least: Fewer are not tried.
        what: What is done, for the log.
        device: Where.

    Raises:
        RuntimeError: When not even so few fit.
    """
    while True:
        try:
            return work(count)
        except RuntimeError as error:
            if count <= least or not is_out_of_memory(error):
                raise
        logger.warning(
            "%s: %d images at a time do not fit into the memory of the device; beginning again "
            "with %d",
            what,
            count,
            max(least, count // 2),
        )
        count = max(least, count // 2)
        empty_cache(device)


def empty_cache(device: torch.device) -> None:
    """Give back what the allocator of a GPU keeps for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
