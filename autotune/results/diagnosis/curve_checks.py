"""Questions about learning curves: stability, overfitting, length of training, pruning."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

from optuna.trial import FrozenTrial, TrialState

from autotune.results.diagnosis.facts import NO_NOISE, Facts, Finding, unknown
from autotune.results.diagnosis.loss_curves import END, MIN_EPOCHS, LossCurves
from autotune.results.values.parameter_words import parameter_words
from autotune.search.parameters.by_optimizer import LR, optimizer_of, shared_name
from autotune.search.study_view import MIN_FOR_LINE, FinalValuePredictor
from autotune.study.state import attrs
from autotune.text import plural

_AGAINST_OVERFITTING = (
    "Fewer epochs, or more against it: weight decay, dropout, label smoothing, augmentation."
)
#: What is missing where the best trial has no epochs.
_SOLVED = "the head of trial {}, the best one, was solved, not trained over epochs"
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
    searched = dict.fromkeys(name for trial in facts.diverged for name in trial.params)
    rates = [name for name in searched if shared_name(name) == LR]
    words = ""
    for name in rates:
        optimizer = optimizer_of(name)
        diverged, trained = (
            [
                trial.params[name]
                for trial in trials
                if name in trial.params
                and optimizer in ("", trial.params.get("training.optimizer"))
            ]
            for trials in (facts.diverged, facts.trained)
        )
        if diverged and trained and min(diverged) > median(trained):
            least = f"{parameter_words(name)} of {min(diverged):.2g} or more"
            words += f"; those that diverged had a {least}"
    return words


def check_overfitting(facts: Facts) -> Finding:
    """Examining the training curves: does any of the best overfit?"""
    if facts.best is None:
        return unknown("no trial is complete")
    if attrs.is_solved(facts.best):
        return unknown(_SOLVED.format(facts.best.number))
    losses = LossCurves.from_trial(facts.best)
    if losses is None:
        return _check_metric_alone(facts, facts.best)
    trial, last, lowest = f"trial {facts.best.number}", losses.last, losses.lowest
    if last < MIN_EPOCHS:
        return unknown(
            f"{trial} has the losses of {plural(last, 'epoch')}; {MIN_EPOCHS} are needed"
        )
    rise, fall = losses.rise, losses.training_fall
    if lowest == last:
        text = f"the validation loss of {trial} was lowest after its last epoch, {last}"
        return Finding(f"No sign of it: {text}{_others_that_overfit(facts)}.", "ok")
    text = (
        f"the validation loss of {trial} was lowest after epoch {lowest} of {last} and has risen "
        f"by {_nats(rise.value)} since; chance explains {_nats(rise.chance)}"
    )
    if not rise.is_real and rise.value <= rise.chance / 2:
        return Finding(f"No sign of it: {text}{_others_that_overfit(facts)}.", "ok")
    if not rise.is_real:
        return unknown(f"{text}, and most of the rise is less than that")
    if not fall.is_real:
        advice = "A lower training.lr, or a larger training.batch_size, makes training steadier."
        text += f". The training loss has not fallen since ({_nats(-fall.value, signed=True)})"
        return Finding(
            f"No, but it got worse: {text}, so it is no overfitting.", "warning", advice
        )
    text += f", while the training loss fell by {_nats(fall.value)}{_others_that_overfit(facts)}"
    return _judge_overfitting(facts, facts.best, text)


def _judge_overfitting(facts: Facts, trial: FrozenTrial, text: str) -> Finding:
    """Say what overfitting has cost: right images, or only the trust in its probabilities."""
    curve, name = _curve(trial), facts.objective.label
    if facts.objective.name == "log_loss":
        return Finding(f"Yes: {text}.", "action", _AGAINST_OVERFITTING)
    peak = _peak(facts, curve)
    lost = facts.gain(curve[peak], curve[max(curve)])
    if facts.noise is not None and lost > 2 * facts.noise.error:
        text += f"; the {name} was best after epoch {peak} and has lost {facts.format(lost)}"
        return Finding(f"Yes: {text}.", "action", _AGAINST_OVERFITTING)
    text += f". The {name} has not suffered from it: the network gets too sure of its mistakes"
    advice = (
        "Where its probabilities matter, label smoothing, fewer epochs or more weight decay help."
    )
    return Finding(f"In its probabilities: {text}.", "warning", advice)


def _others_that_overfit(facts: Facts) -> str:
    """Count the best trials that overfit; empty where too few have losses."""
    others = [
        losses
        for trial in facts.good
        if (losses := LossCurves.from_trial(trial)) is not None and losses.last >= MIN_EPOCHS
    ]
    if len(others) < 2:
        return ""
    count = sum(losses.overfits for losses in others)
    return f"; {count or 'none'} of the {len(others)} best curves {_verb(count, 'overfit')}"


def _check_metric_alone(facts: Facts, best: FrozenTrial) -> Finding:
    """Judge a trial of an earlier version, whose losses are not known, by its metric."""
    curve = _curve(best)
    if len(curve) < 3:
        return unknown("the best trial has no values of three epochs")
    peak, last = _peak(facts, curve), max(curve)
    lost = facts.gain(curve[peak], curve[last])
    source = "Its losses were not recorded: this is judged by its validation curve alone."
    trial = f"trial {best.number}"
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
    text = f"It may: {text}, the noise being {facts.format(noise)}. {source}"
    return Finding(text, "action" if lost > 2 * noise else "warning", _AGAINST_OVERFITTING)


def check_epochs(facts: Facts) -> Finding:
    """Examining the training curves: is the best still improving at its end?"""
    curve, good = _curve(facts.best), facts.good
    last = max(curve, default=0)
    back = max(1, round(last * END))
    if facts.best is not None and attrs.is_solved(facts.best):
        return unknown(_SOLVED.format(facts.best.number))
    if facts.best is None or len(curve) < 4 or last - back not in curve:
        return unknown("the best trial has no values of four epochs")
    gain = facts.gain(curve[last], curve[last - back])
    moved = f"{'gained' if gain > 0 else 'lost'} {facts.format(abs(gain))}"
    end = "epoch" if back == 1 else f"{back} epochs"
    text = f"trial {facts.best.number} {moved if gain else 'did not change'} in its last {end}"
    if len(good) > 1:
        late = sum(_peak(facts, _curve(trial)) > 2 * max(_curve(trial)) / 3 for trial in good)
        text += f"; {late or 'none'} of the {len(good)} best curves {_verb(late, 'peak')} "
        text += "in the last third"
    advice = (
        "Try more training.epochs. A part of such a rise is the learning rate, which falls to "
        "zero at the end."
    )
    gains = facts.noise is not None and gain > facts.noise.error
    losses = LossCurves.from_trial(facts.best)
    if losses is not None and last >= MIN_EPOCHS:
        if losses.overfits:
            text += f". Its validation loss has been rising since epoch {losses.lowest}"
            return unknown(text) if gains else Finding(f"Yes: {text}.", "ok")
        if losses.still_learns:
            fall, trained = losses.fall_at_end, losses.training_fall_at_end
            text += (
                f". Both losses still fell in its last {end}: that of training by "
                f"{_nats(trained.value)}, that of validation by {_nats(fall.value)}, of which "
                f"chance explains {_nats(fall.chance)}"
            )
            return Finding(f"Perhaps not: {text}.", "warning", advice)
        if gains:
            return unknown(f"{text}. Its losses did not fall then by more than chance, or little")
    if facts.noise is None and gain > 0:
        return unknown(f"{text}, and {NO_NOISE}")
    if gains:
        return Finding(f"Perhaps not: {text}.", "warning", advice)
    return Finding(f"Yes: {text}.", "ok")


def _verb(count: int, verb: str) -> str:
    return verb if count > 1 else f"{verb}s"


def _nats(loss: float, signed: bool = False) -> str:
    """Write a difference of losses."""
    return f"{loss:{'+' * signed}.2g} nats"


def check_pruning(facts: Facts) -> Finding:
    """Where did the winner stand when others were cut, and what would these have reached?"""
    best, winner = _curve(facts.best), facts.best
    pruned = [trial for trial in facts.trained if trial.state == TrialState.PRUNED]
    complete = [trial for trial in facts.ranked if _curve(trial)]
    if not pruned and len(complete) >= MIN_FOR_LINE:
        return Finding("No: no trial was pruned.", "ok")
    curves = [curve for trial in pruned if (curve := _curve(trial)) and max(curve) in best]
    if len(complete) < MIN_FOR_LINE or winner is None:
        count = plural(len(complete), "complete trial")
        return unknown(
            f"{count} with a curve; {MIN_FOR_LINE} are needed to continue those of others"
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
