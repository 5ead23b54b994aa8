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
from optuna.trial import FrozenTrial

from autotune.config.schema import RefitConfig
from autotune.data.progress import Progress, no_progress
from autotune.data.sources.registry import fetch_source
from autotune.data.views.study_data import open_test_views
from autotune.errors import disk_full_as_user_error
from autotune.plan import TrialPlan
from autotune.results.evaluation.bootstrap import Comparison, compare
from autotune.results.evaluation.model_card import weights_origin, write_model_card
from autotune.results.evaluation.plan_selection import SelectedPlan, select_plan
from autotune.results.evaluation.reliability import draw_reliability
from autotune.results.model.model import ModelSpec, replacing, save_model
from autotune.storage.rdb.retry import call_with_retry
from autotune.storage.rdb.study_lock import study_lock
from autotune.study.engine.worker import build_context
from autotune.study.setup.manifest_store import read_manifest
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.plots import draw_confusion
from autotune.study.trial.refit import Refit, TrainingSummary, refit, refit_views
from autotune.training.metrics import Metrics, confusion, measure

TEST_READS = attrs.TEST_READS


@dataclass(frozen=True)
class RefitResult:
    """What the final fit brought.

    Args:
        choice: The plan that was trained, and why this one.
        test: Its scores on the test part.
        baseline: Scores of the baseline on the test part.
        comparison: All figures of both with their intervals.
        summary: How the plan was trained.
        baseline_summary: How the baseline was.
        test_images: Images of the test part.
        reads: How often the test part has been read, this time included.
        folder: Where the model was written.
    """

    selection: SelectedPlan
    test: Metrics
    baseline: Metrics
    comparison: Comparison
    summary: TrainingSummary
    baseline_summary: TrainingSummary
    test_images: int
    reads: int
    folder: Path

    @property
    def trial(self) -> int:
        """Number of the trial whose plan was trained."""
        return self.selection.trial

    @property
    def plan(self) -> TrialPlan:
        """The plan that was trained."""
        return self.selection.plan

    @property
    def images(self) -> int:
        """Training images of both: the training and the validation part together."""
        return self.summary.images

    @property
    def is_baseline(self) -> bool:
        """Whether the plan is that of the baseline: there was one training then."""
        return self.summary is self.baseline_summary

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "trial": self.trial,
            "chosen": self.selection.describe(),
            "remarks": list(self.selection.remarks),
            "plan": self.plan.to_json(),
            **_figures_of(self.comparison, self.test_images),
            "trained_on": self.summary.to_json(),
            "baseline_trained_on": self.baseline_summary.to_json(),
            "times_the_test_part_was_read": self.reads,
            "folder": str(self.folder),
        }


def refit_study(
    opened: OpenStudy,
    trial: int | None = None,
    folder: Path | None = None,
    on_epoch: Callable[[str, int, int], None] = lambda what, epoch, epochs: None,
    fetching: Progress = no_progress,
    settings: RefitConfig | None = None,
) -> RefitResult:
    """Train the chosen plan and the baseline on training + validation and measure both.

    Args:
        opened: The study.
        trial: Number of the trial to take; by default see
        :mod:`autotune.results.evaluation.plan_selection`.
        folder: Where the model goes; by default beside the study.
        on_epoch: Called after every epoch: what is trained, the epoch, how many there are.
        fetching: Told how far the fetching of a known dataset is that is not on this machine.
        settings: How to train; by default as the study's last run had it.

    Raises:
        StudyError: When there is no such trial, or none that is complete.
        DivergedError: When one of the two trainings diverges.
        DiskFullError: When the model cannot be written.
    """
    selection = select_plan(opened, trial)
    plan = selection.plan
    fetch_source(opened.config().dataset, fetching)
    ctx = build_context(opened)
    config = ctx.config
    settings = config.refit if settings is None else settings
    baseline_plan = ctx.space.baseline(config.baseline)
    backbones = dict.fromkeys((plan.backbone, baseline_plan.backbone))
    tasks = {name: ctx.resources.of(name).task for name in backbones}
    memory_bytes = ctx.resources.memory_bytes // len(tasks)
    train = {
        name: refit_views(task, config, settings, memory_bytes) for name, task in tasks.items()
    }

    trials = opened.study.get_trials(deepcopy=False)

    def trained(what: str, plan: TrialPlan, trial: FrozenTrial | None) -> Refit:
        epochs = config.training.epochs
        return refit(
            plan,
            ctx,
            train[plan.backbone],
            settings,
            lambda epoch: on_epoch(what, epoch, epochs),
            _part_of(trial),
        )

    best = trained("best plan", plan, trials[selection.trial])
    baseline = best
    if baseline_plan != plan:
        baseline = trained("baseline", baseline_plan, attrs.find_baseline(trials))
    manifest = read_manifest(opened.study, opened.files)
    fingerprint = opened.study.user_attrs[attrs.DATASET].get("test_fingerprint")
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
    logits, labels = best.predict(test[plan.backbone])
    others = logits
    if baseline is not best:
        others, _ = baseline.predict(test[baseline_plan.backbone])
    comparison = compare(logits, others, labels)
    reads = _note_read(opened, selection.trial, comparison)
    result = RefitResult(
        selection=selection,
        test=measure(logits, labels),
        baseline=measure(others, labels),
        comparison=comparison,
        summary=best.summary,
        baseline_summary=baseline.summary,
        test_images=len(labels),
        reads=reads,
        folder=folder or opened.files.model(opened.name),
    )
    with disk_full_as_user_error(result.folder):
        classes = tasks[plan.backbone].classes
        _write(result, opened, ctx, best, confusion(logits, labels, classes))
    return result


