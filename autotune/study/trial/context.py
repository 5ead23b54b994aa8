"""What a worker needs for all of its trials: the study, its images and weights, a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from autotune.config.schema import StudyConfig
from autotune.data.cache.array_cache import ArrayCache
from autotune.data.cache.entry import Entry, EntryWriter
from autotune.errors import DiskFullError
from autotune.models.prefix.split import PrefixSplit
from autotune.runtime import limit_torch_threads, tune_malloc
from autotune.search.space import Space
from autotune.study.devices import find_device
from autotune.study.setup.opening import OpenStudy
from autotune.study.setup.resources import ResourceCache
from autotune.study.state import attrs


@dataclass
class CacheStats:
    """Counts since the last attempt at a trial began.

    Args:
        computed: Images whose features were computed. Features of a root from which those of a
            cut are computed do not count a second time.
        seconds: Time of that, with reading and augmenting the images.
        refused: How often there was no space for features.
    """

    computed: int = 0
    seconds: float = 0.0
    refused: int = 0

    def clear(self) -> None:
        """Begin to count anew."""
        self.computed, self.seconds, self.refused = 0, 0.0, 0


@dataclass(frozen=True)
class CountingArrayCache(ArrayCache):
    """An array cache that counts the features computed for it."""

    stats: CacheStats = field(default_factory=CacheStats)
    _computing: list[str] = field(default_factory=list)  # one entry may need another

    def get_or_create(
        self,
        key: str,
        make: Callable[[EntryWriter], dict[str, Any]],
        needed_bytes: int,
        noun: str = "arrays",
    ) -> Entry:
        """Return an entry, see :meth:`ArrayCache.get_or_create`."""
        seconds: list[float] = []

        def timed(writer: EntryWriter) -> dict[str, Any]:
            self._computing.append(key)
            start = time.perf_counter()
            try:
                return make(writer)
            finally:
                seconds.append(time.perf_counter() - start)
                self._computing.pop()

        try:
            entry = super().get_or_create(key, timed, needed_bytes, noun)
        except DiskFullError:
            self.stats.refused += 1
            raise
        if seconds and not self._computing:
            self.stats.computed += len(entry.array("0"))
            self.stats.seconds += seconds[0]
        return entry


@dataclass(frozen=True)
class WorkerContext:
    """What a worker needs for all of its trials.

    Args:
        handle: The study.
        config: Its configuration.
        space: Its static space.
        resources: Backbones and images.
        device: Where networks train.
        loader_workers: Processes that prepare images which do not fit into memory.
        root_splits: Per backbone and image size, the split from whose features all others come.
        stats: What the worker has computed for the cache.
        wrong_in_half: Per operation, whether this machine computes it wrongly in half precision.
    """

    handle: OpenStudy
    config: StudyConfig
    space: Space
    resources: ResourceCache
    device: torch.device
    loader_workers: int
    root_splits: dict[tuple[str, int | None], PrefixSplit | None] = field(default_factory=dict)
    stats: CacheStats = field(default_factory=CacheStats)
    wrong_in_half: dict[str, bool] = field(default_factory=dict)


def build_context(
    handle: OpenStudy,
    workers: int = 1,
    gpu: str | None = None,
    config: StudyConfig | None = None,
) -> WorkerContext:
    """Prepare what a worker needs for the trials of a study.

    Args:
        handle: The study.
        workers: Number of workers that share the memory of this machine.
        gpu: See :func:`autotune.study.devices.find_device`.
        config: Its configuration with other limits; default: as it is stored.

    Raises:
        DeviceError: When a GPU is required and cannot be used.
        StudyError: When the images or the weights are not those of the study.
    """
    device = find_device(gpu)  # first: it fails fast
    tune_malloc()
    limit_torch_threads()
    config = config or handle.config()
    # Processes render views that do not fit into memory beside a GPU; on the CPU they would only
    # take the cores from the training.
    loader_workers = min(8, torch.get_num_threads()) if device.type == "cuda" else 0
    resources = ResourceCache(handle, config, workers)
    # Of several backbones or image sizes, a worker may never train some.
    if len(config.backbones) == 1 and not config.image_dimensions:
        resources.get(config.backbones[0])
    space = attrs.study_space(handle.study)
    return WorkerContext(handle, config, space, resources, device, loader_workers)
