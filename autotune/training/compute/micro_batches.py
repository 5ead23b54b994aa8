"""Smaller batches where the memory of a GPU is not enough and nothing is learned from the batch.

A training that does not fit starts over with fewer images at a time. Features, validation and norm
statistics need not: they continue with the batch at hand. In evaluation mode every image is
computed by itself, so smaller batches differ only by rounding: another batch size may choose
another kernel.
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
    """Splits batches into twice as many micro-batches whenever memory is not enough.

    Attributes:
        num_micro_batches: Micro-batches of a batch, also of the batches to come.
    """

    def __init__(self, what: str, device: torch.device) -> None:
        self.what = what
        self.device = device
        self.num_micro_batches = 1

    def run(self, work: Callable[[Inputs], T], batch: Inputs) -> list[T]:
        """Compute a batch, images ``(N, ...)`` or a tuple of features, and return the results.

        Returns:
            The result of each micro-batch, in order; only one if memory is enough.

        Raises:
            RuntimeError: When not even one image fits.
        """
        images = len(batch[0] if isinstance(batch, tuple) else batch)
        while True:
            parts = max(1, min(self.num_micro_batches, images))
            try:
                return [work(part) for part in micro_batches(batch, parts)]
            except RuntimeError as error:
                if parts >= images or not is_out_of_memory(error):
                    raise
            # Outside of the except block, which would keep the frames and their tensors alive.
            self.num_micro_batches = 2 * parts
            logger.warning(
                "%s: %d images at a time do not fit into device memory; continuing with %d",
                self.what,
                -(-images // parts),
                -(-images // self.num_micro_batches),
            )
            empty_cache(self.device)


def run_halving(
    work: Callable[[int], T], count: int, least: int, what: str, device: torch.device
) -> T:
    """Work with ``count`` images at a time; start over with half as many if they do not fit.

    Raises:
        RuntimeError: When not even ``least`` images fit.
    """
    while True:
        try:
            return work(count)
        except RuntimeError as error:
            if count <= least or not is_out_of_memory(error):
                raise
        smaller = max(least, count // 2)
        logger.warning(
            "%s: %d images at a time do not fit into device memory; starting over with %d",
            what,
            count,
            smaller,
        )
        count = smaller
        empty_cache(device)


def empty_cache(device: torch.device) -> None:
    """Return the unused memory of torch's allocator to a GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
