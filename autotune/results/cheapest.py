"""The cheapest trial that is about as good as the best one: one choice from a Pareto front.

The rule is that of one standard error (Breiman, Friedman, Olshen and Stone 1984, "Classification
and Regression Trees", section 3.4.3). Both trials were scored on the same images, so the standard
error is that of paired differences, see :mod:`autotune.results.noise`.
"""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import FrozenTrial

from autotune.results.noise import Noise, noise_between
from autotune.results.study_results import StudyResults

#: What selects this trial where a trial is named.
CHEAPEST = "cheapest"


@dataclass(frozen=True)
class Cheapest:
    """The cheapest trial of a Pareto front that is at most a standard error behind the best.

    Args:
        trial: The trial; the best one where no cheaper trial is as good.
        loss: By how much its metric is worse than that of the best trial.
        noise: The standard error of this difference; ``None`` for the best trial itself.
    """

    trial: FrozenTrial
    loss: float = 0.0
    noise: Noise | None = None


def find_cheapest(results: StudyResults) -> Cheapest | None:
    """Return the cheapest trial that is at most a standard error behind the best one.

    Trials of earlier versions have no scores of single images, and are left out.

    Returns:
        The trial; ``None`` for one objective, and while no trial is complete.
    """
    if not results.front:
        return None
    best = results.front[0]
    for trial in reversed(results.front[1:]):
        loss = results.objective.gain(best.values[0], trial.values[0])
        noise = noise_between(results, best, trial)
        if noise is not None and not noise.is_bound and loss <= noise.error:
            return Cheapest(trial, loss, noise)
    return Cheapest(best)


def describe_cheapest(results: StudyResults) -> str:
    """Say in a sentence which trial is the cheapest about as good as the best; empty if none.

    Example:
        ``Trial 7 is the cheapest at most one standard error (0.8 points) behind trial 4, the best
        (0.4 points): 0.523 ms, 1.43 times as fast as the baseline.``
    """
    found, cost = find_cheapest(results), results.cost
    if found is None or found.noise is None or cost is None:
        return ""
    loss, error = (results.objective.format_gain(each) for each in (found.loss, found.noise.error))
    text = (
        f"Trial {found.trial.number} is the cheapest that is at most one standard error ({error}) "
        f"behind the best, trial {results.front[0].number}: it is {loss} behind, and has "
        f"{cost.format_value(found.trial.values[1])}"
    )
    return f"{text}{_compare_with_baseline(results, found.trial)}."


def _compare_with_baseline(results: StudyResults, trial: FrozenTrial) -> str:
    baseline, cost = results.baseline, results.cost
    if baseline is None or cost is None or baseline is trial:
        return ""
    ratio = baseline.values[1] / trial.values[1]
    if cost.name == "latency_ms":
        return f", {ratio:.2f} times as fast as the baseline"
    return f", {100 / ratio:.0f} % of the baseline"
