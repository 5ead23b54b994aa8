"""What a worker has at hand for all of its trials."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from autotune.config.schema import StudyConfig
from autotune.models.prefix.split import PrefixSplit
from autotune.search.space import Space
from autotune.study.setup.opening import OpenStudy
from autotune.study.setup.resources import Materials
from autotune.study.trial.cache_stats import Tally


@dataclass(frozen=True)
class Workbench:
    """What a worker has at hand for all of its trials.

    Args:
        opened: The study.
        config: Its configuration.
        space: Its static space.
        materials: Backbones and images.
        device: Where networks train.
        loader_workers: Processes that prepare images which do not fit into memory.
        roots: Of the backbones that were met, the cuts from which features are computed.
        tally: What the worker has computed to be kept.
        wrong: Of the operations that were met, whether half precision gets them wrong here.
    """

    opened: OpenStudy
    config: StudyConfig
    space: Space
    materials: Materials
    device: torch.device
    loader_workers: int
    roots: dict[str, PrefixSplit | None] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    wrong: dict[str, bool] = field(default_factory=dict)
