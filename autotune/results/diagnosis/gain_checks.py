"""Questions about the gain: is it more than noise, and more than the luck of the best of many?"""

from __future__ import annotations

from autotune.results.diagnosis.facts import NO_NOISE, Facts, Finding, unknown

_CONFIRM = "autotune confirm compares the best plans with the baseline over seeds."
_NO_BASELINE = "the baseline is not complete"
_NO_GAIN = Finding("There is no gain: no trial is better than the baseline.", "warning")


def check_noise(facts: Facts) -> Finding:
    """Is the gain over the baseline larger than the noise?"""
    verdict, best, baseline = facts.results.verdict, facts.improved, facts.results.baseline
    if verdict is not None:
        text = f"{verdict.describe(facts.objective)}."
        if verdict.is_better:
            return Finding(f"Yes: {text}", "ok")
        advice = "Keep the baseline, or search further: see What next."
        # Not ``action``: the verdict is at the top of the report already.
        return Finding(f"Not shown: {text}", "warning", advice)
    if baseline is None:
        return unknown(_NO_BASELINE)
    if not facts.others:
        return unknown("no trial but the baseline is complete")
    if best is None:
        return _NO_GAIN
    noise = facts.noise_to(best, baseline)
    if noise is None:
        return unknown(NO_NOISE, _CONFIRM)
    gain = facts.gain(best.values[0], baseline.values[0])
    text = (
        f"the gain of {facts.format(gain)} is {gain / noise.error:.1f} times the noise of "
        f"{facts.format(noise.error)}, {noise.basis}"
    )
    if gain >= 2 * noise.error:
        return Finding(f"Yes: {text}.", "ok")
    if noise.is_bound:
        return unknown(text, _CONFIRM)
    return Finding(f"Not clearly: {text}.", "action", _CONFIRM)


def check_selection(facts: Facts) -> Finding:
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
            return Finding(f"Yes, as measured: {text}.", "ok")
        advice = "The mean over seeds is what the plan is worth, not the value of the search."
        return Finding(f"Not shown: {text}.", "warning", advice)
    if baseline is None:
        return unknown(_NO_BASELINE)
    if len(facts.others) < 2:
        return unknown("two trials besides the baseline are needed")
    if best is None:
        return _NO_GAIN
    selection = facts.results.selection
    if selection is None or selection.gain is None:
        return unknown(NO_NOISE, _CONFIRM)
    shown, gain = facts.gain(best.values[0], baseline.values[0]), selection.gain
    text = (
        f"the gain is {facts.format(shown)}, and {facts.format(gain.value)} (95 % interval "
        f"{facts.objective.format_interval(gain.low, gain.high)}) once it is corrected for the "
        f"choice among {len(selection.chances)} plans by the same images"
    )
    if gain.low > 0:
        advice = "autotune confirm measures how much of it stays under other seeds."
        return Finding(f"Yes: {text}.", "ok", advice)
    return Finding(f"Not shown: {text}.", "action", "autotune confirm trains them anew.")
