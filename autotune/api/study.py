"""Run a study."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.text import Text

from autotune.api.plots import StudyPlots
from autotune.config.loading import load_study_file
from autotune.config.schema import BUDGETS, StudyConfig
from autotune.display.console import check_folder, parse_trial, plain_console
from autotune.errors import NoResultError, UserError
from autotune.plan import TrialPlan
from autotune.storage.url import absolute_url

if TYPE_CHECKING:
    from autotune.loggers.background import Logger
    from autotune.results.evaluation.confirm import Confirmation
    from autotune.results.evaluation.refit import RefitResult
    from autotune.study.setup.manual_trials import EnqueuedTrial


logger = logging.getLogger(__name__)

#: Environment variable with the URL of the storage, as for the command.
_STORAGE = "AUTOTUNE_STORAGE"


class Study(StudyPlots):
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
        super().__init__(name, storage, files)
        self._config = config
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
            from autotune.study.race.running import run_study_with_race  # imports torch

            result = run_study_with_race(
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

        if isinstance(trial, str):
            trial = parse_trial(trial, "best")
        other = None if study is None else open_existing(study, self._url)
        return enqueue_plan(self._open_handle(), values or {}, trial, other)

    @property
    def interrupted(self) -> bool:
        """Whether the last :meth:`run` was interrupted."""
        return self._interrupted

    def confirm(
        self,
        top: int = 5,
        seeds: int = 5,
        *,
        splits: bool = False,
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
            splits: Whether each seed also divides the training and validation images anew.
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
            return confirm_plans(handle, top, seeds, on_event, workers=devices, splits=splits)

    def refit(
        self,
        trial: int | Literal["cheapest"] | None = None,
        folder: str | Path | None = None,
        *,
        combine: str = "none",
        members: int | None = None,
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
            trial: Number of the trial to take, or ``cheapest``: of a study of two objectives the
                trial of least cost that is at most a standard error behind the best; default:
                the best confirmed one, or the best.
            folder: Folder of the model, for :func:`autotune.load`; default: beside the study.
            combine: ``ensemble`` (of the best plans), ``soup`` (the weights of several trainings
                of the plan, averaged), ``distill`` (the plan, taught by the ensemble) or ``none``.
                The validation split decides whether the model is combined; the result has the
                single plan beside it.
            members: Most plans of an ensemble (default: 5), or trainings of a soup (default: 3).
            workers: Number of workers; default: one per GPU, or two on the CPU.
            gpus: ``all``, ``none``, or indices such as ``0,2``; default: all.
            workers_per_gpu: Workers that share a GPU, instead of ``workers``.
            progress: As in :meth:`confirm`.

        Raises:
            StudyError: When the trial does not exist, or no trial is complete.
            UserError: When the folder cannot be written, or there is no such combination.
            WorkerError: When a training diverges, or the workers cannot continue.
            KeyboardInterrupt: After an interrupt.

        Example:
            >>> study.refit(trial=99)
            Traceback (most recent call last):
            autotune.errors.StudyError: --trial: the study 'digits' has the trials 0 to ...
        """
        if isinstance(trial, str):
            trial = parse_trial(trial, "cheapest")
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
                combine=combine,
                members=members,
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

    def _stored_config(self) -> StudyConfig:
        """Return the configuration of an opened study with the budget of its last run."""
        from autotune.study.state import attrs

        handle = self._open_handle()
        values = handle.config().model_dump(mode="json", exclude={"name"})
        budget = handle.study.user_attrs.get(attrs.BUDGET, {})
        values["search"] |= {key: budget[key] for key in BUDGETS if key in budget}
        return StudyConfig.model_validate(values).model_copy(update={"name": handle.name})


def _log_warning(event: dict[str, Any]) -> None:
    """Log a warning of a run that shows nothing."""
    if event["event"] == "warning":
        logger.warning("%s", event["text"])


def _check_gpus(gpus: object) -> None:
    if gpus is not None and not isinstance(gpus, str):
        raise UserError(f"gpus: must be text such as '0,2', 'all' or 'none', but got {gpus!r}")
