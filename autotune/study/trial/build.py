"""What a trial trains: a network, or one a fold.

plan -> network -> precision -> training, on images or on features of them
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from autotune.data.views.views import Views, mix_seed
from autotune.models.network import build_network
from autotune.plan import TrialPlan
from autotune.study.trial.amp_choice import choose_precision, keep_in_float32
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.feature_reuse import use_features
from autotune.training.folds import CrossValidationTrainer
from autotune.training.inputs.batches import Batches, SubsetBatches
from autotune.training.optim.norm_recalibration import sample_batches
from autotune.training.trainer import Normalizer, Trainer

#: Training images on which `inherit: data` measures how active channels are.
ACTIVITY_IMAGES = 64


def build_trial(
    plan: TrialPlan,
    ctx: WorkerContext,
    stopped: Callable[[], bool] = lambda: False,
    micro_batch_size: int | None = None,
    seed: int | None = None,
) -> Trainer | CrossValidationTrainer:
    """Build what a trial trains: one network, or one for every fold; see build_trainer."""
    material = ctx.resources.of(plan.backbone)
    cut = material.task.folds
    if not cut:
        return build_trainer(plan, ctx, stopped, micro_batch_size=micro_batch_size, seed=seed)
    folds = CrossValidationTrainer(
        (
            build_trainer(
                plan, ctx, stopped, micro_batch_size=micro_batch_size, fold=one, seed=seed
            )
            for one in range(len(cut))
        ),
        [torch.from_numpy(one.train) for one in cut],
        [torch.from_numpy(one.validation) for one in cut],
    )
    folds.unsplit_reason = use_features(folds, plan, material, ctx)
    return folds


def build_trainer(
    plan: TrialPlan,
    ctx: WorkerContext,
    stopped: Callable[[], bool] = lambda: False,
    refit: Views | None = None,
    micro_batch_size: int | None = None,
    fold: int | None = None,
    seed: int | None = None,
) -> Trainer:
    """Build the network of a plan and everything that trains it.

    All trials of a study share one training seed: they differ by their plans, not by luck with
    the order of the batches.

    Args:
        plan: The plan.
        ctx: What the worker has at hand.
        stopped: Asked after every batch; true interrupts the training.
        refit: Images to train on in place of the study's training part, without validation.
        micro_batch_size: Images that go through the network at a time, see :class:`Trainer`.
        fold: Which fold, in a study with folds: it has a seed of its own for all but the weights
            that training starts from.
        seed: Another training seed than the study's: other initial weights, order of the images
            and dropout. The views stay those of the study, so that its features serve.
    """
    seed = ctx.config.search.seed if seed is None else seed
    material = ctx.resources.of(plan.backbone)
    train: Batches = material.train if refit is None else refit
    validation: Batches | None = material.validation if refit is None else None
    assert refit is not None or fold is not None or not material.task.folds, "which fold?"
    if fold is not None:
        cut = material.task.folds[fold]
        train = SubsetBatches(material.train, torch.from_numpy(cut.train))
        validation = SubsetBatches(material.validation, torch.from_numpy(cut.validation))
    data_config = material.backbone.data_config
    to_cpu = Normalizer.from_config(data_config, torch.device("cpu"))
    autocast = choose_precision(ctx, material)
    network = build_network(
        material.backbone,
        plan,
        len(material.task.classes),
        seed,
        lambda: next(sample_batches(train, ACTIVITY_IMAGES, to_cpu, seed)),
    )
    if ctx.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ctx.device)
    network.to(ctx.device).to(memory_format=torch.channels_last)  # see to_channels_last
    autocast = keep_in_float32(network, ctx, material, autocast)
    training = Trainer(
        network,
        plan.policy,
        ctx.config.training,
        train,
        validation,
        Normalizer.from_config(data_config, ctx.device),
        seed if fold is None else mix_seed(seed, fold),
        stopped,
        ctx.loader_workers,
        micro_batch_size,
        autocast,
        cuda_graphs=ctx.config.cache.cuda_graphs != "off",
    )
    if refit is None and fold is None:
        training.unsplit_reason = use_features(training, plan, material, ctx)
    return training
