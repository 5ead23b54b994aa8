"""The questions that one should ask of a study, answered from its trials.

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

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.errors import DivergedError
from autotune.results.diagnosis.space_edges import edges_of_space
from autotune.results.figures.parameters import importances, is_active
from autotune.results.study_results import StudyResults
from autotune.results.values.objective import Objective
from autotune.results.values.verdict import Verdict, format_gain
from autotune.search import ranking
from autotune.search.extrapolation import MIN_TRIALS, FinalValuePredictor
from autotune.study.state import attrs

#: Below so many complete trials, importances are hardly more than noise.
FEW_FOR_IMPORTANCES = 20

Mark = Literal["fine", "look", "act"]

#: So many trained plans make their spread, and what the last of them brought, worth a sentence.
_ENOUGH = 8
#: Plans are near each other when their parameters differ by so much of their range in the mean.
_NEAR = 0.15
#: So many plans near the best one make it more than a lucky point.
_DENSE = 3
#: Importances below this are those of parameters that could be fixed.
_NUISANCE = 0.03
_NAMED = 6  # of them


@dataclass(frozen=True)
class Diagnostic:
    """A question, and what the trials say.

    Args:
        question: The question.
        answer: The answer in a sentence or two, with its numbers.
        mark: ``fine``: nothing to do; ``look``: worth a look; ``act``: something to change.
        advice: What to do about it; empty where there is nothing.
    """

    question: str
    answer: str
    mark: Mark
    advice: str = ""


def diagnose(
    study: Study | StudyResults, matter: Mapping[str, float] | None = None
) -> tuple[Diagnostic, ...]:
    """Ask a study the questions of the playbook.

    Args:
        study: The study, at any stage.
        matter: The importances of its parameters, where they are at hand.

    Returns:
        The answers that its trials give so far. Of two objectives the metric is asked about.
    """
    seen = _Seen(StudyResults.from_study(study), matter)
    return tuple(one for ask in _QUESTIONS if (one := ask(seen)) is not None)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the questions are asked of."""

    results: StudyResults
    matter: Mapping[str, float] | None

    @cached_property
    def trials(self) -> list[FrozenTrial]:
        replaced = self.results.superseded
        return [one for one in self.results.trials if one.number not in replaced]

    @property
    def objective(self) -> Objective:
        return self.results.objective

    @cached_property
    def ranked(self) -> list[FrozenTrial]:
        """The complete trials within the limits that have a finite value, the best one first."""
        found = ranking.rank_trials(self.trials, self.objective.direction)
        return [one for one in found if math.isfinite(one.values[0])]

    @cached_property
    def best(self) -> FrozenTrial | None:
        return self.ranked[0] if self.ranked else None

    @cached_property
    def baseline(self) -> FrozenTrial | None:
        return attrs.find_baseline(self.trials)

    @cached_property
    def good(self) -> list[FrozenTrial]:
        """The best quarter of the complete trials that have a curve, four at least."""
        curved = [one for one in self.ranked if len(one.intermediate_values) > 1]
        return curved[: max(4, len(curved) // 4)]

    @cached_property
    def trained(self) -> list[FrozenTrial]:
        """Complete and pruned trials, in the order of their numbers."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        return [
            one for one in self.trials if one.state in ended and not attrs.ended_infeasible(one)
        ]

    @cached_property
    def diverged(self) -> list[FrozenTrial]:
        said = DivergedError.__name__
        return [
            one
            for one in self.trials
            if one.state == TrialState.FAIL
            and str(one.user_attrs.get(attrs.REASON, "")).startswith(said)
        ]

    @cached_property
    def noise(self) -> tuple[float, str]:
        """By how much a value may be off by chance, and how that is known; 0 where it is not."""
        assert self.best is not None
        value = self.best.values[0]
        deviation = attrs.metric_deviation(self.best, self.objective.name)
        dataset = self.results.attributes.get(attrs.DATASET, {})
        folds, images = len(dataset.get("folds") or ()), int(dataset.get("validation") or 0)
        if deviation and folds > 1:
            return deviation / math.sqrt(folds), f"the standard error of the mean of {folds} folds"
        if self.objective.is_share and images:
            share = min(1.0, max(0.0, value))
            # Of a share of nothing or all, that of one image more or less.
            error = math.sqrt(max(share * (1 - share), 1 / images) / images)
            return error, f"the standard error on {images:,} validation images"
        moves = [abs(late[-1] - late[-2]) for one in self.good if (late := _values(one))]
        if moves:
            return median(moves), "what a value moves from the last epoch but one to the last"
        return 0.0, ""

    def gain(self, value: float, other: float) -> float:
        """Return by how much a value is better than another one."""
        return value - other if self.objective.is_maximized else other - value

    def format(self, gain: float) -> str:
        return format_gain(self.objective, gain)


def _at_an_edge(seen: _Seen) -> Diagnostic | None:
    """Identifying bad search space boundaries."""
    question = "Does the best plan lie at an edge of the space?"
    best = seen.best
    if best is None or best is seen.baseline or not best.params:
        return None
    edges = edges_of_space(seen.results, best)
    outwards = [edge for edge in edges if edge.can_be_widened]
    if outwards:
        named = ", ".join(
            f"{edge.parameter} = {edge.value} at the {edge.side} end ({edge.bound})"
            for edge in outwards
        )
        return Diagnostic(
            question,
            f"Yes: {named}.",
            "act",
            "A wider range may hold a better plan: widen it in a new study, which takes the best "
            "plans of this one along with search.warm_start.",
        )
    if edges:
        named = ", ".join(edge.parameter for edge in edges)
        said = f"Only where there is nothing beyond: {named}."
    else:
        said = f"No: trial {best.number} lies inside the space in every parameter."
    return Diagnostic(question, said, "fine")


def _is_dense(seen: _Seen) -> Diagnostic | None:
    """Not sampling enough points in the search space."""
    question = "Were enough plans tried near the best one?"
    best = seen.best
    if best is None or best is seen.baseline or not best.params or len(seen.trained) < _ENOUGH:
        return None
    space = seen.results.space
    names = [name for name in best.distributions if is_active(space, best, name)]
    others = [one for one in seen.trained if one is not best and one.params]
    near = sum(_distance(one, best, names) <= _NEAR for one in others)
    rivals = sum(seen.gain(best.values[0], one.values[0]) <= seen.noise[0] for one in seen.ranked)
    said = (
        f"{near} of {len(others)} other trained plans differ from trial {best.number} by at most "
        f"{100 * _NEAR:.0f} % of the range of a parameter in the mean"
    )
    if seen.noise[0]:
        within = f"within the noise ({seen.format(seen.noise[0])}) of its value"
        said += f"; {_count(rivals - 1, 'comes', 'come')} {within}"
    if near >= _DENSE:
        return Diagnostic(question, f"Yes: {said}.", "fine")
    return Diagnostic(
        question,
        f"Hardly: {said}.",
        "look",
        "The best plan may be a lucky point: more trials, or a narrower space around it.",
    )


def _would_more_help(seen: _Seen) -> Diagnostic | None:
    question = "Would more trials help?"
    if len(seen.trained) < _ENOUGH or seen.best is None:
        return None
    start = seen.trained[(3 * len(seen.trained)) // 4].number
    early = ranking.best_trial(
        (one for one in seen.ranked if one.number < start), seen.objective.direction
    )
    late = sum(one.number >= start for one in seen.trained)
    if early is None:
        return None
    gained = seen.gain(seen.best.values[0], early.values[0])
    if gained <= 0:
        said = f"Not likely: the last {late} trained plans brought nothing above "
        return Diagnostic(question, f"{said}trial {early.number}.", "fine")
    said = f"the last {late} trained plans improved the best value by {seen.format(gained)}"
    if gained <= seen.noise[0]:
        within = f"which is within the noise ({seen.format(seen.noise[0])})"
        advice = "More trials bring little here that could be told from chance."
        return Diagnostic(question, f"Perhaps a little: {said}, {within}.", "look", advice)
    return Diagnostic(
        question,
        f"Probably: {said}.",
        "act",
        "Raise search.trials and run the study again: it goes on where it ended.",
    )


def _is_feasible(seen: _Seen) -> Diagnostic | None:
    """How many points of the space cannot be trained?"""
    question = "Is much of the space infeasible, or failing?"
    progress = attrs.count_progress(seen.trials, 0)
    if progress.finished < 5:
        return None
    beyond = progress.infeasible / progress.finished
    failed = progress.failed / progress.finished
    if not beyond and not failed:
        said = f"none of {progress.finished} finished trials failed or was beyond a limit"
        return Diagnostic(question, f"No: {said}.", "fine")
    said = (
        f"of {progress.finished} finished trials {progress.infeasible} were beyond the limits or "
        f"the memory of their device ({100 * beyond:.0f} %) and {progress.failed} failed "
        f"({100 * failed:.0f} %)"
    )
    if beyond >= 0.5:
        advice = (
            "A space with smaller plans, wider limits, or a larger device leaves more to the "
            "search."
        )
        return Diagnostic(question, f"Yes: {said}.", "act", advice)
    if failed >= 0.1:
        advice = "See what failed, above: one reason is often behind most of them."
        return Diagnostic(question, f"Yes: {said}.", "act", advice)
    if beyond >= 0.25:
        return Diagnostic(
            question, f"In part: {said}.", "look", "Consider a space of smaller plans."
        )
    return Diagnostic(question, f"No: {said}.", "fine")


def _is_stable(seen: _Seen) -> Diagnostic | None:
    """Examining the training curves: step-to-step variance, and divergence."""
    question = "Is training stable?"
    tried = len(seen.trained) + len(seen.diverged)
    falls = [fall for one in seen.good if (fall := _largest_fall(seen, one)) is not None]
    if tried < 3 or not falls:
        return None
    fall, share = median(falls), len(seen.diverged) / tried
    said = (
        f"{_count(len(seen.diverged))} of {tried} trainings diverged; in the second half of the "
        f"{len(falls)} best curves the value worsens by at most {seen.format(fall)} from one "
        "epoch to the next (median)"
    )
    if share >= 0.1:
        return Diagnostic(
            question,
            f"No: {said}{_where_it_diverges(seen)}.",
            "act",
            "Lower the upper end of training.lr, or clip gradients with training.clip_grad_norm.",
        )
    if seen.noise[0] and fall > 3 * seen.noise[0]:
        return Diagnostic(
            question,
            f"The curves jump: {said}, more than three times the noise.",
            "look",
            "A lower training.lr, a larger training.batch_size or training.ema makes the last "
            "epoch less of an accident.",
        )
    return Diagnostic(question, f"Yes: {said}{_where_it_diverges(seen)}.", "fine")


def _where_it_diverges(seen: _Seen) -> str:
    """Say above which learning rate trainings diverge, where that is a pattern."""
    name = "training.lr"
    lost = [one.params[name] for one in seen.diverged if name in one.params]
    kept = [one.params[name] for one in seen.trained if name in one.params]
    if not lost or not kept or min(lost) <= median(kept):
        return ""
    return f"; those that diverged had a learning rate of {min(lost):.2g} or more"


def _does_it_overfit(seen: _Seen) -> Diagnostic | None:
    """Examining the training curves: does any of the best overfit?"""
    question = "Does the best plan overfit?"
    curve = _curve(seen.best)
    if len(curve) < 3:
        return None
    assert seen.best is not None
    peak, last = _peak(seen, curve), max(curve)
    fallen = seen.gain(curve[peak], curve[last])
    noise = seen.noise[0]
    only = "Training losses are not recorded: this is told from its validation curve alone."
    if peak == last:
        said = (
            f"No sign of it: trial {seen.best.number} was never better than after its last epoch"
        )
        return Diagnostic(question, f"{said}, {last}. {only}", "fine")
    said = (
        f"trial {seen.best.number} was best after epoch {peak} of {last} and has lost "
        f"{seen.format(fallen)} since"
    )
    if fallen <= noise or not noise:
        within = f", within the noise ({seen.format(noise)})" if noise else ""
        return Diagnostic(question, f"No sign of it: {said}{within}. {only}", "fine")
    return Diagnostic(
        question,
        f"It may: {said}, the noise being {seen.format(noise)}. {only}",
        "act" if fallen > 2 * noise else "look",
        "Fewer epochs, or more against it: weight decay, dropout, label smoothing, augmentation.",
    )


def _was_it_long_enough(seen: _Seen) -> Diagnostic | None:
    """Examining the training curves: is the best still improving at its end?"""
    question = "Was training long enough?"
    curve = _curve(seen.best)
    if len(curve) < 4:
        return None
    assert seen.best is not None
    last = max(curve)
    back = max(1, round(last / 5))
    if last - back not in curve:
        return None
    risen = seen.gain(curve[last], curve[last - back])
    thirds = [one for one in seen.good if _peak(seen, _curve(one)) > 2 * max(_curve(one)) / 3]
    said = f"trial {seen.best.number} {_moved(seen, risen)} in its last {_epochs(back)}"
    if len(seen.good) > 1:
        said += f"; {_count(len(thirds), 'peaks', 'peak', seen.good)} in the last third"
    if seen.noise[0] and risen > seen.noise[0]:
        return Diagnostic(
            question,
            f"Perhaps not: {said}.",
            "look",
            "Try more training.epochs. A part of such a rise is the learning rate, which falls to "
            "zero at the end.",
        )
    return Diagnostic(question, f"Yes: {said}.", "fine")


def _moved(seen: _Seen, risen: float) -> str:
    if risen == 0:
        return "did not change"
    return f"{'gained' if risen > 0 else 'lost'} {seen.format(abs(risen))}"


def _count(number: int, one: str = "", more: str = "", of: Sequence[object] = ()) -> str:
    """Write a count: ``none``, ``1 comes``, ``3 of the 6 best curves peak``."""
    among = f" of the {len(of)} best curves" if of else ""
    verb = one if number < 2 else more
    return f"{'none' if number == 0 else number}{among} {verb}".strip()


def _epochs(count: int) -> str:
    return "epoch" if count == 1 else f"{count} epochs"


def _which_matter(seen: _Seen) -> Diagnostic | None:
    """Scientific, nuisance and fixed parameters."""
    question = "Which parameters matter, and which could be fixed?"
    found = importances(seen.results) if seen.matter is None else seen.matter
    total = sum(found.values())
    if len(found) < 2 or total <= 0:
        return None
    ordered = sorted(found.items(), key=lambda item: -item[1])
    matter: list[tuple[str, float]] = []
    while ordered and sum(value for _, value in matter) < 0.75 * total:
        matter.append(ordered.pop(0))
    nuisance = [name for name, value in ordered if value < _NUISANCE * total]
    carried = sum(value for _, value in matter) / total
    named = ", ".join(f"{name} ({value / total:.2f})" for name, value in matter)
    said = f"Of all importance, {100 * carried:.0f} % lies in {named}"
    if nuisance:
        rest = f" and {len(nuisance) - _NAMED} more" if len(nuisance) > _NAMED else ""
        said += f"; below {_NUISANCE:g} each: {', '.join(nuisance[:_NAMED])}{rest}"
    complete = len(seen.ranked)
    if complete < FEW_FOR_IMPORTANCES:
        few = f"{complete} complete trials make this a hint and no more"
        return Diagnostic(question, f"{said}; {few}.", "look")
    advice = ""
    if nuisance:
        advice = (
            "What is below could be fixed at the values of the best plan in a next study, within "
            "the ranges of this one: the trials then go to what matters."
        )
    return Diagnostic(question, f"{said}.", "fine", advice)


def _did_pruning_cut_winners(seen: _Seen) -> Diagnostic | None:
    """Where did the winner stand when others were cut, and what would these have reached?"""
    question = "Did pruning cut plans that would have won?"
    best = _curve(seen.best)
    curves = [
        curve
        for one in seen.trained
        if one.state == TrialState.PRUNED and (curve := _curve(one)) and max(curve) in best
    ]
    complete = [one for one in seen.ranked if _curve(one)]
    if not curves or seen.best is None or len(complete) < MIN_TRIALS:
        return None
    ahead = sum(seen.gain(curve[max(curve)], best[max(curve)]) > 0 for curve in curves)
    promises = FinalValuePredictor((_curve(one), one.values[0]) for one in complete)
    foreseen = [promised for one in curves if (promised := promises.predict(one)) is not None]
    gains = [seen.gain(one, seen.best.values[0]) for one in foreseen]
    at = round(median(max(curve) for curve in curves))
    peers = [curve[at] for one in complete if at in (curve := _curve(one))]
    place = 1 + sum(seen.gain(value, best[at]) > 0 for value in peers) if at in best else 1
    were = "was" if ahead < 2 else "were"
    said = (
        f"{_count(ahead)} of {len(curves)} pruned trials {were} ahead of "
        f"trial {seen.best.number} when cut; after epoch {at}, the median of the cuts, that was "
        f"number {place} of the {len(peers)} complete ones"
    )
    if max(gains) > seen.noise[0]:
        winners = sum(gain > seen.noise[0] for gain in gains)
        return Diagnostic(
            question,
            f"Perhaps: {said}. By the curves of the complete trials, {winners} would have beaten "
            f"it beyond the noise, by up to {seen.format(max(gains))}.",
            "act",
            "Take search.pruner: none in the next study, or percentile, which cuts the fewest.",
        )
    said += ". By the curves of the complete trials, none would have beaten it beyond the noise"
    if place > max(3, len(peers) // 4) or ahead > len(curves) / 4:
        return Diagnostic(
            question,
            f"Not likely: {said}.",
            "look",
            "The values of early epochs say little of the last one here: search.pruner: none "
            "costs more epochs and is safe.",
        )
    return Diagnostic(question, f"No: {said}.", "fine")


def _is_it_more_than_noise(seen: _Seen) -> Diagnostic | None:
    question = "Is the gain over the baseline larger than the noise?"
    verdict = Verdict.from_study(seen.results.study)
    if verdict is not None:
        said = f"{verdict.describe(seen.objective)}."
        if verdict.is_better:
            return Diagnostic(question, f"Yes: {said}", "fine")
        advice = "More seeds (autotune confirm) make the interval shorter, or keep the baseline."
        # Not ``act``: the verdict is on top already.
        return Diagnostic(question, f"Not shown: {said}", "look", advice)
    best, baseline = seen.best, seen.baseline
    if best is None or baseline is None or best is baseline or not seen.noise[0]:
        return None
    gained, (noise, basis) = seen.gain(best.values[0], baseline.values[0]), seen.noise
    said = (
        f"the gain of {seen.format(gained)} is {gained / noise:.1f} times the noise of "
        f"{seen.format(noise)}, {basis}"
    )
    if gained >= 2 * noise:
        return Diagnostic(question, f"Yes: {said}.", "fine")
    advice = "autotune confirm compares the best plans with the baseline over seeds."
    return Diagnostic(question, f"Not clearly: {said}.", "act", advice)


def _is_it_more_than_choosing(seen: _Seen) -> Diagnostic | None:
    """The best of many values is too good by what the luckiest of so many is."""
    question = "Is the gain larger than what choosing among so many trials brings?"
    best, baseline = seen.best, seen.baseline
    verdict = Verdict.from_study(seen.results.study)
    if verdict is not None:
        worse = "worse" if verdict.selection_bias > 0 else "better"
        said = (
            f"over {verdict.seeds} seeds the mean of trial {verdict.trial} is "
            f"{seen.format(abs(verdict.selection_bias))} {worse} than its value in the search, "
            f"and {seen.format(abs(verdict.gain))} {'better' if verdict.gain >= 0 else 'worse'} "
            "than the baseline"
        )
        if verdict.is_better:
            return Diagnostic(question, f"Yes, as measured: {said}.", "fine")
        advice = (
            "Take the mean over seeds for what the plan is worth, not the value of the search."
        )
        return Diagnostic(question, f"Not shown: {said}.", "look", advice)
    others = [one for one in seen.ranked if one is not baseline]
    if best is None or baseline is None or best is baseline or len(others) < 2:
        return None
    noise, basis = seen.noise
    if not noise:
        return None
    luck = luckiest(len(others)) * noise
    gained = seen.gain(best.values[0], baseline.values[0])
    said = (
        f"the luckiest of {len(others)} equal plans would look {seen.format(luck)} better than it "
        f"is, at a noise of {seen.format(noise)} ({basis}); the gain is {seen.format(gained)}"
    )
    if gained > luck:
        advice = "autotune confirm tells how much of it stays."
        return Diagnostic(question, f"Yes: {said}.", "fine", advice)
    advice = "autotune confirm trains the best plans under other seeds before one is believed."
    return Diagnostic(question, f"No: {said}.", "act", advice)


def luckiest(count: int) -> float:
    """Return by how many deviations the largest of some normal values is above their mean.

    Blom's approximation (1958, "Statistical Estimates and Transformed Beta-Variables"), good to
    0.02 from two values on.
    """
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


_QUESTIONS: tuple[Callable[[_Seen], Diagnostic | None], ...] = (
    _at_an_edge,
    _is_dense,
    _would_more_help,
    _is_feasible,
    _is_stable,
    _does_it_overfit,
    _was_it_long_enough,
    _which_matter,
    _did_pruning_cut_winners,
    _is_it_more_than_noise,
    _is_it_more_than_choosing,
)


def _curve(trial: FrozenTrial | None) -> dict[int, float]:
    """Return the finite values of a trial by epoch, in order."""
    known = sorted(trial.intermediate_values.items()) if trial is not None else []
    return {step: value for step, value in known if math.isfinite(value)}


def _values(trial: FrozenTrial) -> list[float]:
    values = list(_curve(trial).values())
    return values if len(values) > 1 else []


def _peak(seen: _Seen, curve: dict[int, float]) -> int:
    """Return the epoch of the best value, the last one among equals."""
    top = seen.objective.best_of(curve.values())
    return max(step for step, value in curve.items() if value == top)


def _largest_fall(seen: _Seen, trial: FrozenTrial) -> float | None:
    """Return by how much a curve worsens most from an epoch to the next, in its second half."""
    late = _values(trial)
    late = late[len(late) // 2 :]
    falls = [seen.gain(before, after) for before, after in pairwise(late)]
    return max(0.0, *falls) if falls else None


def _distance(one: FrozenTrial, best: FrozenTrial, names: Sequence[str]) -> float:
    """Return the mean difference of two plans in some parameters, as a share of their ranges."""
    apart = [_apart(best.distributions[name], one, best, name) for name in names]
    return sum(apart) / len(apart) if apart else 0.0


def _apart(found: BaseDistribution, one: FrozenTrial, best: FrozenTrial, name: str) -> float:
    if name not in one.params:
        return 1.0
    has: Any = one.params[name]
    wanted: Any = best.params[name]
    if not isinstance(found, IntDistribution | FloatDistribution):
        return float(has != wanted)
    place: Callable[[float], float] = math.log if found.log else float
    span = place(found.high) - place(found.low)
    return abs(place(has) - place(wanted)) / span if span else 0.0
