"""What is drawn of a study of thousands of trials.

A page with a point for each of 5,000 trials in each of 25 figures has 10 MB, and a browser takes
long to draw it. So a figure has at most so many trials as are given here: some spread evenly over
the study, and the best ones. A figure says so at its axis.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from optuna.trial import FrozenTrial, TrialState

from autotune.results.study_results import StudyResults
from autotune.search import ranking

#: Trials that are drawn: as points over their number, as curves, over one parameter, as bars.
MOST_POINTS = 1200
MOST_CURVES = 300
MOST_SLICE_POINTS = 300
MOST_BARS = 1500
#: Of those, trials that are drawn because they are the best complete ones.
BEST_DRAWN = 30
#: Rows of the table of trials: half of them for the best trials, half for the newest.
MOST_ROWS = 600


def thin(
    results: StudyResults, trials: Sequence[FrozenTrial], most: int, keep: Collection[int] = ()
) -> list[FrozenTrial]:
    """Choose the trials that are drawn: some evenly spread ones, the best ones and the baseline.

    Args:
        results: The study.
        trials: Those of its trials that could be drawn, in any order.
        most: At most so many are drawn, those of ``keep`` not counted.
        keep: Numbers of trials that are drawn in any case.

    Returns:
        The chosen trials in their order; all of them where they are few enough.
    """
    if len(trials) <= most:
        return list(trials)
    complete = [one for one in trials if one.state == TrialState.COMPLETE]
    best = ranking.rank_trials(complete, results.direction)[:BEST_DRAWN]
    kept = {*keep, *(one.number for one in best)}
    if results.baseline is not None:
        kept.add(results.baseline.number)
    even = most - len(best)
    places = {(at * len(trials)) // even for at in range(even)}
    return [one for at, one in enumerate(trials) if at in places or one.number in kept]


def count_in_words(drawn: int, total: int) -> str:
    """Say at an axis how many trials are drawn; empty where all are.

    Args:
        drawn: Number of the trials that are drawn.
        total: Number of those that could be.
    """
    return "" if drawn >= total else f" ({drawn:,} of {total:,} trials are drawn)"


def choose_rows(results: StudyResults) -> list[FrozenTrial]:
    """Choose the trials of the table: the best and the newest ones, where there are many.

    Args:
        results: The study.

    Returns:
        The trials in the order of their numbers, the baseline among them.
    """
    if len(results.trials) <= MOST_ROWS:
        return list(results.trials)
    half = MOST_ROWS // 2
    chosen = {one.number for one in ranking.rank_trials(results.trials, results.direction)[:half]}
    chosen |= {one.number for one in results.trials[-half:]}
    if results.baseline is not None:
        chosen.add(results.baseline.number)
    return [one for one in results.trials if one.number in chosen]
