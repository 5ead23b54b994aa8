"""What trials train with: a backbone, and the images as it wants them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.config import StudyConfig
from autotune.data.images import ImageSpec
from autotune.data.task import Task
from autotune.data.views import Views
from autotune.errors import StudyError
from autotune.models.backbone import Backbone, load_backbone
from autotune.study import record

if TYPE_CHECKING:
    from autotune.study.opening import OpenStudy


@dataclass(frozen=True)
class Material:
    """What the trials of one backbone train with.

    Backbones differ in the size, the interpolation and the crop of their images; which images
    there are, their labels and their split are the same for all.

    Args:
        backbone: The pretrained backbone.
        task: Training and validation images.
        train: Views of the training images.
        validation: View 0 of the validation images.
    """

    backbone: Backbone
    task: Task
    train: Views
    validation: Views


class Materials:
    """The materials of a study by backbone, each made when it is first asked for, and kept.

    Args:
        opened: The study.
        config: Its configuration.
    """

    def __init__(self, opened: OpenStudy, config: StudyConfig) -> None:
        self._opened = opened
        self._config = config
        self._made: dict[str, Material] = {}

    def of(self, backbone: str) -> Material:
        """Return what the trials of a backbone train with.

        Raises:
            StudyError: When the images or the weights are not those of the study.
        """
        if backbone not in self._made:
            self._made[backbone] = _make(self._opened, self._config, backbone)
        return self._made[backbone]


def _make(opened: OpenStudy, config: StudyConfig, name: str) -> Material:
    attributes = opened.study.user_attrs
    size = config.data.image_size
    backbone = load_backbone(name, config.weights, size)
    remembered = attributes[record.BACKBONES][name]["weights_hash"]
    if backbone.weights_hash != remembered:
        raise StudyError(
            f"the weights {config.weights!r} of {name!r} have changed since the study "
            f"{opened.name!r} was made (hash {remembered} then, {backbone.weights_hash} now)"
        )
    spec = ImageSpec.from_data_config(backbone.data_config, size)
    task = Task.open(config.dataset, config.data, spec, opened.files.cache)
    if task.info.fingerprint != attributes[record.DATASET]["fingerprint"]:
        raise StudyError(
            f"the images of {config.dataset!r} have changed since the study {opened.name!r} was "
            "made"
        )
    training = config.training
    return Material(
        backbone,
        task,
        train=task.train_views(training.augment, training.views, config.search.seed),
        validation=task.validation_views(),
    )
