"""The report of a study: one HTML page with the answer first and its evidence below.

The page is self-contained: plotly is in it, and a content security policy keeps it from asking
any other host for anything. It opens from a disk, from a mail and behind a proxy alike.
"""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from optuna.trial import FrozenTrial
from plotly.offline import get_plotlyjs

from autotune.config.loading import slug
from autotune.data.quality.checks import duplicate_summary
from autotune.results.cheapest import describe_cheapest
from autotune.results.diagnosis.answer import Answer, find_answer
from autotune.results.diagnosis.diagnostics import diagnose
from autotune.results.diagnosis.facts import Facts
from autotune.results.diagnosis.headline import (
    caveats,
    describe_confirmation,
    describe_refit,
    key_figures,
)
from autotune.results.diagnosis.loss_curves import describe_losses
from autotune.results.diagnosis.next_steps import next_steps
from autotune.results.diagnosis.space_checks import MIN_FOR_IMPORTANCES, edges_of_best
from autotune.results.diagnosis.utilization import measure_utilization
from autotune.results.figures.greedy_stages import stage_rows
from autotune.results.figures.history import curves_figure, history_figure, timeline_figure
from autotune.results.figures.layer_diagram import as_html, layer_rows
from autotune.results.figures.losses import loss_range, losses_figure, trials_with_losses
from autotune.results.figures.parameters import (
    MIN_ACTIVE,
    importances_figure,
    slice_figure,
)
from autotune.results.figures.pareto import front_figure
from autotune.results.report.glossary import EVIDENCE, GLOSSARY
from autotune.results.report.images import (
    EMBEDDED_BYTES,
    MATRIX_CLASSES,
    MAX_CLASSES,
    MAX_PAIRS,
    SHOWN_IMAGES,
    describe_missing,
    find_image_results,
    format_share,
    predictions_csv,
)
from autotune.results.report.race_table import race_table
from autotune.results.report.reproduction import commands, file_name, study_file
from autotune.results.report.trial_table import (
    MAX_ROWS,
    backbone_rows,
    choose_rows,
    cost_names,
    failures,
    metric_names,
    trial_rows,
)
from autotune.results.study_results import StudyResults
from autotune.results.values.parameter_words import label_parameter
from autotune.results.values.precision import describe_precisions
from autotune.runtime import gc_paused
from autotune.storage.commands import command_line, full_storage_option
from autotune.study.state import attrs
from autotune.study.state.constraints import COST_LABELS, format_cost, format_count
from autotune.study.state.predictions import INSTALL_HEAT_MAPS
from autotune.text import format_duration, visible
from autotune.version import describe_version


def render_html(results: StudyResults, storage_url: str = "") -> str:
    """Return the report of a study as one HTML page, whose commands name a storage."""
    with gc_paused():
        context = _context(results, storage_url)
        page = environment().get_template("report.html.j2").render(context)
        return page.replace("<!--contents-->", _contents(page), 1)


def _contents(page: str) -> str:
    """Return links to the sections that a page has; names cannot bring in a heading."""
    sections = re.findall(r'<h2 id="([a-z-]+)">([^<]+)</h2>', page)
    return " · ".join(f'<a href="#{anchor}">{title}</a>' for anchor, title in sections)


def _context(results: StudyResults, storage_url: str) -> dict[str, Any]:
    """Return what the template shows, by the names it uses."""
    objective, attributes = results.objective, results.attributes
    answer, facts = find_answer(results), Facts(results)
    is_enough = results.progress.complete >= MIN_FOR_IMPORTANCES
    measured = facts.importances if is_enough else {}
    file, storage = study_file(results, storage_url), full_storage_option(storage_url)
    return {
        "results": results,
        "plan_text": results.describe_plan(answer.trial) if answer.trial is not None else "",
        "answer": answer,
        "evidence": EVIDENCE[answer.evidence].format(metric=objective.label),
        "glossary": GLOSSARY,
        "next_steps": next_steps(results, storage_url),
        "key_figures": key_figures(results),
        "confirmation": describe_confirmation(results),
        "refit": describe_refit(results),
        "caveats": caveats(results),
        "networks": _networks(results, answer),
        **_images(results, storage_url),
        "race": race_table(results),
        "stages": stage_rows(results),
        "figures": _figures(results, measured),
        "write": {
            format: command_line(
                "autotune", "report", results.name, f" --format {format}{storage}"
            )
            for format in ("epochs", "csv", "predictions")
        },
        "min_for_importances": MIN_FOR_IMPORTANCES,
        "min_active": MIN_ACTIVE,
        "edges": edges_of_best(facts),
        "edge_of": facts.describe_candidate(),
        "label_parameter": label_parameter,
        "utilization": measure_utilization(results.trials),
        "diagnostics": diagnose(facts),
        "metrics": [objective.with_name(name).label for name in metric_names(results)],
        "costs": [COST_LABELS[name] for name in cost_names(results)],
        "table": trial_rows(results, choose_rows(results)),
        "max_rows": MAX_ROWS,
        "front": trial_rows(results, results.front),
        "cheapest": describe_cheapest(results),
        "failures": failures(results),
        "warm_start": attrs.describe_warm_start(results.study),
        "duplicates": duplicate_summary(attributes.get(attrs.SURVEY, {})),
        "backbones": backbone_rows(results),
        "environment": attributes.get(attrs.ENVIRONMENT, {}),
        "precisions": describe_precisions(results.trials),
        "file": file,
        # The bytes of the file in its own address: a download that needs no server.
        "file_base64": base64.b64encode(file.encode()).decode(),
        "file_name": file_name(results),
        "commands": commands(results, storage_url),
        "plotly": _plotly_compressed(),
        "version": describe_version(),
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }


