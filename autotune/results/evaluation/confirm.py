"""Confirmation: the best plans of a search and the baseline, trained under new seeds.

Images, splits and folds are those of the study. A seed changes the initial weights, the order of
the images and dropout. The views stay those of the study, so cached features can be reused.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from autotune.atomic import check_folder, write_text
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.sources.registry import fetch_source
from autotune.errors import DivergedError, StudyError
from autotune.format_versions import CONFIRMATION, check_format, reading, refuse_unknown, stamp
from autotune.plan import TrialPlan
from autotune.results.evaluation.plan_selection import plans_to_confirm
from autotune.results.study_results import StudyResults
from autotune.results.values.intervals import (
    CONFIDENCE_LEVEL,
    Interval,
    compare_with_baseline,
    t_interval,
)
from autotune.results.values.objective import Objective
from autotune.results.values.verdict import Verdict
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.trial.context import WorkerContext, build_context
from autotune.study.trial.identity import digest
from autotune.study.trial.retrain import retrain

logger = logging.getLogger(__name__)

#: Fields of the file of one training.
FIELDS = ("format", "autotune", "plan", "seed", "metrics", "failed", "checksum")


@dataclass(frozen=True)
class ConfirmProgress:
    """The state of a confirmation during a training, or with ``value`` or ``failed`` after it.

    Args:
        trial: The trial whose plan is trained; ``None`` for the baseline.
        done: Trainings that have ended, of ``total``.
        epoch: The last epoch, 0 before the first.
        is_cached: Whether the value comes from an earlier call.
    """

    trial: int | None
    seed: int
    done: int
    total: int
    epoch: int = 0
    value: float | None = None
    failed: str = ""
    is_cached: bool = False

    def describe(self, objective: Objective) -> str:
        """Describe the outcome of a training; return an empty text before its end."""
        if self.value is None and not self.failed:
            return ""
        plan = "baseline" if self.trial is None else f"trial {self.trial}"
        value = objective.format_value(self.value) + " (cached)" * self.is_cached
        return f"{self.done} of {self.total}: {plan}, seed {self.seed}: {self.failed or value}"


@dataclass(frozen=True)
class PlanResult:
    """The values of a plan over seeds.

    Args:
        trial: Its trial; ``None`` for the baseline.
        search_value: Its value in the search, ``None`` where the baseline has none.
        values: The value under each seed, ``None`` where it diverged.
        failed: Why it diverged, where it did.
        mean: Mean of its values with an interval; ``None`` where a value is missing.
        gain: By how much it is better than the baseline. The intervals of all plans hold together.
        selection_bias: By how much its mean is worse than its value in the search.
    """

    trial: int | None
    plan: TrialPlan
    search_value: float | None
    values: tuple[float | None, ...]
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
        plans: The plans, the best mean first; those that diverged come last.
        trained: Number of trainings of this call.
        verdict: The summary; ``None`` where every plan diverged.
    """

    baseline: PlanResult
    plans: tuple[PlanResult, ...]
    seeds: tuple[int, ...]
    trained: int
    verdict: Verdict | None

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
    failed: str
    is_cached: bool


@dataclass(frozen=True)
class _Candidate:
    """A plan to train; its micro-batch size is set where a whole batch does not fit."""

    trial: int | None
    plan: TrialPlan
    search_value: float | None = None
    micro_batch_size: int | None = None
    results: list[_SeedResult] = field(default_factory=list)

    def values(self) -> list[float]:
        """Return the values; fewer than there are seeds where it diverged."""
        return [result.value for result in self.results if result.value is not None]


def confirm_plans(
    handle: OpenStudy,
    top: int,
    seeds: int,
    on_progress: Callable[[ConfirmProgress], None] = lambda progress: None,
    on_download: ProgressCallback = no_progress,
) -> Confirmation:
    """Train the best plans of a study and its baseline under several seeds, and compare them.

    Every training is stored at its end. An interrupted call continues where it ended, and a call
    with more seeds trains only what is missing. The verdict is stored with the study.

    Args:
        handle: The study.
        top: Number of plans besides the baseline; with two objectives the first of the front.
        seeds: Number of seeds, at least two; the seed of the study is not among them.
        on_progress: Called after every epoch and every training.
        on_download: Called while a registered dataset is downloaded.

    Raises:
        StudyError: When there is no plan but the baseline, or the baseline diverges.
        DiskFullError: When a result cannot be written.
    """
    results = StudyResults.from_study(handle.study)
    best = plans_to_confirm(results, top)
    check_folder(handle.files.confirmed(handle.name))
    fetch_source(handle.config().dataset, on_download)
    ctx = build_context(handle)
    config = ctx.config
    first = _Candidate(None, ctx.space.baseline(config.baseline))
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
    total = (1 + len(plans)) * seeds
    # All plans under a seed before the next one: an interrupted call leaves complete pairs.
    for index, seed in enumerate(numbers):
        for place, candidate in enumerate((first, *plans)):
            done = index * (1 + len(plans)) + place
            progress = ConfirmProgress(candidate.trial, seed, done, total)
            candidate.results.append(_train(handle, ctx, candidate, progress, on_progress))
    confirmation = _compare(results, first, plans, numbers)
    verdict = confirmation.verdict
    handle.study.set_user_attr(attrs.CONFIRMED, verdict and verdict.to_json())
    return confirmation


