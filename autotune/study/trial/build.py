"""What a trial trains: a network, or one for every fold.

plan -> network -> precision -> trainer, on images or on their features
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from autotune.data.views.views import Views, mix_seed
from autotune.models.network import build_network
from autotune.plan import TrialPlan
from autotune.study.trial.amp_choice import choose_precision, keep_in_float32
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.feature_reuse import use_features
from autotune.training.folds import CrossValidationTrainer
from autotune.training.inputs.batches import Batches, SubsetBatches
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.optim.distillation import Teacher
from autotune.training.optim.norm_recalibration import sample_batches
from autotune.training.trainer import Trainer

#: Training images on which `init: activations` measures how active channels are.
ACTIVITY_IMAGES = 64

AnyTrainer = Trainer | CrossValidationTrainer


def build_trial_trainer(
    plan: TrialPlan,
    ctx: WorkerContext,
    stopped: Callable[[], bool] = lambda: False,
    micro_batch_size: int | None = None,
    seed: int | None = None,
    start_seed: int | None = None,
) -> AnyTrainer:
    """Build the trainer of a trial, which is one for every fold if there are folds.

    The arguments are those of :func:`build_trainer`.
    """
    resources = ctx.resources.of(plan)
    folds = resources.data.folds
    build = partial(
        build_trainer,
        plan,
        ctx,
        stopped,
        micro_batch_size=micro_batch_size,
        seed=seed,
        start_seed=start_seed,
    )
    if not folds:
        return build()
    trainer = CrossValidationTrainer(
        (build(fold=fold) for fold in range(len(folds))),
        [torch.from_numpy(fold.train) for fold in folds],
        [torch.from_numpy(fold.validation) for fold in folds],
    )
    trainer.unsplit_reason = use_features(trainer, plan, resources, ctx)
    return trainer


def build_trainer(
    plan: TrialPlan,
    ctx: WorkerContext,
    stopped: Callable[[], bool] = lambda: False,
    *,
    refit: Views | None = None,
    micro_batch_size: int | None = None,
    fold: int | None = None,
    seed: int | None = None,
    start_seed: int | None = None,
    teacher: Teacher | None = None,
) -> Trainer:
    """Build the network of a plan and everything that trains it.

    All trials of a study share one training seed, so that they differ by their plans and not by
    the order of the batches.

    Args:
        plan: The plan.
        ctx: The worker's context.
        stopped: Called after every batch; true interrupts the training.
        refit: Images to train on instead of the training split, without validation.
        micro_batch_size: Images that go through the network at a time, see :class:`Trainer`.
        fold: Number of the fold, in a study with folds. It changes the seed of everything but the
            initial weights.
        seed: Training seed; by default the study's. It decides the initial weights, the order of
            the images and dropout, but not the views, whose cached features are reused.
        start_seed: Seed of the initial weights alone, where it is another one.
        teacher: A network whose probabilities the network learns too.
    """
    seed = ctx.config.search.seed if seed is None else seed
    resources = ctx.resources.of(plan)
    train: Batches = resources.train if refit is None else refit
    validation: Batches | None = resources.validation if refit is None else None
    assert refit is not None or fold is not None or not resources.data.folds, "which fold?"
    if fold is not None:
        indices = resources.data.folds[fold]
        train = SubsetBatches(resources.train, torch.from_numpy(indices.train))
        validation = SubsetBatches(resources.validation, torch.from_numpy(indices.validation))
    data_config, cpu = resources.backbone.data_config, torch.device("cpu")
    to_cpu = Normalizer.from_config(data_config, cpu)
    amp = choose_precision(ctx, resources)
    network = build_network(
        resources.backbone,
        plan,
        len(resources.data.classes),
        seed if start_seed is None else start_seed,
        lambda: next(sample_batches(train, ACTIVITY_IMAGES, to_cpu, seed)),
    )
    if ctx.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ctx.device)
    network.to(ctx.device).to(memory_format=torch.channels_last)  # see to_channels_last
    amp = keep_in_float32(network, ctx, resources, amp)
    trainer = Trainer(
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
        amp,
        cuda_graphs=ctx.config.cache.cuda_graphs != "off",
        teacher=teacher,
    )
    if refit is None and fold is None:
        trainer.unsplit_reason = use_features(trainer, plan, resources, ctx)
    return trainer
