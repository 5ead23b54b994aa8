"""Queueing a plan by hand, in a study at any stage, while workers run or not."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune.errors import StudyError
from autotune.plan import TrialPlan
from autotune.search import ranking
from autotune.search.manual_plans import ManualPlan, manual_plan
from autotune.storage.rdb.connection import storage_errors
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.budget import Budget, device_hours_used, impatience, trials_since_best

#: What has the values that are not given: a trial by its number, the best one, or a plan.
Base = int | Literal["best"] | TrialPlan


@dataclass(frozen=True)
class EnqueuedTrial:
    """A plan that was queued by hand.

    Args:
        number: Number of its trial.
        plan: The plan.
        words: Description of the plan.
        filled: The values in it that were not given, by parameter.
        filled_from: Where these come from, in words.
        is_running: Whether workers run trials now.
        waits_for: Why no trial may start now; empty where one may.
        needs: Values of the study file with which the next run has room for it; empty where there
            is room.
    """

    number: int
    plan: TrialPlan
    words: str
    filled: Mapping[str, Any]
    filled_from: str
    is_running: bool
    waits_for: str = ""
    needs: Mapping[str, Any] = field(default_factory=dict)


def enqueue_plan(
    opened: OpenStudy,
    values: Mapping[str, Any],
    base: Base | None = None,
    source: OpenStudy | None = None,
) -> EnqueuedTrial:
    """Queue a plan: the given values, and for the rest those of a trial, or of the baseline.

    Args:
        opened: The study.
        values: Values by name, see :mod:`autotune.search.manual_plans`.
        base: What has the other values; default: the baseline, or where ``source`` is given its
            best trial.
        source: The study of that trial; default: the same study.

    Raises:
        ConfigError: With every name and value that is wrong, and what is allowed.
        StudyError: When there is no such trial, or a trial has this plan; nothing is queued.
        StorageError: When the storage cannot be used.
    """
    if not values and base is None and source is None:
        raise StudyError(
            "give the values of a plan, such as layers=3 training.lr=0.001, or a trial to take "
            "it from"
        )
    with storage_errors(opened.url):
        space = attrs.study_space(opened.study)
        made, where = _plan(opened, values, base, source)
        origin = attrs.BY_HAND
        if base is not None or source is not None:
            origin += f", {'with changes ' if values else ''}from {where}"
        number, reason = opened.trial_queue().enqueue(made.params, origin)
        trials = opened.study.get_trials(deepcopy=False)
        budget = Budget.from_attributes(opened.study.user_attrs)
    return EnqueuedTrial(
        number,
        made.plan,
        made.plan.describe(named=len(space.backbones) > 1),
        made.filled,
        where,
        any(trial.state == TrialState.RUNNING for trial in trials),
        reason.text if reason else "",
        _needs(trials, budget, attrs.metric_direction(opened.study)),
    )


def _needs(
    trials: Sequence[FrozenTrial], budget: Budget, direction: StudyDirection
) -> dict[str, Any]:
    """Return the limits under which all trials of the queue can start, where they are higher."""
    progress, needs = attrs.count_progress(trials, budget.trials), dict[str, Any]()
    trials_needed = progress.finished + progress.running + progress.waiting
    if trials_needed > budget.trials:
        needs["search.trials"] = trials_needed
    if budget.patience is not None and impatience(trials, direction, budget.patience):
        since = trials_since_best(trials, direction)
        needs["search.patience"] = since + progress.waiting
    if budget.device_hours is not None:
        used = device_hours_used(trials, time.time())
        if used >= budget.device_hours:
            more = used * (1 + 2 * progress.waiting / max(1, progress.finished))
            needs["search.device_hours"] = math.ceil(1000 * more) / 1000
    return needs


def _plan(
    opened: OpenStudy, values: Mapping[str, Any], base: Base | None, source: OpenStudy | None
) -> tuple[ManualPlan, str]:
    """Make the plan; say where the values come from that were not given."""
    space = attrs.study_space(opened.study)
    if base is None and source is None:
        default = space.baseline(opened.config().baseline)
        return manual_plan(space, values, default, is_default=True), "the baseline"
    if isinstance(base, TrialPlan):
        return manual_plan(space, values, base, is_default=False), "the plan that was given"
    study = (source or opened).study
    trials = study.get_trials(deepcopy=False)
    if base is None or base == "best":
        best = ranking.best_trial(trials, attrs.metric_direction(study))
        if best is None:
            raise StudyError(f"the study {study.study_name!r} has no complete trial yet")
        base = best.number
    if not 0 <= base < len(trials):
        raise StudyError(
            f"--trial: the study {study.study_name!r} has the trials 0 to {len(trials) - 1}, but "
            f"got {base}"
        )
    plan = attrs.trial_plan(trials[base])
    if plan is None:
        raise StudyError(f"--trial: trial {base} of {study.study_name!r} has no plan yet")
    where = f"trial {base}" + (f" of study {study.study_name}" if source else "")
    return manual_plan(space, values, plan, is_default=False), where