def _train(
    handle: OpenStudy,
    ctx: WorkerContext,
    candidate: _Candidate,
    progress: ConfirmProgress,
    on_progress: Callable[[ConfirmProgress], None],
) -> _SeedResult:
    """Train a plan under a seed, or return the stored result of an earlier call."""
    seed = progress.seed
    path = handle.files.confirmed(handle.name) / f"{_key(handle, ctx, candidate, seed)}.json"
    # As JSON gives it back: lists, not tuples.
    expected = json.loads(json.dumps({"plan": candidate.plan.to_json(), "seed": seed}))
    values = _read(path, expected)
    is_cached = values is not None
    if values is None:
        on_progress(progress)
        metrics, failed = None, ""
        try:
            metrics = retrain(
                candidate.plan,
                ctx,
                lambda epoch: on_progress(replace(progress, epoch=epoch)),
                seed=seed,
                micro_batch_size=candidate.micro_batch_size,
            ).metrics.to_json()
        except DivergedError as error:
            failed = str(error)
        values = {**expected, "metrics": metrics, "failed": failed}
        _write(path, values)
    with reading(str(path), CONFIRMATION):
        value = values["metrics"] and values["metrics"][ctx.config.training.objective]
        result = _SeedResult(value, values["failed"], is_cached)
    on_progress(replace(progress, done=progress.done + 1, **asdict(result)))
    return result


def _key(handle: OpenStudy, ctx: WorkerContext, candidate: _Candidate, seed: int) -> str:
    """Return a digest of all that determines a value; another study of this name has another."""
    attributes = handle.study.user_attrs
    definition = ctx.config.without_limits().stable_identity()
    return digest(
        [
            candidate.plan.to_json(),
            seed,
            ctx.config.search.seed,
            definition["training"],
            definition["data"],
            attributes[attrs.DATASET]["fingerprint"],
            attributes[attrs.BACKBONES][candidate.plan.backbone]["weights_hash"],
        ]
    )


def _read(path: Path, expected: dict[str, Any]) -> dict[str, Any] | None:
    """Read the result of a plan and a seed; return ``None`` where it must be trained."""
    try:
        values: Any = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):  # a power cut may leave an empty file
        values = None
    if not isinstance(values, dict) or not _is_intact(values):
        logger.warning("%s is damaged; training the plan again", path)
        return None
    check_format(values, CONFIRMATION, str(path))
    with reading(str(path), CONFIRMATION):
        refuse_unknown(values, FIELDS, "a confirmation")
    if any(values.get(key) != value for key, value in expected.items()):
        logger.warning("%s belongs to another plan or seed; training the plan again", path)
        return None
    return values


def _is_intact(values: dict[str, Any]) -> bool:
    """Remove the checksum and compare; the first format has none."""
    checksum = values.pop("checksum", None)
    return bool(values.get("format", 1) == 1 if checksum is None else checksum == digest(values))


def _write(path: Path, values: dict[str, Any]) -> None:
    values = {**stamp(CONFIRMATION), **values}
    values["checksum"] = digest(values)
    write_text(path, f"{json.dumps(values, indent=2)}\n")


def _compare(
    results: StudyResults,
    baseline: _Candidate,
    plans: Sequence[_Candidate],
    seeds: tuple[int, ...],
) -> Confirmation:
    """Rank the plans that were trained under every seed."""
    objective = results.objective
    images = int(results.dataset.get("validation") or 0)
    step = 1 / images if objective.is_share and images else 0.0

    def result_of(
        candidate: _Candidate, mean: Interval | None = None, gain: Interval | None = None
    ) -> PlanResult:
        bias = None
        if mean is not None and candidate.search_value is not None:
            bias = candidate.search_value - mean.mean
            bias = bias if objective.is_maximized else -bias
        return PlanResult(
            trial=candidate.trial,
            plan=candidate.plan,
            search_value=candidate.search_value,
            values=tuple(result.value for result in candidate.results),
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
    by_trial = {plan.trial: plan for plan in plans if plan.trial is not None}
    compared = compare_with_baseline(
        {trial: v for trial, plan in by_trial.items() if len(v := plan.values()) == len(seeds)},
        baseline.values(),
        maximized=objective.is_maximized,
        step=step,
        num_compared=len(plans),
    )
    ranked = [result_of(by_trial.pop(one.name), one.mean, one.gain) for one in compared]
    mean = t_interval(baseline.values(), CONFIDENCE_LEVEL, step / math.sqrt(12))
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
        )
    return Confirmation(
        baseline=result_of(baseline, mean),
        plans=(*ranked, *map(result_of, by_trial.values())),
        seeds=seeds,
        trained=sum(not one.is_cached for plan in (baseline, *plans) for one in plan.results),
        verdict=verdict,
    )
