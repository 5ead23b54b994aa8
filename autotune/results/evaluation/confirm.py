"""Confirmation: the best plans of a search and the baseline, trained under new seeds.

Images, splits and folds are those of the study. A seed changes the initial weights, the order of
the images and dropout. The views stay those of the study, so cached features can be reused.
On request each seed also divides the images outside of the test split anew: the search has chosen
by the validation images of the study, and the plans then meet others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from autotune.atomic import check_folder, write_text
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.sources.registry import fetch_source
from autotune.errors import StudyError
from autotune.format_versions import CONFIRMATION, reading
from autotune.plan import TrialPlan
from autotune.results.evaluation.plan_selection import plans_to_confirm
from autotune.results.study_results import StudyResults
from autotune.results.values.epoch_rows import epoch_rows, epochs_table
from autotune.results.values.intervals import (
    CONFIDENCE_LEVEL,
    Interval,
    compare_with_baseline,
    t_interval,
)
from autotune.results.values.verdict import Verdict
from autotune.storage.paths import CONFIRMED_EPOCHS
from autotune.study.engine.trainings import Workers, train_all, train_here
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.trial.context import build_context
from autotune.study.trial.retrain import read_scores
from autotune.study.trial.run import EventCallback
from autotune.study.trial.trainings import Training, TrainingFiles
from autotune.training.curves import Stored

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PlanResult:
    """The values of a plan over seeds.

    Args:
        trial: Its trial; ``None`` for the baseline.
        search_value: Its value in the search, ``None`` where the baseline has none.
        values: The value under each seed, ``None`` where it diverged.
        curves: Its losses, learning rates and seconds by epoch under each seed, see
            :mod:`autotune.training.curves`; empty where an earlier version has trained it.
        failed: Why it diverged, where it did.
        mean: Mean of its values with an interval; ``None`` where a value is missing.
        gain: By how much it is better than the baseline. The intervals of all plans hold together.
        selection_bias: By how much its mean is worse than its value in the search.
    """

    trial: int | None
    plan: TrialPlan
    search_value: float | None
    values: tuple[float | None, ...]
    curves: tuple[Stored, ...] = ()
    failed: str = ""
    mean: Interval | None = None
    gain: Interval | None = None
    selection_bias: float | None = None

    @property
    def is_better(self) -> bool:
        """Whether it is shown to be better than the baseline."""
        return self.gain is not None and self.gain.low > 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "trial": self.trial,
            "plan": self.plan.to_json(),
            "searched": self.search_value,
            "values": list(self.values),
            "curves": list(self.curves),
            "failed": self.failed,
            "mean": self.mean and self.mean.mean,
            "mean_interval": self.mean and [self.mean.low, self.mean.high],
            "gain": self.gain and self.gain.mean,
            "gain_interval": self.gain and [self.gain.low, self.gain.high],
            "selection_bias": self.selection_bias,
            "is_better": self.is_better,
        }


@dataclass(frozen=True)
class Confirmation:
    """The result of a confirmation.

    Args:
        plans: The plans, the best mean first, of equal ones the lowest mean log loss; those that
            diverged come last.
        trained: Number of trainings of this call.
        verdict: The summary; ``None`` where every plan diverged.
    """

    baseline: PlanResult
    plans: tuple[PlanResult, ...]
    seeds: tuple[int, ...]
    trained: int
    verdict: Verdict | None

    def epochs(self) -> pd.DataFrame:
        """Return a table with a row for each epoch of every training.

        ``trial`` is missing for the baseline; the other columns are those of
        :mod:`autotune.results.report.epoch_table`.
        """
        rows = [
            {"trial": plan.trial, "seed": seed, **row}
            for plan in (self.baseline, *self.plans)
            for seed, stored in zip(self.seeds, plan.curves, strict=True)
            for row in epoch_rows(stored)
        ]
        return epochs_table(rows, {"trial": "Int64", "seed": "int64"})

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        verdict = self.verdict
        return {
            "level": CONFIDENCE_LEVEL,
            "seeds": list(self.seeds),
            "trained": self.trained,
            "baseline": self.baseline.to_json(),
            "plans": [plan.to_json() for plan in self.plans],
            "verdict": verdict and {**asdict(verdict), "is_better": verdict.is_better},
        }


@dataclass(frozen=True)
class _SeedResult:
    value: float | None
    log_loss: float | None
    failed: str
    is_cached: bool
    curves: Stored


@dataclass(frozen=True)
class _Candidate:
    """A plan to train; its micro-batch size is set where a whole batch does not fit."""

    trial: int | None
    plan: TrialPlan
    search_value: float | None = None
    micro_batch_size: int | None = None
    results: list[_SeedResult] = field(default_factory=list)

    def training(self, seed: int, splits: bool) -> Training:
        """Return its training under a seed, which may be that of a division of the images too."""
        plan = "baseline" if self.trial is None else f"trial {self.trial}"
        name = f"{plan}, seed and split {seed}" if splits else f"{plan}, seed {seed}"
        split_seed = seed if splits else None
        return Training(name, self.plan, seed, self.micro_batch_size, split_seed=split_seed)

    def values(self) -> list[float]:
        """Return the values; fewer than there are seeds where it diverged."""
        return [result.value for result in self.results if result.value is not None]

    def log_loss(self) -> float:
        """Return the mean log loss of the trainings that did not diverge."""
        losses = [result.log_loss for result in self.results if result.log_loss is not None]
        return fmean(losses) if losses else math.inf


def confirm_plans(
    handle: OpenStudy,
    top: int,
    seeds: int,
    on_event: EventCallback = lambda event: None,
    on_download: ProgressCallback = no_progress,
    workers: Workers | None = None,
    splits: bool = False,
) -> Confirmation:
    """Train the best plans of a study and its baseline under several seeds, and compare them.

    Every training is stored at its end, and its state after every epoch. An interrupted call
    continues where it ended, and a call with more seeds or plans trains only what is missing. Two
    calls at the same time share the work. The verdict is stored with the study.

    Args:
        handle: The study.
        top: Number of plans besides the baseline; with two objectives the first of the front.
        seeds: Number of seeds, at least two; the seed of the study is not among them.
        on_event: Called with everything that happens, see
            :func:`autotune.study.engine.trainings.announce`. A ``result`` has a ``value`` too, or
            why the training has ``failed``.
        on_download: Called while a registered dataset is downloaded.
        workers: Where to train; by default in this process.
        splits: Whether each seed also divides the training and validation images anew. The test
            split stays as it is, and unread.

    Raises:
        DatasetError: When the images cannot be divided anew.
        StudyError: When there is no plan but the baseline, or the baseline diverges; or when a
            study with folds is to have other splits.
        DiskFullError: When a result cannot be written.
        KeyboardInterrupt: After a signal.
    """
    results = StudyResults.from_study(handle.study)
    if splits and results.dataset.get("folds"):
        raise StudyError(
            f"confirming with other splits needs a study without data.folds, but {results.name!r} "
            "has folds: all of its images outside of the test split have validated in every trial"
        )
    best = plans_to_confirm(results, top)
    check_folder(handle.files.confirmed(handle.name))
    check_folder(handle.files.trainings(handle.name))
    fetch_source(handle.config().dataset, on_download)
    config = handle.config()
    first = _Candidate(None, attrs.study_space(handle.study).baseline(config.baseline))
    if (trial := results.baseline) is not None:
        size = trial.user_attrs.get(attrs.MICRO_BATCH)
        first = replace(first, search_value=attrs.metric_value(trial), micro_batch_size=size)
    plans = [
        _Candidate(
            trial.number, plan, attrs.metric_value(trial), trial.user_attrs.get(attrs.MICRO_BATCH)
        )
        for trial, plan in best
    ]
    numbers = tuple((config.search.seed + offset) % 2**31 for offset in range(1, seeds + 1))
    # All plans under a seed before the next one: an interrupted call leaves complete pairs.
    owners = {
        (training := candidate.training(seed, splits)): candidate
        for seed in numbers
        for candidate in (first, *plans)
    }
    trained = _train(handle, list(owners), on_event, workers)
    for training, candidate in owners.items():
        candidate.results.append(trained[training.name])
    confirmation = _compare(results, first, plans, numbers, splits)
    table = confirmation.epochs().to_csv(index=False, lineterminator="\n")
    write_text(handle.files.report(handle.name, CONFIRMED_EPOCHS), table)
    verdict = confirmation.verdict
    handle.study.set_user_attr(attrs.CONFIRMED, verdict and verdict.to_json())
    return confirmation


def _train(
    handle: OpenStudy,
    trainings: Sequence[Training],
    on_event: EventCallback,
    workers: Workers | None,
) -> dict[str, _SeedResult]:
    """Do the trainings that are missing; return the result of each by its name."""
    config = handle.config()
    by_name = {training.name: training for training in trainings}
    results: dict[str, _SeedResult] = {}

    def pass_on(event: dict[str, Any]) -> None:
        if event["event"] == "result":
            training = by_name[event["training"]]
            path = TrainingFiles.of(training, handle, config).result
            result = _read(path, training, config.training.objective, event["is_cached"])
            results[training.name] = result
            event = {**event, "value": result.value, "failed": result.failed}
        on_event(event)

    if workers is None:
        train_here(trainings, build_context(handle), pass_on)
    else:
        train_all(handle, trainings, config, workers, pass_on)
    return results


def _read(path: Path, training: Training, objective: str, is_cached: bool) -> _SeedResult:
    scores = read_scores(path, training)
    assert scores is not None, "it was found intact a moment ago"
    with reading(str(path), CONFIRMATION):
        metrics = scores["metrics"] or {}
        value, log_loss = (metrics[name] if metrics else None for name in (objective, "log_loss"))
        return _SeedResult(value, log_loss, scores["failed"], is_cached, scores.get("curves", {}))


def _compare(
    results: StudyResults,
    baseline: _Candidate,
    plans: Sequence[_Candidate],
    seeds: tuple[int, ...],
    splits: bool,
) -> Confirmation:
    """Rank the plans that were trained under every seed."""
    objective = results.objective
    images = int(results.dataset.get("validation") or 0)
    step = 1 / images if objective.is_share and images else 0.0
    # Validation images per training image of a division.
    overlap = results.dataset["validation"] / results.dataset["train"] if splits else 0.0

    def result_of(
        candidate: _Candidate, mean: Interval | None = None, gain: Interval | None = None
    ) -> PlanResult:
        bias = None
        if mean is not None and candidate.search_value is not None:
            bias = objective.gain(candidate.search_value, mean.mean)
        return PlanResult(
            trial=candidate.trial,
            plan=candidate.plan,
            search_value=candidate.search_value,
            values=tuple(result.value for result in candidate.results),
            curves=tuple(result.curves for result in candidate.results),
            failed=next((one.failed for one in candidate.results if one.failed), ""),
            mean=mean,
            gain=gain,
            selection_bias=bias,
        )

    if len(baseline.values()) < len(seeds):
        raise StudyError(
            f"confirming {results.name!r} failed: its baseline diverged "
            f"({result_of(baseline).failed}), and plans are compared with it. Make a study with a "
            "lower baseline.lr."
        )
    # The comparison keeps the order of plans with equal means.
    in_order = sorted(plans, key=_Candidate.log_loss)
    by_trial = {plan.trial: plan for plan in in_order if plan.trial is not None}
    compared = compare_with_baseline(
        {trial: v for trial, plan in by_trial.items() if len(v := plan.values()) == len(seeds)},
        baseline.values(),
        maximized=objective.is_maximized,
        step=step,
        num_compared=len(plans),
        overlap=overlap,
    )
    ranked = [result_of(by_trial.pop(one.name), one.mean, one.gain) for one in compared]
    mean = t_interval(baseline.values(), CONFIDENCE_LEVEL, step / math.sqrt(12), overlap)
    verdict = None
    if compared:
        best, bias = compared[0], ranked[0].selection_bias
        verdict = Verdict(
            trial=best.name,
            mean=best.mean.mean,
            baseline=mean.mean,
            gain=best.gain.mean,
            low=best.gain.low,
            high=best.gain.high,
            selection_bias=0.0 if bias is None else bias,
            seeds=len(seeds),
            trials=tuple(plan.trial for plan in plans if plan.trial is not None),
            splits=splits,
        )
    return Confirmation(
        baseline=result_of(baseline, mean),
        plans=(*ranked, *map(result_of, by_trial.values())),
        seeds=seeds,
        trained=sum(not one.is_cached for plan in (baseline, *plans) for one in plan.results),
        verdict=verdict,
    )
