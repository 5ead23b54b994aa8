"""What a worker needs for all of its trials."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from autotune.config.schema import StudyConfig
from autotune.models.prefix.split import PrefixSplit
from autotune.search.space import Space
from autotune.study.setup.opening import OpenStudy
from autotune.study.setup.resources import ResourceCache
from autotune.study.trial.cache_stats import CacheStats


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
        root_splits: Per backbone, the split whose features those of all other splits come from.
        stats: What the worker has computed for the cache.
        wrong_in_half: Per operation, whether this machine computes it wrongly in half precision.
    """

    handle: OpenStudy
    config: StudyConfig
    space: Space
    resources: ResourceCache
    device: torch.device
    loader_workers: int
    root_splits: dict[str, PrefixSplit | None] = field(default_factory=dict)
    stats: CacheStats = field(default_factory=CacheStats)
    wrong_in_half: dict[str, bool] = field(default_factory=dict)
