"""Questions about the space: its edges, plans near the best one, more trials, failures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from autotune.results.diagnosis.facts import NO_NOISE, Facts, Finding, unknown
from autotune.results.diagnosis.space_edges import Edge, space_edges
from autotune.results.values.parameter_words import label_parameter, parameter_words
from autotune.study.state import attrs
from autotune.study.state.budget import EXHAUSTED
from autotune.text import join_some, plural

#: Below this number of complete trials, importances are hardly more than noise.
MIN_FOR_IMPORTANCES = 20
#: Fewest trained plans, besides the baseline, that say whether more of them would help. Of plans
#: that are drawn alike, the best is in the first half as often as in the second.
MIN_TRAINED = 20
#: Fewest complete trials besides the baseline of which the best one's place says something.
_MIN_PLACED = 5
#: Fewest finished trials that say which share of the space fails.
_MIN_FINISHED = 10
#: Largest mean difference of parameters, as a share of their ranges, of plans that are close.
_CLOSE = 0.15
#: Fewest plans close to the best one that make it more than a lucky point.
_MIN_CLOSE = 3
#: Importances below this are those of parameters that could be fixed.
_NEGLIGIBLE = 0.03
_MAX_NAMED = 6  # of them


def edges_of_best(facts: Facts) -> tuple[Edge, ...]:
    """Return the edges at which the best plan lies, also where the baseline is better.

    There are none before the place of a plan says something: of few plans, one is at an edge by
    chance.
    """
    if len(facts.others) < _MIN_PLACED or not facts.others[0].params:
        return ()
    return space_edges(facts.results, facts.others[0])


def check_edges(facts: Facts) -> Finding:
    """Identifying bad search space boundaries."""
    if len(facts.others) < _MIN_PLACED:
        count = plural(len(facts.others), "complete trial")
        return unknown(f"{count} besides the baseline; {_MIN_PLACED} are needed")
    edges, where = edges_of_best(facts), facts.describe_candidate()
    if outwards := [edge for edge in edges if edge.can_be_widened]:
        named = ", ".join(
            f"{label_parameter(edge.parameter)} = {edge.value} at the {edge.side} end "
            f"({edge.bound})"
            for edge in outwards
        )
        advice = (
            "A wider range may hold a better plan: widen it in a new study, which takes the best "
            "plans of this one along with search.warm_start."
        )
        return Finding(f"Yes: {named}, in {where}.", "action", advice)
    if edges:
        named = ", ".join(label_parameter(edge.parameter) for edge in edges)
        return Finding(f"Only where there is nothing beyond: {named}, in {where}.", "ok")
    return Finding(f"No: {where} lies inside the space in every parameter.", "ok")


class Saturation(NamedTuple):
    """Whether a search has found what there is; both questions about trials follow from it.

    ``unknown``: too little is known; ``rising``: late plans were better beyond the noise;
    ``sparse``: they were not, and few plans lie near the best one; ``saturated``: they were not,
    and enough do; ``exhausted``: there is no further plan. ``text`` says why.
    """

    state: Literal["unknown", "rising", "sparse", "saturated", "exhausted"]
    text: str
    near: str = ""


def saturation(facts: Facts) -> Saturation:
    """Judge whether more trials would help."""
    plans = [trial for trial in facts.trained if _is_searched(trial)]
    ended, best = facts.results.stop_reason, next(filter(_is_searched, facts.ranked), None)
    if ended is not None and ended.kind == EXHAUSTED:
        return Saturation("exhausted", "every plan of the space has been tried")
    if best is None or len(plans) < MIN_TRAINED:
        count = plural(len(plans), "trained plan")
        return Saturation("unknown", f"{count} besides the baseline; {MIN_TRAINED} are needed")
    late = plans[len(plans) // 2 :]
    early = next((t for t in facts.ranked if t.number < late[0].number and _is_searched(t)), None)
    if early is None:
        return Saturation("unknown", "no plan of the first half is complete")
    near, close = _describe_near(facts, best, plans)
    gain, noise = facts.gain(best.values[0], early.values[0]), facts.noise_to(best, early)
    half = f"the second half of the {len(plans)} trained plans"
    if gain <= 0:
        text = f"{half} brought nothing better than trial {early.number}"
    elif noise is None:
        return Saturation("unknown", f"{half} gained {facts.format(gain)}, and {NO_NOISE}")
    else:
        where = "beyond" if gain > noise.error else "within"
        text = (
            f"{half} improved the best value by {facts.format(gain)}, {where} the noise "
            f"({facts.format(noise.error)})"
        )
        if gain > noise.error:
            return Saturation("rising", text, near)
    return Saturation("saturated" if close >= _MIN_CLOSE else "sparse", text, near)


def _is_searched(trial: FrozenTrial) -> bool:
    """Tell whether the search has found a plan: the baseline and plans of people tell nothing."""
    return not attrs.is_baseline(trial) and not attrs.is_enqueued(trial)


def _describe_near(
    facts: Facts, best: FrozenTrial, plans: Sequence[FrozenTrial]
) -> tuple[str, int]:
    """Say how many plans lie near the best one, and return their number."""
    names = [name for name in best.distributions if facts.results.is_active(best, name)]
    others = [trial for trial in plans if trial is not best and trial.params]
    close = sum(_distance(trial, best, names) <= _CLOSE for trial in others)
    text = (
        f"{close or 'none'} of {len(others)} other trained plans {'lies' if close < 2 else 'lie'} "
        f"within {100 * _CLOSE:.0f} % of the range of a parameter, in the mean, of "
        + (facts.describe_candidate() if best is facts.candidate else f"trial {best.number}")
    )
    if facts.noise is not None:
        rivals = sum(
            (noise := facts.noise_to(best, trial)) is not None
            and abs(facts.gain(best.values[0], trial.values[0])) <= noise.error
            for trial in facts.ranked
            if trial is not best
        )
        verb = "comes" if rivals < 2 else "come"
        text += f"; {rivals or 'none'} {verb} within the noise of its value"
    return text, close


def check_density(facts: Facts) -> Finding:
    """Not sampling enough points in the search space."""
    state, text, near = saturation(facts)
    match state:
        case "unknown":
            return unknown(text)
        case "exhausted":
            return Finding(f"Yes: {text}.", "ok")
        case "rising":
            advice = "See the next question: more trials come near the best plan by themselves."
            return Finding(f"Not yet: the best value still rises; {near}.", "warning", advice)
        case "sparse":
            advice = "The best plan may be a lucky point: more trials, or a narrower space."
            return Finding(f"Hardly: {near}.", "warning", advice)
    return Finding(f"Yes: {near}.", "ok")


def check_more_trials(facts: Facts) -> Finding:
    """Would more trials help?"""
    state, text, near = saturation(facts)
    match state:
        case "unknown":
            return unknown(text)
        case "exhausted":
            return Finding(f"No: {text}.", "ok")
        case "rising":
            advice = "Raise search.trials and run the study again: it continues where it ended."
            return Finding(f"Probably: {text}.", "action", advice)
        case "sparse":
            advice = "Raise search.trials, or narrow the space around the best plan."
            return Finding(f"Perhaps: {text}, but {near}.", "warning", advice)
    return Finding(f"Hardly: {text}; {near}.", "ok")


def check_failures(facts: Facts) -> Finding:
    """How many points of the space cannot be trained?"""
    progress = facts.results.progress
    finished, beyond, failed = progress.finished, progress.infeasible, progress.failed
    if finished < _MIN_FINISHED:
        return unknown(f"{plural(finished, 'finished trial')}; {_MIN_FINISHED} are needed")
    if not beyond and not failed:
        text = f"No: none of {finished} finished trials failed or was beyond a limit."
        return Finding(text, "ok")
    text = (
        f"of {finished} finished trials {beyond} were beyond the limits or the memory of their "
        f"device ({100 * beyond / finished:.0f} %) and {failed} failed "
        f"({100 * failed / finished:.0f} %)"
    )
    if beyond >= 0.5 * finished:
        advice = "Use a space with smaller plans, wider limits, or a larger device."
        return Finding(f"Yes: {text}.", "action", advice)
    if failed >= 0.1 * finished:
        advice = "See what failed, above: one reason is often behind most of them."
        return Finding(f"Yes: {text}.", "action", advice)
    if beyond >= 0.25 * finished:
        return Finding(f"In part: {text}.", "warning", "Consider a space of smaller plans.")
    return Finding(f"No: {text}.", "ok")


def check_parameters(facts: Facts) -> Finding:
    """Scientific, nuisance and fixed parameters."""
    complete = len(facts.ranked)
    if complete < MIN_FOR_IMPORTANCES:
        count = plural(complete, "complete trial")
        return unknown(f"{count}; {MIN_FOR_IMPORTANCES} are needed")
    if len(facts.importances) < 2:
        return unknown("fewer than two parameters had an effect in enough trials")
    rest, important, share = list(facts.importances.items()), [], 0.0
    while rest and share < 0.75:
        name, value = rest.pop(0)
        share += value
        important.append(f"{parameter_words(name)} ({value:.2f})")
    negligible = [label_parameter(name) for name, value in rest if value < _NEGLIGIBLE]
    text = f"Of all importance, {100 * share:.0f} % lies in {', '.join(important)}"
    if negligible:
        text += f"; below {_NEGLIGIBLE:g} each: {join_some(negligible, _MAX_NAMED)}"
    advice = (
        "What is below could be fixed at the values of the best plan in a next study, within the "
        "ranges of this one: the trials then go to what matters."
    )
    return Finding(f"{text}.", "ok", advice if negligible else "")


def _distance(trial: FrozenTrial, best: FrozenTrial, names: Sequence[str]) -> float:
    """Return the mean difference of two plans in some parameters, as a share of their ranges."""
    distances = [_distance_in(name, trial, best) for name in names]
    return sum(distances) / len(distances) if distances else 0.0


def _distance_in(name: str, trial: FrozenTrial, best: FrozenTrial) -> float:
    if name not in trial.params:
        return 1.0
    value: Any = trial.params[name]
    wanted: Any = best.params[name]
    distribution = best.distributions[name]
    if not isinstance(distribution, IntDistribution | FloatDistribution):
        return float(value != wanted)
    scale: Callable[[float], float] = math.log if distribution.log else float
    span = scale(distribution.high) - scale(distribution.low)
    return abs(scale(value) - scale(wanted)) / span if span else 0.0
