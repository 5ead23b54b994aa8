"""The answer of a study: the strongest evidence there is, in numbers and in plain words.

The test split, which a refit reads once, comes before the seeds of a confirmation, and these
before the values of the search, by which the best trial was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial

from autotune.results.noise import noise_between
from autotune.results.study_results import StudyResults
from autotune.results.values.objective import Objective
from autotune.search import ranking
from autotune.study.state import attrs
from autotune.text import plural

Evidence = Literal["test", "confirmed", "search", "none"]

#: Evidence -> how the plan that it is about is called.
_PLAN_TITLES: Mapping[Evidence, str] = {
    "test": "Refitted",
    "confirmed": "Confirmed",
    "search": "Best",
    "none": "",
}
_OF_IMAGES = {
    "accuracy": "",
    "balanced_accuracy": ", every class counting the same",
}
_AS_IT_IS = "the unchanged pretrained network, with a new classifier at its end"


@dataclass(frozen=True)
class Answer:
    """What a study found.

    Args:
        evidence: What it rests on.
        text: The answer with its numbers.
        plain: The same in a few sentences without the words of the field.
        is_better: Whether a plan is better than the baseline; ``None`` where that is not known,
            as the difference may be chance. A gain of the search alone is partly luck.
        trial: The trial with the plan that the answer is about, if there is one.
    """

    evidence: Evidence
    text: str
    plain: str
    is_better: bool | None
    trial: FrozenTrial | None

    @property
    def plan_title(self) -> str:
        """How the plan is called that the answer is about."""
        if self.evidence == "confirmed" and not self.is_better:
            return "Not confirmed"
        return _PLAN_TITLES[self.evidence]


def find_answer(results: StudyResults) -> Answer:
    """Return the answer of a study."""
    return _tested(results) or _confirmed(results) or _searched(results)


def describe_answer(results: StudyResults) -> str:
    """Answer in one sentence what a study found."""
    return find_answer(results).text


def last_test(results: StudyResults) -> Mapping[str, Any] | None:
    """Return the last reading of the test split, if it has the metric of the study."""
    reads: Sequence[Mapping[str, Any]] = results.attributes.get(attrs.TEST_READS, ())
    name = results.objective.name
    is_complete = reads and all(name in reads[-1].get(key, {}) for key in ("test", "baseline"))
    return reads[-1] if is_complete and reads[-1]["trial"] < len(results.trials) else None


def _tested(results: StudyResults) -> Answer | None:
    last, objective = last_test(results), results.objective
    if last is None:
        return None
    trial = results.trials[last["trial"]]
    value, base = (float(last[key][objective.name]) for key in ("test", "baseline"))
    images = int(results.dataset.get("test") or 0)
    on = f"On {images:,} images that were never used before" if images else "On new images"
    if attrs.is_baseline(trial):
        text = f"the baseline has {objective.format_value(base)} on the test split"
        plain = (
            f"{on}, {_AS_IT_IS}, gets {_in_words(objective, base)}. No other plan was refitted."
        )
        return Answer("test", text, plain, False, trial)
    basis, low, high = "", 0.0, 0.0
    if interval := last.get("gain"):
        _, low, high = objective.gain_interval(interval)
        basis = f", {_describe_interval(objective, low, high)}"
    gain = f"{objective.format_difference(value, base)}{basis}"
    number = f"trial {trial.number}"
    both = _compare_in_words(objective, _name_plan(results, trial), value, base)
    numbers = f"baseline {objective.format_value(base)}, {number} {objective.format_value(value)}"
    if low > 0 or not basis:
        text = (
            f"test {objective.label}: baseline {objective.format_value(base)} → "
            f"{objective.format_value(value)} ({number}, {gain}){_plan(results, trial)}"
        )
        sure = "That is more than chance: it holds for other images as well." if basis else ""
        is_better = True if basis else objective.gain(value, base) > 0
        return Answer("test", text, f"{on}, {both}. {sure}".strip(), is_better, trial)
    if high < 0:
        text = f"worse than the baseline on the test split: {numbers} ({gain})"
        return Answer("test", text, f"{on}, {both}. So it does not help.", False, trial)
    text = f"no gain is shown on the test split: {numbers} ({gain})"
    plain = f"{on}, {both}. Such a difference can be chance, so it is not shown to help."
    return Answer("test", text, plain, False, trial)


def _confirmed(results: StudyResults) -> Answer | None:
    verdict, objective = results.verdict, results.objective
    if verdict is None or verdict.trial >= len(results.trials):
        return None
    trial, seeds = results.trials[verdict.trial], plural(verdict.seeds, "seed")
    mean, base = (objective.format_value(value) for value in (verdict.mean, verdict.baseline))
    interval = _describe_interval(objective, verdict.low, verdict.high)
    gain = f"{objective.format_difference(verdict.mean, verdict.baseline)}, {interval}"
    both = _compare_in_words(objective, _name_plan(results, trial), verdict.mean, verdict.baseline)
    plain = f"Trained {verdict.seeds} times anew, {both}."
    if verdict.is_better:
        text = (
            f"over {seeds}: baseline {base} → {mean} (trial {trial.number}, {gain})"
            f"{_plan(results, trial)}"
        )
        plain += (
            " That is more than luck. What it gets on images nobody has used is not known yet."
        )
        return Answer("confirmed", text, plain, True, trial)
    text = (
        f"no plan is shown to beat the baseline over {seeds}: {base}; the best mean is that of "
        f"trial {trial.number} with {mean} ({gain})"
    )
    plain += " Such a difference can be luck, so re-training is not shown to help."
    return Answer("confirmed", text, plain, False, trial)


def _searched(results: StudyResults) -> Answer:
    best, baseline, objective = results.best, results.baseline, results.objective
    if best is None:
        return Answer("none", _without_result(results), "There is no result yet.", None, None)
    value = results.format_values(best)
    tries = plural(results.progress.finished, "try", "tries")
    if baseline is None:
        state = "failed" if results.baseline_failure else "is not complete yet"
        text = f"best {value} (trial {best.number}){_plan(results, best)}; the baseline {state}"
        plain = (
            f"The best of {tries} gets {_in_words(objective, best.values[0])}. What it is "
            f"compared with, {_AS_IT_IS}, {state}."
        )
        return Answer("search", text, plain, None, best)
    front = f"; {len(results.front)} trials on the Pareto front" if len(results.front) > 1 else ""
    base = baseline.values[0]
    if results.is_tied:
        text = (
            f"trial {best.number} equals the baseline, {value}, and has the lower log loss"
            f"{_plan(results, best)}{front}"
        )
        plain = (
            f"On the images by which plans were chosen, {_name_plan(results, best)} gets "
            f"{_in_words(objective, base)}, as does {_AS_IT_IS}. It is surer of what is right, "
            "which may be chance."
        )
        return Answer("search", text, plain, None, best)
    if best is not baseline:
        gain = objective.format_difference(best.values[0], base)
        text = (
            f"baseline {results.format_values(baseline)} → best {value} (trial {best.number}, "
            f"{gain}){_plan(results, best)}{front}"
        )
        both = _compare_in_words(objective, _name_plan(results, best), best.values[0], base)
        plain = f"On the images by which plans were chosen, {both}."
        noise = noise_between(results, best, baseline)
        if noise is not None and objective.gain(best.values[0], base) < 2 * noise.error:
            plain += " That difference is so small that it may be chance."
            return Answer("search", text, plain, None, best)
        plain += f" It is the best of {tries}, so a part of the difference is luck."
        return Answer("search", text, plain, True, best)
    rest = (trial for trial in results.trials if trial is not baseline)
    second = ranking.best_trial(rest, results.direction)
    if second is None:
        text = f"only the baseline is complete: {value}"
        plain = f"So far only {_AS_IT_IS}, has been tried: it gets {_in_words(objective, base)}."
        return Answer("search", text, plain, None, best)
    if second.values[0] == best.values[0]:
        nearest = f", which trial {second.number} reaches as well"
    else:
        difference = objective.format_difference(second.values[0], base)
        nearest = (
            f"; the nearest is trial {second.number} with {results.format_values(second)} "
            f"({difference}){front}"
        )
    others = plural(results.progress.finished - 1, "other plan")
    plain = (
        f"None of {others} was better than {_AS_IT_IS}, which gets {_in_words(objective, base)}. "
        "So far, re-training more of the network does not help on these images."
    )
    text = f"no trial is better than the baseline: {value}{nearest}"
    return Answer("search", text, plain, False, best)


def _without_result(results: StudyResults) -> str:
    if results.no_result is not None:
        return results.no_result.reason
    if results.closest_to_feasible is not None:
        return results.explain_no_best()
    counts = results.format_counts(with_zeros=False)
    return f"no trial is complete yet ({counts})" if counts else "nothing has run yet"


def _plan(results: StudyResults, trial: FrozenTrial) -> str:
    plan = results.describe_plan(trial)
    return f": {plan}" if plan else ""


def _describe_interval(objective: Objective, low: float, high: float) -> str:
    ends = (objective.format_gain(end, unit=False) for end in (low, high))
    return f"95 % interval of the gain {' to '.join(ends)}"


def _name_plan(results: StudyResults, trial: FrozenTrial) -> str:
    """Name a plan by what trains, in plain words."""
    plan, layers = attrs.trial_plan(trial), len(results.layers_of(trial))
    if plan is None:
        return f"trial {trial.number}"
    if not plan.depth:
        return "the unchanged network, with a classifier that was made in another way,"
    if plan.depth >= layers:
        return "the network re-trained as a whole"
    last = "layer" if plan.depth == 1 else f"{plan.depth} layers"
    return f"the network with its last {last} and its classifier re-trained"


def _compare_in_words(objective: Objective, name: str, value: float, base: float) -> str:
    """Compare a network with the baseline, in images of a hundred where that can be said."""
    out_of = 100
    if objective.name in _OF_IMAGES and round(100 * value) == round(100 * base) and value != base:
        out_of = 1000
    better, baseline = (_in_words(objective, number, out_of) for number in (value, base))
    return f"{name} gets {better}; {_AS_IT_IS}, gets {baseline}"


def _in_words(objective: Objective, value: float, out_of: int = 100) -> str:
    if objective.name in _OF_IMAGES:
        right = f"{round(out_of * value):,} of {out_of:,} images right"
        return f"about {right}{_OF_IMAGES[objective.name]}"
    better = "more" if objective.is_maximized else "less"
    return f"a {objective.label} of {objective.format_value(value)} ({better} is better)"
