"""Diagnostics of a study: the questions of a tuning playbook, answered from its trials.

They are those of the Deep Learning Tuning Playbook (Godbole et al. 2023, above all "Extracting
insight from experiment results"): https://github.com/google-research/tuning_playbook

A question that a study cannot answer yet is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import NormalDist, median
from typing import Any, Literal

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from autotune.results.diagnosis.space_edges import space_edges
from autotune.results.figures.parameters import importances
from autotune.results.study_results import StudyResults, is_active
from autotune.results.values.objective import Objective
from autotune.search import ranking
from autotune.search.extrapolation import MIN_TRIALS, FinalValuePredictor
from autotune.study.state import attrs

#: Below this number of complete trials, importances are hardly more than noise.
MIN_FOR_IMPORTANCES = 20

Severity = Literal["ok", "warning", "action"]

#: Fewest trained plans from which their density, and what the last of them gained, is judged.
_MIN_TRAINED = 8
#: Largest mean difference of parameters, as a share of their ranges, of plans that are close.
_CLOSE = 0.15
#: Fewest plans close to the best one that make it more than a lucky point.
_MIN_CLOSE = 3
#: Importances below this are those of parameters that could be fixed.
_NEGLIGIBLE = 0.03
_MAX_NAMED = 6  # of them


@dataclass(frozen=True)
class Diagnostic:
    """A question, and what the trials say.

    Args:
        question: The question.
        answer: The answer in a sentence or two, with its numbers.
        severity: ``ok``: nothing to do; ``warning``: worth a look; ``action``: change something.
        advice: What to do about it; empty where nothing needs to be done.
    """

    question: str
    answer: str
    severity: Severity
    advice: str = ""


#: Answer, severity and advice.
_Finding = tuple[str, Severity, str]


def diagnose(
    results: StudyResults, measured: Mapping[str, float] | None = None
) -> tuple[Diagnostic, ...]:
    """Answer the questions that the trials of a study can answer so far.

    Of two objectives, the metric is diagnosed.

    Args:
        results: The study, at any stage.
        measured: The importances of its parameters, if they are known.
    """
    facts = _Facts(results, measured)
    found = ((question, check(facts)) for question, check in _CHECKS.items())
    return tuple(Diagnostic(question, *finding) for question, finding in found if finding)


@dataclass(frozen=True, eq=False)
class _Facts:
    """What the checks have in common."""

    results: StudyResults
    measured: Mapping[str, float] | None

    @property
    def objective(self) -> Objective:
        return self.results.objective

    @cached_property
    def ranked(self) -> list[FrozenTrial]:
        """The complete trials within the limits that have a finite value, the best one first."""
        trials = ranking.rank_trials(self.results.last_attempts, self.objective.direction)
        return [trial for trial in trials if math.isfinite(trial.values[0])]

    @cached_property
    def best(self) -> FrozenTrial | None:
        return self.ranked[0] if self.ranked else None

    @cached_property
    def improved(self) -> FrozenTrial | None:
        """The best trial, unless that is the baseline."""
        return None if self.best is self.results.baseline else self.best

    @cached_property
    def good(self) -> list[FrozenTrial]:
        """The best quarter of the complete trials that have a curve, four at least."""
        curved = [trial for trial in self.ranked if len(trial.intermediate_values) > 1]
        return curved[: max(4, len(curved) // 4)]

    @cached_property
    def trained(self) -> list[FrozenTrial]:
        """Complete and pruned trials, in the order of their numbers."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        return [
            trial
            for trial in self.results.last_attempts
            if trial.state in ended and not attrs.ended_infeasible(trial)
        ]

    @cached_property
    def diverged(self) -> list[FrozenTrial]:
        return [trial for trial in self.results.last_attempts if attrs.has_diverged(trial)]

    @property
    def noise(self) -> float:
        """By how much a value may be off by chance; 0 where that is not known."""
        return self.noise_and_basis[0]

    @cached_property
    def noise_and_basis(self) -> tuple[float, str]:
        """The noise, and how it is known."""
        if self.best is None:
            return 0.0, ""
        value = self.best.values[0]
        deviation = attrs.metric_deviation(self.best, self.objective.name)
        dataset = self.results.dataset
        folds, images = len(dataset.get("folds") or ()), int(dataset.get("validation") or 0)
        if deviation and folds > 1:
            return deviation / math.sqrt(folds), f"the standard error of the mean of {folds} folds"
        if self.objective.is_share and images:
            share = min(1.0, max(0.0, value))
            # Of a share of nothing or all, that of one image more or less.
            error = math.sqrt(max(share * (1 - share), 1 / images) / images)
            return error, f"the standard error on {images:,} validation images"
        curves = (list(_curve(trial).values()) for trial in self.good)
        moves = [abs(curve[-1] - curve[-2]) for curve in curves if len(curve) > 1]
        if moves:
            return median(moves), "what a value moves from the last epoch but one to the last"
        return 0.0, ""

    def gain(self, value: float, other: float) -> float:
        return self.objective.gain(value, other)

    def format(self, gain: float) -> str:
        return self.objective.format_gain(gain)


