"""The report of a study: one HTML page that answers first and shows its evidence below.

The page is self-contained: plotly is in it, and a content security policy keeps it from asking
any other host for anything. It opens from a disk, from a mail and behind a proxy alike.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from optuna.study import Study
from optuna.trial import FrozenTrial
from plotly.offline import get_plotlyjs

from autotune.atomic import write_bytes
from autotune.data.quality.checks import duplicate_summary
from autotune.results.diagnosis.diagnostics import FEW_FOR_IMPORTANCES, diagnose
from autotune.results.diagnosis.headline import (
    action_items,
    caveats,
    describe_confirmation,
    describe_refit,
    headline,
    key_figures,
)
from autotune.results.diagnosis.savings import saved_of
from autotune.results.diagnosis.space_edges import edges_of_space
from autotune.results.diagnosis.utilization import utilisation_of
from autotune.results.figures.greedy_stages import stage_rows
from autotune.results.figures.history import curves_figure, history_figure, timeline_figure
from autotune.results.figures.layer_diagram import as_html, layer_rows
from autotune.results.figures.parameters import (
    importances,
    importances_figure,
    slice_figure,
)
from autotune.results.figures.pareto import front_figure
from autotune.results.figures.thinning import MOST_ROWS, choose_rows
from autotune.results.report.backbones import backbones_of
from autotune.results.report.reproduction import commands, file_name, study_file
from autotune.results.report.trial_table import cost_names, failures_of, metric_names, table_of
from autotune.results.study_results import StudyResults
from autotune.results.values.objective import format_duration, format_values
from autotune.results.values.precision import describe_precisions
from autotune.runtime import gc_paused
from autotune.study.state import attrs
from autotune.study.state.constraints import COST_LABELS, format_cost, format_count
from autotune.text import visible
from autotune.version import __version__


def write_report(study: Study, path: Path, storage_url: str = "") -> Path:
    """Write the report of a study.

    The file appears whole or not at all.

    Args:
        study: The study, at any stage.
        path: The HTML file; folders above it are made.
        storage_url: URL of the storage, for the commands on the page. A password in it is left
            out.

    Returns:
        The path.

    Raises:
        DiskFullError: When the page does not fit on the disk.
    """
    return write_bytes(path, render_report(study, storage_url).encode())


def render_report(study: Study, storage_url: str = "") -> str:
    """Return the report of a study as one HTML page.

    Args:
        study: The study, at any stage.
        storage_url: URL of the storage, for the commands on the page. A password in it is left
            out.
    """
    with gc_paused():
        return _render(StudyResults.from_study(study), storage_url)


def _render(results: StudyResults, storage_url: str) -> str:
    study, objective, trials = results.study, results.objective, results.trials
    best, baseline, progress = results.best, results.baseline, results.progress
    edges = edges_of_space(results, best) if best and best is not baseline else ()
    matter = importances(results)
    asked = diagnose(results, matter)
    rows_shown = choose_rows(results)
    file = study_file(study, storage_url)
    attributes = results.attributes
    dataset = attributes.get(attrs.DATASET, {})
    costs, several = cost_names(study), results.has_several_backbones
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            name=study.study_name,
            objective=objective,
            headline=headline(study),
            progress=progress,
            facts=key_figures(study, trials, progress),
            confirmed=describe_confirmation(study, best),
            fitted=describe_refit(study),
            cautions=caveats(objective, best, baseline, dataset),
            notes=[
                *action_items(progress, asked, results.ended),
                *attrs.image_warnings(attributes),
            ],
            pictures=_pictures(results),
            stages=stage_rows(study),
            figures=_figures(results, matter),
            few_complete=progress.complete < FEW_FOR_IMPORTANCES,
            edges=edges,
            utilisation=utilisation_of(trials),
            saved=saved_of(study),
            asked=asked,
            metrics=[objective.with_name(one).label for one in metric_names(trials, objective)],
            costs=[COST_LABELS[name] for name in costs],
            table=table_of(rows_shown, objective, best, costs, several, trials),
            total=len(trials),
            most_rows=MOST_ROWS,
            front=table_of(results.front, objective, best, costs, several, trials),
            failures=failures_of(trials),
            warm_start=attrs.describe_warm_start(study),
            dataset=dataset,
            compared=duplicate_summary(attributes.get(attrs.SURVEY, {})),
            backbones=backbones_of(study, trials, best),
            environment=attributes.get(attrs.ENVIRONMENT, {}),
            computing=describe_precisions(trials),
            file=file,
            # The bytes of the file in its own address: a download that needs no server.
            file_base64=base64.b64encode(file.encode()).decode(),
            file_name=file_name(study),
            commands=commands(study, storage_url),
            plotly=_plotly_compressed(),
            version=__version__,
            written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        )
    )


@cache
def _plotly_compressed() -> str:
    """Return plotly's code, gzip in base64: 1.9 MB in place of 4.8."""
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
    environment.filters["in_short"] = format_count
    environment.filters["in_time"] = format_duration
    environment.filters["wait"] = _wait
    return environment


