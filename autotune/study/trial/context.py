"""What a worker has at hand for all of its trials."""

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
    """What a worker has at hand for all of its trials.

    Args:
        handle: The study.
        config: Its configuration.
        space: Its static space.
        materials: Backbones and images.
        device: Where networks train.
        loader_workers: Processes that prepare images which do not fit into memory.
        roots: Of the backbones that were met, the cuts from which features are computed.
        tally: What the worker has computed to be kept.
        wrong: Of the operations that were met, whether half precision gets them wrong here.
    """

    handle: OpenStudy
    config: StudyConfig
    space: Space
    resources: ResourceCache
    device: torch.device
    loader_workers: int
    root_splits: dict[str, PrefixSplit | None] = field(default_factory=dict)
    stats: CacheStats = field(default_factory=CacheStats)
    wrong: dict[str, bool] = field(default_factory=dict)
