"""Questions about learning curves: stability, overfitting, length of training, pruning."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

from optuna.trial import FrozenTrial, TrialState

from autotune.results.diagnosis.facts import NO_NOISE, Facts, Finding, unknown
from autotune.search.extrapolation import MIN_TRIALS, FinalValuePredictor
from autotune.text import plural

#: Fewest trainings that say whether trainings diverge: of none in ten, fewer than three in ten do.
_MIN_TRAININGS = 10


def check_stability(facts: Facts) -> Finding:
    """Examining the training curves: step-to-step variance, and divergence."""
    tried, diverged = len(facts.trained) + len(facts.diverged), len(facts.diverged)
    falls = [fall for trial in facts.good if (fall := _largest_fall(facts, trial)) is not None]
    if tried < _MIN_TRAININGS:
        return unknown(f"{plural(tried, 'training')}; {_MIN_TRAININGS} are needed")
    if not falls:
        return unknown("no complete trial has values of several epochs")
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
        return Finding(f"No: {text}{_describe_divergence(facts)}.", "action", advice)
    if facts.noise is None and fall > 0:
        return unknown(f"{text}, and {NO_NOISE}")
    if facts.noise and fall > 3 * facts.noise.error:
        advice = (
            "A lower training.lr, a larger training.batch_size or training.ema makes the last "
            "epoch less of an accident."
        )
        return Finding(
            f"The curves jump: {text}, more than three times the noise.", "warning", advice
        )
    return Finding(f"Yes: {text}{_describe_divergence(facts)}.", "ok")


def _describe_divergence(facts: Facts) -> str:
    """Say above which learning rate trainings diverge, where that is a pattern."""
    name = "training.lr"
    diverged = [trial.params[name] for trial in facts.diverged if name in trial.params]
    trained = [trial.params[name] for trial in facts.trained if name in trial.params]
    if not diverged or not trained or min(diverged) <= median(trained):
        return ""
    return f"; those that diverged had a learning rate of {min(diverged):.2g} or more"


def check_overfitting(facts: Facts) -> Finding:
    """Examining the training curves: does any of the best overfit?"""
    curve = _curve(facts.best)
    if facts.best is None or len(curve) < 3:
        return unknown("the best trial has no values of three epochs")
    peak, last = _peak(facts, curve), max(curve)
    lost = facts.gain(curve[peak], curve[last])
    source = "Training losses are not recorded: this is judged by its validation curve alone."
    trial = f"trial {facts.best.number}"
    if peak == last:
        text = f"No sign of it: {trial} was never better than after its last epoch, {last}"
        return Finding(f"{text}. {source}", "ok")
    text = f"{trial} was best after epoch {peak} of {last} and has lost {facts.format(lost)} since"
    if facts.noise is None:
        return unknown(f"{text}, and {NO_NOISE}")
    noise = facts.noise.error
    if lost <= noise:
        within = f"within the noise ({facts.format(noise)})"
        return Finding(f"No sign of it: {text}, {within}. {source}", "ok")
    advice = (
        "Fewer epochs, or more against it: weight decay, dropout, label smoothing, augmentation."
    )
    text = f"It may: {text}, the noise being {facts.format(noise)}. {source}"
    return Finding(text, "action" if lost > 2 * noise else "warning", advice)


def check_epochs(facts: Facts) -> Finding:
    """Examining the training curves: is the best still improving at its end?"""
    curve, good = _curve(facts.best), facts.good
    last = max(curve, default=0)
    back = max(1, round(last / 5))
    if facts.best is None or len(curve) < 4 or last - back not in curve:
        return unknown("the best trial has no values of four epochs")
    gain = facts.gain(curve[last], curve[last - back])
    moved = f"{'gained' if gain > 0 else 'lost'} {facts.format(abs(gain))}"
    text = f"trial {facts.best.number} {moved if gain else 'did not change'} in its last "
    text += "epoch" if back == 1 else f"{back} epochs"
    if len(good) > 1:
        late = sum(_peak(facts, _curve(trial)) > 2 * max(_curve(trial)) / 3 for trial in good)
        peaks = "peaks" if late < 2 else "peak"
        text += f"; {late or 'none'} of the {len(good)} best curves {peaks} in the last third"
    if facts.noise is None and gain > 0:
        return unknown(f"{text}, and {NO_NOISE}")
    if facts.noise and gain > facts.noise.error:
        advice = (
            "Try more training.epochs. A part of such a rise is the learning rate, which falls to "
            "zero at the end."
        )
        return Finding(f"Perhaps not: {text}.", "warning", advice)
    return Finding(f"Yes: {text}.", "ok")


def check_pruning(facts: Facts) -> Finding:
    """Where did the winner stand when others were cut, and what would these have reached?"""
    best, winner = _curve(facts.best), facts.best
    pruned = [trial for trial in facts.trained if trial.state == TrialState.PRUNED]
    complete = [trial for trial in facts.ranked if _curve(trial)]
    if not pruned and len(complete) >= MIN_TRIALS:
        return Finding("No: no trial was pruned.", "ok")
    curves = [curve for trial in pruned if (curve := _curve(trial)) and max(curve) in best]
    if len(complete) < MIN_TRIALS or winner is None:
        count = plural(len(complete), "complete trial")
        return unknown(
            f"{count} with a curve; {MIN_TRIALS} are needed to continue those of others"
        )
    if not curves:
        return unknown(f"no pruned trial has a value at an epoch of trial {winner.number}")
    if facts.noise is None:
        return unknown(NO_NOISE)
    noise = facts.noise.error
    ahead = sum(facts.gain(curve[max(curve)], best[max(curve)]) > 0 for curve in curves)
    predictor = FinalValuePredictor((_curve(trial), trial.values[0]) for trial in complete)
    finals = [final for curve in curves if (final := predictor.predict(curve)) is not None]
    gains = [facts.gain(final, winner.values[0]) for final in finals]
    cut = round(median(max(curve) for curve in curves))
    peers = [curve[cut] for trial in complete if cut in (curve := _curve(trial))]
    place = 1 + sum(facts.gain(value, best[cut]) > 0 for value in peers) if cut in best else 1
    text = (
        f"{ahead or 'none'} of {plural(len(curves), 'pruned trial')} "
        f"{'was' if ahead < 2 else 'were'} ahead "
        f"of trial {winner.number} when cut; after epoch {cut}, the median of the cuts, that was "
        f"number {place} of the {len(peers)} complete ones. By the curves of the complete trials, "
    )
    if max(gains) > noise:
        winners = sum(gain > noise for gain in gains)
        text += f"{winners} would have beaten it beyond the noise, by up to "
        advice = (
            "Take search.pruner: none in the next study, or percentile, which cuts the fewest."
        )
        return Finding(f"Perhaps: {text}{facts.format(max(gains))}.", "action", advice)
    text += "none would have beaten it beyond the noise"
    if place > max(3, len(peers) // 4) or ahead > len(curves) / 4:
        advice = (
            "The values of early epochs say little of the last one here: search.pruner: none "
            "costs more epochs and is safe."
        )
        return Finding(f"Not likely: {text}.", "warning", advice)
    return Finding(f"No: {text}.", "ok")


def _curve(trial: FrozenTrial | None) -> dict[int, float]:
    """Return the finite values of a trial by epoch, in order."""
    values = sorted(trial.intermediate_values.items()) if trial is not None else []
    return {epoch: value for epoch, value in values if math.isfinite(value)}


def _peak(facts: Facts, curve: dict[int, float]) -> int:
    """Return the epoch of the best value, the last one among equals."""
    best = facts.objective.best_of(curve.values())
    return max(epoch for epoch, value in curve.items() if value == best)


def _largest_fall(facts: Facts, trial: FrozenTrial) -> float | None:
    """Return by how much a curve worsens most from an epoch to the next, in its second half."""
    values = list(_curve(trial).values())
    late = values[len(values) // 2 :] if len(values) > 1 else []
    falls = [facts.gain(before, after) for before, after in pairwise(late)]
    return max(0.0, *falls) if falls else None