def _check_edges(facts: _Facts) -> _Finding | None:
    """Identifying bad search space boundaries."""
    best = facts.improved
    if best is None or not best.params:
        return None
    edges = space_edges(facts.results, best)
    if outwards := [edge for edge in edges if edge.can_be_widened]:
        named = ", ".join(
            f"{edge.parameter} = {edge.value} at the {edge.side} end ({edge.bound})"
            for edge in outwards
        )
        advice = (
            "A wider range may hold a better plan: widen it in a new study, which takes the best "
            "plans of this one along with search.warm_start."
        )
        return f"Yes: {named}.", "action", advice
    if edges:
        named = ", ".join(edge.parameter for edge in edges)
        return f"Only where there is nothing beyond: {named}.", "ok", ""
    return f"No: trial {best.number} lies inside the space in every parameter.", "ok", ""


def _check_density(facts: _Facts) -> _Finding | None:
    """Not sampling enough points in the search space."""
    best = facts.improved
    if best is None or not best.params or len(facts.trained) < _MIN_TRAINED:
        return None
    space = facts.results.space
    names = [name for name in best.distributions if is_active(space, best, name)]
    others = [trial for trial in facts.trained if trial is not best and trial.params]
    close = sum(_distance(trial, best, names) <= _CLOSE for trial in others)
    text = (
        f"{close} of {len(others)} other trained plans differ from trial {best.number} by at most "
        f"{100 * _CLOSE:.0f} % of the range of a parameter in the mean"
    )
    if facts.noise:
        value = best.values[0]
        gains = (facts.gain(value, rival.values[0]) for rival in facts.ranked)
        rivals = sum(gain <= facts.noise for gain in gains) - 1
        within = f"within the noise ({facts.format(facts.noise)}) of its value"
        text += f"; {rivals or 'none'} {'comes' if rivals < 2 else 'come'} {within}"
    if close >= _MIN_CLOSE:
        return f"Yes: {text}.", "ok", ""
    advice = "The best plan may be a lucky point: more trials, or a narrower space around it."
    return f"Hardly: {text}.", "warning", advice


