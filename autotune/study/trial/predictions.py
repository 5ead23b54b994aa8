"""What a network predicts for single images: a table, a sheet of the worst, heat maps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from autotune.data.views.views import Views
from autotune.models.heat_maps import NoHeatMapError, can_draw, heat_maps
from autotune.study.setup.resources import BackboneResources
from autotune.study.state import oom
from autotune.study.state.predictions import (
    PREDICTIONS,
    TOP,
    VALIDATION_LOGITS,
    ImagePrediction,
    ValidationLogits,
    to_csv,
)
from autotune.study.trial.build import AnyTrainer
from autotune.study.trial.plots import draw_heat_maps, draw_worst, worst
from autotune.training.folds import trainers_of
from autotune.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Predicted:
    """Logits of the images of a split.

    Args:
        views: The images.
        logits: ``(N, classes)``.
        classes: Names of the classes.
        trainers: Who has predicted which positions; ``None`` for all.
    """

    views: Views
    logits: Tensor
    classes: Sequence[str]
    trainers: Sequence[tuple[Trainer, Tensor | None]] = ()

    @staticmethod
    def of_trial(training: AnyTrainer, resources: BackboneResources) -> Predicted:
        """Return what a trial has predicted in its last validation.

        With folds, each image is predicted by the network that has not trained on it.
        """
        logits, data = training.validation_logits, resources.data
        assert logits is not None, "the trial was validated"
        positions: list[Tensor | None] = [torch.from_numpy(fold.validation) for fold in data.folds]
        positions = positions or [None]
        trainers = tuple(zip(trainers_of(training), positions, strict=True))
        return Predicted(resources.validation, logits, data.classes, trainers)

    def write(self, folder: Path, baseline: Tensor | None = None) -> list[Path]:
        """Write all files into a folder: table, worst images, heat maps if they can be drawn."""
        table = folder / PREDICTIONS
        table.write_text(self.to_csv(baseline), "utf-8")
        return [table, self.draw_worst(folder), *self.draw_heat_maps(folder)]

    def to_csv(self, baseline: Tensor | None = None) -> str:
        """Return the table, the highest loss first."""
        views = self.views
        rows = predict_rows(views.keys, self.logits, views.labels, self.classes, baseline)
        return to_csv([row.to_row() for row in rows])

    def write_logits(self, folder: Path) -> Path:
        """Write the logits of all images, see :class:`ValidationLogits`."""
        values = ValidationLogits(
            np.array(self.views.keys),
            self.views.labels.cpu().numpy(),
            self.logits.float().cpu().numpy(),
        )
        return values.write(folder / VALIDATION_LOGITS)

    def draw_worst(self, folder: Path) -> Path:
        """Draw the images with the highest loss."""
        images = worst(self.logits, self.views.labels)
        views = [self.views.view(image.position, 0) for image in images]
        names = [self.views.keys[image.position] for image in images]
        return draw_worst(folder, images, views, names, self.classes)

    def draw_heat_maps(self, folder: Path) -> list[Path]:
        """Draw what speaks for the predicted class in the images with the highest loss.

        Nothing is drawn where captum is not installed, or the network, such as an ensemble, has no
        heat map.
        """
        if not can_draw() or not self.trainers:
            return []
        images = worst(self.logits, self.views.labels)
        maps: dict[int, Tensor] = {}
        try:
            for trainer, positions in self.trainers:
                own = [
                    image
                    for image in images
                    if positions is None or bool((positions == image.position).any())
                ]
                if own:
                    pixels = torch.stack([self.views.view(image.position, 0) for image in own])
                    inputs, targets = trainer.normalize(pixels), [one.predicted for one in own]
                    found = heat_maps(trainer.eval_model, inputs, targets)
                    maps |= {one.position: map for one, map in zip(own, found, strict=True)}
        except (NoHeatMapError, torch.OutOfMemoryError) as error:
            logger.info("no heat maps are drawn: %s", error)
            return []
        finally:
            oom.release_memory(self.trainers[0][0].device)
        views = [self.views.view(image.position, 0) for image in images]
        return [draw_heat_maps(folder, images, views, [maps[one.position] for one in images])]


def predict_rows(
    paths: Sequence[str],
    logits: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    baseline: Tensor | None = None,
) -> list[ImagePrediction]:
    """Return what was predicted for each image, the highest loss first.

    Args:
        paths: Names of the images.
        logits: ``(N, classes)``.
        labels: ``(N,)``.
        classes: Names of the classes.
        baseline: Logits of the baseline for the same images.
    """
    labels = labels.cpu()
    logits = logits.cpu().float()
    losses = cross_entropy(logits, labels, reduction="none")
    shares = logits.softmax(dim=1)
    of_label = shares.gather(1, labels[:, None])[:, 0].tolist()
    best = shares.topk(min(TOP, len(classes)))
    tops = [
        tuple((classes[index], share) for index, share in zip(indices, values, strict=True))
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    others: list[tuple[str, float] | None] = [None] * len(paths)
    if baseline is not None:
        baseline = baseline.cpu().float()
        share = baseline.softmax(dim=1).gather(1, labels[:, None])[:, 0].tolist()
        others = [
            (classes[index], value)
            for index, value in zip(baseline.argmax(dim=1).tolist(), share, strict=True)
        ]
    values, numbers = losses.tolist(), labels.tolist()
    return [
        ImagePrediction(
            paths[row], classes[numbers[row]], values[row], of_label[row], tops[row], others[row]
        )
        for row in losses.argsort(descending=True, stable=True).tolist()
    ]
