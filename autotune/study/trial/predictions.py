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
    WORST,
    ImagePrediction,
    ValidationLogits,
    to_csv,
)
from autotune.study.trial.build import AnyTrainer
from autotune.study.trial.plots import draw_heat_maps, draw_worst
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
        return to_csv([row.to_row() for row in self._rows(baseline)])

    def _rows(
        self, baseline: Tensor | None = None, count: int | None = None
    ) -> list[ImagePrediction]:
        views = self.views
        return predict_rows(views.keys, self.logits, views.labels, self.classes, baseline, count)

    def _worst(self) -> tuple[Tensor, list[Tensor]]:
        """Return the positions of the images with the highest loss, and their views."""
        positions = highest_loss_first(self.logits, self.views.labels)[:WORST]
        return positions, [self.views.view(position, 0) for position in positions.tolist()]

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
        _, views = self._worst()
        return draw_worst(folder, self._rows(count=WORST), views)

    def draw_heat_maps(self, folder: Path) -> list[Path]:
        """Draw what speaks for the predicted class in the images with the highest loss.

        Nothing is drawn where captum is not installed, or the network, such as an ensemble, has no
        heat map.
        """
        if not can_draw() or not self.trainers:
            return []
        worst, views = self._worst()
        predicted = self.logits.cpu()[worst].argmax(dim=1)
        maps: dict[int, Tensor] = {}
        try:
            for trainer, positions in self.trainers:
                own = [
                    place
                    for place, position in enumerate(worst)
                    if positions is None or position in positions
                ]
                if own:
                    inputs = trainer.normalize(torch.stack([views[place] for place in own]))
                    found = heat_maps(trainer.eval_model, inputs, predicted[own].tolist())
                    maps |= dict(zip(own, found, strict=True))
        except (NoHeatMapError, torch.OutOfMemoryError) as error:
            logger.info("no heat maps are drawn: %s", error)
            return []
        finally:
            oom.release_memory(self.trainers[0][0].device)
        return [draw_heat_maps(folder, views, [maps[place] for place in range(len(views))])]


def highest_loss_first(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the positions of images ``(N,)`` on the CPU, that with the highest loss first."""
    # In single precision: of 50,000 images and 1,000 classes, double takes 0.4 GB and a second.
    losses = cross_entropy(logits.cpu().float(), labels.cpu(), reduction="none")
    return losses.argsort(descending=True, stable=True)


def predict_rows(
    paths: Sequence[str],
    logits: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    baseline: Tensor | None = None,
    count: int | None = None,
) -> list[ImagePrediction]:
    """Return what was predicted for each image, the highest loss first.

    Args:
        paths: Names of the images.
        logits: ``(N, classes)``.
        labels: ``(N,)``.
        classes: Names of the classes.
        baseline: Logits of the baseline for the same images.
        count: Most images to return; ``None`` for all.
    """
    order = highest_loss_first(logits, labels)[:count]
    logits, labels = logits.cpu()[order].float(), labels.cpu()[order]

    def of_label(shares: Tensor) -> list[float]:
        return list(shares.gather(1, labels[:, None])[:, 0].tolist())

    losses = cross_entropy(logits, labels, reduction="none").tolist()
    shares = logits.softmax(dim=1)
    true_shares = of_label(shares)
    best = shares.topk(min(TOP, len(classes)))
    tops = [
        tuple((classes[index], share) for index, share in zip(indices, values, strict=True))
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    others: list[tuple[str, float] | None] = [None] * len(order)
    if baseline is not None:
        baseline = baseline.cpu()[order].float()
        names = [classes[index] for index in baseline.argmax(dim=1).tolist()]
        others = [*zip(names, of_label(baseline.softmax(dim=1)), strict=True)]
    return [
        ImagePrediction(
            paths[position], classes[label], losses[row], true_shares[row], tops[row], others[row]
        )
        for row, (position, label) in enumerate(zip(order.tolist(), labels.tolist(), strict=True))
    ]
