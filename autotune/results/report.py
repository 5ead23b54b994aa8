"""The report of a study: one HTML page that answers first and shows its evidence below.

The page is self-contained: plotly is in it, and a content security policy keeps it from asking
any other host for anything. It opens from a disk, from a mail and behind a proxy alike.
"""

from __future__ import annotations

import base64
import math
import os
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs

from autotune import __version__
from autotune.errors import AutotuneError, disk_full_as_user_error
from autotune.results.figures import (
    Edge,
    Objective,
    curves_figure,
    edges_of_space,
    history_figure,
    importances_figure,
    last_moment,
    parameter_names,
    slice_figure,
    state_in_words,
    timeline_figure,
)
from autotune.results.picture import as_html, in_short, rows
from autotune.storage.database import redact
from autotune.study import record
from autotune.study.record import Progress
from autotune.studyfile import load_study_file, presets, slug

#: Share of failed trials from which the page asks to look into them.
_MANY_FAILURES = 0.1
#: A best trial among the last of this share of the finished ones asks for more trials.
_LATE = 0.15
#: Below so many complete trials, importances are hardly more than noise.
_FEW_FOR_IMPORTANCES = 20


def write_report(study: Study, path: Path, storage_url: str = "") -> Path:
    """Write the report of a study.

    The file appears whole or not at all: it is written under a temporary name and renamed.

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
    page = render_report(study, storage_url)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    with disk_full_as_user_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(page, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def render_report(study: Study, storage_url: str = "") -> str:
    """Return the report of a study as one HTML page.

    Args:
        study: The study, at any stage.
        storage_url: URL of the storage, for the commands on the page. A password in it is left
            out.
    """
    objective = Objective.of(study)
    trials = study.get_trials(deepcopy=False)
    best, baseline = record.best_of(trials, study.direction), record.baseline_of(trials)
    progress = record.progress_of(trials, record.budget_of(study))
    edges = edges_of_space(study, best) if best and best is not baseline else ()
    file = study_file(study, storage_url)
    dataset = study.user_attrs.get(record.DATASET, {})
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            name=study.study_name,
            objective=objective,
            headline=headline(study),
            progress=progress,
            facts=_facts(study, trials, progress),
            cautions=_cautions(objective, best, baseline, dataset),
            notes=_notes(trials, best, progress, edges),
            pictures=_pictures(study, best, baseline),
            figures=_figures(study),
            few_complete=progress.complete < _FEW_FOR_IMPORTANCES,
            edges=edges,
            metrics=[
                Objective(one, objective.direction).words
                for one in _metric_names(trials, objective)
            ],
            table=_table(trials, objective, best),
            failures=_failures(trials),
            dataset=dataset,
            backbone=study.user_attrs.get(record.BACKBONE, {}),
            environment=study.user_attrs.get(record.ENVIRONMENT, {}),
            file=file,
            # The bytes of the file in its own address: a download that needs no server.
            file_base64=base64.b64encode(file.encode()).decode(),
            file_name=_file_name(study),
            commands=_commands(study, storage_url),
            plotly=Markup(get_plotlyjs()),
            version=__version__,
            written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("autotune.results"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["in_short"] = in_short
    return environment


# ---------------------------------------------------------------------------------------------
# The answer


def headline(study: Study) -> str:
    """Answer in one sentence what a study found, for a page or a terminal.

    Args:
        study: The study, at any stage.
    """
    trials = study.get_trials(deepcopy=False)
    objective = Objective.of(study)
    best, baseline = record.best_of(trials, study.direction), record.baseline_of(trials)
    if best is None or best.value is None:
        return _nothing_yet(record.progress_of(trials, record.budget_of(study)))
    plan = record.plan_of(best)
    words = f": {plan.in_words()}" if plan else ""
    shown = objective.show(best.value)
    if baseline is None or baseline.value is None:
        return f"best {shown} (trial {best.number}){words}; the baseline is not complete yet"
    if best is not baseline:
        return (
            f"baseline {objective.show(baseline.value)} → best {shown} (trial {best.number}, "
            f"{objective.difference(best.value, baseline.value)}){words}"
        )
    others = [one for one in trials if one is not baseline]
    second = record.best_of(others, study.direction)
    if second is None or second.value is None:
        return f"only the baseline is complete: {shown}"
    if second.value == best.value:
        return (
            f"no trial is better than the baseline: {shown}, which trial {second.number} "
            "reaches as well"
        )
    return (
        f"no trial is better than the baseline: {shown}; the nearest is trial {second.number} "
        f"with {objective.show(second.value)} "
        f"({objective.difference(second.value, best.value)})"
    )


def _nothing_yet(progress: Progress) -> str:
    counts = {
        "running": progress.running,
        "waiting": progress.waiting,
        "pruned": progress.pruned,
        "failed": progress.failed,
        "given back": progress.retried,
    }
    seen = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"no trial is complete yet ({seen})" if seen else "nothing has run yet"


def _facts(
    study: Study, trials: Sequence[FrozenTrial], progress: Progress
) -> list[tuple[str, str, str]]:
    """Return the numbers below the headline: name, number, what it is made of."""
    of_budget = f" of {progress.budget}" if progress.budget else ""
    parts = {
        "complete": progress.complete,
        "pruned": progress.pruned,
        "failed": progress.failed,
        "retried": progress.retried,
        "running": progress.running,
        "waiting": progress.waiting,
    }
    counted = ", ".join(f"{n} {name}" for name, n in parts.items() if n or name in _ALWAYS)
    facts = [("finished trials", f"{progress.finished}{of_budget}", counted)]
    start, end = record.started(trials), last_moment(trials)
    if start is not None and end is not None:
        workers = {one.user_attrs.get(record.WORKER) for one in trials} - {None}
        devices = sorted({str(one.user_attrs.get(record.DEVICE, "")) for one in trials} - {""})
        spent = sum(record.seconds_of(one) or 0.0 for one in trials)
        period = f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}"
        many = "s" if len(workers) != 1 else ""
        facts += [
            ("wall time", in_time((end - start).total_seconds()), period),
            (
                "device time",
                in_time(spent),
                f"{spent:,.0f} s on {len(workers)} worker{many}"
                + (f" ({', '.join(devices)})" if devices else ""),
            ),
        ]
    trained, saved = _epochs(study, trials)
    if trained:
        share = f"{saved:,} more saved by pruning ({_percent(saved / (trained + saved))})"
        facts.append(("epochs trained", f"{trained:,}", share if saved else "none saved yet"))
    return facts


_ALWAYS = ("complete", "pruned", "failed")


def in_time(seconds: float) -> str:
    """Write a duration with two units.

    Example:
        >>> in_time(4980)
        '1 h 23 min'
    """
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.3g} s"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _epochs(study: Study, trials: Sequence[FrozenTrial]) -> tuple[int, int]:
    """Count the epochs trained and those that pruning saved.

    A retry's count includes its earlier attempts, so attempts with a successor are left out.
    """
    training = study.user_attrs.get(record.DEFINITION, {}).get("training", {})
    planned = int(training.get("epochs", 0))
    superseded = {number for one in trials for number in record.retries(one)}
    last = [one for one in trials if one.number not in superseded]
    saved = sum(
        max(0, planned - _epochs_of(one)) for one in last if one.state == TrialState.PRUNED
    )
    return sum(map(_epochs_of, last)), saved


def _epochs_of(trial: FrozenTrial) -> int:
    known = trial.user_attrs.get(record.EPOCHS)
    return int(known) if known is not None else max(trial.intermediate_values, default=0)


def _cautions(
    objective: Objective,
    best: FrozenTrial | None,
    baseline: FrozenTrial | None,
    dataset: Mapping[str, Any],
) -> list[str]:
    """Say how far the numbers on the page can be trusted."""
    if best is None or best.value is None:
        return []
    said = [
        "These are validation values. The best of many trials is chosen by the very value that "
        "is shown, so it is optimistic; autotune fit measures the test part, which no trial has "
        "seen, once."
    ]
    images = int(dataset.get("validation") or 0)
    if objective.name == "accuracy" and images:
        # Of a binomial share; the two share their images, so their difference is known better.
        error = math.sqrt(max(0.0, best.value * (1 - best.value)) / images)
        noise = (
            f"On {images:,} validation images, one standard error of "
            f"{objective.show(best.value)} is {100 * error:.1f} points"
        )
        gained = best.value - baseline.value if baseline and baseline.value is not None else 0.0
        if best is not baseline and 0 < gained < 2 * error:
            noise += (
                f"; the gain of {100 * gained:.{objective.decimals}f} points is less than two "
                "of them, so it may be chance"
            )
        said.append(noise + ".")
    return said


def _notes(
    trials: Sequence[FrozenTrial],
    best: FrozenTrial | None,
    progress: Progress,
    edges: Sequence[Edge],
) -> list[str]:
    """Say what to do next.

    The questions are those of the Deep Learning Tuning Playbook (Godbole et al. 2023, "Examining
    the training curves" and "Identifying bad search space boundaries"):
    https://github.com/google-research/tuning_playbook
    """
    notes = []
    if progress.budget and progress.finished < progress.budget:
        notes.append(
            f"The study is not at its end: {progress.budget - progress.finished} of "
            f"{progress.budget} trials are missing."
        )
    if progress.finished and progress.failed / progress.finished >= _MANY_FAILURES:
        share = progress.failed / progress.finished
        notes.append(f"{_percent(share)} of the finished trials failed; see the failures below.")
    finished = [one.number for one in trials if one.state.is_finished()]
    if best is not None and len(finished) >= 10:
        after = sum(number > best.number for number in finished)
        if after < _LATE * len(finished):
            many = "s" if after != 1 else ""
            notes.append(
                f"The best trial came late ({after} trial{many} after it): more trials may find a "
                "better one."
            )
    outwards = [edge for edge in edges if edge.can_be_widened]
    if outwards:
        notes.append(
            "The best plan lies at the edge of the space: "
            + ", ".join(f"{edge.parameter} = {edge.value}" for edge in outwards)
            + ". A wider range may hold a better one."
        )
    return notes


# ---------------------------------------------------------------------------------------------
# The evidence


@dataclass(frozen=True)
class _Picture:
    title: str
    words: str
    drawn: Markup
    size: str


def _pictures(
    study: Study, best: FrozenTrial | None, baseline: FrozenTrial | None
) -> list[_Picture]:
    """Draw the plans that are compared; before anything is complete, nothing."""
    layers = study.user_attrs.get(record.BACKBONE, {}).get("layers", ())
    objective = Objective.of(study)
    shown = [] if baseline is None else [("Baseline", baseline)]
    if best is not None and best is not baseline:
        shown.append((f"Best: trial {best.number}", best))
    pictures = []
    for title, trial in shown:
        plan = record.plan_of(trial)
        if plan is not None:
            pictures.append(
                _Picture(
                    title=f"{title}, {objective.words} {objective.show(trial.value)}",
                    words=plan.in_words(),
                    drawn=as_html(rows(layers, plan)),
                    size=_size_in_words(trial),
                )
            )
    return pictures


def _size_in_words(trial: FrozenTrial) -> str:
    attributes = trial.user_attrs
    parts = []
    if record.PARAMETERS_TUNED in attributes:
        parts.append(f"{in_short(int(attributes[record.PARAMETERS_TUNED]))} parameters tuned")
    if record.SECONDS in attributes:
        parts.append(f"{in_time(float(attributes[record.SECONDS]))} of training")
    if record.PEAK_MEMORY_MB in attributes:
        parts.append(f"{float(attributes[record.PEAK_MEMORY_MB]):,.0f} MB of memory at most")
    return ", ".join(parts)


@dataclass(frozen=True)
class _Plot:
    """A figure on the page: its JSON is safe inside a script element."""

    title: str
    height: int
    json: Markup


def _figures(study: Study) -> dict[str, Any]:
    slices = ((name, slice_figure(study, name)) for name in parameter_names(study))
    return {
        "history": _plot("The value of every trial", history_figure(study)),
        "curves": _plot("The objective after each epoch", curves_figure(study)),
        "importances": _plot("The importance of each parameter", importances_figure(study)),
        "timeline": _plot("What each worker did when", timeline_figure(study)),
        "slices": [_plot(f"Values over {name}", figure) for name, figure in slices if figure],
    }


def _plot(title: str, figure: go.Figure | None) -> _Plot | None:
    if figure is None:
        return None
    # "<" written as its escape sequence: "</script>" in a name must not end the element.
    text = str(figure.to_json()).replace("<", "\\u003c")
    return _Plot(title, int(figure.layout.height or 340), Markup(text))


@dataclass(frozen=True)
class _Cell:
    """A cell of the table: what is shown, and what it is sorted by (empty sorts last)."""

    text: str
    key: str


@dataclass(frozen=True)
class _Row:
    number: int
    state: str
    mark: str
    value: _Cell
    metrics: tuple[_Cell, ...]
    epochs: _Cell
    seconds: _Cell
    plan: str
    worker: str
    reason: str


def _metric_names(trials: Sequence[FrozenTrial], objective: Objective) -> tuple[str, ...]:
    names = dict.fromkeys(
        name for one in trials for name in one.user_attrs.get(record.METRICS, {})
    )
    return tuple(name for name in names if name != objective.name)


def _table(
    trials: Sequence[FrozenTrial], objective: Objective, best: FrozenTrial | None
) -> list[_Row]:
    superseded = {number for one in trials for number in record.retries(one)}
    names = _metric_names(trials, objective)
    return [_row(one, objective, names, superseded, best) for one in trials]


def _row(
    trial: FrozenTrial,
    objective: Objective,
    names: Sequence[str],
    superseded: set[int],
    best: FrozenTrial | None,
) -> _Row:
    attributes = trial.user_attrs
    metrics = attributes.get(record.METRICS, {})
    marks = [
        mark
        for mark, holds in (("best", trial is best), ("baseline", record.is_baseline(trial)))
        if holds
    ]
    plan = record.plan_of(trial)
    value = trial.value if trial.state.is_finished() else None
    seconds = attributes.get(record.SECONDS)
    earlier = ", ".join(map(str, record.retries(trial)))
    return _Row(
        number=trial.number,
        state=state_in_words(trial, superseded),
        mark=" ".join(marks),
        value=_Cell(objective.show(value), _key(value)),
        metrics=tuple(
            _Cell(
                Objective(name, objective.direction, objective.decimals).show(metrics.get(name)),
                _key(metrics.get(name)),
            )
            for name in names
        ),
        epochs=_Cell(str(_epochs_of(trial)), _key(_epochs_of(trial))),
        seconds=_Cell("–" if seconds is None else f"{float(seconds):,.1f}", _key(seconds)),
        plan=plan.in_words() if plan else "",
        worker=str(attributes.get(record.WORKER, "")),
        reason=str(attributes.get(record.REASON, ""))
        or (f"retry of {earlier}" if earlier else ""),
    )


def _key(number: float | None) -> str:
    return "" if number is None or math.isnan(number) else repr(float(number))


@dataclass(frozen=True)
class _Failure:
    reason: str
    state: str
    numbers: tuple[int, ...]


def _failures(trials: Sequence[FrozenTrial]) -> list[_Failure]:
    """Group the attempts that came to nothing, the most frequent reason first."""
    superseded = {number for one in trials for number in record.retries(one)}
    groups: dict[tuple[str, str], list[int]] = {}
    for one in trials:
        if one.state == TrialState.FAIL:
            reason = str(one.user_attrs.get(record.REASON, "")) or "no reason was recorded"
            groups.setdefault((reason, state_in_words(one, superseded)), []).append(one.number)
    found = [_Failure(reason, state, tuple(of)) for (reason, state), of in groups.items()]
    return sorted(found, key=lambda failure: -len(failure.numbers))


# ---------------------------------------------------------------------------------------------
# How to do it again


def study_file(study: Study, storage_url: str = "") -> str:
    """Return a study file that runs the same study again.

    Args:
        study: The study.
        storage_url: URL of the storage; a password in it is left out, and so is the key when
            there is none.
    """
    definition = study.user_attrs.get(record.DEFINITION)
    if not definition:
        return ""
    budget = study.user_attrs.get(record.BUDGET, {})
    values = {"name": study.study_name, **definition}
    values["search"] = {**definition.get("search", {}), **budget}
    if storage_url:
        values["storage"] = redact(storage_url)
    return yaml.safe_dump(
        values, sort_keys=False, allow_unicode=True, width=96, default_flow_style=None
    )


def _file_name(study: Study) -> str:
    return f"{slug(study.study_name) or 'study'}.yaml"


def _commands(study: Study, storage_url: str) -> str:
    return "\n".join(_command_lines(study, storage_url))


def _command_lines(study: Study, storage_url: str) -> Iterator[str]:
    file = _file_name(study)
    url = redact(storage_url)
    storage = f" --storage {shlex.quote(url)}" if url else ""
    # Under its own name the finished study would be found, and nothing be trained.
    again = f"{file.removesuffix('.yaml')}-again"
    if "***" in url:
        yield "# write the password of the database in place of ***"
    yield "# the winning plan of this study"
    yield f"autotune best {shlex.quote(study.study_name)}{storage}"
    if _is_preset(study):
        yield "# the same study once more, from its preset"
        yield f"autotune cp {shlex.quote(study.study_name)} {file}"
    else:
        yield f"# the same study once more; save the study file above as {file}"
    yield f"autotune run {file} --name {again}{storage}"
    yield f"autotune best {again}{storage}"


def _is_preset(study: Study) -> bool:
    """Tell whether the shipped study file of that name still says what the study did."""
    if study.study_name not in presets():
        return False
    try:
        shipped = load_study_file(study.study_name).definition()
    except AutotuneError:
        return False
    return shipped == study.user_attrs.get(record.DEFINITION)
