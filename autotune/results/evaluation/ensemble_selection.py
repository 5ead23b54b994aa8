"""Which of the best plans make an ensemble: greedy forward selection on the validation split.

Caruana, Niculescu-Mizil, Crew, Ksikes 2004, "Ensemble selection from libraries of models": in each
round the trial is added whose probabilities improve the average most. A trial may be added again,
which raises its weight. The first member is the plan that would be refitted alone; the ensemble is
the best of all rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from optuna.trial import FrozenTrial, TrialState

from autotune.errors import StudyError
from autotune.results.study_results import StudyResults
from autotune.results.values.objective import Objective
from autotune.search import ranking
from autotune.study.state.predictions import ValidationLogits
from autotune.text import plural
from autotune.training.metrics import Metrics, compute_metrics

#: Most different plans of an ensemble: each of them is trained again, and computed for each image.
MOST_MEMBERS = 5
#: Best trials that are considered, and rounds.
CANDIDATES, ROUNDS = 20, 12

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EnsembleChoice:
    """The trials of an ensemble.

    Args:
        weights: How often each trial was added, that of the single plan first.
        single: Validation scores of the single plan.
        together: Those of the ensemble.
        considered: Trials that were considered.
        without_logits: Better or equal trials that have no validation logits.
    """

    weights: Mapping[int, int]
    single: Metrics
    together: Metrics
    considered: int
    without_logits: int = 0

    @property
    def is_better(self) -> bool:
        """Whether any member adds something to the single plan."""
        return len(self.weights) > 1


def select_ensemble(
    results: StudyResults, first: FrozenTrial, most: int = MOST_MEMBERS
) -> EnsembleChoice:
    """Select the trials of an ensemble by their validation logits.

    Args:
        results: The study, with its artifacts.
        first: The trial whose plan would be refitted alone.
        most: Most different trials, at least two.

    Raises:
        StudyError: When the logits of that trial, or of all others, are missing.
    """
    own = results.read_logits(first)
    ranked = ranking.rank_trials(results.trials, results.direction)[:CANDIDATES]
    others = {t.number: results.read_logits(t) for t in ranked if t.number != first.number}
    usable = {
        number: logits
        for number, logits in others.items()
        if logits is not None and own is not None and np.array_equal(logits.ids, own.ids)
    }
    if own is None or not usable:
        raise StudyError(_explain_missing(results, first, own))
    shares = {first.number: own.probabilities}
    shares |= {number: logits.probabilities for number, logits in usable.items()}
    labels = torch.from_numpy(own.labels)

    def score(probabilities: Floats) -> Metrics:
        positive = np.maximum(probabilities, np.finfo(np.float64).tiny)
        return compute_metrics(torch.from_numpy(np.log(positive)), labels)

    def key(probabilities: Floats) -> tuple[float, ...]:
        return rank_metrics(score(probabilities), results.objective)

    order = _select(shares, first.number, key, most)
    mean = np.asarray(sum(shares[number] for number in order) / len(order))
    single, together = score(shares[first.number]), score(mean)
    missing = len(others) - len(usable)
    return EnsembleChoice(dict(Counter(order)), single, together, len(shares), missing)


def rank_metrics(metrics: Metrics, objective: Objective) -> tuple[float, ...]:
    """Return the key of :func:`autotune.search.ranking.rank_key`; the best has the smallest."""
    value = metrics.objective(objective.name)
    return ranking.rank_key([value], metrics.log_loss, objective.direction)


def _select(
    shares: Mapping[int, Floats], first: int, key: Callable[[Floats], tuple[float, ...]], most: int
) -> list[int]:
    """Return the members in the order in which they were added, to the best round."""
    order, best = [first], [first]
    total, best_key = shares[first], key(shares[first])
    for size in range(2, ROUNDS + 1):
        is_full = len(set(order)) == most
        allowed = [number for number in shares if not is_full or number in order]
        keys = {number: key((total + shares[number]) / size) for number in allowed}
        added = min(keys, key=lambda number: keys[number])  # the better trial of equal ones
        order, total = [*order, added], total + shares[added]
        if keys[added] < best_key:
            best, best_key = order, keys[added]
    return best


def _explain_missing(
    results: StudyResults, first: FrozenTrial, own: ValidationLogits | None
) -> str:
    if own is not None:
        others = [trial for trial in results.trials if trial.number != first.number]
        kept = sum(results.read_logits(trial) is not None for trial in others)
        what = f"but of {plural(len(others), 'other trial')} "
        what += f"{kept} have those of other images" if kept else "none has any"
    elif first.state != TrialState.COMPLETE:
        what = f"but trial {first.number} is not complete"
    else:
        what = (
            f"but trial {first.number} has none: an earlier version of autotune has trained it, "
            "or its file was removed"
        )
    return (
        f"an ensemble is chosen by the validation logits that every trial keeps, {what}. Search "
        "on with this version ('autotune run' with more trials), or take --combine soup, which "
        "needs none"
    )
