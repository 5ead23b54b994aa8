"""Confirming: the best plans of a search and the baseline, trained under seeds of their own.

The protocol is the study's: its images, its split, its validation part (with folds, all of them).
A seed changes the initial weights, the order of the images and dropout. The views stay those of
the study: what was kept of them serves, and a frozen layer is not computed again.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from autotune.data.progress import Progress, no_progress
from autotune.data.sources.registry import fetch_source
from autotune.errors import DivergedError, StudyError, disk_full_as_user_error
from autotune.format_versions import (
    CONFIRMATION,
    check_format,
    reading,
    refuse_unknown,
    stamp,
)
from autotune.plan import TrialPlan
from autotune.results.values.intervals import (
    CONFIDENCE_LEVEL,
    Interval,
    compare_with_baseline,
    t_interval,
)
from autotune.results.values.objective import Objective
from autotune.results.values.pareto_front import explain_no_best
from autotune.results.values.verdict import Verdict
from autotune.search import ranking
from autotune.study.engine.worker import build_context
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.identity import digest
from autotune.study.trial.retrain import retrain

logger = logging.getLogger(__name__)

#: What the file of one training holds.
FIELDS = ("format", "autotune", "plan", "seed", "metrics", "failed", "checksum")


@dataclass(frozen=True)
class ConfirmProgress:
    """How far the confirming is.

    Args:
        trial: Whose plan is trained; ``None`` for the baseline.
        seed: The seed.
        done: Trainings that are over, this one included where ``value`` or ``failed`` is given.
        total: Trainings in all.
        epoch: The epoch that is over, 0 before the first.
        value: What it reached, at its end.
        failed: Why it has no value, at its end.
        known: Whether an earlier call has trained it.
    """

    trial: int | None
    seed: int
    done: int
    total: int
    epoch: int = 0
    value: float | None = None
    failed: str = ""
    known: bool = False

    def describe(self, objective: Objective) -> str:
        """Describe the outcome of a training, with values as the objective formats them.

        Empty before the training has ended.
        """
        if self.value is None and not self.failed:
            return ""
        plan = "baseline" if self.trial is None else f"trial {self.trial}"
        outcome = (
            self.failed
            or f"{objective.format_value(self.value)}{' (known)' if self.known else ''}"
        )
        return f"{self.done} of {self.total}: {plan}, seed {self.seed}: {outcome}"


@dataclass(frozen=True)
class PlanResult:
    """What a plan reached over seeds.

    Args:
        trial: Its trial; ``None`` for the baseline.
        plan: The plan.
        search_value: Its value in the search, ``None`` where the baseline has none.
        values: Under each seed, ``None`` where it diverged.
        failed: Why it diverged, where it did.
        mean: Mean of its values with an interval; ``None`` where one is missing.
        gain: By how much it is better than the baseline, with an interval that holds together
            with those of all others.
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
            "shrank": self.selection_bias,
            "mean": self.mean and self.mean.mean,
            "mean_interval": self.mean and [self.mean.low, self.mean.high],
            "gain": self.gain and self.gain.mean,
            "gain_interval": self.gain and [self.gain.low, self.gain.high],
            "beats": self.is_better,
        }


@dataclass(frozen=True)
class Confirmation:
    """What confirming has brought.

    Args:
        baseline: The baseline.
        plans: The plans, the best mean first; those that diverged come last.
        seeds: The seeds.
        trained: How many trainings this call has added.
        verdict: In short; ``None`` where every plan diverged.
    """

    baseline: PlanResult
    plans: tuple[PlanResult, ...]
    seeds: tuple[int, ...]
    trained: int
    verdict: Verdict | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "level": CONFIDENCE_LEVEL,
            "seeds": list(self.seeds),
            "trained": self.trained,
            "baseline": self.baseline.to_json(),
            "plans": [one.to_json() for one in self.plans],
            "verdict": self.verdict
            and {**self.verdict.to_json(), "beats": self.verdict.is_better},
        }


