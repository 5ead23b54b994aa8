"""The refit: the best plan and the baseline, trained again and measured on the test split.

This is the only code that reads the test split, and the study records every read: choosing by a
test split makes it a validation split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from autotune.atomic import check_folder, write_text
from autotune.config.schema import RefitConfig
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.sources.registry import fetch_source
from autotune.data.views.views import Views
from autotune.errors import disk_full_as_user_error, place_as_user_error
from autotune.plan import Images, TrialPlan
from autotune.results.evaluation.bootstrap import Comparison, compare
from autotune.results.evaluation.model_card import weights_origin, write_model_card
from autotune.results.evaluation.plan_selection import SelectedPlan, select_plan
from autotune.results.model.model import ModelSpec
from autotune.results.model.model_folder import replace_files, save_model
from autotune.results.study_results import StudyResults
from autotune.results.values.epoch_rows import epoch_rows, epochs_table
from autotune.storage.artifacts import add_artifact
from autotune.storage.rdb.retry import call_with_retry
from autotune.storage.rdb.study_lock import study_lock
from autotune.study.engine.training_worker import with_unreadable_share
from autotune.study.engine.trainings import Workers, train_all, train_here
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.predictions import HEAT_MAPS, test_file
from autotune.study.trial.context import WorkerContext, build_context
from autotune.study.trial.plots import draw_confusion, draw_curve
from autotune.study.trial.predictions import Predicted
from autotune.study.trial.refit import (
    StoredRefit,
    TrainingSummary,
    forget_other_tests,
    open_refit_tests,
    read_refit,
)
from autotune.study.trial.run import EventCallback
from autotune.study.trial.trainings import Training, TrainingFiles
from autotune.training.metrics import Metrics, compute_metrics, confusion

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RefitResult:
    """A refitted model and its scores.

    Args:
        selection: The plan that was trained, and why this one.
        test: Its scores on the test split.
        baseline: Scores of the baseline on the test split.
        comparison: All metrics of both with their intervals.
        summary: How the plan was trained.
        reads: How often the test split has been read, this time included.
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
        """Training images of both: the training and the validation split together."""
        return self.summary.images

    @property
    def is_baseline(self) -> bool:
        """Whether the plan is that of the baseline: then there was one training."""
        return self.summary is self.baseline_summary

    def epochs(self) -> pd.DataFrame:
        """Return a table with a row for each epoch of both trainings.

        ``plan`` is ``best plan`` or ``baseline``; the other columns are those of
        :mod:`autotune.results.report.epoch_table`.
        """
        trainings = {"baseline": self.baseline_summary, "best plan": self.summary}
        if self.is_baseline:
            trainings.pop("best plan")
        rows = [
            {"plan": name, **row}
            for name, summary in trainings.items()
            for row in epoch_rows(summary.curves)
        ]
        return epochs_table(rows, {"plan": "string"})

    def scores(self) -> dict[str, Any]:
        """Return choice and scores as JSON values: the keys of the record and of ``--json``."""
        return {
            "trial": self.trial,
            "chosen": self.selection.describe(),
            "remarks": list(self.selection.remarks),
            "test": {"images": self.test_images, **self.comparison.model.values},
            "baseline_test": self.comparison.baseline.values,
            "intervals": self.comparison.to_json(),
            "calibration": {
                "test": [asdict(one) for one in self.comparison.model.bins],
                "baseline": [asdict(one) for one in self.comparison.baseline.bins],
            },
            "trained_on": self.summary.to_json(),
            "baseline_trained_on": self.baseline_summary.to_json(),
            "times_the_test_part_was_read": self.reads,
        }

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {**self.scores(), "plan": self.plan.to_json(), "folder": str(self.folder)}


