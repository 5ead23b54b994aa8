"""Parameters of which each optimizer has its own where several are searched.

A value that suits one optimizer is useless for another. So a search over AdamW and SGD has
``training.lr.adamw`` and ``training.lr.sgd`` instead of ``training.lr``, each with its own range,
and likewise ``training.weight_decay``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autotune.config.schema import AUTO, OPTIMIZERS

LR, WEIGHT_DECAY = "training.lr", "training.weight_decay"
#: Peak learning rates with which a whole pretrained network is fine-tuned, for batches of about
#: 64. AdamW: 1e-3 for batches of 256, scaled linearly (He et al. 2022, Masked Autoencoders, table
#: 9, which tunes with layer decay as well). SGD: the value of most fine-tuning studies (Li et al.
#: 2020, Rethinking the Hyperparameters for Fine-tuning, section 1), between the 0.003 of BiT
#: (Kolesnikov et al. 2020, section 3.3) and the 0.03 with which Steiner et al. 2021 (How to train
#: your ViT?, table 4) end their sweep. Adagrad: that of AutoTune (Basha et al. 2020).
FINE_TUNING_LR = {"adamw": 3e-4, "sgd": 1e-2, "adagrad": 1e-2}
#: Learning rate of a new head relative to the layers fine-tuned below it (Long et al. 2015,
#: Learning Transferable Features with Deep Adaptation Networks, section 4.1).
HEAD_FACTOR = 10.0
#: Rates of the head that ``auto`` searches: from a third of what a whole network is tuned with to
#: three times that of a new head. SGD: so it has the grids of Kornblith et al. 2019 (Do Better
#: ImageNet Models Transfer Better?, appendix A: 1e-4 to 0.1, of which ``backbone_lr`` gives the
#: layers the lower ones) and Steiner et al. 2021 (1e-3 to 0.03). Adagrad: a decade around
#: AutoTune's 0.01.
LR_RANGES: dict[str, dict[str, Any]] = {
    "adamw": {"low": 1e-4, "high": 1e-2, "log": True},
    "sgd": {"low": 3e-3, "high": 3e-1, "log": True},
    "adagrad": {"low": 1e-3, "high": 1e-1, "log": True},
}
#: Weight decays that ``auto`` searches; the low ends are next to none. AdamW decays the weights
#: by ``lr * weight_decay`` in each step, apart from the gradient (Loshchilov and Hutter 2019):
#: around the 0.05 of fine-tuning (He et al. 2022, Masked Autoencoders, table 9; Bao et al. 2022,
#: BEiT, appendix) and the 0.02 of Wightman et al. 2021 (ResNet strikes back, table 2). SGD adds
#: it to the gradient, which momentum sums up: the usual 1e-4 (Li et al. 2020, Rethinking the
#: Hyperparameters for Fine-tuning, section 3), the grid of Kornblith et al. 2019 (Do Better
#: ImageNet Models Transfer Better?, appendix A: 1e-6 to 1e-3), and a decade more for few images.
#: Adagrad: the same, since it is part of its gradient as well.
WEIGHT_DECAY_RANGES: dict[str, dict[str, Any]] = {
    "adamw": {"low": 1e-3, "high": 3e-1, "log": True},
    "sgd": {"low": 1e-6, "high": 1e-2, "log": True},
    "adagrad": {"low": 1e-6, "high": 1e-2, "log": True},
}
#: Parameter -> optimizer -> the range of ``auto``.
RANGES = {LR: LR_RANGES, WEIGHT_DECAY: WEIGHT_DECAY_RANGES}
assert all(set(ranges) == set(OPTIMIZERS) for ranges in RANGES.values())


def own_dimensions(parameter: str, value: Any, optimizers: Sequence[str]) -> dict[str, Any]:
    """Return the parameters of all optimizers with their dimensions.

    Args:
        parameter: A key of :data:`RANGES`.
        value: Its value in the study file: a dimension, ``auto``, or a mapping from optimizers.
        optimizers: The optimizers of the study.

    Returns:
        One for each optimizer; only ``parameter`` where all share a dimension, or there is only
        one.
    """
    if value != AUTO and not is_by_optimizer(value):
        return {parameter: value}
    given = value if isinstance(value, Mapping) else {}
    ranges = {name: given.get(name, RANGES[parameter][name]) for name in optimizers}
    if len(ranges) == 1:
        return {parameter: next(iter(ranges.values()))}
    return {f"{parameter}.{name}": dimension for name, dimension in ranges.items()}


def is_by_optimizer(value: Any) -> bool:
    """Tell whether a value of the study file names optimizers."""
    return isinstance(value, Mapping) and not value.keys() & {"low", "high"}


def own_name(names: Mapping[str, Any], parameter: str, optimizer: str) -> str:
    """Return the parameter that counts with an optimizer, among all parameters."""
    own = f"{parameter}.{optimizer}"
    return own if own in names else parameter


def shared_name(name: str) -> str:
    """Return the parameter without its optimizer: ``training.lr`` of ``training.lr.sgd``."""
    return next((shared for shared in RANGES if name.startswith(f"{shared}.")), name)


def optimizer_of(name: str) -> str:
    """Return the optimizer with which alone a parameter counts; empty for all others."""
    shared = shared_name(name)
    return "" if shared == name else name.removeprefix(f"{shared}.")


def head_lr(optimizer: str) -> float:
    """Return the rate of a new head alone: ten times that of a whole network."""
    return HEAD_FACTOR * FINE_TUNING_LR[optimizer]