def confirm_plans(
    opened: OpenStudy,
    top: int,
    seeds: int,
    on_epoch: Callable[[ConfirmProgress], None] = lambda step: None,
    fetching: Progress = no_progress,
) -> Confirmation:
    """Train the best plans of a study and its baseline under several seeds, and compare them.

    Every training that is over is kept at once, so that a call that was interrupted goes on, and
    one with more seeds trains what is missing. The short result is written down with the study.

    Args:
        opened: The study.
        top: How many plans, besides the baseline; of two objectives the first of the Pareto front.
        seeds: How many seeds, at least two; none is the study's.
        on_epoch: Called after every epoch and every end.
        fetching: Told how far the fetching of a known data set is that is not on this machine.

    Raises:
        StudyError: When there is no plan but the baseline, or the baseline diverges.
        DiskFullError: When a result cannot be written.
    """
    chosen = candidates(opened, top)
    fetch_source(opened.config().dataset, fetching)
    ctx = build_context(opened)
    config = ctx.config
    numbers = tuple((config.search.seed + one) % 2**31 for one in range(1, seeds + 1))
    baseline = attrs.find_baseline(opened.study.get_trials(deepcopy=False))
    entrants = [
        _Candidate.of(baseline, ctx.space.baseline(config.baseline), None),
        *(_Candidate.of(trial, plan, trial.number) for trial, plan in chosen),
    ]
    scores: dict[int | None, list[_SeedResult]] = {one.number: [] for one in entrants}
    total, done = len(entrants) * len(numbers), 0
    # All plans under a seed before the next: what is interrupted leaves whole pairs.
    for seed in numbers:
        for one in entrants:
            step = ConfirmProgress(one.number, seed, done, total)
            scores[one.number].append(_score(opened, ctx, one, step, on_epoch))
            done += 1
    return _compare(opened, entrants, scores, numbers)


def candidates(opened: OpenStudy, top: int) -> list[tuple[FrozenTrial, TrialPlan]]:
    """Return the best trials of a study with their plans, the baseline aside.

    Raises:
        StudyError: When there is none.
    """
    trials = opened.study.get_trials(deepcopy=False)
    direction = attrs.metric_direction(opened.study)
    several = len(opened.study.directions) > 1
    best = (ranking.front_of if several else ranking.best_first)(trials, direction)
    found = [
        (one, plan)
        for one in best
        if not attrs.is_baseline(one) and (plan := attrs.trial_plan(one)) is not None
    ]
    if not found:
        missing = "no complete trial but the baseline" if best else explain_no_best(trials)
        raise StudyError(f"the study {opened.name!r} has {missing}; nothing can be confirmed")
    return found[:top]


@dataclass(frozen=True)
class _Candidate:
    """A plan that is compared.

    Args:
        number: Its trial; ``None`` for the baseline.
        plan: The plan.
        search_value: Its value in the search.
        part: Images that go through its network at a time, where a batch does not fit.
    """

    number: int | None
    plan: TrialPlan
    search_value: float | None
    part: int | None

    @staticmethod
    def of(trial: FrozenTrial | None, plan: TrialPlan, number: int | None) -> _Candidate:
        if trial is None:
            return _Candidate(number, plan, None, None)
        part = trial.user_attrs.get(attrs.MICRO_BATCH)
        return _Candidate(number, plan, attrs.metric_value(trial), part)


@dataclass(frozen=True)
class _SeedResult:
    """What a plan reached under a seed.

    Args:
        value: The objective, ``None`` where it diverged.
        failed: Why it diverged.
        known: Whether an earlier call has kept it.
    """

    value: float | None
    failed: str = ""
    known: bool = False


def _score(
    opened: OpenStudy,
    ctx: WorkerContext,
    entrant: _Candidate,
    step: ConfirmProgress,
    on_epoch: Callable[[ConfirmProgress], None],
) -> _SeedResult:
    """Train a plan under a seed, unless it has been."""
    path = opened.files.confirmed(opened.name) / f"{_key(opened, ctx, entrant, step.seed)}.json"
    # As JSON gives it back: lists, not tuples.
    asked = json.loads(json.dumps({"plan": entrant.plan.to_json(), "seed": step.seed}))
    kept = _read(path, asked)
    known = kept is not None
    if kept is None:
        on_epoch(step)
        metrics, failed = None, ""
        try:
            metrics = retrain(
                entrant.plan,
                ctx,
                lambda epoch: on_epoch(replace(step, epoch=epoch)),
                seed=step.seed,
                part=entrant.part,
            ).metrics.to_json()
        except DivergedError as error:
            failed = str(error)
        kept = {**asked, "metrics": metrics, "failed": failed}
        _write(path, kept)
    with reading(str(path), CONFIRMATION):
        value = kept["metrics"] and kept["metrics"][ctx.config.training.objective]
        score = _SeedResult(value, kept["failed"], known)
    on_epoch(replace(step, done=step.done + 1, **asdict(score)))
    return score


