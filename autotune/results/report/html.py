"""The report of a study: one HTML page with the answer first and its evidence below.

The page is self-contained: plotly is in it, and a content security policy keeps it from asking
any other host for anything. It opens from a disk, from a mail and behind a proxy alike.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from optuna.trial import FrozenTrial
from plotly.offline import get_plotlyjs

from autotune.data.quality.checks import duplicate_summary
from autotune.results.diagnosis.diagnostics import MIN_FOR_IMPORTANCES, diagnose
from autotune.results.diagnosis.headline import (
    action_items,
    caveats,
    describe_confirmation,
    describe_refit,
    headline,
    key_figures,
)
from autotune.results.diagnosis.space_edges import space_edges
from autotune.results.diagnosis.utilization import measure_utilization
from autotune.results.figures.greedy_stages import stage_rows
from autotune.results.figures.history import curves_figure, history_figure, timeline_figure
from autotune.results.figures.layer_diagram import as_html, layer_rows
from autotune.results.figures.parameters import importances, importances_figure, slice_figure
from autotune.results.figures.pareto import front_figure
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
from autotune.results.values.precision import describe_precisions
from autotune.runtime import gc_paused
from autotune.study.state import attrs
from autotune.study.state.constraints import COST_LABELS, format_cost, format_count
from autotune.text import format_duration, visible
from autotune.version import __version__


def render_html(results: StudyResults, storage_url: str = "") -> str:
    """Return the report of a study as one HTML page, whose commands name a storage."""
    with gc_paused():
        context = _context(results, storage_url)
        return _environment().get_template("report.html.j2").render(context)


def _context(results: StudyResults, storage_url: str) -> dict[str, Any]:
    """Return what the template shows, by the names it uses."""
    objective, attributes, best = results.objective, results.attributes, results.best
    measured = importances(results)
    diagnostics = diagnose(results, measured)
    file = study_file(results, storage_url)
    is_improved = best is not None and best is not results.baseline
    return {
        "name": results.name,
        "objective": objective,
        "headline": headline(results),
        "progress": results.progress,
        "key_figures": key_figures(results),
        "confirmation": describe_confirmation(results),
        "refit": describe_refit(results),
        "caveats": caveats(results),
        "notes": [*action_items(results, diagnostics), *results.image_warnings],
        "networks": _networks(results),
        "stages": stage_rows(results),
        "figures": _figures(results, measured),
        "few_complete": results.progress.complete < MIN_FOR_IMPORTANCES,
        "edges": space_edges(results, best) if best and is_improved else (),
        "utilization": measure_utilization(results.trials),
        "diagnostics": diagnostics,
        "metrics": [objective.with_name(name).label for name in metric_names(results)],
        "costs": [COST_LABELS[name] for name in cost_names(results)],
        "table": trial_rows(results, choose_rows(results)),
        "total": len(results.trials),
        "max_rows": MAX_ROWS,
        "front": trial_rows(results, results.front),
        "failures": failures(results),
        "warm_start": attrs.describe_warm_start(results.study),
        "dataset": results.dataset,
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
        "version": __version__,
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }


@cache
def _plotly_compressed() -> str:
    """Return plotly's code, gzip in base64: 1.9 MB instead of 4.8."""
    packed = gzip.compress(get_plotlyjs().encode(), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode()


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("autotune.results.report"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["format_count"] = format_count
    environment.filters["format_duration"] = format_duration
    environment.filters["format_wait"] = _format_wait
    return environment


def _visible(value: Any) -> Any:
    """Make visible what a text would do to the page; markup made here stays as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _format_wait(seconds: float) -> str:
    return format_duration(seconds) if seconds >= 1 else "under a second"


def _networks(results: StudyResults) -> list[dict[str, str]]:
    """Draw the plans of the baseline and of the best trial, once they are complete."""
    best, baseline = results.best, results.baseline
    titles = {"Baseline": baseline}
    if best is not None and best is not baseline:
        titles[f"Best: trial {best.number}"] = best
    return [
        {
            "title": f"{title}, {results.objective.label} {results.format_values(trial)}",
            "plan": results.describe_plan(trial),
            "diagram": as_html(layer_rows(results.layers_of(trial), plan)),
            "size": _describe_size(trial),
        }
        for title, trial in titles.items()
        if trial is not None and (plan := attrs.trial_plan(trial)) is not None
    ]


def _describe_size(trial: FrozenTrial) -> str:
    stored, parts = trial.user_attrs, []
    if attrs.TRAINABLE_PARAMETERS in stored:
        parts.append(
            f"{format_count(int(stored[attrs.TRAINABLE_PARAMETERS]))} trainable parameters"
        )
    if attrs.SECONDS in stored:
        parts.append(f"{format_duration(float(stored[attrs.SECONDS]))} of training")
    if attrs.PEAK_MEMORY_MB in stored:
        parts.append(f"{float(stored[attrs.PEAK_MEMORY_MB]):,.0f} MB of memory at most")
    if costs := stored.get(attrs.COSTS, {}):
        measured = ", ".join(
            f"{COST_LABELS[name]} {format_cost(name, cost)}" for name, cost in costs.items()
        )
        parts.append(f"measured before training: {measured}")
    return ", ".join(parts)


def _figures(results: StudyResults, measured: Mapping[str, float]) -> dict[str, Any]:
    names = sorted(results.parameter_names, key=lambda name: -measured.get(name, 0.0))
    slices = (_plot(f"Values over {name}", slice_figure(results, name)) for name in names)
    importance = importances_figure(results, measured)
    return {
        "front": _plot("The metric of every trial over its cost", front_figure(results)),
        "history": _plot("The value of every trial", history_figure(results)),
        "curves": _plot("The objective after each epoch", curves_figure(results)),
        "importances": _plot("The importance of each parameter", importance),
        "timeline": _plot("What each worker did when", timeline_figure(results)),
        "slices": [plot for plot in slices if plot],
    }


def _plot(title: str, figure: go.Figure | None) -> dict[str, Any] | None:
    """Return title, height and JSON of a figure; the JSON is safe inside a script element."""
    if figure is None:
        return None
    # "<" written as its escape sequence: "</script>" in a name must not end the element.
    text = visible(str(figure.to_json())).replace("<", "\\u003c")
    return {"title": title, "height": int(figure.layout.height or 340), "json": Markup(text)}
