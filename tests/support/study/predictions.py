"""Predictions of single images as trials leave them: files in a folder, and references to them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from optuna.trial import FrozenTrial
from torch import Tensor

from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from autotune.study.state.predictions import PREDICTIONS, WORST, WORST_IMAGES, to_csv
from autotune.study.trial.plots import draw_worst
from autotune.study.trial.predictions import predict_rows


def with_predictions(
    results: StudyResults,
    folder: Path,
    classes: Sequence[str],
    logits: Mapping[int, Tensor],
    labels: Tensor,
    paths: Sequence[str] | None = None,
) -> StudyResults:
    """Return a study whose trials of some numbers have predictions for the same images.

    Args:
        results: The study.
        folder: Folder for its artifacts.
        classes: The names of its classes.
        logits: By the number of the trial, ``(N, classes)``.
        labels: ``(N,)``.
        paths: Names of the images.
    """
    names = paths or [f"{classes[label]}/{i}.jpg" for i, label in enumerate(labels.tolist())]
    trials = list(results.trials)
    for number, values in logits.items():
        rows = predict_rows(names, values, labels, classes)
        own = folder / str(number)
        own.mkdir()
        (own / PREDICTIONS).write_text(to_csv([row.to_row() for row in rows]), "utf-8")
        worst = rows[:WORST]
        views = [torch.full((3, 8, 8), 10 * n, dtype=torch.uint8) for n in range(len(worst))]
        draw_worst(own, worst, views)
        trials[number] = _refer(
            trials[number], [f"{number}/{PREDICTIONS}", f"{number}/{WORST_IMAGES}"]
        )
    dataset = {**results.dataset, "classes": list(classes)}
    attributes = {**results.attributes, attrs.DATASET: dataset}
    return replace(results, trials=tuple(trials), attributes=attributes, artifacts=folder)


def _refer(trial: FrozenTrial, files: Sequence[str]) -> FrozenTrial:
    copied = copy.copy(trial)
    copied.system_attrs = dict(trial.system_attrs) | {
        f"artifacts:{file}": json.dumps(
            {"artifact_id": file, "filename": Path(file).name, "mimetype": "", "encoding": None}
        )
        for file in files
    }
    return copied