def _key(opened: OpenStudy, ctx: WorkerContext, entrant: _Candidate, seed: int) -> str:
    """Return a digest of all that decides about a value: of a study made anew it is another."""
    attributes = opened.study.user_attrs
    definition = ctx.config.stable_identity()
    decides = [
        entrant.plan.to_json(),
        seed,
        ctx.config.search.seed,
        definition["training"],
        definition["data"],
        attributes[attrs.DATASET]["fingerprint"],
        attributes[attrs.BACKBONES][entrant.plan.backbone]["weights_hash"],
    ]
    return digest(decides)


def _read(path: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Read what a plan reached under a seed; ``None`` where it has to be trained (again)."""
    try:
        values: Any = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):  # a power cut may leave an empty file
        values = None
    if not isinstance(values, dict) or not _is_whole(values):
        logger.warning("%s is damaged; the plan is trained again", path)
        return None
    check_format(values, CONFIRMATION, str(path))
    with reading(str(path), CONFIRMATION):
        refuse_unknown(values, FIELDS, "what was confirmed")
    if any(values.get(key) != one for key, one in asked.items()):
        logger.warning("%s is that of another plan or seed; the plan is trained again", path)
        return None
    return values


def _is_whole(values: dict[str, Any]) -> bool:
    """Compare what was read with its checksum; the first format has none."""
    checksum = values.pop("checksum", None)
    if checksum is None:
        return bool(values.get("format", 1) == 1)
    return bool(checksum == digest(values))


def _write(path: Path, values: dict[str, Any]) -> None:
    values = {**stamp(CONFIRMATION), **values}
    values["checksum"] = digest(values)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_full_as_user_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _compare(
    opened: OpenStudy,
    entrants: Sequence[_Candidate],
    scores: Mapping[int | None, Sequence[_SeedResult]],
    seeds: tuple[int, ...],
) -> Confirmation:
    """Judge the plans that trained under every seed, and write down what came of it."""
    objective = Objective.from_study(opened.study)
    images = int(opened.study.user_attrs[attrs.DATASET].get("validation") or 0)
    step = 1 / images if objective.is_share and images else 0.0
    whole = {
        number: values
        for number, some in scores.items()
        if len(values := [one.value for one in some if one.value is not None]) == len(seeds)
    }

    def line(
        entrant: _Candidate, mean: Interval | None = None, gain: Interval | None = None
    ) -> PlanResult:
        its, shrank = scores[entrant.number], None
        if mean is not None and entrant.search_value is not None:
            shrank = entrant.search_value - mean.mean
        return PlanResult(
            trial=entrant.number,
            plan=entrant.plan,
            search_value=entrant.search_value,
            values=tuple(one.value for one in its),
            failed=next((one.failed for one in its if one.failed), ""),
            mean=mean,
            gain=gain,
            selection_bias=shrank if shrank is None or objective.is_maximized else -shrank,
        )

    first, *others = entrants
    if first.number not in whole:
        raise StudyError(
            f"the baseline of {opened.name!r} must train under every seed, for plans to be "
            f"compared with it, but: {line(first).failed}; a study with a lower baseline.lr helps"
        )
    judged = compare_with_baseline(
        {number: some for number, some in whole.items() if number is not None},
        whole[first.number],
        maximized=objective.is_maximized,
        step=step,
        among=len(others),
    )
    by_number = {one.number: one for one in others}
    baseline = line(first, t_interval(whole[first.number], CONFIDENCE_LEVEL, step / math.sqrt(12)))
    ranked = [line(by_number[one.name], one.mean, one.gain) for one in judged]
    diverged = [line(one) for one in others if one.number not in whole]
    verdict = _verdict(baseline, ranked[0], others, seeds) if ranked else None
    opened.study.set_user_attr(attrs.CONFIRMED, verdict and verdict.to_json())
    trained = sum(not one.known for some in scores.values() for one in some)
    return Confirmation(baseline, (*ranked, *diverged), seeds, trained, verdict)


def _verdict(
    baseline: PlanResult, best: PlanResult, others: Sequence[_Candidate], seeds: Sequence[int]
) -> Verdict:
    assert best.trial is not None and best.mean and best.gain and baseline.mean
    assert best.selection_bias is not None, "a trial of a search has a value"
    return Verdict(
        trial=best.trial,
        mean=best.mean.mean,
        baseline=baseline.mean.mean,
        gain=best.gain.mean,
        low=best.gain.low,
        high=best.gain.high,
        selection_bias=best.selection_bias,
        seeds=len(seeds),
        trials=tuple(one.number for one in others if one.number is not None),
    )