def _part_of(trial: FrozenTrial | None) -> int | None:
    """Return how many images of a trial fitted into memory, where a whole batch did not."""
    part = None if trial is None else trial.user_attrs.get(attrs.MICRO_BATCH)
    return None if part is None else int(part)


def _figures_of(comparison: Comparison, images: int) -> dict[str, Any]:
    """Return all figures as plain JSON values: the same names in the record and in ``--json``."""
    return {
        "test": {"images": images, **comparison.model.values},
        "baseline_test": comparison.baseline.values,
        "intervals": comparison.to_json(),
        "calibration": {
            "test": [asdict(one) for one in comparison.model.bins],
            "baseline": [asdict(one) for one in comparison.baseline.bins],
        },
    }


def _note_read(opened: OpenStudy, trial: int, comparison: Comparison) -> int:
    """Write down with the study that the test part was read; return how often it has been."""
    gain = comparison.difference[opened.config().training.objective]
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "trial": trial,
        "test": comparison.model.values,
        "baseline": comparison.baseline.values,
        "gain": {"mean": gain.value, "low": gain.low, "high": gain.high},
        "intervals": comparison.model.intervals,
    }

    def note() -> int:
        # Under the lock, for two fits at once; what the storage was away for is not noted twice.
        with study_lock(opened.storage, opened.url, opened.name):
            reads = list(opened.study.user_attrs.get(attrs.TEST_READS, ()))
            if entry not in reads:
                reads.append(entry)
                opened.study.set_user_attr(attrs.TEST_READS, reads)
            return len(reads)

    return call_with_retry(note)


def _write(
    result: RefitResult,
    opened: OpenStudy,
    ctx: WorkerContext,
    trained: Refit,
    matrix: npt.NDArray[np.int64],
) -> None:
    """Write the model, and for people what it is and how good."""
    config = ctx.config
    material = ctx.resources.of(result.plan.backbone)
    classes = material.task.classes
    description = ModelSpec(
        result.plan,
        classes,
        material.backbone.data_config,
        config.data.image_size,
        fast_decode=config.data.decode == "fast",
    )
    facts = {
        "study": opened.name,
        "trial": result.trial,
        "chosen": result.selection.describe(),
        "remarks": list(result.selection.remarks),
        "dataset": config.dataset,
        "objective": config.training.objective,
        "is_baseline": result.is_baseline,
        "trained_on": {"parts": ["train", "validation"], **result.summary.to_json()},
        "baseline_trained_on": result.baseline_summary.to_json(),
        **_figures_of(result.comparison, result.test_images),
        "times_the_test_part_was_read": result.reads,
        "pretrained": weights_origin(material.backbone, config.weights),
        "definition": config.identity(),
    }
    with replacing(result.folder) as folder:
        record_of_model = save_model(folder, trained.training.result, description, facts)
        draw_confusion(folder, matrix, classes)
        draw_reliability(folder, result.comparison.model.bins)
        write_model_card(folder, record_of_model, matrix)
