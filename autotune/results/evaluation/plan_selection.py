"""Which plan is fitted, and why.

A plan that was confirmed is known over several seeds and comes before one that was good once. So
the best confirmed mean is taken, whether or not it is shown to beat the baseline, and the baseline
itself where no confirmed plan has a better one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from autotune.errors import StudyError
from autotune.plan import TrialPlan
from autotune.results.evaluation.confirm import candidates
from autotune.results.values.objective import Objective
from autotune.results.values.pareto_front import explain_no_best
from autotune.results.values.verdict import Verdict
from autotune.search import ranking
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs


@dataclass(frozen=True)
class SelectedPlan:
    """The plan that is fitted.

    Args:
        trial: Number of its trial.
        plan: The plan.
        reason: Why this one, in a few words: ``confirmed over 5 seeds``.
        remarks: What should be known of the choice, in sentences.
    """

    trial: int
    plan: TrialPlan
    reason: str
    remarks: tuple[str, ...] = ()

    def describe(self) -> str:
        """Say it in a sentence: ``trial 12, confirmed over 5 seeds``."""
        return f"trial {self.trial}, {self.reason}"


def select_plan(opened: OpenStudy, trial: int | None = None) -> SelectedPlan:
    """Choose the plan to fit.

    Args:
        opened: The study.
        trial: Number of the trial to take whatever was found out about it.

    Raises:
        StudyError: When there is no such trial, or none that is complete.
    """
    trials = opened.study.get_trials(deepcopy=False)
    if trial is not None:
        if not 0 <= trial < len(trials):
            raise StudyError(
                f"--trial: the study {opened.name!r} has the trials 0 to {len(trials) - 1}, but "
                f"got {trial}"
            )
        return _chosen(opened, trials[trial], "as asked for")
    verdict = Verdict.from_study(opened.study)
    return _searched(opened, trials) if verdict is None else _confirmed(opened, trials, verdict)


def _searched(opened: OpenStudy, trials: Sequence[FrozenTrial]) -> SelectedPlan:
    best = ranking.best_of(trials, attrs.metric_direction(opened.study))
    if best is None:
        raise StudyError(f"the study {opened.name!r} has {explain_no_best(trials)}")
    if attrs.is_baseline(best):
        return _chosen(opened, best, "the baseline: no trial is better")
    return _chosen(
        opened,
        best,
        "the best of the search",
        "The best of a search is good and lucky; 'autotune confirm' tells how much was luck.",
    )


def _confirmed(opened: OpenStudy, trials: Sequence[FrozenTrial], verdict: Verdict) -> SelectedPlan:
    seeds = f"confirmed over {verdict.seeds} seeds"
    baseline = attrs.find_baseline(trials)
    stale = _stale(opened, verdict)
    if verdict.gain <= 0 and baseline is not None:
        known = (
            f"No confirmed plan has a better mean: the best is trial {verdict.trial}, which "
            f"--trial {verdict.trial} takes.",
        )
        return _chosen(opened, baseline, f"the baseline, {seeds}", *known, *stale)
    doubt: tuple[str, ...] = ()
    if not verdict.is_better:
        doubt = (f"{_sentence(verdict.describe(Objective.from_study(opened.study)))}.",)
    return _chosen(opened, trials[verdict.trial], seeds, *doubt, *stale)


def _stale(opened: OpenStudy, verdict: Verdict) -> tuple[str, ...]:
    """Name the trials that would be confirmed by now and were not."""
    best = candidates(opened, len(verdict.trials))
    missing = [one.number for one, _ in best if one.number not in verdict.trials]
    if not missing:
        return ()
    which = f"Trial {missing[0]} is" if len(missing) == 1 else f"Trials {_listed(missing)} are"
    return (
        f"{which} better in the search than some that were confirmed; 'autotune confirm' again "
        "compares them.",
    )


def _chosen(opened: OpenStudy, trial: FrozenTrial, reason: str, *remarks: str) -> SelectedPlan:
    plan = attrs.trial_plan(trial)
    if plan is None:
        raise StudyError(
            f"--trial: trial {trial.number} of {opened.name!r} ended before it had a plan"
        )
    return SelectedPlan(trial.number, plan, reason, remarks)


def _listed(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