def _visible(value: Any) -> Any:
    """Make visible what a text would do to the page; what is drawn here is as it is meant."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _wait(seconds: float) -> str:
    return format_duration(seconds) if seconds >= 1 else "under a second"


@dataclass(frozen=True)
class _Picture:
    title: str
    words: str
    drawn: Markup
    size: str


def _pictures(results: StudyResults) -> list[_Picture]:
    """Draw the plans that are compared; before anything is complete, nothing."""
    attributes, objective, cost = results.attributes, results.objective, results.cost
    best, baseline = results.best, results.baseline
    shown = [] if baseline is None else [("Baseline", baseline)]
    if best is not None and best is not baseline:
        shown.append((f"Best: trial {best.number}", best))
    pictures = []
    for title, trial in shown:
        plan = attrs.trial_plan(trial)
        if plan is not None:
            pictures.append(
                _Picture(
                    title=f"{title}, {objective.label} {format_values(trial, objective, cost)}",
                    words=plan.describe(attrs.has_several_backbones(attributes)),
                    drawn=as_html(layer_rows(attrs.backbone_layers(attributes, plan), plan)),
                    size=_size_in_words(trial),
                )
            )
    return pictures


def _size_in_words(trial: FrozenTrial) -> str:
    attributes = trial.user_attrs
    parts = []
    if attrs.TRAINABLE_PARAMETERS in attributes:
        parts.append(
            f"{format_count(int(attributes[attrs.TRAINABLE_PARAMETERS]))} parameters trainable"
        )
    if attrs.SECONDS in attributes:
        parts.append(f"{format_duration(float(attributes[attrs.SECONDS]))} of training")
    if attrs.PEAK_MEMORY_MB in attributes:
        parts.append(f"{float(attributes[attrs.PEAK_MEMORY_MB]):,.0f} MB of memory at most")
    costs = attributes.get(attrs.COSTS, {})
    if costs:
        known = ", ".join(
            f"{COST_LABELS[name]} {format_cost(name, value)}" for name, value in costs.items()
        )
        parts.append(f"measured before training: {known}")
    return ", ".join(parts)


@dataclass(frozen=True)
class _Plot:
    """A figure on the page: its JSON is safe inside a script element."""

    title: str
    height: int
    json: Markup


def _figures(results: StudyResults, matter: Mapping[str, float]) -> dict[str, Any]:
    names = sorted(results.parameter_names, key=lambda name: -matter.get(name, 0.0))
    slices = ((name, slice_figure(results, name)) for name in names)
    return {
        "front": _plot("The metric of every trial over its cost", front_figure(results)),
        "history": _plot("The value of every trial", history_figure(results)),
        "curves": _plot("The objective after each epoch", curves_figure(results)),
        "importances": _plot(
            "The importance of each parameter", importances_figure(results, matter)
        ),
        "timeline": _plot("What each worker did when", timeline_figure(results)),
        "slices": [_plot(f"Values over {name}", figure) for name, figure in slices if figure],
    }


def _plot(title: str, figure: go.Figure | None) -> _Plot | None:
    if figure is None:
        return None
    # "<" written as its escape sequence: "</script>" in a name must not end the element.
    text = visible(str(figure.to_json())).replace("<", "\\u003c")
    return _Plot(title, int(figure.layout.height or 340), Markup(text))
