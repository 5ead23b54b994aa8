"""The report of a study as Markdown: for an issue, a pull request, a wiki.

It has no figures: the answer, the numbers, the best trials and what failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from autotune.results.cheapest import describe_cheapest
from autotune.results.diagnosis.answer import find_answer
from autotune.results.diagnosis.diagnostics import diagnose
from autotune.results.diagnosis.facts import Facts
from autotune.results.diagnosis.headline import (
    caveats,
    describe_confirmation,
    describe_refit,
    key_figures,
)
from autotune.results.diagnosis.next_steps import next_steps
from autotune.results.figures.layer_diagram import as_text, layer_rows
from autotune.results.report.images import (
    MAX_CLASSES,
    describe_missing,
    find_image_results,
    format_share,
)
from autotune.results.report.race_table import race_table
from autotune.results.report.reproduction import commands, study_file
from autotune.results.report.trial_table import TrialRow, cost_names, failures, trial_rows
from autotune.results.study_results import StudyResults
from autotune.results.values.markdown import escape, fenced, table
from autotune.results.values.precision import describe_precisions
from autotune.search import ranking
from autotune.study.state import attrs
from autotune.study.state.constraints import COST_LABELS
from autotune.text import visible
from autotune.version import describe_version

#: Trials in the table.
BEST_SHOWN = 10


def render_markdown(results: StudyResults, storage_url: str = "") -> str:
    """Return the report of a study as Markdown, whose commands name a storage."""
    return visible("\n\n".join(_blocks(results, storage_url))) + "\n"


def _blocks(results: StudyResults, storage_url: str) -> Iterator[str]:
    answer = find_answer(results)
    yield f"# Study {escape(results.name)}"
    yield f"**{escape(answer.text[:1].upper() + answer.text[1:])}.**"
    yield escape(answer.plain)
    if steps := next_steps(results, storage_url):
        yield "## What next"
        for number, step in enumerate(steps, start=1):
            yield f"{number}. {escape(step.text)}"
            if step.command:
                yield fenced(step.command, "sh")
    yield "## The numbers"
    for text in (describe_confirmation(results), describe_refit(results)):
        if text:
            yield escape(text)
    yield table(("", "", ""), key_figures(results))
    notes = [*caveats(results), *results.image_warnings]
    if notes:
        yield "\n".join(f"- {escape(note)}" for note in notes)
    plan = attrs.trial_plan(answer.trial) if answer.trial is not None else None
    if answer.trial is not None and plan is not None:
        yield f"## {answer.plan_title} plan: trial {answer.trial.number}"
        yield escape(plan.describe(named=True))
        yield fenced(as_text(layer_rows(results.layers_of(answer.trial), plan)))
    yield from _images(results, storage_url)
    if race := race_table(results):
        yield from ("## The race among backbones", escape(race.text))
        yield table(race.titles, race.rows)
    yield from _trials(results)
    if failed := failures(results):
        yield "## Failures"
        yield table(
            ("reason", "attempts", "state", "trials"),
            [
                (
                    failure.reason,
                    str(len(failure.numbers)),
                    failure.state,
                    ", ".join(map(str, failure.numbers)),
                )
                for failure in failed
            ],
        )
    yield "## Questions to ask of a study"
    yield "\n".join(
        f"- **{escape(question)}** {escape(f'{finding.answer} {finding.advice}'.rstrip())}"
        for question, finding in diagnose(Facts(results)).items()
    )
    yield "## Again"
    if precisions := describe_precisions(results.trials):
        yield "\n".join(f"- {escape(precision)}" for precision in precisions)
    yield "<details><summary>The study file</summary>"
    yield fenced(study_file(results, storage_url), "yaml")
    yield "</details>"
    yield fenced(commands(results, storage_url), "sh")
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    yield escape(f"Written by {describe_version()}, {written}.")


def _images(results: StudyResults, storage_url: str) -> Iterator[str]:
    """Yield what was predicted for single images: the worst, confused classes, recalls."""
    images = find_image_results(results)
    reason, command = describe_missing(results, storage_url)
    if images is None:
        if reason:
            yield from ("## Your images", escape(reason), fenced(command, "sh"))
        return
    yield "## Your images"
    yield escape(images.summary())
    yield table(
        ("image", "label", "its probability", "predicted", "its probability"),
        [
            (
                one.path,
                one.true_class,
                format_share(one.true_probability),
                one.predicted_class,
                format_share(one.top[0][1]),
            )
            for one in images.predictions[:BEST_SHOWN]
        ],
    )
    if images.pairs:
        yield table(
            ("label", "predicted", "images", "of the class"),
            [
                (pair.true_class, pair.predicted_class, str(pair.count), str(pair.images))
                for pair in images.pairs[:BEST_SHOWN]
            ],
        )
    yield table(
        ("class", "recall", "images", "change", "became right", "became wrong"),
        [
            (
                one.name,
                format_share(one.correct / one.images),
                str(one.images),
                one.format_change(),
                *("" if count is None else str(count) for count in (one.gained, one.lost)),
            )
            for one in images.recalls[:MAX_CLASSES]
        ],
    )


def _trials(results: StudyResults) -> Iterator[str]:
    """Yield the best trials as a table, of two objectives the Pareto front."""
    front, baseline = results.front, results.baseline
    ranked = front or ranking.rank_trials(results.trials, results.direction)
    trials = list(ranked[:BEST_SHOWN])
    if not trials:
        return
    if baseline is not None and baseline not in trials:
        trials.append(baseline)
    costs = [COST_LABELS[name] for name in cost_names(results)]
    chance = ["chance to be the best"] if results.selection and not front else []
    yield "## Pareto front" if front else "## Best trials"
    yield table(
        ("trial", results.objective.label, *chance, *costs, "epochs", "seconds", "plan"),
        [_cells(row, bool(chance)) for row in trial_rows(results, trials)],
        right=len(chance) + len(costs) + 4,
    )
    if cheapest := describe_cheapest(results):
        yield escape(cheapest)
    if len(ranked) > BEST_SHOWN:
        yield f"{len(ranked) - BEST_SHOWN} more {'of the front' if front else 'are complete'}."


def _cells(row: TrialRow, has_chance: bool) -> tuple[str, ...]:
    number = f"{row.number} {row.mark}".strip()
    costs = (cost.text for cost in row.costs)
    chance = (row.chance.text,) if has_chance else ()
    return (number, row.value.text, *chance, *costs, row.epochs.text, row.seconds.text, row.plan)
