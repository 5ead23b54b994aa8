"""Mixup and CutMix: a batch of training images is mixed with itself."""

from __future__ import annotations

from torchvision.transforms import v2

from autotune.plan import TrainingPolicy


def make_mixing(policy: TrainingPolicy, classes: int) -> v2.Transform | None:
    """Make the transform that mixes a batch with itself, shifted by one image.

    It takes normalized images ``(N, C, H, W)`` and labels ``(N,)``, and returns images and the
    share of each class in them ``(N, classes)``. If mixup (Zhang et al. 2018) and CutMix (Yun et
    al. 2019) are both on, one of them is drawn for every batch. All draws (which of the two, the
    share, the box) come from torch's global generator of the CPU, wherever the images are: the
    seed of an epoch decides them, and no device waits for them.

    Returns:
        The transform, or ``None`` if nothing is mixed.
    """
    kinds = ((v2.MixUp, policy.mixup), (v2.CutMix, policy.cutmix))
    chosen = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
    return v2.RandomChoice(chosen) if chosen else None