def _check_more_trials(facts: _Facts) -> _Finding | None:
    """Would more trials help?"""
    if len(facts.trained) < _MIN_TRAINED or facts.best is None:
        return None
    start = facts.trained[(3 * len(facts.trained)) // 4].number
    early = next((trial for trial in facts.ranked if trial.number < start), None)
    late = sum(trial.number >= start for trial in facts.trained)
    if early is None:
        return None
    gain = facts.gain(facts.best.values[0], early.values[0])
    if gain <= 0:
        text = f"the last {late} trained plans brought nothing above trial {early.number}"
        return f"Not likely: {text}.", "ok", ""
    text = f"the last {late} trained plans improved the best value by {facts.format(gain)}"
    if gain <= facts.noise:
        text += f", which is within the noise ({facts.format(facts.noise)})"
        advice = "More trials would bring little that could be distinguished from chance."
        return f"Perhaps a little: {text}.", "warning", advice
    advice = "Raise search.trials and run the study again: it continues where it ended."
    return f"Probably: {text}.", "action", advice


def _check_failures(facts: _Facts) -> _Finding | None:
    """How many points of the space cannot be trained?"""
    progress = facts.results.progress
    finished, beyond, failed = progress.finished, progress.infeasible, progress.failed
    if finished < 5:
        return None
    if not beyond and not failed:
        text = f"No: none of {finished} finished trials failed or was beyond a limit."
        return text, "ok", ""
    text = (
        f"of {finished} finished trials {beyond} were beyond the limits or the memory of their "
        f"device ({100 * beyond / finished:.0f} %) and {failed} failed "
        f"({100 * failed / finished:.0f} %)"
    )
    if beyond >= 0.5 * finished:
        advice = "Use a space with smaller plans, wider limits, or a larger device."
        return f"Yes: {text}.", "action", advice
    if failed >= 0.1 * finished:
        advice = "See what failed, above: one reason is often behind most of them."
        return f"Yes: {text}.", "action", advice
    if beyond >= 0.25 * finished:
        return f"In part: {text}.", "warning", "Consider a space of smaller plans."
    return f"No: {text}.", "ok", ""


def _check_stability(facts: _Facts) -> _Finding | None:
    """Examining the training curves: step-to-step variance, and divergence."""
    tried, diverged = len(facts.trained) + len(facts.diverged), len(facts.diverged)
    falls = [fall for trial in facts.good if (fall := _largest_fall(facts, trial)) is not None]
    if tried < 3 or not falls:
        return None
    fall = median(falls)
    text = (
        f"{diverged or 'none'} of {tried} trainings diverged; in the second half of the "
        f"{len(falls)} best curves the value worsens by at most {facts.format(fall)} from one "
        "epoch to the next (median)"
    )
    if diverged >= 0.1 * tried:
        advice = (
            "Lower the upper end of training.lr, or clip gradients with training.clip_grad_norm."
        )
        return f"No: {text}{_describe_divergence(facts)}.", "action", advice
    if facts.noise and fall > 3 * facts.noise:
        advice = (
            "A lower training.lr, a larger training.batch_size or training.ema makes the last "
            "epoch less of an accident."
        )
        return f"The curves jump: {text}, more than three times the noise.", "warning", advice
    return f"Yes: {text}{_describe_divergence(facts)}.", "ok", ""


def _describe_divergence(facts: _Facts) -> str:
    """Say above which learning rate trainings diverge, where that is a pattern."""
    name = "training.lr"
    diverged = [trial.params[name] for trial in facts.diverged if name in trial.params]
    trained = [trial.params[name] for trial in facts.trained if name in trial.params]
    if not diverged or not trained or min(diverged) <= median(trained):
        return ""
    return f"; those that diverged had a learning rate of {min(diverged):.2g} or more"


def _check_overfitting(facts: _Facts) -> _Finding | None:
    """Examining the training curves: does any of the best overfit?"""
    curve = _curve(facts.best)
    if facts.best is None or len(curve) < 3:
        return None
    peak, last, noise = _peak(facts, curve), max(curve), facts.noise
    lost = facts.gain(curve[peak], curve[last])
    source = "Training losses are not recorded: this is judged by its validation curve alone."
    trial = f"trial {facts.best.number}"
    if peak == last:
        text = f"No sign of it: {trial} was never better than after its last epoch, {last}"
        return f"{text}. {source}", "ok", ""
    text = f"{trial} was best after epoch {peak} of {last} and has lost {facts.format(lost)} since"
    if lost <= noise or not noise:
        within = f", within the noise ({facts.format(noise)})" if noise else ""
        return f"No sign of it: {text}{within}. {source}", "ok", ""
    advice = (
        "Fewer epochs, or more against it: weight decay, dropout, label smoothing, augmentation."
    )
    text = f"It may: {text}, the noise being {facts.format(noise)}. {source}"
    return text, "action" if lost > 2 * noise else "warning", advice


def _check_epochs(facts: _Facts) -> _Finding | None:
    """Examining the training curves: is the best still improving at its end?"""
    curve, good = _curve(facts.best), facts.good
    if facts.best is None or len(curve) < 4:
        return None
    last = max(curve)
    back = max(1, round(last / 5))
    if last - back not in curve:
        return None
    gain = facts.gain(curve[last], curve[last - back])
    moved = f"{'gained' if gain > 0 else 'lost'} {facts.format(abs(gain))}"
    text = f"trial {facts.best.number} {moved if gain else 'did not change'} in its last "
    text += "epoch" if back == 1 else f"{back} epochs"
    if len(good) > 1:
        late = sum(_peak(facts, _curve(trial)) > 2 * max(_curve(trial)) / 3 for trial in good)
        peaks = "peaks" if late < 2 else "peak"
        text += f"; {late or 'none'} of the {len(good)} best curves {peaks} in the last third"
    if facts.noise and gain > facts.noise:
        advice = (
            "Try more training.epochs. A part of such a rise is the learning rate, which falls to "
            "zero at the end."
        )
        return f"Perhaps not: {text}.", "warning", advice
    return f"Yes: {text}.", "ok", ""


def _check_parameters(facts: _Facts) -> _Finding | None:
    """Scientific, nuisance and fixed parameters."""
    found = importances(facts.results) if facts.measured is None else facts.measured
    total = sum(found.values())
    if len(found) < 2 or total <= 0:
        return None
    rest = sorted(((name, value / total) for name, value in found.items()), key=lambda x: -x[1])
    important: list[tuple[str, float]] = []
    while rest and sum(value for _, value in important) < 0.75:
        important.append(rest.pop(0))
    negligible = [name for name, value in rest if value < _NEGLIGIBLE]
    share = sum(value for _, value in important)
    named = ", ".join(f"{name} ({value:.2f})" for name, value in important)
    text = f"Of all importance, {100 * share:.0f} % lies in {named}"
    if negligible:
        more = len(negligible) - _MAX_NAMED
        text += f"; below {_NEGLIGIBLE:g} each: {', '.join(negligible[:_MAX_NAMED])}"
        text += f" and {more} more" if more > 0 else ""
    complete = len(facts.ranked)
    if complete < MIN_FOR_IMPORTANCES:
        few = f"{complete} complete trials make this a hint and no more"
        return f"{text}; {few}.", "warning", ""
    advice = (
        "What is below could be fixed at the values of the best plan in a next study, within the "
        "ranges of this one: the trials then go to what matters."
    )
    return f"{text}.", "ok", advice if negligible else ""


def _check_pruning(facts: _Facts) -> _Finding | None:
    """Where did the winner stand when others were cut, and what would these have reached?"""
    best, winner = _curve(facts.best), facts.best
    curves = [
        curve
        for trial in facts.trained
        if trial.state == TrialState.PRUNED and (curve := _curve(trial)) and max(curve) in best
    ]
    complete = [trial for trial in facts.ranked if _curve(trial)]
    if not curves or winner is None or len(complete) < MIN_TRIALS:
        return None
    ahead = sum(facts.gain(curve[max(curve)], best[max(curve)]) > 0 for curve in curves)
    predictor = FinalValuePredictor((_curve(trial), trial.values[0]) for trial in complete)
    finals = [final for curve in curves if (final := predictor.predict(curve)) is not None]
    gains = [facts.gain(final, winner.values[0]) for final in finals]
    cut = round(median(max(curve) for curve in curves))
    peers = [curve[cut] for trial in complete if cut in (curve := _curve(trial))]
    place = 1 + sum(facts.gain(value, best[cut]) > 0 for value in peers) if cut in best else 1
    text = (
        f"{ahead or 'none'} of {len(curves)} pruned trials {'was' if ahead < 2 else 'were'} ahead "
        f"of trial {winner.number} when cut; after epoch {cut}, the median of the cuts, that was "
        f"number {place} of the {len(peers)} complete ones. By the curves of the complete trials, "
    )
    if max(gains) > facts.noise:
        winners = sum(gain > facts.noise for gain in gains)
        text += f"{winners} would have beaten it beyond the noise, by up to "
        advice = (
            "Take search.pruner: none in the next study, or percentile, which cuts the fewest."
        )
        return f"Perhaps: {text}{facts.format(max(gains))}.", "action", advice
    text += "none would have beaten it beyond the noise"
    if place > max(3, len(peers) // 4) or ahead > len(curves) / 4:
        advice = (
            "The values of early epochs say little of the last one here: search.pruner: none "
            "costs more epochs and is safe."
        )
        return f"Not likely: {text}.", "warning", advice
    return f"No: {text}.", "ok", ""


def _check_noise(facts: _Facts) -> _Finding | None:
    """Is the gain over the baseline larger than the noise?"""
    verdict, best, baseline = facts.results.verdict, facts.improved, facts.results.baseline
    if verdict is not None:
        text = f"{verdict.describe(facts.objective)}."
        if verdict.is_better:
            return f"Yes: {text}", "ok", ""
        advice = "More seeds (autotune confirm) make the interval shorter, or keep the baseline."
        # Not ``action``: the verdict is at the top of the report already.
        return f"Not shown: {text}", "warning", advice
    if best is None or baseline is None or not facts.noise:
        return None
    gain = facts.gain(best.values[0], baseline.values[0])
    text = (
        f"the gain of {facts.format(gain)} is {gain / facts.noise:.1f} times the noise of "
        f"{facts.format(facts.noise)}, {facts.noise_and_basis[1]}"
    )
    if gain >= 2 * facts.noise:
        return f"Yes: {text}.", "ok", ""
    advice = "autotune confirm compares the best plans with the baseline over seeds."
    return f"Not clearly: {text}.", "action", advice


def _check_selection(facts: _Facts) -> _Finding | None:
    """The best of many values is too good by what the luckiest of as many is."""
    verdict, best, baseline = facts.results.verdict, facts.improved, facts.results.baseline
    if verdict is not None:
        worse = "worse" if verdict.selection_bias > 0 else "better"
        text = (
            f"over {verdict.seeds} seeds the mean of trial {verdict.trial} is "
            f"{facts.format(abs(verdict.selection_bias))} {worse} than its value in the search, "
            f"and {facts.format(abs(verdict.gain))} "
            f"{'better' if verdict.gain >= 0 else 'worse'} than the baseline"
        )
        if verdict.is_better:
            return f"Yes, as measured: {text}.", "ok", ""
        advice = "The mean over seeds is what the plan is worth, not the value of the search."
        return f"Not shown: {text}.", "warning", advice
    others = [trial for trial in facts.ranked if trial is not baseline]
    if best is None or baseline is None or len(others) < 2 or not facts.noise:
        return None
    luck = luckiest(len(others)) * facts.noise
    gain = facts.gain(best.values[0], baseline.values[0])
    text = (
        f"the luckiest of {len(others)} equal plans would look {facts.format(luck)} better than "
        f"it is, at a noise of {facts.format(facts.noise)} ({facts.noise_and_basis[1]}); the gain "
        f"is {facts.format(gain)}"
    )
    if gain > luck:
        return f"Yes: {text}.", "ok", "autotune confirm measures how much of it stays."
    advice = "autotune confirm trains the best plans under other seeds."
    return f"No: {text}.", "action", advice


def luckiest(count: int) -> float:
    """Return by how many deviations the largest of some normal values is above their mean.

    Blom's approximation (1958, "Statistical Estimates and Transformed Beta-Variables"), good to
    0.02 from two values on.
    """
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


_CHECKS: Mapping[str, Callable[[_Facts], _Finding | None]] = {
    "Does the best plan lie at an edge of the space?": _check_edges,
    "Were enough plans tried near the best one?": _check_density,
    "Would more trials help?": _check_more_trials,
    "Is much of the space infeasible, or failing?": _check_failures,
    "Is training stable?": _check_stability,
    "Does the best plan overfit?": _check_overfitting,
    "Was training long enough?": _check_epochs,
    "Which parameters matter, and which could be fixed?": _check_parameters,
    "Did pruning cut plans that would have won?": _check_pruning,
    "Is the gain over the baseline larger than the noise?": _check_noise,
    "Is the gain larger than what choosing among the trials brings?": _check_selection,
}


def _curve(trial: FrozenTrial | None) -> dict[int, float]:
    """Return the finite values of a trial by epoch, in order."""
    values = sorted(trial.intermediate_values.items()) if trial is not None else []
    return {epoch: value for epoch, value in values if math.isfinite(value)}


def _peak(facts: _Facts, curve: dict[int, float]) -> int:
    """Return the epoch of the best value, the last one among equals."""
    best = facts.objective.best_of(curve.values())
    return max(epoch for epoch, value in curve.items() if value == best)


def _largest_fall(facts: _Facts, trial: FrozenTrial) -> float | None:
    """Return by how much a curve worsens most from an epoch to the next, in its second half."""
    values = list(_curve(trial).values())
    late = values[len(values) // 2 :] if len(values) > 1 else []
    falls = [facts.gain(before, after) for before, after in pairwise(late)]
    return max(0.0, *falls) if falls else None


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