def refit_study(
    handle: OpenStudy,
    trial: int | None = None,
    folder: Path | None = None,
    on_event: EventCallback = lambda event: None,
    on_progress: ProgressCallback = no_progress,
    settings: RefitConfig | None = None,
    max_unreadable_share: float = 0.0,
    workers: Workers | None = None,
) -> RefitResult:
    """Train the selected plan and the baseline on training + validation images and measure both.

    The two train at once where there are two workers. What has been trained is kept, and its state
    after every epoch: an interrupted call continues where it ended, and the baseline of another
    trial is not trained again.

    Args:
        handle: The study.
        trial: Number of the trial to take; default: see
            :mod:`autotune.results.evaluation.plan_selection`.
        folder: Where the model is written; default: beside the study.
        on_event: Called with everything that happens, see
            :func:`autotune.study.engine.trainings.announce`.
        on_progress: Called while a registered dataset is downloaded.
        settings: How to train; default: as in the study's last run.
        max_unreadable_share: Limit of unreadable images, where it is above that of the last run.
        workers: Where to train; by default in this process.

    Raises:
        StudyError: When there is no such trial, or none that is complete.
        DivergedError: When one of the two trainings diverges.
        DiskFullError: When the model cannot be written.
        KeyboardInterrupt: After a signal.
    """
    results = StudyResults.from_study(handle.study)
    selection = select_plan(results, trial)
    check_folder(folder or handle.files.model(handle.name))
    check_folder(handle.files.trainings(handle.name))
    fetch_source(handle.config().dataset, on_progress)
    config = handle.config()
    # What was accepted when the study was made is accepted, whatever the limit of the last run.
    accepted = results.attributes.get(attrs.SURVEY, {}).get("unreadable_test")
    share = max(max_unreadable_share, accepted["count"] / accepted["images"] if accepted else 0.0)
    config = with_unreadable_share(config, share)
    settings = settings or config.refit
    baseline_plan = attrs.study_space(handle.study).baseline(config.baseline)
    is_baseline = baseline_plan == selection.plan

    def training_of(name: str, plan: TrialPlan, trial: FrozenTrial | None) -> Training:
        size = None if trial is None else trial.user_attrs.get(attrs.MICRO_BATCH)
        return Training(name, plan, micro_batch_size=size, refit=settings)

    trainings = [training_of("best plan", selection.plan, results.trials[selection.trial])]
    if not is_baseline:
        trainings.append(training_of("baseline", baseline_plan, results.baseline))
    # With workers, this process leaves the devices to them.
    ctx = build_context(handle, gpu=None if workers is None else "", config=config)
    data = {each.plan.images: ctx.resources.of(each.plan).data for each in trainings}
    # Opened before hours of training, measured after them.
    tests = {key: open_refit_tests(handle, config, opened.spec) for key, opened in data.items()}
    stored = _train(ctx, trainings, tests, on_event, workers)
    model, baseline = stored[0], stored[-1]
    logits, labels = model.logits, model.labels
    comparison = compare(logits, baseline.logits, labels)
    result = RefitResult(
        selection=selection,
        test=compute_metrics(logits, labels),
        baseline=compute_metrics(baseline.logits, labels),
        comparison=comparison,
        summary=model.summary,
        baseline_summary=baseline.summary,
        test_images=len(labels),
        reads=_record_read(handle, selection.trial, comparison),
        folder=folder or handle.files.model(handle.name),
    )
    resources = ctx.resources.of(selection.plan)
    classes = resources.data.classes
    spec = ModelSpec(
        selection.plan,
        classes,
        resources.backbone.data_config,
        config.for_images(*selection.plan.images[1:]).image_size,
        fast_decode=config.data.decode == "fast",
    )
    scores = result.scores()
    facts = {
        **scores,
        "study": handle.name,
        "dataset": config.dataset,
        "objective": config.training.objective,
        "is_baseline": result.is_baseline,
        "trained_on": {"parts": ["train", "validation"], **scores["trained_on"]},
        "pretrained": weights_origin(
            resources.backbone, config.weights_of(resources.backbone.name)
        ),
        "definition": config.identity(),
    }
    matrix = confusion(logits, labels, classes)
    with place_as_user_error(result.folder), replace_files(result.folder) as new:
        record = save_model(new, model.training.eval_model, spec, facts)
        draw_confusion(new, matrix, classes)
        draw_curve(new, {}, config.training.objective, model.summary.curves)
        table = result.epochs().to_csv(index=False, lineterminator="\n")
        write_text(new / "epochs.csv", table)
        write_model_card(new, record, matrix, comparison.model.bins)
        images = tests[selection.plan.images]
        predicted = Predicted(images, logits, classes, [(model.training, None)])
        written = {path.name for path in predicted.write(new, baseline.logits)}
    if HEAT_MAPS not in written:  # those of an earlier model
        (result.folder / HEAT_MAPS).unlink(missing_ok=True)
    _keep_with_study(handle, result.folder, result.reads, written)
    return result


def _train(
    ctx: WorkerContext,
    trainings: Sequence[Training],
    tests: Mapping[Images, Views],
    on_event: EventCallback,
    workers: Workers | None,
) -> list[StoredRefit]:
    """Do the trainings that are missing; return their results."""
    handle, config = ctx.handle, ctx.config
    files = [TrainingFiles.of(training, handle, config) for training in trainings]
    for training, its_files in zip(trainings, files, strict=True):
        forget_other_tests(its_files, tests[training.plan.images])
    if workers is None:
        train_here(trainings, ctx, on_event)
    else:
        train_all(handle, trainings, config, workers, on_event)
    return [read_refit(*pair, ctx) for pair in zip(trainings, files, strict=True)]


def _keep_with_study(handle: OpenStudy, folder: Path, reads: int, names: Iterable[str]) -> None:
    """Copy files of a model to the artifacts of its study, where the report finds them."""
    artifacts = handle.files.artifacts
    with disk_full_as_user_error(artifacts):
        artifacts.mkdir(parents=True, exist_ok=True)
        for name in sorted(names):
            add_artifact(handle.study, folder / name, artifacts, test_file(reads, name))


def _record_read(handle: OpenStudy, trial: int, comparison: Comparison) -> int:
    """Record with the study that the test split was read; return how often it has been."""
    gain = comparison.difference[handle.config().training.objective]
    entry = {
        "time": datetime.now(
            UTC
        ).isoformat(),  # to the microsecond: two refits can end in one second
        "trial": trial,
        "test": comparison.model.values,
        "baseline": comparison.baseline.values,
        "gain": {"mean": gain.value, "low": gain.low, "high": gain.high},
        "intervals": comparison.model.intervals,
    }

    def record() -> int:
        # The lock is for two refits at once. A call that is retried must not record it twice.
        with study_lock(handle.storage, handle.url, handle.name):
            reads = list(handle.study.user_attrs.get(attrs.TEST_READS, ()))
            if entry not in reads:
                reads.append(entry)
                handle.study.set_user_attr(attrs.TEST_READS, reads)
            return len(reads)

    return call_with_retry(record)
