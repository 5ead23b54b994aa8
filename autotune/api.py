"""Run and read a study from Python; the command line uses the same studies.

The printed progress is that of ``autotune run`` without a terminal.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.text import Text

from autotune.config.loading import load_study_file
from autotune.config.schema import BUDGETS, StudyConfig
from autotune.display.console import check_folder, check_writable, plain_console
from autotune.errors import (
    AutotuneError,
    NoResultError,
    StudyError,
    UserError,
    did_you_mean,
    join_sentences,
)
from autotune.plan import TrialPlan
from autotune.storage.url import absolute_url, redact

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    import plotly.graph_objects as go
    from optuna.trial import FrozenTrial

    from autotune.loggers.background import Logger
    from autotune.results.evaluation.confirm import Confirmation
    from autotune.results.evaluation.refit import RefitResult
    from autotune.results.seeds import SeedComparison
    from autotune.results.study_results import StudyResults
    from autotune.study.setup.manual_trials import EnqueuedTrial
    from autotune.study.setup.opening import OpenStudy

logger = logging.getLogger(__name__)

#: Environment variable with the URL of the storage, as for the command.
_STORAGE = "AUTOTUNE_STORAGE"


@dataclass(frozen=True)
class TrialSummary:
    """A complete trial.

    Args:
        value: The metric after its last epoch.
        words: Description of the plan.
        params: The searched parameters that have an effect in this plan, by name.
        cost: The second objective, if the study has two.
    """

    number: int
    value: float
    plan: TrialPlan = field(repr=False)
    words: str
    params: Mapping[str, Any]
    cost: float | None = None


def run_seeds(
    seeds: int,
    study: str = "digits",
    overrides: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    storage: str | None = None,
    **options: Any,
) -> SeedComparison:
    """Run or continue a study under several seeds, one after the other; return what they gain.

    The studies have the name of the study with ``-seed0`` and so on, see :meth:`Study.open`.
    Images and split are the same for all. More seeds add to the studies that are there.

    Args:
        seeds: Number of studies, at least two; the first seed is ``search.seed``.
        study: The name of a preset or the path of a YAML file, as in :meth:`Study.from_file`.
        overrides: Values that replace those of the file, by dotted key.
        name: Name of the studies, without the seed; default: that of the file.
        storage: Storage URL; default: ``AUTOTUNE_STORAGE``, else that of the file.
        options: The arguments of :meth:`Study.run`.

    Raises:
        UserError: When an argument or the study file is wrong.
        WorkerError: When the workers cannot continue.
        NoResultError: When a study has ended and no trial has a result.
        KeyboardInterrupt: After an interrupt; the next call continues.

    Example:
        >>> small = {"search.trials": 2, "training.epochs": 1, "training.num_views": 1}
        >>> found = autotune.run_seeds(2, "digits", small, name="small", workers=1, progress=False)
        >>> [each.study for each in found.studies]
        ['small-seed0', 'small-seed1']
        >>> found.gain.low < found.gain.mean < found.gain.high
        True
    """
    if seeds < 2:
        raise UserError(f"seeds: must be at least 2, but got {seeds}")
    base = Study.from_file(study, overrides, name=name, storage=storage)
    assert base._config is not None
    first = base._config.search.seed
    studies = [
        Study.from_file(
            study,
            {**(overrides or {}), "search.seed": seed},
            name=f"{base.name}-seed{seed}",
            storage=storage,
        )
        for seed in range(first, first + seeds)
    ]
    for each in studies:
        if each.run(**options).interrupted:
            raise KeyboardInterrupt
    from autotune.results.seeds import SeedComparison

    comparison = SeedComparison.of([each._results() for each in studies])
    assert comparison is not None, "they differ in their seed alone"
    return comparison


class Study:
    """A study of which layers of a pretrained backbone to retrain.

    Make one with :meth:`from_file`, or open one that exists with :meth:`open`.

    Example:
        >>> import autotune
        >>> autotune.Study.from_file("digits", {"search.trials": 60}, name="longer")
        <Study longer: not run yet>
        >>> study
        <Study digits: 4 of 4 trials finished, best ... % (trial ...), baseline ... %>
    """

    def __init__(
        self, name: str, storage: str, files: str | None, config: StudyConfig | None = None
    ) -> None:
        self._name = name
        self._url = storage
        self._files = files
        self._config = config
        self._handle: OpenStudy | None = None
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

        If a study of that name exists, :meth:`run` continues it.

        Args:
            study: The name of a preset (``digits``) or the path of a YAML file.
            overrides: Values that replace those of the file, by dotted key.
            name: Name of the study; default: that of the file.
            storage: Storage URL; default: ``AUTOTUNE_STORAGE``, else that of the file.

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
        # Absolute, because a notebook may change the working directory.
        url = absolute_url(config.storage)
        return cls(config.name, url, config.files, config.model_copy(update={"storage": url}))

    @classmethod
    def open(cls, name: str, storage: str | None = None, files: str | None = None) -> Study:
        """Open an existing study.

        Args:
            name: Name of the study.
            storage: Storage URL; default: ``AUTOTUNE_STORAGE``, else the default of study files.
            files: Folder of the study's files, if they were moved.

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
        study = cls(name, url, files)
        study._handle = open_existing(name, url, files)
        return study

    @property
    def name(self) -> str:
        """Name of the study."""
        return self._name

    @property
    def storage(self) -> str:
        """URL of the study's storage, without a password."""
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
        loggers: str | Logger | Iterable[str | Logger] | None = None,
    ) -> Study:
        """Run or continue the study until its budget is used up; return it.

        Workers are separate processes. An interrupt (Ctrl-C, the stop button of a notebook,
        SIGTERM) ends them within a batch: running trials are queued, :attr:`interrupted` becomes
        true, and the next call continues them. A second interrupt kills the workers, which loses
        at most an epoch. Outside of the main thread there are no signals.

        Args:
            workers: Number of workers; default: one per GPU, or two on the CPU.
            gpus: ``all``, ``none``, or indices such as ``0,2``; default: all.
            engine: ``local``, or ``ray`` for tasks of a cluster.
            workers_per_gpu: Workers that share a GPU, instead of ``workers``.
            gpus_per_worker: GPUs of a worker in Ray.
            cpus_per_worker: CPUs of a worker in Ray.
            progress: Print a line for every trial; or a function to call with everything that
                the display shows, dictionaries with the key ``event``. For a program, take
                ``loggers``.
            loggers: Loggers instead of those of the study file: names (``tensorboard``,
                ``mlflow``, ``wandb``), and objects that can be called with the events of
                :mod:`autotune.events`. Each runs in a thread of its own; an error in one is a
                warning.

        Raises:
            UserError: When an argument or the study file is wrong; nothing was written.
            WorkerError: When the workers cannot continue.
            NoResultError: When the study has ended and no trial has a result, with what to do.

        Example:
            >>> study.run(workers=1, progress=False).interrupted
            False
        """
        _check_gpus(gpus)
        from autotune.display.run_display import make_view

        config = self._config or self._stored_config()
        objects: list[Logger] = []
        if loggers is not None:
            given = (
                list(loggers)
                if isinstance(loggers, Iterable) and not isinstance(loggers, str)
                else [loggers]
            )
            objects = [logger for logger in given if not isinstance(logger, str)]
            names = dict.fromkeys(logger for logger in given if isinstance(logger, str))
            config = config.model_copy(update={"loggers": list(names)})
        self._interrupted = False
        console = plain_console()
        callback = progress if callable(progress) else _log_warning
        is_shown = bool(progress) and not callable(progress)
        with make_view(console, config) if is_shown else nullcontext(callback) as on_event:
            from autotune.study.race.running import run_study  # imports torch

            result = run_study(
                config,
                engine=engine,
                workers=workers,
                gpus=gpus,
                workers_per_gpu=workers_per_gpu,
                gpus_per_worker=gpus_per_worker,
                cpus_per_worker=cpus_per_worker,
                loggers=objects,
                on_event=on_event,
            )
        if result.handle.name != config.name:  # a round of a race was interrupted
            self._interrupted = True
            return self
        self._handle, self._interrupted = result.handle, result.interrupted
        if is_shown and result.interrupted:
            console.print(Text("Stopped. The running trials are queued; run() continues them."))
        no_result = self._results().no_result
        if no_result is not None:
            raise NoResultError(f"the study {self._name!r} has no result. {no_result.describe()}")
        return self

    def enqueue(
        self,
        values: Mapping[str, Any] | None = None,
        *,
        trial: int | Literal["best"] | TrialPlan | None = None,
        study: str | None = None,
    ) -> EnqueuedTrial:
        """Queue a plan of your own, while workers run or not; they train it before they search on.

        Args:
            values: Values of the plan, by the name of a parameter (``training.lr``) or without
                what is not needed to tell it apart (``lr``, ``head.dropout``).
            trial: What has all other values: a trial by its number, the best one, or a plan;
                default: the baseline.
            study: The study of that trial in the same storage; default: this one.

        Raises:
            ConfigError: With every name and value that is wrong, and what is allowed.
            StudyError: When a trial has this plan, there is no such trial, or nothing was run yet.

        Example:
            >>> study.enqueue({"layers": 9})
            Traceback (most recent call last):
            autotune.errors.ConfigError: ...layers (depth): must be from 0 to 5, but got 9
        """
        from autotune.study.setup.manual_trials import enqueue_plan
        from autotune.study.setup.opening import open_existing

        other = None if study is None else open_existing(study, self._url)
        return enqueue_plan(self._open_handle(), values or {}, trial, other)

    @property
    def interrupted(self) -> bool:
        """Whether the last :meth:`run` was interrupted."""
        return self._interrupted

    @property
    def best(self) -> TrialSummary | None:
        """The best complete trial within the limits; ``None`` if there is none yet.

        Example:
            >>> study.best.value >= study.baseline.value
            True
            >>> study.best.words
            '...trainable..., adamw lr ...'
        """
        return self._summary(lambda results: results.best)

    @property
    def baseline(self) -> TrialSummary | None:
        """The baseline, the unchanged backbone with a linear head; ``None`` until it is complete.

        Example:
            >>> study.baseline.plan.depth
            0
        """
        return self._summary(lambda results: results.baseline)

    @property
    def optuna_study(self) -> optuna.Study:
        """The study as an Optuna study.

        Example:
            >>> study.optuna_study.trials[0].state.name
            'COMPLETE'
        """
        return self._open_handle().study

    def trials_dataframe(self) -> pd.DataFrame:
        """Return the trials as a table with a row for each.

        The columns are those of :mod:`autotune.results.report.dataframe`: typed, times in UTC,
        parameters as ``param.<name>``, metrics as ``metric.<name>``, costs as ``cost.<name>``.

        Example:
            >>> frame = study.trials_dataframe()
            >>> frame.loc[0, ["state", "role"]].tolist()
            ['complete', 'baseline']
            >>> bool(frame["value"].max() == study.best.value)
            True
        """
        from autotune.results.report.dataframe import trials_frame

        return trials_frame(self._results())

    def epochs_dataframe(self) -> pd.DataFrame:
        """Return the epochs of all trials as a table with a row for each.

        The columns are those of :mod:`autotune.results.report.epoch_table`: the objective,
        training and validation loss, learning rate and seconds.

        Example:
            >>> frame = study.epochs_dataframe()
            >>> first = frame[frame["number"] == 0]
            >>> first["epoch"].tolist(), bool(first["training_loss"].notna().all())
            ([1, 2, 3], True)
        """
        from autotune.results.report.epoch_table import epochs_frame

        return epochs_frame(self._results())

    def report(self, path: str | Path | None = None, format: str | None = None) -> Path:
        """Write the report, by default one self-contained HTML page, and return its path.

        Args:
            path: The file; default: beside the study.
            format: ``html``, ``md``, ``json``, ``csv``, ``parquet``, ``epochs`` (CSV with a row
                an epoch) or ``yaml`` (the study file); default: the ending of the file, else
                ``html``.

        Raises:
            UserError: When the file cannot be written, or format and ending differ.

        Example:
            >>> study.report().name
            'digits.html'
            >>> study.report("digits.md")
            PosixPath('digits.md')
        """
        from autotune.results.report.formats import resolve_format, write_report

        format = resolve_format(path, format)
        if path is not None:
            check_writable(path)
        return write_report(self._open_handle(), None if path is None else Path(path), format)

    def confirm(
        self,
        top: int = 5,
        seeds: int = 5,
        *,
        workers: int | None = None,
        gpus: str | None = None,
        workers_per_gpu: int | None = None,
        progress: bool | Callable[[dict[str, Any]], None] = True,
    ) -> Confirmation:
        """Train the best plans and the baseline under several seeds, and compare them.

        The trainings use all devices, as :meth:`run` does. Each result is stored at once, and the
        state of a training after every epoch: the same call continues after an interrupt, and one
        with more seeds or plans trains only what is missing.

        Args:
            top: Number of plans besides the baseline.
            seeds: Number of seeds, at least two.
            workers: Number of workers; default: one per GPU, or two on the CPU.
            gpus: ``all``, ``none``, or indices such as ``0,2``; default: all.
            workers_per_gpu: Workers that share a GPU, instead of ``workers``.
            progress: Print a line for every training; or a function to call with every event, a
                dictionary with the key ``event``.

        Raises:
            StudyError: When there is no plan but the baseline, or the baseline diverges.
            UserError: When an argument is wrong.
            WorkerError: When the workers cannot continue.
            KeyboardInterrupt: After an interrupt.

        Example:
            >>> confirmation = study.confirm(top=1, seeds=2, progress=False)
            >>> len(confirmation.plans), confirmation.seeds
            (1, (1, 2))
        """
        for name, value, least in (("top", top, 1), ("seeds", seeds, 2)):
            if value < least:
                raise UserError(f"{name}: must be at least {least}, but got {value}")
        _check_gpus(gpus)
        handle = self._open_handle()
        from autotune.results.evaluation.confirm import confirm_plans  # imports torch
        from autotune.study.engine.trainings import Workers

        with self._trainings_view(progress) as on_event:
            devices = Workers(workers, gpus, workers_per_gpu)
            return confirm_plans(handle, top, seeds, on_event, workers=devices)

    def refit(
        self,
        trial: int | None = None,
        folder: str | Path | None = None,
        *,
        workers: int | None = None,
        gpus: str | None = None,
        workers_per_gpu: int | None = None,
        progress: bool | Callable[[dict[str, Any]], None] = True,
    ) -> RefitResult:
        """Train the best plan and the baseline again and measure both on the test split.

        The study records every read of the test split. The trainings use all devices, with the
        settings of ``refit`` in the study file. What was trained is kept: the same call continues
        after an interrupt.

        Args:
            trial: Number of the trial to take; default: the best confirmed one, or the best.
            folder: Folder of the model, for :func:`autotune.load`; default: beside the study.
            workers: Number of workers; default: one per GPU, or two on the CPU.
            gpus: ``all``, ``none``, or indices such as ``0,2``; default: all.
            workers_per_gpu: Workers that share a GPU, instead of ``workers``.
            progress: As in :meth:`confirm`.

        Raises:
            StudyError: When the trial does not exist, or no trial is complete.
            UserError: When the folder cannot be written.
            WorkerError: When a training diverges, or the workers cannot continue.
            KeyboardInterrupt: After an interrupt.

        Example:
            >>> study.refit(trial=99)
            Traceback (most recent call last):
            autotune.errors.StudyError: --trial: the study 'digits' has the trials 0 to ...
        """
        path = None if folder is None else Path(folder)
        if path is not None:
            check_folder(path)
        _check_gpus(gpus)
        handle = self._open_handle()
        from autotune.results.evaluation.refit import refit_study  # imports torch
        from autotune.study.engine.trainings import Workers

        config = self._config
        with self._trainings_view(progress) as on_event:
            return refit_study(
                handle,
                trial,
                path,
                on_event,
                settings=None if config is None else config.refit,
                max_unreadable_share=0.0 if config is None else config.data.max_unreadable_share,
                workers=Workers(workers, gpus, workers_per_gpu),
            )

    @contextmanager
    def _trainings_view(
        self, progress: bool | Callable[[dict[str, Any]], None]
    ) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Yield what is called with the events of trainings."""
        if callable(progress) or not progress:
            yield progress or (lambda event: None)
            return
        from autotune.display.trainings_display import TrainingsView

        console = plain_console()
        with console.status(f"study {self._name}") as status:
            yield TrainingsView(self._results().objective, status, console)

    def fit(
        self, trial: int | None = None, folder: str | Path | None = None, *, progress: bool = True
    ) -> RefitResult:
        """Call :meth:`refit`; this is its old name."""
        warnings.warn("Study.fit is now called Study.refit", DeprecationWarning, stacklevel=2)
        return self.refit(trial, folder, progress=progress)

    def plot_history(self) -> go.Figure:
        """Plot the value of every trial, the best so far and the baseline.

        Raises:
            StudyError: When there is nothing to plot yet; all plots raise it.

        Example:
            >>> [trace.name for trace in study.plot_history().data][-2:]
            ['best so far', 'baseline']
        """
        from autotune.results.figures.history import history_figure

        return self._plot(history_figure, "no trial is complete yet")

    def plot_curves(self) -> go.Figure:
        """Plot the objective of every trial after each epoch.

        Example:
            >>> study.plot_curves().layout.xaxis.title.text
            'epoch'
        """
        from autotune.results.figures.history import curves_figure

        return self._plot(curves_figure, "no trial has finished an epoch yet")

    def plot_losses(self, trial: int | None = None) -> go.Figure:
        """Plot the training and the validation loss of a trial after each epoch.

        Args:
            trial: Number of the trial; default: the best one.

        Raises:
            StudyError: When there is no such trial, or its losses were not recorded.

        Example:
            >>> [trace.name for trace in study.plot_losses().data]
            ['training', 'validation', 'lowest']
        """
        from autotune.results.figures.losses import losses_figure

        trials = self._results().trials
        if trial is not None and not 0 <= trial < len(trials):
            text = f"trial: the study {self._name!r} has the trials 0 to {len(trials) - 1}"
            raise StudyError(f"{text}, but got {trial}")

        def draw(results: StudyResults) -> go.Figure | None:
            chosen = results.best if trial is None else results.trials[trial]
            return None if chosen is None else losses_figure(chosen)

        which = "the best trial" if trial is None else f"trial {trial}"
        return self._plot(draw, f"the losses of {which} are not known")

    def plot_timeline(self) -> go.Figure:
        """Plot the trials of each worker over time.

        Example:
            >>> study.plot_timeline().layout.xaxis.type
            'date'
        """
        from autotune.results.figures.history import timeline_figure

        return self._plot(timeline_figure, "no trial has ended yet")

    def plot_importances(self) -> go.Figure:
        """Plot how much each parameter matters; with few trials this is mostly noise.

        Example:
            >>> study.plot_importances().layout.xaxis.title.text
            'importance'
        """
        from autotune.results.figures.parameters import importances_figure

        why = "importances need complete trials that differ in their values and in a parameter"
        return self._plot(importances_figure, why)

    def plot_slice(self, name: str) -> go.Figure:
        """Plot the values of the complete trials over one parameter.

        Raises:
            StudyError: When there is no such parameter, or nothing to plot yet.

        Example:
            >>> study.plot_slice("training.lr").layout.xaxis.type
            'log'
        """
        from autotune.results.figures.parameters import slice_figure

        names = self._results().parameter_names
        if name not in names:
            searched = ", ".join(names) or "nothing yet"
            text = f"the study {self._name!r} searches {searched}, but got {name!r}"
            raise StudyError(join_sentences(text, did_you_mean(name, names)))
        return self._plot(
            lambda results: slice_figure(results, name),
            f"fewer than two complete trials in which {name} has an effect",
        )

    def plot_front(self) -> go.Figure:
        """Plot the metric of the complete trials over their cost, and the Pareto front.

        Example:
            >>> study.plot_front()
            Traceback (most recent call last):
            autotune.errors.StudyError: the study 'digits' has one objective, and no front; ...
        """
        from autotune.results.figures.pareto import front_figure

        if self._results().cost is None:
            raise StudyError(
                f"the study {self._name!r} has one objective, and no front; a study file with "
                "'objectives: [accuracy, latency_ms]' has two"
            )
        return self._plot(front_figure, "no trial is complete yet")

    def __repr__(self) -> str:
        return f"<Study {self._name}: {self._describe()}>"

    def _repr_html_(self) -> str:
        """Return the headline and the key figures for a notebook."""
        title = f"<p>Study <b>{escape(self._name)}</b>: "
        try:
            handle = self._find_handle()
        except AutotuneError:
            handle = None
        if handle is None:
            return f"{title}{escape(self._describe())}</p>"
        from autotune.results.diagnosis import answer, headline

        results = self._results()
        figures = headline.key_figures(results)
        rows = [(name, f"{number} ({parts})") for name, number, parts in figures]
        if confirmation := headline.describe_confirmation(results):
            rows.append(("confirmed", confirmation))
        if tested := headline.describe_refit(results):
            rows.append(("test split", tested))
        cells = "".join(
            f'<tr><th style="text-align: left">{escape(name)}</th>'
            f'<td style="text-align: left">{escape(text)}</td></tr>'
            for name, text in rows
        )
        return f"{title}{escape(answer.headline(results))}</p><table>{cells}</table>"

    def _describe(self) -> str:
        """Describe the progress of the study, also if its storage cannot be read."""
        try:
            if self._find_handle() is None:
                return "not run yet"
            results = self._results()
        except AutotuneError as error:
            return f"cannot be read: {error}"
        progress, best, baseline = results.progress, results.best, results.baseline
        texts = [f"{results.finished} trials finished"]
        if progress.running:
            texts.append(f"{progress.running} running")
        if best is not None:
            texts.append(f"best {results.format_values(best)} (trial {best.number})")
        if baseline is not None:
            texts.append(f"baseline {results.format_values(baseline)}")
        if results.no_result is not None:
            texts.append(results.no_result.reason)
        return ", ".join(texts)

    def _summary(
        self, select: Callable[[StudyResults], FrozenTrial | None]
    ) -> TrialSummary | None:
        from autotune.study.state import attrs

        if self._find_handle() is None:
            return None
        results = self._results()
        trial = select(results)
        plan = None if trial is None else attrs.trial_plan(trial)
        if trial is None or plan is None:
            return None
        words, params = results.describe_plan(trial), results.active_params(trial)
        value, *costs = trial.values
        return TrialSummary(trial.number, value, plan, words, params, *costs)

    def _find_handle(self) -> OpenStudy | None:
        """Open the study; return ``None`` if it does not exist yet."""
        if self._handle is None:
            from autotune.study.setup.opening import find_existing

            self._handle = find_existing(self._name, self._url, self._files)
        return self._handle

    def _open_handle(self) -> OpenStudy:
        handle = self._find_handle()
        if handle is None:
            raise StudyError(f"the study {self._name!r} has not been run yet; run() makes it")
        return handle

    def _results(self) -> StudyResults:
        from autotune.results.study_results import StudyResults

        return StudyResults.from_study(self._open_handle().study)

    def _stored_config(self) -> StudyConfig:
        """Return the configuration of an opened study with the budget of its last run."""
        from autotune.study.state import attrs

        handle = self._open_handle()
        values = handle.config().model_dump(mode="json", exclude={"name"})
        budget = handle.study.user_attrs.get(attrs.BUDGET, {})
        values["search"] |= {key: budget[key] for key in BUDGETS if key in budget}
        return StudyConfig.model_validate(values).model_copy(update={"name": handle.name})

    def _plot(self, draw: Callable[[StudyResults], go.Figure | None], why: str) -> go.Figure:
        figure = draw(self._results())
        if figure is None:
            raise StudyError(f"the study {self._name!r} cannot be plotted: {why}")
        return figure


def _log_warning(event: dict[str, Any]) -> None:
    """Log a warning of a run that shows nothing."""
    if event["event"] == "warning":
        logger.warning("%s", event["text"])


def _check_gpus(gpus: object) -> None:
    if gpus is not None and not isinstance(gpus, str):
        raise UserError(f"gpus: must be text such as '0,2', 'all' or 'none', but got {gpus!r}")
