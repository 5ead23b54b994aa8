"""Which plan is refitted, and why.

Values over several seeds come before one value of the search: the best confirmed mean is taken,
whether or not it is shown to be better than the baseline. The baseline itself is taken where no
confirmed plan has a better mean. A trial that the user names comes before both: a number, or the
cheapest one that is about as good as the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from optuna.trial import FrozenTrial

from autotune.errors import StudyError
from autotune.plan import TrialPlan
from autotune.results.cheapest import CHEAPEST, describe_cheapest, find_cheapest
from autotune.results.study_results import StudyResults
from autotune.results.values.verdict import Verdict
from autotune.search import ranking
from autotune.study.state import attrs

#: A trial that the user names: its number, or ``cheapest``, see :mod:`autotune.results.cheapest`.
Choice = int | Literal["cheapest"]


@dataclass(frozen=True)
class SelectedPlan:
    """The plan that is refitted.

    Args:
        reason: Why this one, in a few words: ``confirmed over 5 seeds``.
        remarks: What a reader of the scores should know, in sentences.
    """

    trial: int
    plan: TrialPlan
    reason: str
    remarks: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return trial and reason: ``trial 12, confirmed over 5 seeds``."""
        return f"trial {self.trial}, {self.reason}"


def select_plan(results: StudyResults, trial: Choice | None = None) -> SelectedPlan:
    """Select the plan to refit.

    Args:
        results: The study.
        trial: Number of the trial to take, whatever is known about it; or ``cheapest``.

    Raises:
        StudyError: When there is no such trial, or none that is complete.
    """
    if trial == CHEAPEST:
        return _cheapest(results)
    if isinstance(trial, str):
        raise StudyError(
            f"--trial: must be the number of a trial or {CHEAPEST!r}, but got {trial!r}"
        )
    if trial is not None:
        if not 0 <= trial < len(results.trials):
            raise StudyError(
                f"--trial: the study {results.name!r} has the trials 0 to "
                f"{len(results.trials) - 1}, but got {trial}"
            )
        return _selected(results, results.trials[trial], "as asked for")
    if results.verdict is not None:
        return _confirmed(results, results.verdict)
    best = results.best
    if best is None:
        raise StudyError(f"the study {results.name!r} has {results.explain_no_best()}")
    if attrs.is_baseline(best):
        return _selected(results, best, "the baseline: no trial is better")
    if results.is_tied:
        return _selected(results, best, "equal to the baseline, with a lower log loss")
    bias = "Its value is biased upwards by selection; 'autotune confirm' measures by how much."
    return _selected(results, best, "the best of the search", bias)


def plans_to_confirm(results: StudyResults, top: int) -> list[tuple[FrozenTrial, TrialPlan]]:
    """Return the best trials with their plans, without the baseline.

    With two objectives these are the first trials of the Pareto front.

    Raises:
        StudyError: When there is none.
    """
    best = (
        results.front if results.cost else ranking.rank_trials(results.trials, results.direction)
    )
    plans = [
        (trial, plan)
        for trial in best
        if not attrs.is_baseline(trial) and (plan := attrs.trial_plan(trial)) is not None
    ]
    if not plans:
        reason = results.explain_no_best()
        if best:
            reason = "no complete trial but the baseline"
        raise StudyError(f"the study {results.name!r} has {reason}; nothing can be confirmed")
    return plans[:top]


def _confirmed(results: StudyResults, verdict: Verdict) -> SelectedPlan:
    seeds = f"confirmed over {verdict.seeds} seeds"
    best = [trial.number for trial, _ in plans_to_confirm(results, len(verdict.trials))]
    missing = [str(number) for number in best if number not in verdict.trials]
    outdated: tuple[str, ...] = ()
    if missing:
        trials = f"Trials {', '.join(missing)} are" if missing[1:] else f"Trial {missing[0]} is"
        outdated = (
            f"{trials} better in the search than some that were confirmed; run 'autotune confirm' "
            "again to compare them.",
        )
    if verdict.gain <= 0 and results.baseline is not None:
        remark = (
            f"No confirmed plan has a better mean: the best is trial {verdict.trial}, which "
            f"--trial {verdict.trial} takes."
        )
        reason = f"the baseline, {seeds}"
        return _selected(results, results.baseline, reason, remark, *outdated)
    trial = results.trials[verdict.trial]
    if verdict.is_better:
        return _selected(results, trial, seeds, *outdated)
    text = verdict.describe(results.objective)
    return _selected(results, trial, seeds, f"{text[0].upper()}{text[1:]}.", *outdated)


def _cheapest(results: StudyResults) -> SelectedPlan:
    if results.cost is None:
        raise StudyError(
            f"--trial cheapest: the study {results.name!r} has no cost; give a study two "
            "objectives, such as objectives=[accuracy, latency_ms], or the number of a trial"
        )
    found = find_cheapest(results)
    if found is None:
        raise StudyError(f"the study {results.name!r} has {results.explain_no_best()}")
    if found.noise is None:
        return _selected(results, found.trial, "the best: no cheaper trial is about as good")
    reason = f"the cheapest about as good as trial {results.front[0].number}"
    return _selected(results, found.trial, reason, describe_cheapest(results))


def _selected(
    results: StudyResults, trial: FrozenTrial, reason: str, *remarks: str
) -> SelectedPlan:
    plan = attrs.trial_plan(trial)
    if plan is None:
        raise StudyError(
            f"--trial: trial {trial.number} of {results.name!r} ended before it had a plan"
        )
    return SelectedPlan(trial.number, plan, reason, remarks)
