"""Whether the network of a trial is split, and from which cut its features are computed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autotune.config.schema import ONLINE, StudyConfig
from autotune.errors import SplitError
from autotune.models.layers import list_layers
from autotune.models.network import Network, build_network
from autotune.models.prefix.split import PrefixSplit, split_network
from autotune.plan import LayerPlan, TrialPlan
from autotune.study.trial.amp_choice import keep_in_float32
from autotune.study.trial.context import CountingArrayCache, WorkerContext
from autotune.training.compute.amp import AmpPolicy
from autotune.training.features import FeatureCache, Features, bytes_per_image
from autotune.training.folds import CrossValidationTrainer, trainers_of
from autotune.training.optim.norm_recalibration import sample_batches
from autotune.training.trainer import Trainer

if TYPE_CHECKING:
    from autotune.study.setup.resources import BackboneResources

logger = logging.getLogger(__name__)

#: Images from which a split learns what crosses it.
_IMAGES = 2
#: Largest size of the features of a root, as a multiple of the bytes of its images; a larger root
#: is not worth its space. ViT-B has 2.01, ResNet-50 before its last stage 2.7.
_LARGEST_ROOT = 4.0


def use_features(
    training: Trainer | CrossValidationTrainer,
    plan: TrialPlan,
    resources: BackboneResources,
    ctx: WorkerContext,
) -> str:
    """Let a training start from cached features if its network can be split.

    Folds share the features of all images, which are computed together.

    Returns:
        Why the backbone cannot be split, or an empty string.
    """
    trainer, key = trainers_of(training)[0], plan.images[:2]
    try:
        split = find_split(
            trainer.network,
            lambda: _sample(trainer),
            ctx.config,
            trainer.amp,
            is_mixed=trainer.mixing is not None,
        )
    except SplitError as error:
        if key not in ctx.root_splits:
            logger.warning("%s trains whole: %s", plan.backbone, error)
            ctx.root_splits[key] = None
        return str(error)
    if split is None:
        return ""
    if key not in ctx.root_splits:
        ctx.root_splits[key] = _find_root(trainer, plan, resources, ctx)
    cache = FeatureCache(
        CountingArrayCache(ctx.handle.files.cache, ctx.config.cache.disk_bytes, ctx.stats),
        resources.backbone.weights_hash,
        trainer.normalize,
        trainer.amp,
        ctx.root_splits[key],
        ctx.loader_workers,
        # Features of a trial that ran out of memory stay on the disk.
        on_device=trainer.micro_batch_size >= ctx.config.training.batch_size,
    )
    is_online = ctx.config.training.num_views == ONLINE
    together = isinstance(training, CrossValidationTrainer)
    training.use_features(
        split,
        Features(cache, split, resources.train, is_online, together),
        Features(cache, split, resources.validation, together=together),
    )
    return ""


def find_split(
    network: Network,
    images: Callable[[], Tensor],
    config: StudyConfig,
    amp: AmpPolicy,
    *,
    is_mixed: bool,
) -> PrefixSplit | None:
    """Split a network whose trainings start from cached features; ``None`` if they do not.

    Mixed images (mixup, CutMix) differ in every step, so their features are not cached.

    Args:
        network: The network.
        images: Returns normalized images ``(N, C, H, W)``, from which the split learns what
            crosses it.
        config: The study.
        amp: Mixed precision of the training.
        is_mixed: Whether the training mixes its images.

    Raises:
        SplitError: When the network cannot be split.
    """
    if config.cache.features == "off" or is_mixed:
        return None
    sample = images()
    with amp.autocast():  # so that the types at the cut are those of the training
        split = split_network(network, sample)
    return None if split.is_trivial else split


def _sample(trainer: Trainer) -> Tensor:
    return next(sample_batches(trainer.raw_train, _IMAGES, trainer.normalize, seed=0))


def _find_root(
    trainer: Trainer, plan: TrialPlan, resources: BackboneResources, ctx: WorkerContext
) -> PrefixSplit | None:
    """Split the backbone as the deepest plan of the study does, or later if that is too large."""
    backbone, size = resources.backbone, resources.data.spec.size
    depth = min(ctx.space.max_depth, len(list_layers(backbone.fresh())))
    while depth > 0:
        unchanged = TrialPlan(plan.backbone, depth, (LayerPlan(),) * depth)
        network = build_network(backbone, unchanged, trainer.network.head.classes, seed=0)
        network.to(trainer.device).to(memory_format=torch.channels_last)
        keep_in_float32(network, ctx, resources, trainer.amp)
        try:
            split = find_split(
                network, lambda: _sample(trainer), ctx.config, trainer.amp, is_mixed=False
            )
        except SplitError as error:
            logger.info("%s has no root at depth %d: %s", plan.backbone, depth, error)
        else:
            if split is not None and bytes_per_image(split) <= _LARGEST_ROOT * prod(
                (3, size, size)
            ):
                return split
        depth = depth * 3 // 4  # tries few depths of a deep space
    return None
