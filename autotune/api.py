"""A study in Python, for notebooks and scripts: the same study as that of the command line.

What it shows while it works are the lines of ``autotune run`` without a terminal.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from autotune.config.loading import load_study_file
from autotune.config.schema import BUDGETS, StudyConfig
from autotune.display.console import check_folder, check_writable, plain_console
from autotune.errors import AutotuneError, StudyError, UserError, did_you_mean, join_sentences
from autotune.plan import TrialPlan
from autotune.storage.url import absolute_url, redact

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    import plotly.graph_objects as go
    from optuna.trial import FrozenTrial

    from autotune.results.evaluation.confirm import Confirmation, ConfirmProgress
    from autotune.results.evaluation.refit import RefitResult
    from autotune.results.study_results import StudyResults
    from autotune.study.setup.opening import OpenStudy

#: The environment variable that names a storage, here and for the command.
_STORAGE = "AUTOTUNE_STORAGE"


@dataclass(frozen=True)
class TrialSummary:
    """A complete trial in short.

    Args:
        number: Its number.
        value: The objective after its last epoch; of two objectives the metric.
        plan: Its plan.
        words: The plan in words.
        params: What was searched and has an effect in this plan, by name.
        cost: The second objective, where there is one.
    """

    number: int
    value: float
    plan: TrialPlan = field(repr=False)
    words: str
    params: Mapping[str, Any]
    cost: float | None = None


class Study:
    """A study: which layers of a pretrained backbone to re-train, found by experiment.

    Make one with :meth:`from_file`, or open one that exists with :meth:`open`.

    Example:
        >>> import autotune
        >>> autotune.Study.from_file("digits", {"search.trials": 60}, name="longer")
        <Study longer: not run yet>
        >>> study
        <Study digits: 4 of 4 trials finished, best ... % (trial ...), baseline ... %>
    """

    def __init__(
        self,
        name: str,
        storage: str,
        files: str | None,
        config: StudyConfig | None = None,
    ) -> None:
        self._name = name
        self._url = storage
        self._files = files
        self._config = config
        self._found: OpenStudy | None = None
        self._interrupted = False

    @classmethod
    def from_file(
        cls,
        study: str = "digits",
        overrides: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        storage: str | None = None,
    ) -> Study:
        """Read a study file as ``autotune run`` does; nothing is trained or written.

        A study of that name that exists is the one that is meant: :meth:`run` continues it.

        Args:
            study: A preset's name (``digits``) or the path of a YAML file.
            overrides: Values that replace those of the file, by dotted key.
            name: Name of the study; by default that of the file.
            storage: Storage URL; by default ``AUTOTUNE_STORAGE``, else that of the file.

        Raises:
            StudyError: When there is no such file.
            ConfigError: With every mistake of the file and of the overrides.

        Example:
            >>> autotune.Study.from_file("digits", {"search.sampler": "tpe"})
            <Study digits-tpe: not run yet>
        """
        storage = storage or os.environ.get(_STORAGE)
        replaced = {**(overrides or {}), **({"storage": storage} if storage else {})}
        config = load_study_file(study, replaced, name)
        assert config.name is not None
        # Whatever the working directory will be: a notebook may change it.
        url = absolute_url(config.storage)
        return cls(config.name, url, config.files, config.model_copy(update={"storage": url}))

    @classmethod
    def open(cls, name: str, storage: str | None = None, files: str | None = None) -> Study:
        """Open a study that exists.

        Args:
            name: Its name.
            storage: Storage URL; by default ``AUTOTUNE_STORAGE``, else that of study files that
                name none.
            files: Folder of its files, where they were moved.

        Raises:
            StudyError: When the storage has no such study.
            StorageError: When the storage cannot be used.

        Example:
            >>> autotune.Study.open("digits").best == study.best
            True
        """
        from autotune.study.setup.opening import open_existing

        default = StudyConfig.model_fields["storage"].default
        url = absolute_url(storage or os.environ.get(_STORAGE) or default)
        found = cls(name, url, files)
        found._found = open_existing(name, url, files)
        return found

    @property
    def name(self) -> str:
        """Name of the study."""
        return self._name

    @property
    def storage(self) -> str:
        """URL of its storage, without a password."""
        return redact(self._url)

    def run(
        self,
        workers: int | None = None,
        gpus: str | None = None,
        *,
        engine: str = "local",
        workers_per_gpu: int | None = None,
        gpus_per_worker: float | None = None,
        cpus_per_worker: int | None = None,
        progress: bool | Callable[[dict[str, Any]], None] = True,
    ) -> Study:
        """Run the study until its budget is used up, or continue it.

        Workers are processes of their own. An interrupt (Ctrl-C, the stop button of a notebook, a
        SIGTERM) ends them within a batch: running trials are queued, :attr:`interrupted` is true,
        and the next call goes on with them. A second one kills them, which loses no more than an
        epoch. In a thread other than the main one there are no signals.

        Args:
            workers: Number of workers; by default one per GPU, or two on the CPU.
            gpus: ``all``, ``none``, or indices such as ``0,2``; by default all there are.
            engine: ``local``, or ``ray`` for tasks of a cluster.
            workers_per_gpu: Workers that share a GPU, in place of ``workers``.
            gpus_per_worker: GPUs that Ray gives a worker.
            cpus_per_worker: CPUs that Ray gives a worker.
            progress: Whether to print a line for every trial, or what to call with every event
                instead: a dictionary with an ``event``.

        Returns:
            This study.

        Raises:
            UserError: When something is wrong that can be put right; nothing was written.
            WorkerError: When the workers cannot go on.

        Example:
            >>> study.run(workers=1, progress=False).interrupted
            False
        """
        if gpus is not None and not isinstance(gpus, str):
            raise UserError(f"gpus: must be text such as '0,2', 'all' or 'none', but got {gpus!r}")
        config = self._config or self._remembered()
        self._interrupted = False
        with _told(progress, config) as (shown, on_event):
            from autotune.study.engine.launcher import (
                run_study,  # within, because it imports torch
            )

            result = run_study(
                config,
                engine=engine,
                workers=workers,
                gpus=gpus,
                workers_per_gpu=workers_per_gpu,
                gpus_per_worker=gpus_per_worker,
                cpus_per_worker=cpus_per_worker,
                on_event=on_event,
            )
        self._found, self._interrupted = result.handle, result.interrupted
        if shown is not None and result.interrupted:
            shown.print(Text("Stopped. The trials that were running are queued; run() goes on."))
        return self

    @property
    def interrupted(self) -> bool:
        """Whether the last :meth:`run` was interrupted."""
        return self._interrupted

    @property
    def best(self) -> TrialSummary | None:
        """The best complete trial within the limits; ``None`` before there is one.

        Example:
            >>> study.best.value >= study.baseline.value
            True
            >>> study.best.words
            '...trainable..., adamw lr ...'
        """
        results = self._results()
        return None if results is None else self._summary(results, results.best)

    @property
    def baseline(self) -> TrialSummary | None:
        """The baseline: the untouched backbone with a linear head; ``None`` before it is complete.

        Example:
            >>> study.baseline.plan.depth
            0
        """
        results = self._results()
        return None if results is None else self._summary(results, results.baseline)

    @property
    def optuna_study(self) -> optuna.Study:
        """Optuna's study, for everything else.

        Raises:
            StudyError: When it has not been run yet.

        Example:
            >>> len(study.optuna_study.trials)
            4
        """
        return self._opened().study

    def trials_dataframe(self) -> pd.DataFrame:
        """Return the trials as a table, a row a trial.

        The columns are those of :mod:`autotune.results.report.dataframe`: typed, times in UTC,
        parameters as ``param.<name>``, metrics as ``metric.<name>``, costs as ``cost.<name>``.

        Raises:
            StudyError: When the study has not been run yet.

        Example:
            >>> frame = study.trials_dataframe()
            >>> frame.loc[0, ["state", "role"]].tolist()
            ['complete', 'baseline']
            >>> bool(frame["value"].max() == study.best.value)
            True
        """
        from autotune.results.report.dataframe import trials_frame

        return trials_frame(self._read())

    def report(self, path: str | Path | None = None, format: str | None = None) -> Path:
        """Write the report: one self-contained HTML page, or another form.

        Args:
            path: The file; by default one beside the study.
            format: ``html``, ``md``, ``json``, ``csv`` or ``parquet``; by default what the ending
                of the file says, else ``html``.

        Returns:
            The path.

        Raises:
            UserError: When the file cannot be written, or format and ending contradict each other.
            StudyError: When the study has not been run yet.

        Example:
            >>> study.report().name
            'digits.html'
            >>> study.report("digits.md")
            PosixPath('digits.md')
        """
        from autotune.results.report.formats import resolve_format, write_report

        form = resolve_format(path, format)
        if path is not None:
            check_writable(path)
        return write_report(self._opened(), None if path is None else Path(path), form)

    def confirm(self, top: int = 5, seeds: int = 5, *, progress: bool = True) -> Confirmation:
        """Train the best plans and the baseline under several seeds, and compare them.

        The trainings run one after the other, in this process. Each is kept at once: after an
        interrupt the same call goes on.

        Args:
            top: How many plans, besides the baseline.
            seeds: How many seeds, at least two.
            progress: Whether to print a line for every training.

        Raises:
            StudyError: When there is no plan but the baseline, or the baseline diverges.
            UserError: When a number is too small.

        Example:
            >>> found = study.confirm(top=1, seeds=2, progress=False)
            >>> len(found.plans), found.seeds
            (1, (1, 2))
        """
        for name, value, least in (("top", top, 1), ("seeds", seeds, 2)):
            if value < least:
                raise UserError(f"{name}: must be at least {least}, but got {value}")
        opened = self._opened()
        from autotune.results.evaluation.confirm import confirm_plans  # imports torch

        objective = self._read().objective
        say = _say(progress)

        def listen(step: ConfirmProgress) -> None:
            if said := step.describe(objective):
                say(said)

        return confirm_plans(opened, top, seeds, listen)

    def refit(
        self,
        trial: int | None = None,
        folder: str | Path | None = None,
        *,
        progress: bool = True,
    ) -> RefitResult:
        """Train the best plan and the baseline anew and measure both on the test part.

        This reads the test part, and the study notes how often that was done. The trainings run
        in this process, as ``fit`` in the study file or its overrides says.

        Args:
            trial: Number of the trial to take; by default the best confirmed one, or the best.
            folder: Where the model goes, for :func:`autotune.load`; by default beside the study.
            progress: Whether to print a line for every training.

        Raises:
            StudyError: When there is no such trial, or none that is complete.
            UserError: When the folder cannot be written.

        Example:
            >>> study.refit(trial=99)
            Traceback (most recent call last):
            autotune.errors.StudyError: --trial: the study 'digits' has the trials 0 to 3, but ...
        """
        if folder is not None:
            check_folder(Path(folder))
        opened = self._opened()
        from autotune.results.evaluation.refit import refit_study  # imports torch

        say = _say(progress)

        def listen(what: str, epoch: int, epochs: int) -> None:
            if epoch == epochs:
                say(f"{what}: trained for {epochs} epochs")

        settings = self._config.fit if self._config is not None else None
        where = None if folder is None else Path(folder)
        return refit_study(opened, trial, where, listen, settings=settings)

    def fit(
        self, trial: int | None = None, folder: str | Path | None = None, *, progress: bool = True
    ) -> RefitResult:
        """Call :meth:`refit`, which this was called before."""
        warnings.warn("Study.fit is called Study.refit now", DeprecationWarning, stacklevel=2)
        return self.refit(trial, folder, progress=progress)

    def plot_history(self) -> go.Figure:
        """Draw the value of every trial, the best so far and the baseline.

        Raises:
            StudyError: When there is nothing to draw yet; so do all plots.

        Example:
            >>> [trace.name for trace in study.plot_history().data][-2:]
            ['best so far', 'baseline']
        """
        from autotune.results.figures.history import history_figure

        return self._drawn(history_figure, "no trial is complete yet")

    def plot_curves(self) -> go.Figure:
        """Draw the objective of every trial after each epoch.

        Example:
            >>> study.plot_curves().layout.xaxis.title.text
            'epoch'
        """
        from autotune.results.figures.history import curves_figure

        return self._drawn(curves_figure, "no trial has finished an epoch yet")

    def plot_timeline(self) -> go.Figure:
        """Draw who did what when: a lane per worker, a bar per trial.

        Example:
            >>> study.plot_timeline().layout.xaxis.type
            'date'
        """
        from autotune.results.figures.history import timeline_figure

        return self._drawn(timeline_figure, "no trial has ended yet")

    def plot_importances(self) -> go.Figure:
        """Draw how much each parameter matters; with few trials that is little more than noise.

        Example:
            >>> study.plot_importances().layout.xaxis.title.text
            'importance'
        """
        from autotune.results.figures.parameters import importances_figure

        return self._drawn(
            importances_figure,
            "importances need complete trials that differ in their values and in a parameter",
        )

    def plot_slice(self, name: str) -> go.Figure:
        """Draw the values of the complete trials over one parameter.

        Args:
            name: Name of a searched parameter, ``training.lr`` for one.

        Raises:
            StudyError: When there is no such parameter, or nothing to draw yet.

        Example:
            >>> study.plot_slice("training.lr").layout.xaxis.type
            'log'
        """
        from autotune.results.figures.parameters import slice_figure

        known = self._read().parameter_names
        if name not in known:
            raise StudyError(
                join_sentences(
                    f"the study {self._name!r} searches {', '.join(known) or 'nothing yet'}, but "
                    f"got {name!r}",
                    did_you_mean(name, known),
                )
            )
        return self._drawn(
            lambda results: slice_figure(results, name),
            f"fewer than two complete trials in which {name} has an effect",
        )

    def plot_front(self) -> go.Figure:
        """Draw the metric of the complete trials over their cost, and the Pareto front.

        Raises:
            StudyError: When the study has one objective, or nothing is complete yet.

        Example:
            >>> study.plot_front()
            Traceback (most recent call last):
            autotune.errors.StudyError: the study 'digits' has one objective, and no front; ...
        """
        from autotune.results.figures.pareto import front_figure

        if self._read().cost is None:
            raise StudyError(
                f"the study {self._name!r} has one objective, and no front; a study file with "
                "'objectives: [accuracy, latency_ms]' has two"
            )
        return self._drawn(front_figure, "no trial is complete yet")

    def __repr__(self) -> str:
        return f"<Study {self._name}: {self._in_words()}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows of the study: the answer, and a few numbers."""
        try:
            opened = self._find()
        except AutotuneError:
            opened = None
        if opened is None:
            return f"<p>Study <b>{escape(self._name)}</b>: {escape(self._in_words())}</p>"
        from autotune.results.diagnosis.headline import (
            describe_confirmation,
            headline,
            key_figures,
        )

        results = self._read()
        rows = [(name, f"{number} ({made_of})") for name, number, made_of in key_figures(results)]
        if confirmation := describe_confirmation(results):
            rows.append(("confirmed", confirmation))
        cells = "".join(
            f'<tr><th style="text-align: left">{escape(name)}</th>'
            f'<td style="text-align: left">{escape(text)}</td></tr>'
            for name, text in rows
        )
        return (
            f"<p>Study <b>{escape(self._name)}</b>: {escape(headline(results))}</p>"
            f"<table>{cells}</table>"
        )

    def _in_words(self) -> str:
        """Say how far the study is, whatever state its storage is in."""
        try:
            results = self._results()
            if results is None:
                return "not run yet"
            best, baseline = results.best, results.baseline
        except AutotuneError as error:
            return f"cannot be read: {error}"
        progress = results.progress
        words = [f"{progress.finished} of {progress.budget} trials finished"]
        if progress.running:
            words.append(f"{progress.running} running")
        if best is not None:
            words.append(f"best {results.format_values(best)} (trial {best.number})")
        if baseline is not None:
            words.append(f"baseline {results.format_values(baseline)}")
        return ", ".join(words)

    @staticmethod
    def _summary(results: StudyResults, trial: FrozenTrial | None) -> TrialSummary | None:
        from autotune.study.state import attrs

        plan = attrs.trial_plan(trial) if trial is not None else None
        if trial is None or plan is None:
            return None
        words, params = results.describe_plan(trial), results.active_params(trial)
        value, *costs = trial.values
        return TrialSummary(trial.number, value, plan, words, params, *costs)

    def _results(self) -> StudyResults | None:
        """Read the study; ``None`` before it has been made."""
        return None if self._find() is None else self._read()

    def _read(self) -> StudyResults:
        from autotune.results.study_results import StudyResults

        return StudyResults.from_study(self._opened().study)

    def _find(self) -> OpenStudy | None:
        """Open the study once it has been made."""
        if self._found is None:
            from autotune.study.setup.opening import find_existing

            self._found = find_existing(self._name, self._url, self._files)
        return self._found

    def _opened(self) -> OpenStudy:
        opened = self._find()
        if opened is None:
            raise StudyError(f"the study {self._name!r} has not been run yet; run() makes it")
        return opened

    def _remembered(self) -> StudyConfig:
        """Return the configuration of a study that was opened, with the budget of its last run."""
        from autotune.study.state import attrs

        opened = self._opened()
        values = opened.config().model_dump(mode="json")
        budget = opened.study.user_attrs.get(attrs.BUDGET, {})
        values["search"] |= {key: budget[key] for key in BUDGETS if key in budget}
        return StudyConfig.model_validate(values)

    def _drawn(self, draw: Callable[[StudyResults], go.Figure | None], why_not: str) -> go.Figure:
        figure = draw(self._read())
        if figure is None:
            raise StudyError(f"the study {self._name!r} cannot be drawn: {why_not}")
        return figure


@contextmanager
def _told(
    progress: bool | Callable[[dict[str, Any]], None], config: StudyConfig
) -> Iterator[tuple[Console | None, Callable[[dict[str, Any]], None]]]:
    """Yield the console that is written to, if one is, and what a run tells of its events."""
    if callable(progress):
        yield None, progress
    elif not progress:
        yield None, lambda event: None
    else:
        from autotune.display.run_display import make_view

        shown = plain_console()
        with make_view(shown, config) as view:
            yield shown, view


def _say(progress: bool) -> Callable[[str], None]:
    if not progress:
        return lambda text: None
    shown = plain_console()
    return lambda text: shown.print(Text(text))