@cache
def _plotly_compressed() -> str:
    """Return plotly's code, gzip in base64: 1.9 MB instead of 4.8."""
    packed = gzip.compress(get_plotlyjs().encode(), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode()


def environment() -> Environment:
    """Return the templates of pages; they escape and make visible what they are given."""
    made = Environment(
        loader=PackageLoader("autotune.results.report"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["format_count"] = format_count
    made.filters["format_duration"] = format_duration
    made.filters["format_share"] = format_share
    made.filters["format_wait"] = _format_wait
    return made


def _visible(value: Any) -> Any:
    """Make visible what a text would do to the page; markup made here stays as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _format_wait(seconds: float) -> str:
    return format_duration(seconds) if seconds >= 1 else "under a second"


def _networks(results: StudyResults, answer: Answer) -> list[dict[str, str]]:
    """Draw the plans of the baseline and of the answer, once they are complete."""
    trial, baseline = answer.trial, results.baseline
    score = f"validation {results.objective.label}"
    titles = {"Baseline": baseline}
    if trial is not None and trial is not baseline:
        titles[f"{answer.plan_title}: trial {trial.number}"] = trial
    return [
        {
            "title": f"{title}, {score} {results.format_values(trial)}",
            "plan": results.describe_plan(trial),
            "diagram": as_html(layer_rows(results.layers_of(trial), plan)),
            "size": _describe_size(trial),
        }
        for title, trial in titles.items()
        if trial is not None and (plan := attrs.trial_plan(trial)) is not None
    ]


def _images(results: StudyResults, storage_url: str) -> dict[str, Any]:
    """Return what the page shows of single images; their table only where it is small."""
    reason, command = describe_missing(results, storage_url)
    table = predictions_csv(results).encode()
    is_small = 0 < len(table) <= EMBEDDED_BYTES
    return {
        "images": find_image_results(results),
        "missing_images": {"reason": reason, "command": command},
        "matrix_classes": MATRIX_CLASSES,
        "max_classes": MAX_CLASSES,
        "max_pairs": MAX_PAIRS,
        "shown_images": SHOWN_IMAGES,
        "predictions_base64": base64.b64encode(table).decode() if is_small else "",
        "predictions_name": f"{slug(results.name) or 'study'}-predictions.csv",
        "install_heat_maps": INSTALL_HEAT_MAPS,
    }


def _describe_size(trial: FrozenTrial) -> str:
    stored, parts = trial.user_attrs, []
    costs = dict(stored.get(attrs.COSTS, {}))
    if attrs.TRAINABLE_PARAMETERS in stored:
        trainable = format_count(int(stored[attrs.TRAINABLE_PARAMETERS]))
        total = costs.pop("parameters", None)
        of = "" if total is None else f" of {format_count(int(total))}"
        parts.append(f"{trainable}{of} parameters trainable")
    if attrs.SECONDS in stored:
        parts.append(f"{format_duration(attrs.own_seconds(trial))} of training")
    if attrs.PEAK_MEMORY_MB in stored:
        parts.append(f"{float(stored[attrs.PEAK_MEMORY_MB]):,.0f} MB of memory at most")
    if costs:
        measured = ", ".join(
            f"{COST_LABELS[name]} {format_cost(name, cost)}" for name, cost in costs.items()
        )
        parts.append(f"measured before training: {measured}")
    return ", ".join(parts)


def _figures(results: StudyResults, measured: Mapping[str, float]) -> dict[str, Any]:
    names = sorted(results.parameter_names, key=lambda name: -measured.get(name, 0.0))
    slices = (_plot(f"Values over {name}", slice_figure(results, name)) for name in names)
    return {
        "front": _plot("The metric of every trial over its cost", front_figure(results)),
        "history": _plot("The value of every trial", history_figure(results)),
        "curves": _plot("The objective after each epoch", curves_figure(results)),
        "losses": _loss_plots(results),
        "importances": _plot("The importance of each parameter", importances_figure(measured)),
        "timeline": _plot("What each worker did when", timeline_figure(results)),
        "slices": [plot for plot in slices if plot],
    }


def _loss_plots(results: StudyResults) -> list[dict[str, Any]]:
    """Draw the losses of the best trials, each with what they say in a few words."""
    trials, plots = trials_with_losses(results), []
    ends = loss_range(trials)
    for trial in trials:
        marks = (("best", results.best), ("baseline", results.baseline))
        marked = [name for name, owner in marks if trial is owner]
        heading = ", ".join((f"Trial {trial.number}", *marked))
        plot = _plot(f"The losses of trial {trial.number}", losses_figure(trial, ends))
        assert plot is not None, "its losses are known"
        words = results.describe_plan(trial)
        plots.append({**plot, "heading": heading, "words": words, "note": describe_losses(trial)})
    return plots


def _plot(title: str, figure: go.Figure | None) -> dict[str, Any] | None:
    """Return title, height and JSON of a figure; the JSON is safe inside a script element."""
    if figure is None:
        return None
    # "<" written as its escape sequence: "</script>" in a name must not end the element.
    text = visible(str(figure.to_json())).replace("<", "\\u003c")
    return {"title": title, "height": int(figure.layout.height or 340), "json": Markup(text)}
