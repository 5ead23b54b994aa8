"""About how long a race takes, told before any weights are downloaded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import nn

from autotune.config.schema import StudyConfig
from autotune.data.splits.dataset import Dataset
from autotune.models.backbone import data_config
from autotune.models.flops import FlopsProfile
from autotune.study.race.rounds import tunings

#: Speed of backbones on a CPU, as a share of that of a large convolution. Measured on one core,
#: images of their own size: 0.28 (EfficientNet-Lite0) to 0.87 (ResNet-18), 0.56 and more for the
#: six that cost the most of the list ``small``.
_SHARE = 0.6
#: A training step in passes of the same images. Measured with the same backbones: 3.0 to 4.9.
_STEP = 3.3
#: Multiply-accumulates of a GPU in a second: a ResNet-50 trained on 200 images a second.
_GPU_SPEED = 200 * 4.1e9 * _STEP
#: Seconds that a training takes besides, for its start and the head that is solved.
_START_S = 3.0
#: Images, channels, side and kernel of the convolution that is timed, and how often.
_BATCH, _CHANNELS, _SIDE, _KERNEL, _PASSES = 4, 64, 56, 3, 10


def count_macs(model: nn.Module, image_size: int | None) -> int:
    """Count the multiply-accumulates of a backbone on the meta device for one image.

    Raises:
        BackboneError: When it does not run on the meta device.
    """
    return FlopsProfile(model, (), data_config(model, image_size)["input_size"]).total


def cpu_speed() -> float:
    """Measure the multiply-accumulates that this process does in a second, in a few passes."""
    convolution = nn.Conv2d(_CHANNELS, _CHANNELS, _KERNEL, padding=1)
    images = torch.zeros(_BATCH, _CHANNELS, _SIDE, _SIDE)
    times = []
    with torch.inference_mode():
        for _ in range(_PASSES):
            start = time.perf_counter()
            convolution(images)
            times.append(time.perf_counter() - start)
    return _BATCH * _SIDE**2 * (_CHANNELS * _KERNEL) ** 2 / min(times)


def race_seconds(
    config: StudyConfig, dataset: Dataset, macs: Sequence[int], gpus: int = 0
) -> float:
    """Estimate the seconds of a race, without its downloads.

    Which backbones are tuned is not known yet, so each counts as their mean.

    Args:
        config: The study file.
        dataset: Its images.
        macs: Multiply-accumulates of each backbone for one image.
        gpus: GPUs that train; 0 for the CPU.
    """
    train, validation = len(dataset.split.train), len(dataset.split.validation)
    if dataset.folds:  # a race has one division of the same images
        train, validation = len(dataset.folds[0].train), len(dataset.folds[0].validation)
    speed = gpus * _GPU_SPEED if gpus else _SHARE * cpu_speed()
    computed, trainings = float(sum(macs) * (train + validation)), len(macs)
    for most, epochs in tunings(config, len(macs)):
        number = min(most, len(macs))
        computed += fmean(macs) * number * epochs * (_STEP * train + validation)
        trainings += number
    return computed / speed + trainings * _START_S / max(1, gpus)
