"""The trials that a study starts with: baseline, known-good plans, the best of other studies."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.config.schema import StudyConfig
from autotune.errors import StudyError, did_you_mean, join_sentences
from autotune.plan import TrialPlan
from autotune.search import ranking
from autotune.search.initial_plans import (
    InitialPlan,
    SkippedPlan,
    adapt_plan,
    default_plans,
    drop_duplicates,
)
from autotune.search.space import Space
from autotune.storage.rdb.connection import open_storage, storage_errors
from autotune.storage.rdb.retry import RetryingStorage
from autotune.storage.url import database_path, is_sqlite, redact
from autotune.study.state import attrs

logger = logging.getLogger(__name__)

#: Plans that a warm start takes of each study: enough to show where it was good, and few beside
#: the trials of the new study, whose images are others.
PLANS_PER_STUDY = 3


@dataclass(frozen=True)
class InitialTrials:
    """What is queued when a study is made.

    Args:
        baseline: Plan of the baseline.
        params: Its canonical parameters, ``None`` when it lies outside the space.
        default_plans: Plans that often work.
        warm: The best plans of other studies.
        dropped: Those of them that are not tried, and why.
    """

    baseline: TrialPlan
    params: dict[str, Any] | None
    default_plans: tuple[InitialPlan, ...] = ()
    warm: tuple[InitialPlan, ...] = ()
    dropped: tuple[SkippedPlan, ...] = ()

    @property
    def plans(self) -> list[TrialPlan]:
        """All plans in the order in which they are queued."""
        return [self.baseline, *(one.plan for one in (*self.default_plans, *self.warm))]


def choose_initial_trials(
    config: StudyConfig, space: Space, storage: RetryingStorage
) -> InitialTrials:
    """Choose what a study starts with.

    Args:
        config: The configuration of the study.
        space: Its static space.
        storage: Where the studies of a warm start are.
    """
    baseline = space.baseline(config.baseline)
    known = (
        default_plans(space, config.baseline, config.training.epochs)
        if config.search.default_plans
        else ()
    )
    fitting: list[InitialPlan] = []
    dropped: list[SkippedPlan] = []
    for name in config.search.warm_start:
        for one in _of_study(attrs.load_study(name, storage), space):
            if isinstance(one, InitialPlan):
                fitting.append(one)
            else:
                dropped.append(one)
    warm, repeated = drop_duplicates(fitting, [baseline, *(one.plan for one in known)])
    return InitialTrials(
        baseline, space.params(baseline), known, tuple(warm), (*dropped, *repeated)
    )


def queue_initial_trials(study: Study, starts: InitialTrials) -> None:
    """Queue the first trials of a new study, and remember what a warm start took and dropped.

    Those that an earlier start has queued before it broke off are not queued again.
    """
    if starts.params is None:
        logger.info("the baseline lies outside the space and is not shown to the sampler")
    role = {attrs.ROLE: attrs.BASELINE}
    trials: list[tuple[dict[str, Any], dict[str, Any]]] = [(starts.params or {}, role)]
    for one in (*starts.default_plans, *starts.warm):
        trials.append((one.params, {attrs.ORIGIN: one.title}))
    there = len(study.get_trials(deepcopy=False))
    for plan, (params, attributes) in list(zip(starts.plans, trials, strict=True))[there:]:
        study.enqueue_trial(params, user_attrs={**attributes, attrs.PLAN: plan.to_json()})
    if starts.warm or starts.dropped:
        study.set_user_attr(
            attrs.WARM_START,
            {
                "taken": [one.title for one in starts.warm],
                "dropped": [[one.title, one.reason] for one in starts.dropped],
            },
        )


def is_prefix_queued(study: Study, starts: InitialTrials) -> bool:
    """Tell whether what a study has queued so far is how these starts begin."""
    there = [attrs.trial_plan(one) for one in study.get_trials(deepcopy=False)]
    return there == starts.plans[: len(there)]


def check_warm_start(config: StudyConfig) -> None:
    """Check that the studies of ``search.warm_start`` are there, unless the study itself is.

    Raises:
        StudyError: With the first name that is wrong.
        StorageError: When the storage cannot be used.
    """
    if not config.search.warm_start:
        return
    shown = redact(config.storage)
    names: list[str] = []
    made: set[str] = set()
    if not is_sqlite(config.storage) or database_path(config.storage).exists():
        storage = open_storage(config.storage)
        with storage_errors(config.storage):
            for summary in optuna.get_all_study_summaries(storage, include_best_trial=False):
                names.append(summary.study_name)
                if attrs.DEFINITION in summary.user_attrs:
                    made.add(summary.study_name)
    if config.name in made:
        return
    for name in config.search.warm_start:
        if name == config.name:
            raise StudyError(f"must name other studies, but got the study's own name {name!r}")
        if name not in names:
            others = sorted(made)
            raise StudyError(
                join_sentences(
                    f"must name studies of the storage {shown}, which has no study {name!r}; it "
                    f"has {', '.join(others) or 'none'}",
                    did_you_mean(name, others),
                )
            )
        if name not in made:
            raise StudyError(f"the study {name!r} in {shown} was not made by autotune")


def _of_study(study: Study, space: Space) -> list[InitialPlan | SkippedPlan]:
    """Bring the best plans of a study into a space."""
    best = best_plans(study, PLANS_PER_STUDY)
    if not best:
        trials = study.get_trials(deepcopy=False)
        limits = "within its limits" if any(map(ranking.is_infeasible, trials)) else "yet"
        reason = f"it has no complete trial {limits}"
        return [SkippedPlan(f"warm start: study {study.study_name}", reason)]
    return [
        adapt_plan(space, f"warm start: trial {trial.number} of study {study.study_name}", plan)
        for trial, plan in best
    ]


def best_plans(study: Study, count: int) -> list[tuple[FrozenTrial, TrialPlan]]:
    """Return the best plans of a study that differ, the best one first, each with its trial.

    Of two objectives, those with the best metric; never one beyond the limits of the study.
    """
    left = study.get_trials(deepcopy=False)
    found: list[tuple[FrozenTrial, TrialPlan]] = []
    while len(found) < count:
        best = ranking.best_trial(left, attrs.metric_direction(study))
        if best is None:
            break
        left = [one for one in left if one is not best]
        plan = attrs.trial_plan(best)
        if plan is not None and all(plan != other for _, other in found):
            found.append((best, plan))
    return found
