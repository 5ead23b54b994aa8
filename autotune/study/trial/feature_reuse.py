"""Whether a trial's network is split, and from which cut its features are computed."""

from __future__ import annotations

import logging
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autotune.config.schema import ONLINE
from autotune.errors import SplitError
from autotune.models.layers import list_layers
from autotune.models.network import build_network
from autotune.models.prefix.split import PrefixSplit, split_network
from autotune.plan import LayerPlan, TrialPlan
from autotune.study.trial.amp_choice import keep_in_float32
from autotune.study.trial.cache_stats import CountingArrayCache
from autotune.training.features import FeatureCache, Features, bytes_per_image
from autotune.training.folds import CrossValidationTrainer, trainers_of
from autotune.training.optim.norm_recalibration import sample_batches
from autotune.training.trainer import Trainer

if TYPE_CHECKING:
    from autotune.study.setup.resources import BackboneResources
    from autotune.study.trial.context import WorkerContext

logger = logging.getLogger(__name__)

#: Images from which a split learns what crosses it.
_IMAGES = 2
#: A root whose features take more than so many times the bytes of its images is not worth its
#: space. ViT-B takes 2.01 times as much, ResNet-50 before its last stage 2.7.
_LARGEST_ROOT = 4.0


def use_features(
    whole: Trainer | CrossValidationTrainer,
    plan: TrialPlan,
    material: BackboneResources,
    ctx: WorkerContext,
) -> str:
    """Have a training go on from features that are kept, where its network can be split.

    Mixed images (mixup, CutMix) are other images in every step: their features cannot be kept.
    Folds share theirs: those of all images are computed together.

    Args:
        whole: The training, or those of all folds; before its first epoch.
        plan: Its plan.
        material: Backbone and images.
        ctx: What the worker has at hand.

    Returns:
        Why its backbone cannot be split, or an empty string.
    """
    training = trainers_of(whole)[0]
    if ctx.config.cache.features == "off" or training.mixing is not None:
        return ""
    try:
        with training.amp.autocast():  # the types of what crosses are those of the training
            found = split_network(training.network, _images(training))
    except SplitError as error:
        if plan.backbone not in ctx.root_splits:
            logger.warning("%s trains whole: %s", plan.backbone, error)
            ctx.root_splits[plan.backbone] = None
        return str(error)
    if found.is_trivial:
        return ""
    if plan.backbone not in ctx.root_splits:
        ctx.root_splits[plan.backbone] = _root(training, plan, material, ctx)
    files, limit = ctx.handle.files, ctx.config.cache.disk_bytes
    cache = FeatureCache(
        CountingArrayCache(files.cache, limit, ctx.stats),
        material.backbone.weights_hash,
        training.normalize,
        training.amp,
        ctx.root_splits[plan.backbone],
        ctx.loader_workers,
        # Of a trial that ran out of memory they stay on the disk.
        on_device=training.micro_batch_size >= ctx.config.training.batch_size,
    )
    online, together = (
        ctx.config.training.views == ONLINE,
        isinstance(whole, CrossValidationTrainer),
    )
    whole.use_features(
        found,
        Features(cache, found, material.train, online, together),
        Features(cache, found, material.validation, together=together),
    )
    return ""


def _images(training: Trainer) -> Tensor:
    """Return some training images as the network takes them."""
    return next(sample_batches(training.raw_train, _IMAGES, training.normalize, seed=0))


def _root(
    training: Trainer, plan: TrialPlan, material: BackboneResources, ctx: WorkerContext
) -> PrefixSplit | None:
    """Cut the backbone as the deepest plan of the study does, or later where that is large."""
    backbone, space = material.backbone, ctx.space
    depth = min(space.max_depth, len(list_layers(backbone.fresh())))
    size = prod((3, material.task.spec.size, material.task.spec.size))
    while depth > 0:
        unchanged = TrialPlan(plan.backbone, depth, (LayerPlan(),) * depth)
        network = build_network(backbone, unchanged, training.network.head.classes, seed=0)
        network.to(training.device).to(memory_format=torch.channels_last)
        keep_in_float32(network, ctx, material, training.amp)
        try:
            with training.amp.autocast():
                found = split_network(network, _images(training))
        except SplitError as error:
            logger.info("%s has no root at depth %d: %s", plan.backbone, depth, error)
        else:
            if not found.is_trivial and bytes_per_image(found) <= _LARGEST_ROOT * size:
                return found
        depth = depth * 3 // 4  # of a deep space, few are tried
    return None
