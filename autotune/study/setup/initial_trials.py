"""The trials that a study starts with: baseline, default plans, the best of other studies."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.config.loading import get_dotted
from autotune.config.schema import StudyConfig
from autotune.errors import StudyError, did_you_mean, join_sentences
from autotune.plan import OF_IMAGES, TrialPlan
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

#: Plans that a warm start takes from each study: enough to show where it was good, and few beside
#: the trials of the new study, which has other images.
PLANS_PER_STUDY = 3


@dataclass(frozen=True)
class InitialTrials:
    """The trials that are queued when a study is made.

    Args:
        baseline: Plan of the baseline.
        params: Its canonical parameters; ``None`` when it lies outside the space.
        plans_to_try: Default plans, then the best plans of other studies.
        warm: Titles of the latter.
        dropped: Plans of other studies that are not tried, and why.
    """

    baseline: TrialPlan
    params: dict[str, Any] | None
    plans_to_try: tuple[InitialPlan, ...] = ()
    warm: tuple[str, ...] = ()
    dropped: tuple[SkippedPlan, ...] = ()

    @classmethod
    def from_config(
        cls, config: StudyConfig, space: Space, storage: RetryingStorage
    ) -> InitialTrials:
        """Choose the initial trials; the studies of a warm start are in the same storage."""
        baseline = space.baseline(config.baseline)
        defaults: tuple[InitialPlan, ...] = ()
        if config.search.default_plans:
            defaults = default_plans(space, config.baseline, config.training.epochs)
        candidates = [
            candidate
            for name in config.search.warm_start
            for candidate in _best_starts(attrs.load_study(name, storage), space, config)
        ]
        fitting = [candidate for candidate in candidates if isinstance(candidate, InitialPlan)]
        dropped = [candidate for candidate in candidates if isinstance(candidate, SkippedPlan)]
        plans = [baseline, *(start.plan for start in defaults)]
        warm, repeated = drop_duplicates(fitting, plans)
        return cls(
            baseline,
            space.params(baseline),
            (*defaults, *warm),
            tuple(start.title for start in warm),
            (*dropped, *repeated),
        )

    @property
    def plans(self) -> list[TrialPlan]:
        """All plans in the order in which they are queued."""
        return [self.baseline, *(start.plan for start in self.plans_to_try)]

    def matches_queue(self, study: Study) -> bool:
        """Tell whether the queue of a study is how this one begins."""
        queued = [attrs.trial_plan(trial) for trial in study.get_trials(deepcopy=False)]
        return queued == self.plans[: len(queued)]

    def queue(self, study: Study) -> None:
        """Queue the trials, except those that an interrupted call has queued.

        Also store what a warm start took and dropped.
        """
        if self.params is None:
            logger.info("the baseline lies outside the space and is not shown to the sampler")
        trials: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (self.params or {}, {attrs.ROLE: attrs.BASELINE}),
            *((start.params, {attrs.ORIGIN: start.title}) for start in self.plans_to_try),
        ]
        done = len(study.get_trials(deepcopy=False))
        for plan, (params, attributes) in list(zip(self.plans, trials, strict=True))[done:]:
            study.enqueue_trial(params, user_attrs={**attributes, attrs.PLAN: plan.to_json()})
        if self.warm or self.dropped:
            dropped = [[plan.title, plan.reason] for plan in self.dropped]
            study.set_user_attr(attrs.WARM_START, {"taken": list(self.warm), "dropped": dropped})


def check_warm_start(config: StudyConfig) -> None:
    """Check that the studies of ``search.warm_start`` exist, unless the study itself does.

    Raises:
        StudyError: With the first name that is wrong.
        StorageError: When the storage cannot be used.
    """
    if not config.search.warm_start:
        return
    is_from_autotune: dict[str, bool] = {}
    if not is_sqlite(config.storage) or database_path(config.storage).exists():
        storage = open_storage(config.storage)
        with storage_errors(config.storage):
            summaries = optuna.get_all_study_summaries(storage, include_best_trial=False)
            is_from_autotune = {s.study_name: attrs.DEFINITION in s.user_attrs for s in summaries}
    if is_from_autotune.get(config.name or ""):
        return
    url = redact(config.storage)
    for name in config.search.warm_start:
        if name == config.name:
            raise StudyError(f"must name other studies, but got the study's own name {name!r}")
        if name not in is_from_autotune:
            others = sorted(other for other, is_ours in is_from_autotune.items() if is_ours)
            raise StudyError(
                join_sentences(
                    f"must name studies of the storage {url}, which has no study {name!r}; it "
                    f"has {', '.join(others) or 'none'}",
                    did_you_mean(name, others),
                )
            )
        if not is_from_autotune[name]:
            raise StudyError(f"the study {name!r} in {url} was not made by autotune")


def _best_starts(
    study: Study, space: Space, config: StudyConfig
) -> list[InitialPlan | SkippedPlan]:
    """Fit the best plans of a study into a space."""
    best = best_plans(study, PLANS_PER_STUDY)
    if not best:
        trials = study.get_trials(deepcopy=False)
        limits = "within its limits" if any(map(ranking.is_infeasible, trials)) else "yet"
        reason = f"it has no complete trial {limits}"
        return [SkippedPlan(f"warm start: study {study.study_name}", reason)]
    return [
        adapt_plan(
            space,
            f"warm start: trial {trial.number} of study {study.study_name}",
            _with_images_as(config, plan, study),
        )
        for trial, plan in best
    ]


def _with_images_as(config: StudyConfig, plan: TrialPlan, study: Study) -> TrialPlan:
    """Name the image size and the strength of a plan of another study where they are searched."""
    definition = study.user_attrs[attrs.DEFINITION]
    values: dict[str, Any] = {}
    for name, key in zip(OF_IMAGES, ("data.image_size", "training.augment.strength"), strict=True):
        own = getattr(plan, name)
        value = get_dotted(definition, key) if own is None else own
        values[name] = value if name in config.image_dimensions else None
    return replace(plan, **values)


def best_plans(study: Study, count: int) -> list[tuple[FrozenTrial, TrialPlan]]:
    """Return the best plans of a study that differ, the best one first, each with its trial.

    With two objectives the metric decides. Plans beyond the limits of the study are left out.
    """
    remaining = study.get_trials(deepcopy=False)
    chosen: list[tuple[FrozenTrial, TrialPlan]] = []
    while len(chosen) < count:
        best = ranking.best_trial(remaining, attrs.metric_direction(study))
        if best is None:
            break
        remaining = [trial for trial in remaining if trial is not best]
        plan = attrs.trial_plan(best)
        if plan is not None and all(plan != other for _, other in chosen):
            chosen.append((best, plan))
    return chosen
