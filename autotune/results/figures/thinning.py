"""Choose what is drawn of a study of thousands of trials.

A page with a point for each of 5,000 trials in each of 25 figures has 10 MB, and a browser takes
long to draw it. So a figure draws at most as many trials as the constants say: some spread evenly
over the study, and the best ones. Its axis says so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from optuna.trial import FrozenTrial, TrialState

from autotune.results.study_results import StudyResults
from autotune.search import ranking

#: Most trials in a figure: as points over their number, as curves, over one parameter, as bars.
MAX_POINTS = 1200
MAX_CURVES = 300
MAX_SLICE_POINTS = 300
MAX_BARS = 1500
#: Trials among them that are drawn because they are the best complete ones.
BEST_DRAWN = 30


def thin(
    results: StudyResults, trials: Sequence[FrozenTrial], most: int, keep: Collection[int] = ()
) -> list[FrozenTrial]:
    """Choose the trials that are drawn: some evenly spread ones, the best ones and the baseline.

    Args:
        results: The study.
        trials: Those of its trials that could be drawn, in any order.
        most: Most trials that are drawn, those of ``keep`` not counted.
        keep: Numbers of trials that are drawn in any case.

    Returns:
        The chosen trials in their order; all of them where they are few enough.
    """
    if len(trials) <= most:
        return list(trials)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = ranking.rank_trials(complete, results.direction)[:BEST_DRAWN]
    kept = {*keep, *(trial.number for trial in best)}
    if results.baseline is not None:
        kept.add(results.baseline.number)
    even = most - len(best)
    places = {(index * len(trials)) // even for index in range(even)}
    return [trial for place, trial in enumerate(trials) if place in places or trial.number in kept]


def drawn_suffix(drawn: int, total: int) -> str:
    """Say at an axis how many of ``total`` trials are drawn; empty where all are."""
    return "" if drawn >= total else f" ({drawn:,} of {total:,} trials are drawn)"
