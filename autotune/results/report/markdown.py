"""The report of a study as Markdown: for an issue, a pull request, a wiki.

What is drawn on the page is left out: the answer, the numbers, the best trials and what failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime

from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.results.diagnosis.diagnostics import diagnose
from autotune.results.diagnosis.headline import (
    action_items,
    caveats,
    describe_confirmation,
    describe_refit,
    ended_by,
    headline,
    key_figures,
)
from autotune.results.figures.layer_diagram import as_text, layer_rows
from autotune.results.report.reproduction import commands, study_file
from autotune.results.report.trial_table import Row, cost_names, failures_of, table_of
from autotune.results.values.objective import Objective
from autotune.results.values.pareto_front import front_of
from autotune.results.values.precision import describe_precisions
from autotune.search import ranking
from autotune.study.state import attrs
from autotune.study.state.constraints import COST_LABELS
from autotune.text import visible
from autotune.version import __version__

#: Trials in the table.
BEST_SHOWN = 10
#: What Markdown, GitHub's and GitLab's, would read as something else than a character.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~$])")


def render_markdown(study: Study, storage_url: str = "") -> str:
    """Return the report of a study as Markdown.

    Args:
        study: The study, at any stage.
        storage_url: URL of the storage, for the commands. A password in it is left out.
    """
    return visible("\n\n".join(_blocks(study, storage_url))) + "\n"


def _blocks(study: Study, storage_url: str) -> Iterator[str]:
    trials = study.get_trials(deepcopy=False)
    objective = Objective.from_study(study)
    best = ranking.best_trial(trials, attrs.metric_direction(study))
    baseline = attrs.find_baseline(trials)
    progress = attrs.count_progress(trials, attrs.trial_budget(study))
    dataset = study.user_attrs.get(attrs.DATASET, {})
    asked = diagnose(study)
    yield f"# Study {escape(study.study_name)}"
    yield f"**{escape(_sentence(headline(study)))}.**"
    for said in (describe_confirmation(study, best), describe_refit(study)):
        if said:
            yield escape(said)
    found = key_figures(study, trials, progress)
    yield _table(("", "", ""), [(name, number, made_of) for name, number, made_of in found])
    said_of = [
        *caveats(objective, best, baseline, dataset),
        *action_items(progress, asked, ended_by(study, progress)),
        *attrs.image_warnings(study.user_attrs),
    ]
    if said_of:
        yield "\n".join(f"- {escape(one)}" for one in said_of)
    plan = attrs.trial_plan(best) if best is not None else None
    if best is not None and plan is not None:
        yield f"## Best plan: trial {best.number}"
        yield escape(plan.describe(named=True))
        yield _fenced(as_text(layer_rows(attrs.backbone_layers(study.user_attrs, plan), plan)))
    yield from _trials(study, trials, objective, best)
    failures = failures_of(trials)
    if failures:
        yield "## Failures"
        yield _table(
            ("reason", "attempts", "state", "trials"),
            [
                (one.reason, str(len(one.numbers)), one.state, ", ".join(map(str, one.numbers)))
                for one in failures
            ],
        )
    if asked:
        yield "## Questions to ask of a study"
        yield "\n".join(
            f"- **{escape(one.question)}** {escape(f'{one.answer} {one.advice}'.rstrip())}"
            for one in asked
        )
    if file := study_file(study, storage_url):
        yield "## Again"
        if computing := describe_precisions(trials):
            yield "\n".join(f"- {escape(one)}" for one in computing)
        yield "<details><summary>The study file</summary>"
        yield _fenced(file, "yaml")
        yield "</details>"
        yield _fenced(commands(study, storage_url), "sh")
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    yield escape(f"Written by autotune {__version__}, {written}.")


def _trials(
    study: Study, trials: Sequence[FrozenTrial], objective: Objective, best: FrozenTrial | None
) -> Iterator[str]:
    """Yield the best trials as a table, of two objectives the Pareto front."""
    front = front_of(study)
    ranked = front or ranking.rank_trials(trials, attrs.metric_direction(study))
    baseline = attrs.find_baseline(trials)
    shown = ranked[:BEST_SHOWN]
    if not shown:
        return
    if baseline is not None and baseline not in shown:
        shown = [*shown, baseline]
    costs, several = cost_names(study), attrs.has_several_backbones(study.user_attrs)
    left = len(ranked) - BEST_SHOWN
    yield "## Pareto front" if front else "## Best trials"
    yield _table(
        (
            "trial",
            objective.label,
            *(COST_LABELS[one] for one in costs),
            "epochs",
            "seconds",
            "plan",
        ),
        [_line(one) for one in table_of(shown, objective, best, costs, several)],
        right=len(costs) + 4,
    )
    if left > 0:
        rest = "of the front" if front else "are complete"
        yield f"{left} more {rest}."


def _line(row: Row) -> tuple[str, ...]:
    mark = f"{row.number} {row.mark}".strip()
    costs = (cost.text for cost in row.costs)
    return (mark, row.value.text, *costs, row.epochs.text, row.seconds.text, row.plan)


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]], right: int = 0) -> str:
    """Write a table; the first ``right`` columns hold numbers."""
    rule = ("---:" if column < right else "---" for column in range(len(titles)))
    written = [titles, *([escape(cell) for cell in line] for line in lines)]
    head, *body = [f"| {' | '.join(line)} |" for line in written]
    return "\n".join([head, f"| {' | '.join(rule)} |", *body])


def _fenced(text: str, language: str = "") -> str:
    """Write text as it is, in a fence longer than any that is in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def escape(text: str) -> str:
    r"""Write text so that Markdown shows it as it is, on one line.

    An underscore inside a word is left alone, as Markdown leaves it.

    Example:
        >>> escape("a|b <script> test_resnet")
        'a\\|b \\<script\\> test_resnet'
    """
    one_line = " ".join(text.split())
    special = _SPECIAL.sub(r"\\\1", one_line.replace("&", "&amp;"))
    return re.sub(r"(?<=\w)\\_(?=\w)", "_", special)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
