"""The refit: the best plan and the baseline, trained again and measured on the test split.

Several plans, or several trainings of one, can be combined; the single plan is measured too.

This is the only code that reads the test split, and the study records every read: choosing by a
test split makes it a validation split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial
from torch import Tensor

from autotune.atomic import check_folder, write_text
from autotune.config.schema import RefitConfig, StudyConfig
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.sources.registry import fetch_source
from autotune.errors import disk_full_as_user_error, place_as_user_error
from autotune.plan import TrialPlan
from autotune.results.evaluation.bootstrap import Comparison, compare
from autotune.results.evaluation.combination import (
    DISTILL,
    ENSEMBLE,
    NONE,
    SOUP,
    SOUP_SEEDS,
    Combination,
    Member,
    check_combination,
    describe_choice,
    judge_soup,
)
from autotune.results.evaluation.ensemble_selection import (
    MOST_MEMBERS,
    EnsembleChoice,
    select_ensemble,
)
from autotune.results.evaluation.final_model import (
    BASELINE,
    BEST,
    STUDENT,
    FinalModel,
    Refitting,
)
from autotune.results.evaluation.model_card import weights_origin, write_model_card
from autotune.results.evaluation.plan_selection import Choice, SelectedPlan, select_plan
from autotune.results.model.model_folder import check_target, replace_files, save_model
from autotune.results.study_results import StudyResults
from autotune.results.values.epoch_rows import epoch_rows, epochs_table
from autotune.results.values.intervals import Estimate
from autotune.results.values.speed import Speed
from autotune.storage.artifacts import add_artifact
from autotune.storage.rdb.retry import call_with_retry
from autotune.storage.rdb.study_lock import study_lock
from autotune.study.engine.training_worker import with_unreadable_share
from autotune.study.engine.trainings import Workers
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.predictions import HEAT_MAPS, test_file
from autotune.study.trial.context import build_context
from autotune.study.trial.plots import draw_confusion, draw_curve
from autotune.study.trial.predictions import Predicted
from autotune.study.trial.refit import TrainingSummary
from autotune.study.trial.run import EventCallback
from autotune.study.trial.trainings import Training
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
        speed: How many times faster the model is than the baseline; ``None`` where it has the same
            layers, image size and backbone, and where several trainings were combined.
        combination: What was asked to be combined. Where it is used, ``test`` and ``comparison``
            are those of the combination, which is the model in the folder.
        others: How further members were trained.
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
    speed: Speed | None = None
    combination: Combination | None = None
    others: Mapping[str, TrainingSummary] = field(default_factory=dict)

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
        return self.summary is self.baseline_summary and not self.is_combined

    @property
    def is_combined(self) -> bool:
        """Whether the model is a combination."""
        return self.combination is not None and self.combination.is_used

    @property
    def name(self) -> str:
        """What the model is, in a few words."""
        if self.combination is not None and self.combination.is_used:
            return self.combination.name
        return f"trial {self.trial}"

    def epochs(self) -> pd.DataFrame:
        """Return a table with a row for each epoch of both trainings, and of other members.

        ``plan`` is ``best plan``, ``baseline`` or the name of a member; the other columns
        are those of :mod:`autotune.results.report.epoch_table`.
        """
        trainings = {BASELINE: self.baseline_summary}
        if self.summary is not self.baseline_summary:
            trainings[BEST] = self.summary
        trainings |= self.others
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
            "speed": None if self.speed is None else self.speed.to_json(),
            "combination": None if self.combination is None else self.combination.to_json(),
        }

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {**self.scores(), "plan": self.plan.to_json(), "folder": str(self.folder)}


def refit_study(
    handle: OpenStudy,
    trial: Choice | None = None,
    folder: Path | None = None,
    on_event: EventCallback = lambda event: None,
    on_progress: ProgressCallback = no_progress,
    settings: RefitConfig | None = None,
    max_unreadable_share: float = 0.0,
    workers: Workers | None = None,
    combine: str = NONE,
    members: int | None = None,
) -> RefitResult:
    """Train the selected plan and the baseline on training + validation images and measure both.

    The two train at once where there are two workers. What has been trained is kept, and its state
    after every epoch: an interrupted call continues where it ended, and the baseline of another
    trial is not trained again.

    Args:
        handle: The study.
        trial: Number of the trial to take, or ``cheapest``; default: see
            :mod:`autotune.results.evaluation.plan_selection`.
        folder: Where the model is written; default: beside the study.
        on_event: Called with everything that happens, see
            :func:`autotune.study.engine.trainings.announce`.
        on_progress: Called while a registered dataset is downloaded.
        settings: How to train; default: as in the study's last run.
        max_unreadable_share: Limit of unreadable images, where it is above that of the last run.
        workers: Where to train; by default in this process.
        combine: One of :data:`autotune.results.evaluation.combination.COMBINATIONS`.
        members: Most plans of an ensemble, or trainings of a soup.

    Raises:
        StudyError: When there is no such trial, or none that is complete; when an ensemble cannot
            be chosen because trials have no validation logits.
        UserError: When there is no such combination, or the folder has files of something else.
        DivergedError: When one of the trainings diverges.
        DiskFullError: When the model cannot be written.
        KeyboardInterrupt: After a signal.
    """
    check_combination(combine, members)
    results = StudyResults.from_study(handle.study, handle.files.artifacts)
    selection = select_plan(results, trial)
    choice = None
    if combine in (ENSEMBLE, DISTILL):
        first = results.trials[selection.trial]
        choice = select_ensemble(results, first, members or MOST_MEMBERS)
    target = folder or handle.files.model(handle.name)
    check_folder(target)
    check_target(target)
    check_folder(handle.files.trainings(handle.name))
    fetch_source(handle.config().dataset, on_progress)
    config = handle.config()
    # What was accepted when the study was made is accepted, whatever the limit of the last run.
    accepted = results.attributes.get(attrs.SURVEY, {}).get("unreadable_test")
    share = max(max_unreadable_share, accepted["count"] / accepted["images"] if accepted else 0.0)
    config = with_unreadable_share(config, share)
    # With workers, this process leaves the devices to them.
    ctx = build_context(handle, gpu=None if workers is None else "", config=config)
    run = Refitting(ctx, workers, on_event, combine != NONE)
    chosen = BEST if trial is None else f"trial {selection.trial}"
    trainings = _base_trainings(results, selection, config, settings or config.refit, chosen)
    combination = None
    if choice is not None:
        combination, others = _ensemble(combine, choice, results, trainings)
        trainings += others
    elif combine == SOUP:
        combination, others = _soup(results, selection, trainings[0], members or SOUP_SEEDS, run)
        trainings += others
    # Whatever messages call it, from here on the single plan has one name.
    called = trainings[0].name
    stored = {BEST if n == called else n: each for n, each in run.train(trainings).items()}
    if combination is not None and combination.is_used and combine == DISTILL:
        stored |= run.train([_student(combination, trainings)])
    final = run.combine(combination, selection, stored)
    single, baseline = stored[BEST], stored.get(BASELINE, stored[BEST])
    labels = single.labels
    comparison = compare(final.logits, baseline.logits, labels)
    if combination is not None:
        combination = run.measure(combination, selection, stored, final)
    speed = run.speed(stored) if combination is None else None
    result = RefitResult(
        selection=selection,
        test=compute_metrics(final.logits, labels),
        baseline=compute_metrics(baseline.logits, labels),
        comparison=comparison,
        summary=single.summary,
        baseline_summary=baseline.summary,
        test_images=len(labels),
        reads=_record_read(
            handle,
            selection.trial,
            compare(single.logits, baseline.logits, labels),
            speed,
            combination,
        ),
        folder=target,
        speed=speed,
        combination=combination,
        others={n: one.summary for n, one in stored.items() if n not in (BEST, BASELINE)},
    )
    _write_folder(handle, result, run, final, baseline.logits)
    return result


def _base_trainings(
    results: StudyResults,
    selection: SelectedPlan,
    config: StudyConfig,
    settings: RefitConfig,
    name: str,
) -> list[Training]:
    """Return the trainings of the single plan and of the baseline; one if they are the same."""
    baseline = attrs.study_space(results.source).baseline(config.baseline)
    name = BASELINE if baseline == selection.plan else name
    trainings = [_training(name, selection.plan, results.trials[selection.trial], settings)]
    if baseline != selection.plan:
        trainings.append(_training(BASELINE, baseline, results.baseline, settings))
    return trainings


def _training(
    name: str, plan: TrialPlan, trial: FrozenTrial | None, settings: RefitConfig
) -> Training:
    size = None if trial is None else trial.user_attrs.get(attrs.MICRO_BATCH)
    return Training(name, plan, micro_batch_size=size, refit=settings)


def _ensemble(
    kind: str, choice: EnsembleChoice, results: StudyResults, trainings: Sequence[Training]
) -> tuple[Combination, list[Training]]:
    """Return an ensemble that was chosen, and the trainings of its further members."""
    settings = trainings[0].refit
    assert settings is not None
    members, others = [], []
    for number, weight in choice.weights.items():
        trial = results.trials[number]
        plan = attrs.trial_plan(trial)
        assert plan is not None, "a complete trial has its plan"
        members.append(Member(number, plan, weight))
        if all(plan != training.plan for training in trainings):
            others.append(_training(f"trial {number}", plan, trial, settings))
    decision = describe_choice(kind, choice, results.objective)
    return Combination(kind, choice.is_better, decision, tuple(members)), others


def _soup(
    results: StudyResults, selection: SelectedPlan, single: Training, count: int, run: Refitting
) -> tuple[Combination, list[Training]]:
    """Train a soup on the training split, and decide on the validation split.

    Returns:
        The soup, and its trainings besides that of the single plan; none where it does not help.
    """
    seed = run.ctx.config.search.seed
    others = [
        replace(single, name=f"seed {number}", seed=(seed + number) % 2**31, same_start=True)
        for number in range(1, count)
    ]
    rehearsals = [
        replace(each, name=f"{each.name}, training split", refit=None, same_start=True)
        for each in (single, *others)
    ]
    run.do(rehearsals)
    agrees, decision = judge_soup(rehearsals, run.on_device(), results.objective)
    member = Member(selection.trial, selection.plan, count)
    return Combination(SOUP, agrees, decision, (member,)), others if agrees else []


def _student(combination: Combination, trainings: Sequence[Training]) -> Training:
    """Return the training of the single plan that an ensemble teaches."""
    teacher = tuple(
        (member.weight, next(each for each in trainings if each.plan == member.plan))
        for member in combination.members
    )
    return replace(trainings[0], name=STUDENT, teacher=teacher)


def _write_folder(
    handle: OpenStudy, result: RefitResult, run: Refitting, final: FinalModel, baseline: Tensor
) -> None:
    """Write the folder of a model, and keep what it predicted with the study."""
    config, model = run.ctx.config, final.model
    backbone = run.ctx.resources.of(result.plan).backbone
    scores = result.scores()
    facts = {
        **scores,
        "study": handle.name,
        "dataset": config.dataset,
        "objective": config.training.objective,
        "is_baseline": result.is_baseline,
        "trained_on": {"parts": ["train", "validation"], **scores["trained_on"]},
        "pretrained": weights_origin(backbone, config.weights_of(backbone.name)),
        "definition": config.identity(),
    }
    members = result.combination.members if result.combination and result.is_combined else ()
    origins = {}
    for other in (run.ctx.resources.of(member.plan).backbone for member in members):
        if other.name != backbone.name:
            origins[other.name] = weights_origin(other, config.weights_of(other.name))
    if origins:
        facts["other_pretrained"] = origins
    images = run.tests[result.plan.images]
    matrix = confusion(final.logits, images.labels, model.classes)
    network = model.network
    with place_as_user_error(result.folder), replace_files(result.folder) as new:
        record = save_model(new, network, model.model_spec, facts)
        draw_confusion(new, matrix, model.classes)
        draw_curve(new, {}, config.training.objective, result.summary.curves)
        table = result.epochs().to_csv(index=False, lineterminator="\n")
        write_text(new / "epochs.csv", table)
        write_model_card(new, record, matrix, result.comparison.model.bins)
        trainers = [] if final.training is None else [(final.training, None)]
        predicted = Predicted(images, final.logits, model.classes, trainers)
        written = {path.name for path in predicted.write(new, baseline)}
    if HEAT_MAPS not in written:  # those of an earlier model
        (result.folder / HEAT_MAPS).unlink(missing_ok=True)
    artifacts = handle.files.artifacts
    with disk_full_as_user_error(artifacts):  # where the report finds them
        artifacts.mkdir(parents=True, exist_ok=True)
        for name in sorted(written):
            path = result.folder / name
            add_artifact(handle.study, path, artifacts, test_file(result.reads, name))


def _record_read(
    handle: OpenStudy,
    trial: int,
    comparison: Comparison,
    speed: Speed | None,
    combination: Combination | None,
) -> int:
    """Record with the study that the test split was read; return how often it has been.

    ``comparison`` is that of the plan alone with the baseline: what the study is about.
    """
    objective = handle.config().training.objective
    now = datetime.now(UTC).isoformat()  # to the microsecond: two refits can end in one second
    entry = {
        "time": now,
        "trial": trial,
        "test": comparison.model.values,
        "baseline": comparison.baseline.values,
        "gain": _interval(comparison.difference[objective]),
        "intervals": comparison.model.intervals,
    }
    if speed is not None:
        entry["speed"] = speed.to_json()
    if combination is not None and combination.is_used:
        measured = combination.models[-1]
        entry["combination"] = {
            "kind": combination.kind,
            "name": combination.name,
            "test": measured.scores.values,
            "gain_to_single": _interval(measured.gain[objective]),
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


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}
