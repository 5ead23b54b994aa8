"""Learning rates by optimizer: where a search starts, and what it searches if nobody says."""

from __future__ import annotations

from typing import Any

LR = "training.lr"
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
assert set(LR_RANGES) == set(FINE_TUNING_LR)


def head_lr(optimizer: str) -> float:
    """Return the rate of a new head alone: ten times that of a whole network."""
    return HEAD_FACTOR * FINE_TUNING_LR[optimizer]
