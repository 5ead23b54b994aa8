"""What a trial trains: a network, or one a fold.

plan -> network -> precision -> training, on images or on features of them
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from autotune.data.views.augmentation import mix_seed
from autotune.data.views.views import Views
from autotune.models.network import build_network
from autotune.plan import TrialPlan
from autotune.study.trial.amp_choice import keep_in_float32, precision_of
from autotune.study.trial.context import Workbench
from autotune.study.trial.feature_reuse import use_features
from autotune.training.folds import Folds
from autotune.training.inputs.batches import Batches, Some
from autotune.training.optim.norm_recalibration import sample
from autotune.training.trainer import Normalise, Training

#: Training images on which `inherit: data` measures how active channels are.
ACTIVITY_IMAGES = 64


def prepare_trial(
    plan: TrialPlan,
    bench: Workbench,
    stopped: Callable[[], bool] = lambda: False,
    part: int | None = None,
    seed: int | None = None,
) -> Training | Folds:
    """Build what a trial trains: one network, or one for every fold; see prepare_training."""
    material = bench.materials.of(plan.backbone)
    cut = material.task.folds
    if not cut:
        return prepare_training(plan, bench, stopped, part=part, seed=seed)
    folds = Folds(
        (
            prepare_training(plan, bench, stopped, part=part, fold=one, seed=seed)
            for one in range(len(cut))
        ),
        [torch.from_numpy(one.train) for one in cut],
        [torch.from_numpy(one.validation) for one in cut],
    )
    folds.whole = use_features(folds, plan, material, bench)
    return folds


def prepare_training(
    plan: TrialPlan,
    bench: Workbench,
    stopped: Callable[[], bool] = lambda: False,
    refit: Views | None = None,
    part: int | None = None,
    fold: int | None = None,
    seed: int | None = None,
) -> Training:
    """Build the network of a plan and everything that trains it.

    All trials of a study share one training seed: they differ by their plans, not by luck with
    the order of the batches.

    Args:
        plan: The plan.
        bench: What the worker has at hand.
        stopped: Asked after every batch; true interrupts the training.
        refit: Images to train on in place of the study's training part, without validation.
        part: Images that go through the network at a time, see :class:`Training`.
        fold: Which fold, in a study with folds: it has a seed of its own for all but the weights
            that training starts from.
        seed: Another training seed than the study's: other initial weights, order of the images
            and dropout. The views stay those of the study, so that its features serve.
    """
    seed = bench.config.search.seed if seed is None else seed
    material = bench.materials.of(plan.backbone)
    train: Batches = material.train if refit is None else refit
    validation: Batches | None = material.validation if refit is None else None
    assert refit is not None or fold is not None or not material.task.folds, "which fold?"
    if fold is not None:
        cut = material.task.folds[fold]
        train = Some(material.train, torch.from_numpy(cut.train))
        validation = Some(material.validation, torch.from_numpy(cut.validation))
    data_config = material.backbone.data_config
    to_cpu = Normalise.of(data_config, torch.device("cpu"))
    autocast = precision_of(bench, material)
    network = build_network(
        material.backbone,
        plan,
        len(material.task.classes),
        seed,
        lambda: next(sample(train, ACTIVITY_IMAGES, to_cpu, seed)),
    )
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    network.to(bench.device).to(memory_format=torch.channels_last)  # see in_channels_last
    autocast = keep_in_float32(network, bench, material, autocast)
    training = Training(
        network,
        plan.policy,
        bench.config.training,
        train,
        validation,
        Normalise.of(data_config, bench.device),
        seed if fold is None else mix_seed(seed, fold),
        stopped,
        bench.loader_workers,
        part,
        autocast,
        graphs=bench.config.cache.cuda_graphs != "off",
    )
    if refit is None and fold is None:
        training.whole = use_features(training, plan, material, bench)
    return training
