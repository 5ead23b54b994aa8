"""The final fit: the best plan and the baseline, trained anew, measured on the test part.

This is the only code that reads the test part, and every time it does is written down with the
study: a test part that was looked at often is a validation part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.data.opening import fetch_source
from autotune.data.progress import Progress, silent
from autotune.data.task import open_test_views
from autotune.data.views import Views
from autotune.errors import StudyError, disk_full_as_user_error
from autotune.plan import TrialPlan
from autotune.results.card import origin_of, write_card
from autotune.results.front import none_yet
from autotune.results.model import Description, save_model
from autotune.search import ranking
from autotune.study import record
from autotune.study.opening import OpenStudy
from autotune.study.pictures import draw_confusion
from autotune.study.preparing import Workbench, prepare_training
from autotune.study.remembered import read_manifest
from autotune.study.worker import prepare
from autotune.training.loop import Training
from autotune.training.metrics import Metrics, confusion, measure

TEST_READS = record.TEST_READS


@dataclass(frozen=True)
class FitResult:
    """What the final fit brought.

    Args:
        trial: Number of the trial whose plan was trained.
        plan: The plan.
        test: Its scores on the test part.
        baseline: Scores of the baseline on the test part.
        images: Training images of both: the training and the validation part together.
        test_images: Images of the test part.
        reads: How often the test part has been read, this time included.
        folder: Where the model was written.
    """

    trial: int
    plan: TrialPlan
    test: Metrics
    baseline: Metrics
    images: int
    test_images: int
    reads: int
    folder: Path


def fit(
    opened: OpenStudy,
    trial: int | None = None,
    folder: Path | None = None,
    listener: Callable[[str, int, int], None] = lambda what, epoch, epochs: None,
    fetching: Progress = silent,
) -> FitResult:
    """Train the best plan and the baseline on training + validation and measure both.

    Args:
        opened: The study.
        trial: Number of the trial to take instead of the best one.
        folder: Where the model goes; by default beside the study.
        listener: Told of every epoch: what is trained, the epoch, how many there are.
        fetching: Told how far the fetching of a known dataset is that is not on this machine.

    Raises:
        StudyError: When there is no such trial, or none that is complete.
        DiskFullError: When the model cannot be written.
    """
    number, plan = chosen_plan(opened, trial)
    fetch_source(opened.config().dataset, fetching)
    bench = prepare(opened)
    config = bench.config
    baseline_plan = bench.space.baseline(config.baseline)
    backbones = dict.fromkeys((plan.backbone, baseline_plan.backbone))
    tasks = {name: bench.materials.of(name).task for name in backbones}
    memory_bytes = bench.materials.memory_bytes // len(tasks)
    train = {
        name: task.train_validation_views(
            config.training.augment, config.training.view_count, config.search.seed, memory_bytes
        )
        for name, task in tasks.items()
    }
    tuned = _train(
        bench, plan, train[plan.backbone], lambda epoch, of: listener("best plan", epoch, of)
    )
    baseline = tuned
    if baseline_plan != plan:
        baseline = _train(
            bench,
            baseline_plan,
            train[baseline_plan.backbone],
            lambda epoch, of: listener("baseline", epoch, of),
        )
    manifest = read_manifest(opened)
    fingerprint = opened.study.user_attrs[record.DATASET].get("test_fingerprint")
    test = {
        name: open_test_views(
            config.dataset,
            config.data,
            task.spec,
            opened.files.cache,
            config.cache.disk_bytes,
            manifest,
            fingerprint,
        )
        for name, task in tasks.items()
    }
    logits, labels = tuned.predict(test[plan.backbone])
    scores = measure(logits, labels)
    baseline_scores = scores
    if baseline is not tuned:
        baseline_scores = measure(*baseline.predict(test[baseline_plan.backbone]))
    reads = _note_read(opened, number, scores, baseline_scores)
    result = FitResult(
        trial=number,
        plan=plan,
        test=scores,
        baseline=baseline_scores,
        images=len(train[plan.backbone]),
        test_images=len(test[plan.backbone]),
        reads=reads,
        folder=folder or opened.files.model(opened.name),
    )
    with disk_full_as_user_error(result.folder):
        classes = tasks[plan.backbone].classes
        _write(result, opened, bench, tuned, confusion(logits, labels, classes))
    return result


def chosen_plan(opened: OpenStudy, trial: int | None) -> tuple[int, TrialPlan]:
    """Return the number and the plan of a trial, by default the best one.

    Raises:
        StudyError: When there is no such trial, or none that is complete.
    """
    trials = opened.study.get_trials(deepcopy=False)
    if trial is None:
        best = ranking.best_of(trials, record.direction_of(opened.study))
        if best is None:
            raise StudyError(f"the study {opened.name!r} has {none_yet(trials)}")
        trial = best.number
    if not 0 <= trial < len(trials):
        raise StudyError(
            f"--trial: the study {opened.name!r} has the trials 0 to {len(trials) - 1}, but got "
            f"{trial}"
        )
    plan = record.plan_of(trials[trial])
    if plan is None:
        raise StudyError(f"--trial: trial {trial} of {opened.name!r} ended before it had a plan")
    return trial, plan


def _train(
    bench: Workbench, plan: TrialPlan, train: Views, listener: Callable[[int, int], None]
) -> Training:
    training = prepare_training(plan, bench, refit=train)
    for result in training.run():
        listener(result.epoch, bench.config.training.epochs)
    return training


def _note_read(opened: OpenStudy, trial: int, scores: Metrics, baseline: Metrics) -> int:
    """Write down with the study that the test part was read; return how often it has been."""
    reads: list[dict[str, Any]] = list(opened.study.user_attrs.get(TEST_READS, ()))
    reads.append(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "trial": trial,
            "test": scores.to_json(),
            "baseline": baseline.to_json(),
        }
    )
    opened.study.set_user_attr(TEST_READS, reads)
    return len(reads)


def _write(
    result: FitResult,
    opened: OpenStudy,
    bench: Workbench,
    training: Training,
    matrix: npt.NDArray[np.int64],
) -> None:
    """Write the model, and for people what it is and how good."""
    config = bench.config
    material = bench.materials.of(result.plan.backbone)
    classes = material.task.classes
    description = Description(
        result.plan,
        classes,
        material.backbone.data_config,
        config.data.image_size,
        fast=config.data.decode == "fast",
    )
    facts = {
        "study": opened.name,
        "trial": result.trial,
        "dataset": config.dataset,
        "trained_on": {"parts": ["train", "validation"], "images": result.images},
        "test": {"images": result.test_images, **asdict(result.test)},
        "baseline_test": asdict(result.baseline),
        "times_the_test_part_was_read": result.reads,
        "pretrained": origin_of(material.backbone, config.weights),
        "definition": config.definition(),
    }
    record_of_model = save_model(result.folder, training.result, description, facts)
    draw_confusion(result.folder, matrix, classes)
    write_card(result.folder, record_of_model, matrix)
